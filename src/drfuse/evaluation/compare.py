"""Macro PRAUC over several seeds, and comparisons of two systems on the same resamples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, difference_spread, macro_of_seeds
from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import Resamples, mask_interval, too_few


@dataclass(frozen=True)
class SeededPrauc:
    """The macro PRAUC of a system that was trained with S seeds.

    Attributes:
        values: Each seed's macro PRAUC on all stays (S,).
        resampled: The same in each of R resamples (R, S); NaN in one without a positive.
        label_values: Each seed's PRAUC of each label (S, C); NaN without a positive.
        label_resampled: The same in each resample (R, S, C).
        few: Whether a label has too few positives or negatives for an interval (C,).
        intervals: How the resamples were drawn.
    """

    values: NDArray[np.float64]
    resampled: NDArray[np.float64]
    label_values: NDArray[np.float64]
    label_resampled: NDArray[np.float64]
    few: NDArray[np.bool_]
    intervals: Intervals = "half-sampling"

    @property
    def mean(self) -> Estimate:
        """The mean over the seeds, with its interval."""
        return mask_interval(Estimate.of(self.values, self.resampled, self.intervals), self.few)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None with a single seed."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    def of_label(self, c: int) -> "SeededPrauc":
        """Return the PRAUC of one label alone."""
        values, resampled = self.label_values[:, c], self.label_resampled[:, :, c]
        few = self.few[c : c + 1]
        return SeededPrauc(values, resampled, values[:, None], resampled[..., None], few, self.intervals)


@dataclass(frozen=True)
class Comparison:
    """By how much one system is better than another.

    Attributes:
        difference: Our mean macro PRAUC over the seeds minus theirs.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of no difference; NaN if the interval is NaN.
        counts_seeds: Whether interval and p-value include the variance between trainings, because each system
            has at least two seeds. Otherwise they compare two trained models, not two systems.
    """

    difference: float
    low: float
    high: float
    p: float
    counts_seeds: bool = False


def seeded_prauc(
    labels: ArrayLike,
    scores: Sequence[ArrayLike],
    units: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    intervals: Intervals = "half-sampling",
) -> SeededPrauc:
    """Return the macro PRAUC of each seed of a system, on all stays and in each resample.

    Systems that are measured on the same stays with equal `units`, `n_resamples` and `seed` see the same
    resamples, so that `compare` can pair them. The mean leaves out labels without a positive.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C) of each of the S seeds, higher for likelier.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        intervals: How to draw the resamples: `half-sampling`, or `bootstrap` for the published percentiles.

    Raises:
        InputError: If there are no scores, or their shape is not that of the labels.
    """
    labels = np.asarray(labels)
    of_seeds = [np.asarray(of_seed) for of_seed in scores]
    if not of_seeds or any(of_seed.shape != labels.shape for of_seed in of_seeds):
        raise InputError(
            f"expected the scores of at least one seed, each of the labels' shape {labels.shape}; "
            f"got {[of_seed.shape for of_seed in of_seeds]}"
        )
    blocks = Resamples.draw(units, n_resamples, seed, intervals)
    prauc = np.stack([prauc_auroc(labels, one, blocks)[0] for one in of_seeds], axis=1)  # (1 + R, S, C)
    by_label = prauc[0], prauc[1:]
    return SeededPrauc(*macro_of_seeds(*by_label), *by_label, too_few(labels, units), intervals)


def macro_prauc(
    labels: ArrayLike,
    scores: ArrayLike,
    units: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    intervals: Intervals = "half-sampling",
) -> Estimate:
    """Return the macro PRAUC with its 95 % interval and its bias; NaN without a positive.

    PRAUC is biased upwards with few positives, and more so in a bootstrap, which repeats positives; its
    percentiles are too high. Halves of the units, drawn without replacement, show variance and bias
    (docs/statistics.md). The mean leaves out labels without a positive. The interval is NaN unless some label
    has positives in 5 units and negatives in 5.

    The arguments are those of `seeded_prauc`, but a single seed's `scores` may be (n, C), and without `units`
    each row is one.

    Raises:
        InputError: If the shapes differ, or a score is NaN.
    """
    rows = np.arange(len(np.asarray(labels))) if units is None else units
    of_seeds = [scores] if np.ndim(scores) == 2 else list(np.asarray(scores))
    return seeded_prauc(labels, of_seeds, rows, n_resamples, seed, intervals).mean


def compare(ours: SeededPrauc, theirs: SeededPrauc) -> Comparison:
    """Return by how much our mean over the seeds is better, with interval and p-value.

    Both assume a normal difference, or Student's t with few seeds (docs/statistics.md). They include the
    variance over stays and, if both systems have several seeds, the variance between trainings. The systems
    may differ in their number of seeds.

    Raises:
        InputError: If the numbers of resamples differ.
    """
    if len(ours.resampled) != len(theirs.resampled):
        raise InputError(
            f"one system was measured on {len(ours.resampled)} resamples, the other on "
            f"{len(theirs.resampled)}; measure both on the same"
        )
    spread = difference_spread((ours.values, ours.resampled), (theirs.values, theirs.resampled))
    found = mask_interval(spread.estimate(bounded=False), ours.few)
    p = math.nan if math.isnan(found.low) else spread.p
    counts_seeds = min(len(ours.values), len(theirs.values)) > 1
    return Comparison(found.value, found.low, found.high, p, counts_seeds)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values (m,) corrected for m tests after Holm (Scand J Stat 1979); NaN do not count and stay.

    The smallest is multiplied by m, the next by m - 1, and so on, but never below the one before or above 1.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN are last
    adjusted = np.full_like(p, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
