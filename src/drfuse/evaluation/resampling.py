"""Resamples of the subjects, by halves or by bootstrap, and whether there are enough for an interval."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import check_choice
from drfuse.evaluation.estimate import Estimate, Intervals

LANES = 64
"""The most resamples in a block: their counts of one row fill a cache line."""

MIN_UNITS = 5
"""The fewest units with positives, and with negatives, for an interval of a single label."""

Counts = NDArray[np.integer[Any]]
"""How often each of n rows is drawn in each of r resamples (r, n)."""


def resample(
    units: ArrayLike, n_resamples: int, seed: int, intervals: Intervals = "bootstrap"
) -> Iterator[Counts]:
    """Yield how often each of n rows is drawn, in blocks (r, n) that add up to `n_resamples`.

    The rows of a unit are drawn together. A bootstrap draws as many units as there are, with replacement;
    half-sampling draws half of them without. A block has at most 64 resamples, in bytes if no unit is drawn
    more than 255 times.

    Args:
        units: The unit of each row (n,), such as the subject, since one person may have many stays.
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        intervals: The kind of interval that the resamples are for.
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


def original_and_resamples(
    units: ArrayLike, n_resamples: int, seed: int, intervals: Intervals = "half-sampling"
) -> list[Counts]:
    """Return a block that counts each row once, followed by the blocks of `resample`."""
    return [np.ones((1, len(np.asarray(units))), np.uint8), *resample(units, n_resamples, seed, intervals)]


def too_few(labels: ArrayLike, units: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each label (C,) has positives or negatives in too few units for an interval.

    From 5 units of each, intervals of single labels contain the truth as often as they promise; with a single
    positive, that of the AUROC does so in a third of the cases (docs/statistics.md).
    """
    positive, names = np.asarray(labels) == 1, np.asarray(units)
    n_units = [
        min(len(np.unique(names[of_label])), len(np.unique(names[~of_label]))) for of_label in positive.T
    ]
    return np.array(n_units, np.int64) < MIN_UNITS


def mask_interval(estimate: Estimate, few: ArrayLike) -> Estimate:
    """Return an estimate, without interval and bias if all its labels have too few positives (`few`)."""
    return Estimate(estimate.value, np.nan, np.nan) if np.all(few) else estimate


def _halves(n_resamples: int, n_units: int, generator: np.random.Generator) -> Counts:
    """Return resamples (r, n units) of half of the units; if odd, every other resample has one more."""
    order = generator.random((n_resamples, n_units), dtype=np.float32).argsort(axis=1)
    sizes = (n_units + np.arange(n_resamples) % 2) // 2
    counts = np.zeros((n_resamples, n_units), np.uint8)
    np.put_along_axis(counts, order, (np.arange(n_units) < sizes[:, None]).astype(np.uint8), axis=1)
    return counts


def compact(counts: Counts) -> Counts:
    """Return counts in bytes if they fit."""
    return counts.astype(np.uint8 if counts.max(initial=0) < 256 else np.int64, copy=False)
