"""Are 30 % of those who are given 30 % ill? Reliability curve, calibration error and Brier score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, beside_each_other
from drfuse.evaluation.metrics import resample


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions between two probabilities, of all phenotypes together.

    Attributes:
        low: The lowest probability that is in it.
        high: The lowest that is in the next; 1 is in the last bin.
        n_predictions: Predictions in it; a stay has one of each phenotype.
        predicted: Their mean; NaN where there is none.
        observed: The share of them whose phenotype is present, with its interval.
    """

    low: float
    high: float
    n_predictions: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Attributes:
        ece: Expected calibration error: the mean over the phenotypes of each one's own.
        brier: Brier score: the mean squared error of the probabilities, over stays and phenotypes.
        reliability: The curve, a point a bin.
    """

    ece: Estimate
    brier: Estimate
    reliability: list[ReliabilityBin]


def calibration(
    labels: ArrayLike,
    probabilities: ArrayLike,
    units: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    n_bins: int = 10,
) -> Calibration:
    """Return the calibration of probabilities, with bootstrap intervals.

    A phenotype's expected calibration error is the mean distance between what was predicted and what was
    observed in bins of equal width, weighted with their predictions (Guo et al., ICML 2017, Eq. 5). Chance
    alone makes it larger than zero, and resampling adds to it once more; so its interval is moved by the mean
    of what resampling adds.

    Args:
        labels: (n, C), 0 or 1; phenotypes without a positive count too.
        probabilities: (n, C), 0 to 1; or those of S seeds (S, n, C), whose means are measured.
        units: The unit of each row (n,) that is drawn as a whole: the subject.
        n_resamples: How many resamples.
        seed: Seed of the draws.
        n_bins: Bins of equal width between 0 and 1.

    Raises:
        InputError: If a probability is not between 0 and 1.
    """
    from scipy.sparse import coo_array, vstack

    present, given = beside_each_other(labels, probabilities)
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("expected probabilities from 0 to 1; give calibration no logits and no NaN")
    n, n_columns = present.shape
    bins = np.minimum((given * n_bins).astype(np.intp), n_bins - 1)
    rows = np.broadcast_to(np.arange(n)[:, None], bins.shape).ravel()

    def summed(values: NDArray[np.float64], by: NDArray[np.intp], n_sums: int) -> coo_array:
        """Return a matrix (n_sums, n) that, times the counts of the rows, sums the values (n, C) by group."""
        return coo_array((values.ravel(), (by.ravel(), rows)), shape=(n_sums, n))

    every = np.zeros_like(bins)
    excess = summed(given - present, bins + n_bins * np.arange(n_columns), n_columns * n_bins)
    squares = summed((given - present) ** 2, every, 1)
    predictions, positives = (summed(values, bins, n_bins) for values in (np.ones_like(given), present))
    sums = vstack([excess, squares, predictions, positives]).tocsr()

    def measure(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return ECE (r,), Brier score (r,) and the observed shares (n_bins, r) for counts (n, r)."""
        parts = np.split(sums @ counts, np.cumsum([n_columns * n_bins, 1, n_bins]))
        n_predictions = n_columns * counts.sum(axis=0)
        with np.errstate(invalid="ignore"):
            return (
                np.abs(parts[0]).sum(axis=0) / n_predictions,
                parts[1][0] / n_predictions,
                parts[3] / parts[2],
            )

    once = np.ones((n, 1))
    ece, brier, observed = measure(once)
    blocks = [measure(block.T.astype(np.float64)) for block in resample(units, n_resamples, seed)]
    eces, briers, shares = (np.concatenate(part, axis=-1) for part in zip(*blocks, strict=True))
    n_predictions = np.bincount(bins.ravel(), minlength=n_bins)
    totals = np.bincount(bins.ravel(), given.ravel(), n_bins)
    predicted = np.divide(totals, n_predictions, out=np.full(n_bins, np.nan), where=n_predictions > 0)
    return Calibration(
        ece=Estimate.of(ece[0], np.maximum(eces - eces.mean() + ece[0], 0)),
        brier=Estimate.of(brier[0], briers),
        reliability=[
            ReliabilityBin(
                low=b / n_bins,
                high=(b + 1) / n_bins,
                n_predictions=int(n_predictions[b]),
                predicted=float(predicted[b]),
                observed=Estimate.of(observed[b, 0], shares[b]),
            )
            for b in range(n_bins)
        ],
    )
