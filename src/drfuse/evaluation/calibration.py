"""Calibration: do 30 % of the stays predicted at 30 % have the label? Curve, error and Brier score."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, stack_seeds

_NORMAL = 1.959964  # standard errors between the centre and either end of a normal 95 % interval


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions of all labels in one range of probabilities.

    Attributes:
        low: Lower edge, included.
        high: Upper edge, excluded except for 1.
        n_predictions: Number of predictions; a stay has one for each label.
        predicted: Mean prediction; NaN in an empty bin.
        observed: The share that came true, with its interval.
    """

    low: float
    high: float
    n_predictions: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with outcomes.

    Attributes:
        error: Debiased calibration error: the root mean squared distance between predicted and true rates,
            over labels and bins. 0 if predictions are calibrated.
        ece: Expected calibration error as published, the mean over the labels. Chance alone makes it larger
            than 0.
        ece_if_calibrated: Its mean if the labels were drawn from the predictions.
        brier: Brier score: the mean squared error of the probabilities, over stays and labels.
        reliability: The curve, one point for each bin.
    """

    error: Estimate
    ece: float
    ece_if_calibrated: float
    brier: Estimate
    reliability: list[ReliabilityBin]


def calibration(
    labels: ArrayLike,
    probabilities: ArrayLike,
    units: ArrayLike,
    n_draws: int = 100,
    seed: int = 0,
    n_bins: int = 10,
) -> Calibration:
    """Return the calibration of probabilities, with 95 % intervals in closed form.

    A label's expected calibration error is the mean distance between predicted and observed rates in bins of
    equal width, weighted by their predictions (Guo et al., ICML 2017, Eq. 5). The squared error is debiased
    (Kumar et al., NeurIPS 2019): it is the mean product of the residuals of two predictions of different
    units, so its mean is 0 if the predictions are calibrated. Its variance is that of a U-statistic of degree
    2, and its interval holds whether the predictions are calibrated or not.

    Args:
        labels: (n, C), 0 or 1; labels without a positive count too.
        probabilities: (n, C), 0 to 1; or those of S seeds (S, n, C), whose results are averaged.
        units: The independent unit of each row (n,): the subject.
        n_draws: Number of draws of the labels from the predictions, for `ece_if_calibrated`.
        seed: Seed of these draws.
        n_bins: Number of bins of equal width between 0 and 1.

    Raises:
        InputError: If a probability is not between 0 and 1.
    """
    present, given, n_seeds = stack_seeds(labels, probabilities)
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("expected probabilities from 0 to 1; got NaN or numbers outside, such as logits")
    n, n_columns = present.shape
    bins = np.minimum((given * n_bins).astype(np.intp), n_bins - 1)
    cells = bins + n_bins * np.arange(n_columns)  # a bin of a column is a cell
    n_cells = n_columns * n_bins
    _, unit_of_row = np.unique(np.asarray(units), return_inverse=True)

    def sum_by_unit(values: NDArray[np.float64], group: NDArray[np.intp], n_groups: int) -> csr_array:
        """Return the sums of values (n, S C) by unit and group, (units, n_groups)."""
        rows = np.broadcast_to(unit_of_row[:, None], group.shape).ravel()
        shape = (int(unit_of_row.max(initial=-1)) + 1, n_groups)
        return coo_array((values.ravel(), (rows, group.ravel())), shape=shape).tocsr()

    def ece(outcomes: NDArray[np.float64]) -> float:
        sums = np.bincount(cells.ravel(), (given - outcomes).ravel(), n_cells)
        return float(np.abs(sums).sum() / (n * n_columns))

    generator = np.random.default_rng(seed)
    ones = np.ones_like(given)
    residuals, sizes = (sum_by_unit(values, cells, n_cells) for values in (given - present, ones))
    squares = _mean_by_unit((given - present) ** 2, unit_of_row, n_seeds)
    seeds = np.arange(n_columns) // (n_columns // n_seeds)
    positives, in_bins = (sum_by_unit(values, bins, n_bins) for values in (present, ones))
    return Calibration(
        error=_root(_squared_error(residuals, sizes, np.repeat(seeds, n_bins))),
        ece=ece(present),
        ece_if_calibrated=float(np.mean([ece(_draw(given, n_seeds, generator)) for _ in range(n_draws)])),
        brier=_mean_of_units(squares, np.bincount(unit_of_row)),
        reliability=[
            ReliabilityBin(
                low=b / n_bins,
                high=(b + 1) / n_bins,
                n_predictions=int((bins == b).sum()),
                predicted=float(given[bins == b].mean()) if (bins == b).any() else math.nan,
                observed=_share(positives[:, [b]].toarray()[:, 0], in_bins[:, [b]].toarray()[:, 0]),
            )
            for b in range(n_bins)
        ],
    )


def _draw(given: NDArray[np.float64], n_seeds: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return labels drawn from predictions; seeds share a stay's draw, as they share its label."""
    uniform = generator.random((len(given), given.shape[1] // n_seeds))
    drawn: NDArray[np.float64] = (np.tile(uniform, n_seeds) < given).astype(np.float64)
    return drawn


def _mean_by_unit(
    values: NDArray[np.float64], unit_of_row: NDArray[np.intp], n_seeds: int
) -> NDArray[np.float64]:
    """Return the means over the labels, summed over each unit's stays, by seed (units, S)."""
    of_seeds = values.reshape(len(values), n_seeds, -1).mean(axis=2)
    return np.stack([np.bincount(unit_of_row, of_seed) for of_seed in of_seeds.T], axis=1)


def _squared_error(residuals: csr_array, sizes: csr_array, seeds: NDArray[np.intp]) -> Estimate:
    """Return the debiased mean squared calibration error, with a normal interval.

    A cell's error is the mean product of residuals over its pairs of predictions of different units. Cells of
    a single unit have no such pair and are left out.

    Args:
        residuals: Sums of predicted minus observed, by unit and cell (u, K).
        sizes: Numbers of predictions, by unit and cell (u, K).
        seeds: The seed of each cell (K,).
    """
    counts = np.asarray(sizes.sum(axis=0)).ravel()
    n_pairs = counts**2 - np.asarray(sizes.multiply(sizes).sum(axis=0)).ravel()
    if not n_pairs.any():
        return Estimate(math.nan, math.nan, math.nan)
    weights = np.where(n_pairs > 0, counts / np.maximum(n_pairs, 1), 0.0) / counts[n_pairs > 0].sum()
    scaled = residuals.multiply(np.sqrt(weights)).tocsr()  # so that products of rows are the kernel h
    total = np.asarray(scaled.sum(axis=0)).ravel()
    own = np.asarray(scaled.multiply(scaled).sum(axis=1)).ravel()
    n = scaled.shape[0]
    value = float(total @ total - own.sum())
    if n < 3:
        return Estimate(value, math.nan, math.nan)
    rows = np.asarray(scaled @ total).ravel() - own  # the sum of h(i, j) over all j other than i
    gram = (scaled.T @ scaled).toarray()
    pairs = float((gram**2).sum() - (own**2).sum())  # the sum of h(i, j)^2 over ordered pairs
    # Var(sum of h) = 4 * (covariance of pairs that share one unit) + 2 * (variance of a pair)
    mean = value / (n * (n - 1))
    shared = float((rows**2).sum()) - pairs - n * (n - 1) * (n - 2) * mean**2
    variance = 4 * max(shared, 0.0) + 2 * max(pairs - n * (n - 1) * mean**2, 0.0)
    n_seeds = int(seeds.max(initial=0)) + 1
    if n_seeds > 1:
        of_cells = total**2 - np.asarray(scaled.multiply(scaled).sum(axis=0)).ravel()
        of_seeds = n_seeds * np.bincount(seeds, of_cells)
        variance += float(of_seeds.var(ddof=1)) / n_seeds
    margin = _NORMAL * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin)


def _root(squared: Estimate) -> Estimate:
    """Return the root of a squared error; one that chance made negative counts as 0."""
    value, low, high = (
        end if math.isnan(end) else math.sqrt(min(max(end, 0.0), 1.0))
        for end in (squared.value, squared.low, squared.high)
    )
    return Estimate(value, low, high)


def _mean_of_units(sums: NDArray[np.float64], sizes: NDArray[np.int64]) -> Estimate:
    """Return the mean over stays with its interval over units, from sums by unit and seed (u, S)."""
    of_seeds = sums.sum(axis=0) / sizes.sum()
    value = float(of_seeds.mean())
    n = len(sizes)
    if n < 2:
        return Estimate(value, math.nan, math.nan)
    deviation = sums.mean(axis=1) - value * sizes
    variance = n / (n - 1) * float(deviation @ deviation) / float(sizes.sum()) ** 2
    if len(of_seeds) > 1:
        variance += float(of_seeds.var(ddof=1)) / len(of_seeds)
    margin = _NORMAL * math.sqrt(variance)
    return Estimate(value, max(value - margin, 0.0), min(value + margin, 1.0))


def _share(positive: NDArray[np.float64], size: NDArray[np.float64]) -> Estimate:
    """Return the share of positives among predictions, from counts by unit (u,).

    Its interval is Wilson's for the effective number of independent predictions.
    """
    n = float(size.sum())
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    share = float(positive.sum()) / n
    deviation = positive - share * size
    n_units = int((size > 0).sum())
    variance = float(deviation @ deviation) / n**2 * n_units / max(n_units - 1, 1)
    effective = share * (1 - share) / variance if variance > 0 else float(n_units)
    scale = 1 + _NORMAL**2 / effective
    centre = (share + _NORMAL**2 / (2 * effective)) / scale
    margin = _NORMAL / scale * math.sqrt(share * (1 - share) / effective + (_NORMAL / (2 * effective)) ** 2)
    return Estimate(share, max(centre - margin, 0.0), min(centre + margin, 1.0))
