"""Is one system better than another? Macro PRAUC over several seeds, compared on the same resamples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, macro_mean
from drfuse.evaluation.metrics import prauc_auroc, resample


@dataclass(frozen=True)
class SeededPrauc:
    """The macro PRAUC of a system that was trained with S seeds.

    Attributes:
        values: Each seed's macro PRAUC on the stays as they are (S,).
        resampled: The mean over the seeds in each of R resamples of the stays; NaN where one has no positive.
        label_values: Each seed's PRAUC of each label (S, C); NaN of one without a positive.
        label_resampled: The mean over the seeds in each resample (R, C).
    """

    values: NDArray[np.float64]
    resampled: NDArray[np.float64]
    label_values: NDArray[np.float64]
    label_resampled: NDArray[np.float64]

    @property
    def mean(self) -> Estimate:
        """The mean over the seeds, with its interval."""
        return Estimate.of(float(self.values.mean()), self.resampled)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None of a single one."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    def of_label(self, c: int) -> "SeededPrauc":
        """Return the PRAUC of one label alone."""
        values, resampled = self.label_values[:, c], self.label_resampled[:, c]
        return SeededPrauc(values, resampled, values[:, None], resampled[:, None])


@dataclass(frozen=True)
class Comparison:
    """By how much one system is better than another.

    Attributes:
        difference: Our mean macro PRAUC over the seeds, less theirs.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided bootstrap p-value of no difference; NaN where nothing is defined.
    """

    difference: float
    low: float
    high: float
    p: float


def seeded_prauc(
    labels: ArrayLike,
    scores: Sequence[ArrayLike],
    units: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
) -> SeededPrauc:
    """Return the macro PRAUC of each seed of a system, and their mean in each resample of the stays.

    Systems that are measured on the same stays with equal `units`, `n_resamples` and `seed` see the same
    resamples, so that `compare` pairs them. Labels without a positive are left out of the mean they would be
    in.

    Args:
        labels: (n, C), 0 or 1.
        scores: What each of the S seeds says of the same stays, (n, C) each.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: How many resamples.
        seed: Seed of the draws.

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
    praucs = np.concatenate([prauc_auroc(labels, of_seed)[0] for of_seed in of_seeds])  # (S, C)
    resampled = [
        prauc_auroc(labels, of_seed, resample(units, n_resamples, seed))[0] for of_seed in of_seeds
    ]  # (R, C) each
    return SeededPrauc(
        values=macro_mean(praucs),
        resampled=np.mean([macro_mean(of_seed) for of_seed in resampled], axis=0),
        label_values=praucs,
        label_resampled=np.mean(resampled, axis=0),
    )


def compare(ours: SeededPrauc, theirs: SeededPrauc) -> Comparison:
    """Return by how much our mean over the seeds is better, with interval and p-value.

    The p-value is twice the smaller share of resamples on one side of no difference, where one resample more
    is counted on either side, so that it is never 0. The resamples vary the stays only: how much another seed
    would change a system is seen in its `values`.

    Args:
        ours: One system.
        theirs: The other, on the same resamples; it may have another number of seeds.

    Raises:
        InputError: If they were not measured on equally many resamples.

    >>> ours, theirs = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.4, 0.5, 0.8, 0.6])
    >>> one, other = (SeededPrauc(x[:1], x, x[:1, None], x[:, None]) for x in (ours, theirs))
    >>> compare(one, other).p
    0.8
    """
    if ours.resampled.shape != theirs.resampled.shape:
        raise InputError(
            f"one system was measured on {len(ours.resampled)} resamples, the other on "
            f"{len(theirs.resampled)}; measure both on the same"
        )
    differences = ours.resampled - theirs.resampled
    defined = differences[np.isfinite(differences)]
    smaller_side = min(int((defined <= 0).sum()), int((defined >= 0).sum())) + 1
    found = Estimate.of(float(ours.values.mean() - theirs.values.mean()), defined)
    p = min(1.0, 2 * smaller_side / (len(defined) + 1)) if len(defined) else math.nan
    return Comparison(found.value, found.low, found.high, p)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values (m,) adjusted for being m, after Holm (Scand J Stat 1979); NaN are none and stay.

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
