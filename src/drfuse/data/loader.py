"""Batches that are there when the model asks for them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from torch.utils.data import DataLoader

from drfuse.data.batch import Batch

_AHEAD = 2
"""Batches that wait, or are being made, while the model is at work."""


class BatchLoader(DataLoader[Batch]):
    """A loader whose next batches are made by a thread while the model works; their order stays.

    What a batch is made of is memory-mapped and gathered at once by code that does not hold the interpreter,
    so that a thread is enough. With `num_workers`, processes make them, as ever.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches. Their order is drawn when the first one is asked for.

        Lightning starts to iterate before it tells the sampler at which epoch an interrupted run goes on.
        """
        batches = super().__iter__()
        yield from batches if self.num_workers else _made_ahead(batches)


def _made_ahead(batches: Iterator[Any]) -> Iterator[Batch]:
    """Yield what an iterator gives, asked by a thread that is ahead; what it raises is raised in its turn."""
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield cast(Batch, batch)
