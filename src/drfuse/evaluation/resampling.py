"""Resamples of the subjects, by halves or by bootstrap, and when too few are left for an interval."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import check_choice
from drfuse.evaluation.estimate import FEWEST, Estimate, Intervals

LANES = 64
"""The most resamples of a block: their counts of one row fill a cache line."""

Counts = NDArray[np.integer[Any]]
"""How often each of n rows is drawn in each of r resamples (r, n)."""


def resample(
    units: ArrayLike, n_resamples: int, seed: int, intervals: Intervals = "bootstrap"
) -> Iterator[Counts]:
    """Yield how often each of n rows is drawn, in blocks (r, n) that add up to `n_resamples`.

    Whole units are drawn; the rows of a unit come and go together. A bootstrap draws as many units as there
    are with replacement, half-sampling half of them without. A block holds 64 resamples at most, in bytes
    wherever no unit is drawn more than 255 times.

    Args:
        units: The unit of each row (n,): the subject, say, since one person may have many stays.
        n_resamples: How many resamples.
        seed: Seed of the draws.
        intervals: The intervals that the resamples are for.
    """
    check_choice("intervals", intervals, get_args(Intervals))
    names, unit_of_row = np.unique(np.asarray(units), return_inverse=True)
    n_units = len(names)
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, LANES):
        n = min(LANES, n_resamples - start)
        if intervals == "half-sampling":
            yield _halves(n, n_units, generator)[:, unit_of_row]
            continue
        drawn = generator.integers(0, n_units, size=(n, n_units), dtype=np.int32)
        cells = np.multiply(drawn, n, dtype=np.intp) + np.arange(n)[:, None]
        counts = np.bincount(cells.ravel(), minlength=n * n_units).reshape(n_units, n)
        yield compact(counts)[unit_of_row].T


def once_and_resampled(
    units: ArrayLike, n_resamples: int, seed: int, intervals: Intervals = "half-sampling"
) -> list[Counts]:
    """Return a block that counts each row once, and then the blocks of `resample`."""
    return [np.ones((1, len(np.asarray(units))), np.uint8), *resample(units, n_resamples, seed, intervals)]


def too_few(labels: ArrayLike, units: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each label (C,) has positives or negatives of too few units for an interval.

    From 5 of each on, intervals of single labels contain the truth as often as they promise; with a single
    positive, that of the AUROC does so in a third of the cases (docs/statistics.md).
    """
    present, names = np.asarray(labels) == 1, np.asarray(units)
    return np.array(
        [
            min(len(np.unique(names[of_label])), len(np.unique(names[~of_label]))) < FEWEST
            for of_label in present.T
        ],
        np.bool_,
    )


def unless_too_few(estimate: Estimate, few: ArrayLike) -> Estimate:
    """Return an estimate, without interval and bias if every label that it covers has too few positives."""
    return Estimate(estimate.value, np.nan, np.nan) if np.all(few) else estimate


def _halves(n_resamples: int, n_units: int, generator: np.random.Generator) -> Counts:
    """Return resamples (r, n units) of half of the units; of an odd number, every other one has one more."""
    order = generator.random((n_resamples, n_units), dtype=np.float32).argsort(axis=1)
    sizes = (n_units + np.arange(n_resamples) % 2) // 2
    counts = np.zeros((n_resamples, n_units), np.uint8)
    np.put_along_axis(counts, order, (np.arange(n_units) < sizes[:, None]).astype(np.uint8), axis=1)
    return counts


def compact(counts: Counts) -> Counts:
    """Return counts in bytes if they fit."""
    return counts.astype(np.uint8 if counts.max(initial=0) < 256 else np.int64, copy=False)
