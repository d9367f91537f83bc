"""Net benefit: is it better to act on the predictions than to treat every stay, or none?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array, vstack

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, macro_mean, macro_of_seeds
from drfuse.evaluation.resampling import Resamples, mask_interval, too_few

THRESHOLDS = (0.01, 0.02, 0.03, 0.04, *(percent / 100 for percent in range(5, 95, 5)))
"""The threshold probabilities of the curves."""


@dataclass(frozen=True)
class DecisionPoint:
    """The net benefit of predictions at one threshold probability.

    Attributes:
        threshold: The probability from which on a stay is treated. Treating from 0.1 on accepts 9 treatments
            that are not needed for each one that is.
        net_benefit: Share of the stays that are treated and have the label, minus the share that is treated
            without it, times the odds of the threshold. Treating no stay has a net benefit of 0.
        treat_all: The net benefit of treating every stay.
        gain: `net_benefit` minus `treat_all`.
    """

    threshold: float
    net_benefit: Estimate
    treat_all: float
    gain: Estimate


@dataclass(frozen=True)
class DecisionCurves:
    """Decision curves: net benefit by threshold probability.

    Attributes:
        macro: The mean over the labels with a positive.
        by_label: The curve of each label, in order; NaN without a positive.
    """

    macro: list[DecisionPoint]
    by_label: dict[str, list[DecisionPoint]]


def decision_curves(
    labels: ArrayLike,
    probabilities: ArrayLike,
    names: Sequence[str],
    units: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    thresholds: Sequence[float] = THRESHOLDS,
    intervals: Intervals = "half-sampling",
) -> DecisionCurves:
    """Return decision curves with 95 % intervals (Vickers & Elkin, Med Decis Making 2006).

    Args:
        labels: (n, C), 0 or 1.
        probabilities: (n, C), 0 to 1; or those of S seeds (S, n, C), whose results are averaged.
        names: The C names.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        thresholds: Threshold probabilities in ascending order, each above 0 and below 1.
        intervals: How to draw the resamples.

    Raises:
        InputError: If a probability is not between 0 and 1, or the thresholds are not as described.
    """
    resamples = Resamples.draw(units, n_resamples, seed, intervals)
    return decision_curves_in(resamples, labels, probabilities, names, units, thresholds, intervals)


def decision_curves_in(
    resamples: Resamples,
    labels: ArrayLike,
    probabilities: ArrayLike,
    names: Sequence[str],
    units: ArrayLike,
    thresholds: Sequence[float] = THRESHOLDS,
    intervals: Intervals = "half-sampling",
) -> DecisionCurves:
    """Return what `decision_curves` does, in resamples that were drawn before."""
    at = np.asarray(thresholds, np.float64)
    if not (len(at) and ((at > 0) & (at < 1)).all() and (np.diff(at) > 0).all()):
        raise InputError(f"expected ascending thresholds above 0 and below 1; got {list(thresholds)}")
    present, given = np.asarray(labels), np.asarray(probabilities)
    given = given[None] if given.ndim == 2 else given
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("expected probabilities from 0 to 1; got NaN or numbers outside, such as logits")
    few, missing = too_few(present, units), ~present.any(axis=0)
    benefit, of_all = _net_benefit(resamples, present, given, at)
    benefit[..., missing], of_all[..., missing] = np.nan, np.nan

    def points(chosen: slice) -> list[DecisionPoint]:
        """Return the curve of the mean over some labels."""
        found = []
        for t, threshold in enumerate(at.tolist()):
            net_benefit, gain = (
                mask_interval(
                    Estimate.of(*macro_of_seeds(one[0], one[1:]), intervals, bounded=False), few[chosen]
                )
                for one in (benefit[:, t, :, chosen], (benefit - of_all)[:, t, :, chosen])
            )
            treat_all = float(macro_mean(of_all[0, t, :, chosen])[0])
            found.append(DecisionPoint(threshold, net_benefit, treat_all, gain))
        return found

    return DecisionCurves(
        macro=points(slice(None)),
        by_label={name: points(slice(c, c + 1)) for c, name in enumerate(names)},
    )


def _net_benefit(
    resamples: Resamples, labels: NDArray[Any], probabilities: NDArray[Any], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the net benefit of the predictions (R, T, S, C), and of treating all (R, T, 1, C).

    Stays are counted by label, by how many thresholds their probability reaches and by outcome. The counts of
    each unit are added up once, and weighted by how often each resample draws the unit.
    """
    n_seeds, _, n_labels = probabilities.shape
    n_bins = len(thresholds) + 1
    odds = (thresholds / (1 - thresholds))[:, None]
    counts = _counts(resamples.unit_of_row, labels, probabilities, thresholds)
    benefit: list[NDArray[np.float64]] = []
    of_all: list[NDArray[np.float64]] = []
    for drawn in resamples.of_units():
        sums = (counts @ drawn.astype(np.float64)).reshape(n_seeds, n_labels, n_bins, 2, -1)
        reached = sums[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]  # at least so many thresholds
        everyone = reached[:1, :, :1]
        n_stays = everyone[0, 0, 0].sum(axis=0)
        for found, treated in ((benefit, reached[:, :, 1:]), (of_all, everyone)):
            net = (treated[..., 1, :] - odds * treated[..., 0, :]) / np.maximum(n_stays, 1)
            found.append(net.transpose(3, 2, 0, 1))
    return np.concatenate(benefit), np.concatenate(of_all)


def _counts(
    unit_of_row: NDArray[np.intp],
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    thresholds: NDArray[np.float64],
) -> csr_array:
    """Return the stays by cell, of seed, label, number of thresholds reached and outcome, and unit (K, u)."""
    n_bins = len(thresholds) + 1
    n_units = int(unit_of_row.max(initial=-1)) + 1
    parts = []
    for of_seed in probabilities:
        for present, given in zip(labels.T, of_seed.T, strict=True):
            cells = 2 * np.searchsorted(thresholds, given, side="right") + (present == 1)
            ones = np.ones(len(cells), np.float64)
            parts.append(coo_array((ones, (cells, unit_of_row)), shape=(2 * n_bins, n_units)).tocsr())
    return vstack(parts, format="csr")
