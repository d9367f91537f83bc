"""Macro PRAUC over several seeds, and whether one system is better than another on the same resamples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, difference_spread, macro_of_seeds
from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import once_and_resampled, too_few, unless_too_few


@dataclass(frozen=True)
class SeededPrauc:
    """The macro PRAUC of a system that was trained with S seeds.

    Attributes:
        values: Each seed's macro PRAUC on the stays as they are (S,).
        resampled: The same in each of R resamples of the stays (R, S); NaN where one has no positive.
        label_values: Each seed's PRAUC of each label (S, C); NaN of one without a positive.
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
        return unless_too_few(Estimate.of(self.values, self.resampled, self.intervals), self.few)

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
        difference: Our mean macro PRAUC over the seeds, less theirs.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of no difference; NaN if the interval is NaN.
        counts_seeds: Whether the variance between trainings is in interval and p-value: each system has two
            seeds or more. Otherwise two trained models are compared, not two systems.
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
    """Return the macro PRAUC of each seed of a system, on the stays and in each resample of them.

    Systems that are measured on the same stays with equal `units`, `n_resamples` and `seed` see the same
    resamples, so that `compare` pairs them. Labels without a positive are left out of the mean.

    Args:
        labels: (n, C), 0 or 1.
        scores: What each of the S seeds says of the same stays, (n, C) each.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: How many resamples.
        seed: Seed of the draws.
        intervals: How they are drawn.

    Raises:
        InputError: If there are no scores, or they are not of the shape of the labels.
    """
    labels = np.asarray(labels)
    of_seeds = [np.asarray(of_seed) for of_seed in scores]
    if not of_seeds or any(of_seed.shape != labels.shape for of_seed in of_seeds):
        raise InputError(
            f"expected the scores of at least one seed, each {labels.shape} as the labels; "
            f"got {[of_seed.shape for of_seed in of_seeds]}"
        )
    blocks = once_and_resampled(units, n_resamples, seed, intervals)
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

    PRAUC of few positives is biased upwards, and so is that of resamples, in which positives repeat: so
    percentiles of a bootstrap miss the truth below. Halves of the units, drawn without replacement, tell both
    the variance and the bias of the whole (docs/statistics.md). Labels without a positive are left out.
    The interval is NaN unless some label has positives in 5 units and negatives in 5.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C), higher for likelier; or those of S seeds (S, n, C), whose mean is measured, with the
            variance between them.
        units: The unit of each row (n,) that is drawn as a whole, such as the subject; without it each row is
            one.
        n_resamples: How many resamples.
        seed: Seed of the draws.
        intervals: `half-sampling`, or `bootstrap` for the percentiles of published code.

    Raises:
        InputError: If the shapes differ, or a score is NaN.
    """
    rows = np.arange(len(np.asarray(labels))) if units is None else units
    of_seeds = [scores] if np.ndim(scores) == 2 else list(np.asarray(scores))
    return seeded_prauc(labels, of_seeds, rows, n_resamples, seed, intervals).mean


def compare(ours: SeededPrauc, theirs: SeededPrauc) -> Comparison:
    """Return by how much our mean over the seeds is better, with interval and p-value.

    Both come from a normal difference, or from Student's t where there are few seeds (docs/statistics.md).
    They count the variance over stays and, where both systems have several seeds, that
    between trainings.

    Args:
        ours: One system.
        theirs: The other, on the same resamples; it may have another number of seeds.

    Raises:
        InputError: If they were not measured on equally many resamples.
    """
    if len(ours.resampled) != len(theirs.resampled):
        raise InputError(
            f"one system was measured on {len(ours.resampled)} resamples, the other on "
            f"{len(theirs.resampled)}; measure both on the same"
        )
    spread = difference_spread((ours.values, ours.resampled), (theirs.values, theirs.resampled))
    found = unless_too_few(spread.estimate(bounded=False), ours.few)
    p = math.nan if math.isnan(found.low) else spread.p
    counts_seeds = min(len(ours.values), len(theirs.values)) > 1
    return Comparison(found.value, found.low, found.high, p, counts_seeds)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values (m,) corrected for m tests, after Holm (Scand J Stat 1979); NaN stay and do not count.

    The smallest is multiplied by m, the next by m - 1, and so on; none becomes smaller than the one before
    it, or larger than 1.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN are last
    adjusted = np.full_like(p, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
