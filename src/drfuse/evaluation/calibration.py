"""Calibration: do 30 % of the stays predicted at 30 % have the label? Curve, error and Brier score."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array, vstack

from drfuse.errors import InputError
from drfuse.evaluation.estimate import NORMAL, Estimate, mean_share, stack_seeds
from drfuse.evaluation.resampling import number_units

_STAYS_A_BLOCK = 32_768


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
    stays = _Stays.of(labels, probabilities, units, n_bins)
    generator = np.random.default_rng(seed)
    squares, positives, in_bins = stays.by_unit()
    residuals, pairs = stays.residuals()
    seeds = np.arange(stays.n_columns * n_bins) // (stays.n_columns * n_bins // stays.n_seeds)
    n_predictions = in_bins.sum(axis=0)
    return Calibration(
        error=_root(_squared_error(residuals, pairs, seeds)),
        ece=stays.ece(),
        ece_if_calibrated=float(np.mean([stays.ece(generator) for _ in range(n_draws)])),
        brier=_mean_of_units(squares, np.bincount(stays.unit_of_row)),
        reliability=[
            ReliabilityBin(
                low=b / n_bins,
                high=(b + 1) / n_bins,
                n_predictions=int(n_predictions[b]),
                predicted=stays.mean_of_bin(b, int(n_predictions[b])),
                observed=mean_share(positives[:, [b]].astype(np.float64), in_bins[:, [b]].astype(np.float64)),
            )
            for b in range(n_bins)
        ],
    )


@dataclass(frozen=True)
class _Stays:
    """Predictions of n stays by S seeds, read a block of stays at a time; a column is a seed and a label.

    Attributes:
        labels: (n, C), 0 or 1.
        probabilities: (S, n, C).
        unit_of_row: The unit of each stay (n,), from 0.
        n_bins: Number of bins.
        bins: The bin of each prediction (n, S C).
    """

    labels: NDArray[Any]
    probabilities: NDArray[Any]
    unit_of_row: NDArray[np.intp]
    n_bins: int
    bins: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, labels: ArrayLike, probabilities: ArrayLike, units: ArrayLike, n_bins: int) -> "_Stays":
        """Return the stays.

        Raises:
            InputError: If a probability is not between 0 and 1.
        """
        known, given = np.asarray(labels), np.asarray(probabilities)
        given = given[None] if given.ndim == 2 else given
        bins = np.empty((len(known), len(given) * known.shape[1]), np.min_scalar_type(n_bins - 1))
        stays = cls(known, given, number_units(units)[0], n_bins, bins)
        for rows in stays._blocks():
            _, of_rows = stays._columns(rows)
            if not ((of_rows >= 0) & (of_rows <= 1)).all():
                raise InputError(
                    "expected probabilities from 0 to 1; got NaN or numbers outside, such as logits"
                )
            bins[rows] = np.minimum((of_rows * n_bins).astype(np.intp), n_bins - 1)
        return stays

    @property
    def n_seeds(self) -> int:
        """S."""
        return len(self.probabilities)

    @property
    def n_columns(self) -> int:
        """S C."""
        return int(self.bins.shape[1])

    @property
    def n_units(self) -> int:
        """The number of units."""
        return int(self.unit_of_row.max(initial=-1)) + 1

    def by_unit(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return sums over each unit's stays.

        They are the squared errors, averaged over the labels, by seed (u, S); and by bin (u, n_bins) the
        positives and the predictions.
        """
        squares = np.empty((len(self.labels), self.n_seeds))
        positives, in_bins = np.zeros((2, self.n_units * self.n_bins), np.int64)
        for rows in self._blocks():
            present, given = self._columns(rows)
            errors = ((given - present) ** 2).reshape(len(present), self.n_seeds, -1)
            squares[rows] = errors.mean(axis=2)
            cells = self.bins[rows] + self.n_bins * self.unit_of_row[rows, None]
            in_bins += np.bincount(cells.ravel(), minlength=len(in_bins))
            positives += np.bincount(cells[present == 1], minlength=len(in_bins))
        of_seeds = [np.bincount(self.unit_of_row, of_seed) for of_seed in squares.T]
        shape = (self.n_units, self.n_bins)
        return np.stack(of_seeds, axis=1), positives.reshape(shape), in_bins.reshape(shape)

    def residuals(self) -> tuple[csr_array, NDArray[np.float64]]:
        """Return the sums of predicted minus observed by unit and cell, a bin of a column (u, K).

        And the numbers of predictions by cell, and their squares summed over the units (2, K).
        """
        n_cells = self.n_columns * self.n_bins
        order = np.argsort(self.unit_of_row, kind="stable")
        ends = np.cumsum(np.bincount(self.unit_of_row, minlength=self.n_units))
        pairs = np.zeros((2, n_cells))
        parts = []
        first = 0
        while first < self.n_units:  # a block of whole units
            start = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + _STAYS_A_BLOCK, side="right")))
            rows = order[start : ends[last - 1]]
            present, given = self._columns(rows)
            cells = self._cells(rows).ravel()
            unit = np.repeat(self.unit_of_row[rows] - first, self.n_columns)
            shape = (last - first, n_cells)
            parts.append(coo_array(((given - present).ravel(), (unit, cells)), shape=shape).tocsr())
            sizes = coo_array((np.ones(len(cells)), (unit, cells)), shape=shape).tocsr()
            pairs += [np.bincount(sizes.indices, values, n_cells) for values in (sizes.data, sizes.data**2)]
            first = last
        return vstack(parts, format="csr"), pairs

    def ece(self, generator: np.random.Generator | None = None) -> float:
        """Return the expected calibration error; with a generator, of labels drawn from the predictions."""
        n_cells = self.n_columns * self.n_bins
        sums: NDArray[Any] = np.zeros(n_cells)
        for rows in self._blocks():
            present, given = self._columns(rows)
            outcomes = present if generator is None else _draw(given, self.n_seeds, generator)
            cells = np.concatenate([np.arange(n_cells), self._cells(rows).ravel()])
            # goes on adding where the last block ended, so that blocks do not change the sums
            sums = np.bincount(cells, np.concatenate([sums, (given - outcomes).ravel()]), n_cells)
        return float(np.abs(sums).sum() / (len(self.labels) * self.n_columns))

    def mean_of_bin(self, b: int, n: int) -> float:
        """Return the mean of the n predictions in a bin; NaN if it is empty."""
        found = np.empty(n)
        filled = 0
        for rows in self._blocks():
            of_block = self._columns(rows)[1][self.bins[rows] == b]
            found[filled : (filled := filled + len(of_block))] = of_block
        return float(found.mean()) if n else math.nan

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.labels), _STAYS_A_BLOCK):
            yield slice(start, start + _STAYS_A_BLOCK)

    def _columns(self, rows: slice | NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return labels and probabilities of some stays, both (r, S C)."""
        present, given, _ = stack_seeds(self.labels[rows], self.probabilities[:, rows])
        return present, given.astype(np.float64, copy=False)

    def _cells(self, rows: slice | NDArray[np.intp]) -> NDArray[np.intp]:
        return self.bins[rows] + self.n_bins * np.arange(self.n_columns)


def _draw(given: NDArray[np.float64], n_seeds: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return labels drawn from predictions; seeds share a stay's draw, as they share its label."""
    uniform = generator.random((len(given), given.shape[1] // n_seeds))
    drawn: NDArray[np.float64] = (np.tile(uniform, n_seeds) < given).astype(np.float64)
    return drawn


def _squared_error(residuals: csr_array, sizes: NDArray[np.float64], seeds: NDArray[np.intp]) -> Estimate:
    """Return the debiased mean squared calibration error, with a normal interval.

    A cell's error is the mean product of residuals over its pairs of predictions of different units. Cells of
    a single unit have no such pair and are left out.

    Args:
        residuals: Sums of predicted minus observed, by unit and cell (u, K).
        sizes: Numbers of predictions by cell, and the sums over units of their squares (2, K).
        seeds: The seed of each cell (K,).
    """
    counts, squares = sizes
    n_pairs = counts**2 - squares
    if not n_pairs.any():
        return Estimate(math.nan, math.nan, math.nan)
    weights = np.where(n_pairs > 0, counts / np.maximum(n_pairs, 1), 0.0) / counts[n_pairs > 0].sum()
    cells, starts = residuals.indices, residuals.indptr
    values = residuals.data * np.sqrt(weights)[cells]  # so that products of rows are the kernel h
    scaled = csr_array((values, cells, starts), residuals.shape)
    squared = csr_array((values**2, cells, starts), residuals.shape)
    total = np.asarray(scaled.sum(axis=0)).ravel()
    own = np.asarray(squared.sum(axis=1)).ravel()
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
        of_cells = total**2 - np.asarray(squared.sum(axis=0)).ravel()
        of_seeds = n_seeds * np.bincount(seeds, of_cells)
        variance += float(of_seeds.var(ddof=1)) / n_seeds
    margin = NORMAL * math.sqrt(variance)
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
    margin = NORMAL * math.sqrt(variance)
    return Estimate(value, max(value - margin, 0.0), min(value + margin, 1.0))
