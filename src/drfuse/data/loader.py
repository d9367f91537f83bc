"""Batches that are ready when the model asks for them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from torch.utils.data import DataLoader

from drfuse.data.batch import StoredBatch

_AHEAD = 2
"""How many batches wait, or are being made, while the model works."""


class BatchLoader(DataLoader[StoredBatch]):
    """A loader that makes the next batches in a thread while the model works, in the same order.

    A thread is enough: batches are gathered from memory-mapped files by code that releases the interpreter's
    lock. With `num_workers`, processes make them.
    """

    def __iter__(self) -> Iterator[StoredBatch]:  # type: ignore[override]
        """Yield the batches. Their order is drawn only when the first one is asked for.

        Lightning starts to iterate before it tells the sampler at which epoch an interrupted run resumes.
        """
        batches = super().__iter__()
        yield from batches if self.num_workers else _made_ahead(batches)


def _made_ahead(batches: Iterator[Any]) -> Iterator[StoredBatch]:
    """Yield the items of an iterator, read ahead by a thread; what it raises is raised in its turn."""
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield cast(StoredBatch, batch)
