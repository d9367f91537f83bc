"""Draws batches of equal size with equal shares of stays with a radiograph."""

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EvenBatches(Sampler[list[int]]):
    """Shuffled batches of rows, each with the same share of stays with a radiograph, give or take one stay.

    Every row comes once per epoch. Stays with and without a radiograph are shuffled, then spread evenly over
    the epoch. Sizes of batches differ by at most one row, and so do those of steps: an optimizer moves as far
    for one row as for many, so a row alone in a step would count many times. Batches of one row cannot be
    split: with `batch_size` 1 and `accumulate` above 1, the last step of an epoch has the remaining rows.

    Args:
        rows: The rows to draw (n,).
        has_cxr: Whether each of them has a radiograph (n,).
        batch_size: The most rows per batch.
        seed: Seed of the order, which changes with each epoch (`set_epoch`).
        rank: Number of this process, which gets its part of each batch (`part_of`).
        n_ranks: How many processes share the batches.
        accumulate: Batches per optimizer step.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        has_cxr: NDArray[np.bool_],
        batch_size: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.groups = (rows[has_cxr], rows[~has_cxr])
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.n_ranks = rank, n_ranks
        self.accumulate = accumulate
        self.epoch = 0
        self.first = 0  # the batch at which the next epoch starts, when a training goes on inside it

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """The number of rows of each batch."""
        n = sum(map(len, self.groups))
        n_steps = math.ceil(n / (self.batch_size * self.accumulate))
        if n < n_steps * self.accumulate:  # fewer rows than batches
            return _spread(n, math.ceil(n / self.batch_size))
        return [size for step in _spread(n, n_steps) for size in _spread(step, self.accumulate)]

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        shuffled = np.concatenate([generator.permutation(group) for group in self.groups])
        # stay i of a group of n comes at the fraction (i + u) / n of the epoch
        fraction = np.concatenate(
            [(np.arange(len(group)) + generator.random()) / max(1, len(group)) for group in self.groups]
        )
        order = fraction.argsort(kind="stable")
        first, self.first = self.first, 0
        for batch in np.split(order, np.cumsum(self.sizes)[:-1])[first:]:
            part = part_of(batch, batch < len(self.groups[0]), self.rank, self.n_ranks)
            yield shuffled[part].tolist()


def _spread(n: int, n_parts: int) -> list[int]:
    """Return the sizes of `n_parts` parts of n rows; they differ by at most one.

    >>> _spread(33, 3), _spread(8, 3)
    ([11, 11, 11], [3, 3, 2])
    """
    return [n // n_parts + (part < n % n_parts) for part in range(n_parts)]


def part_of(
    batch: NDArray[np.int64], has_cxr: NDArray[np.bool_], rank: int, n_ranks: int
) -> NDArray[np.int64]:
    """Return process `rank`'s part of a batch of rows (B,), given whether each has a radiograph (B,).

    Parts have the same numbers of stays, and of stays with a radiograph, give or take one. If there are fewer
    stays than processes, every process gets the whole batch.

    >>> part_of(np.arange(5), np.array([False, True, False, True, False]), 0, 2)
    array([1, 0, 4])
    """
    if n_ranks == 1 or len(batch) < n_ranks:
        return batch
    return batch[np.argsort(~has_cxr, kind="stable")[rank::n_ranks]]
