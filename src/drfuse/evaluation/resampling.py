"""Resamples of the subjects, by halves or by bootstrap, and whether there are enough for an interval."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import check_choice
from drfuse.evaluation.estimate import Estimate, Intervals
from drfuse.logs import tracked

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
    unit_of_row, n_units = number_units(units)
    for counts in _draw_units(n_units, n_resamples, seed, intervals):
        yield counts[unit_of_row].T


def _draw_units(n_units: int, n_resamples: int, seed: int, intervals: Intervals) -> Iterator[Counts]:
    """Yield how often each unit is drawn, in blocks (n_units, r)."""
    check_choice("intervals", intervals, get_args(Intervals))
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, LANES):
        n = min(LANES, n_resamples - start)
        if intervals == "half-sampling":
            yield _halves(n, n_units, generator)
            continue
        drawn = generator.integers(0, n_units, size=(n, n_units), dtype=np.int32)
        cells = np.multiply(drawn, n, dtype=np.intp) + np.arange(n)[:, None]
        counts = np.bincount(cells.ravel(), minlength=n * n_units).reshape(n_units, n)
        yield compact(counts)


@dataclass(frozen=True)
class Resamples:
    """All rows once, and R resamples of them; they are stored by unit, in bits if no unit is drawn twice.

    Iterating yields blocks (r, n) as `resample` does, the first of which counts each row once.

    Attributes:
        unit_of_row: The number of each row's unit (n,), from 0.
        blocks: How often each of u units is drawn in r resamples (u, r), or the same in bits.
    """

    unit_of_row: NDArray[np.intp]
    blocks: Sequence["Counts | _Bits"]

    @classmethod
    def draw(
        cls,
        units: ArrayLike,
        n_resamples: int,
        seed: int,
        intervals: Intervals = "half-sampling",
        title: str | None = None,
    ) -> "Resamples":
        """Return the original and what `resample` yields; with a title, a progress bar is shown."""
        unit_of_row, n_units = number_units(units)
        drawn = tracked(
            _draw_units(n_units, n_resamples, seed, intervals),
            title or "",
            math.ceil(n_resamples / LANES),
            shown=title is not None,
        )
        stored = [_Bits.of(block) if intervals == "half-sampling" else block for block in drawn]
        return cls(unit_of_row, stored)

    def __iter__(self) -> Iterator[Counts]:
        for counts in self.of_units():
            yield counts[self.unit_of_row].T

    def of_units(self) -> Iterator[Counts]:
        """Yield how often each unit is drawn, in blocks (u, r), the first of which counts each once."""
        n_units = int(self.unit_of_row.max(initial=-1)) + 1
        yield np.ones((n_units, 1), np.uint8)
        for block in self.blocks:
            yield block.unpack() if isinstance(block, _Bits) else block

    def __len__(self) -> int:
        """The number of blocks."""
        return 1 + len(self.blocks)


class _Bits(NamedTuple):
    """Counts of 0 or 1 (u, r) in bits (u, r / 8)."""

    packed: NDArray[np.uint8]
    r: int

    @classmethod
    def of(cls, counts: Counts) -> "_Bits":
        return cls(np.packbits(counts, axis=1), counts.shape[1])

    def unpack(self) -> Counts:
        return np.unpackbits(self.packed, axis=1, count=self.r)


def number_units(units: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """Return the number of each row's unit (n,), from 0 in their order, and how many there are."""
    names, unit_of_row = np.unique(np.asarray(units), return_inverse=True)
    return unit_of_row, len(names)


def too_few(labels: ArrayLike, units: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each label (C,) has positives or negatives in too few units for an interval.

    From 5 units of each, intervals of single labels contain the truth as often as they promise; with a single
    positive, that of the AUROC does so in a third of the cases (docs/statistics.md).
    """
    positive = np.asarray(labels) == 1
    unit_of_row, n_units = number_units(units)

    def count(rows: NDArray[np.bool_]) -> int:
        found = np.zeros(n_units, bool)
        found[unit_of_row[rows]] = True
        return int(found.sum())

    n_of_label = [min(count(of_label), count(~of_label)) for of_label in positive.T]
    return np.array(n_of_label, np.int64) < MIN_UNITS


def mask_interval(estimate: Estimate, few: ArrayLike) -> Estimate:
    """Return an estimate, without interval and bias if all its labels have too few positives (`few`)."""
    return Estimate(estimate.value, np.nan, np.nan) if np.all(few) else estimate


def _halves(n_resamples: int, n_units: int, generator: np.random.Generator) -> Counts:
    """Return resamples (n_units, r) of half of the units; if odd, every other resample has one more."""
    counts = np.zeros((n_units, n_resamples), np.uint8)
    for r in range(n_resamples):
        order = generator.random(n_units, dtype=np.float32).argsort()
        counts[order[: (n_units + r % 2) // 2], r] = 1
    return counts


def compact(counts: Counts) -> Counts:
    """Return counts in bytes if they fit."""
    return counts.astype(np.uint8 if counts.max(initial=0) < 256 else np.int64, copy=False)
