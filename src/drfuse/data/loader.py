"""Loads batches ahead of the model."""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from drfuse.arguments import as_annotated
from drfuse.data.augmentation import CxrTransform
from drfuse.data.batch import Batch, StoredBatch
from drfuse.data.dataset import StayDataset
from drfuse.data.sampler import EvenBatches
from drfuse.errors import InputError
from drfuse.processes import end_with_parent

_PREFETCHED = 2
"""How many batches the thread makes ahead."""

_SECONDS_TO_STOP = 30
"""How long a process that makes batches outlives a SIGTERM."""


class BatchLoader(DataLoader[StoredBatch]):
    """A loader that makes the next batches in a thread while the model works.

    A thread is enough: the code that gathers batches from memory-mapped files releases the interpreter's
    lock. With `num_workers`, processes make them.
    """

    def __iter__(self) -> Iterator[StoredBatch]:  # type: ignore[override]
        """Yield the batches. Their order is drawn when the first one is requested.

        Lightning calls this before it tells the sampler at which epoch an interrupted run resumes.
        """
        batches = super().__iter__()
        yield from batches if self.num_workers else _prefetch(batches)


class TrainingLoader(BatchLoader):
    """A loader that can go on inside an epoch. Lightning saves its state."""

    sampler: EvenBatches
    _n_yielded = 0  # in this epoch

    def __iter__(self) -> Iterator[StoredBatch]:  # type: ignore[override]
        """Yield the batches."""
        self._n_yielded = self.sampler.first
        for batch in super().__iter__():
            self._n_yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of this epoch were yielded."""
        return {"n_yielded": self._n_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave these batches out of the next epoch that is yielded, unless they are all of their epoch."""
        self.sampler.first = state["n_yielded"] % len(self.sampler)


def _prefetch(batches: Iterator[Any]) -> Iterator[StoredBatch]:
    """Yield the items of an iterator that a thread reads ahead; an error is raised where it occurred."""
    with ThreadPoolExecutor(1, "batches") as thread:
        pending = deque(thread.submit(next, batches, None) for _ in range(_PREFETCHED))
        while (batch := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, batches, None))
            yield cast(StoredBatch, batch)


def batch_loader(
    dataset: StayDataset,
    batches: Any,
    num_workers: int,
    begin_worker: Callable[[int], None] = end_with_parent,
) -> BatchLoader:
    """Return a loader of the dataset for `batches`, each a list of rows.

    Args:
        dataset: The dataset.
        batches: The batches; those of a training may be `EvenBatches`.
        num_workers: Processes that make batches; 0 makes them in this one.
        begin_worker: What such a process does first.

    Raises:
        InputError: If `num_workers` is not a number from 0.
    """
    if as_annotated("num_workers", num_workers, int) < 0:
        raise InputError(f"num_workers is {num_workers}; expected at least 0")
    kind = TrainingLoader if isinstance(batches, EvenBatches) else BatchLoader
    return kind(
        dataset,
        sampler=batches,  # with batch_size=None, an item is a whole batch
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=begin_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each epoch would draw from the global generator
    )


def outlive_signals(number: int) -> None:
    """Have a process that makes batches outlive signals to all, so that training can complete its step."""
    end_with_parent(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_TO_STOP))


def split_rows(rows: NDArray[np.int64], batch_size: int) -> list[list[int]]:
    """Return rows in batches, in order.

    >>> split_rows(np.arange(5), 2)
    [[0, 1], [2, 3], [4]]
    """
    return [part.tolist() for part in np.split(rows, range(batch_size, len(rows), batch_size))]


class EvaluationBatches:
    """Batches for evaluation: no radiograph is dropped or augmented. They can be iterated repeatedly.

    Args:
        dataset: The stays.
        transform_cxr: Scales and crops radiographs.
        batches: The rows of each batch.
        num_workers: Processes that make batches; 0 makes them in this one.
        device: Where the batches go.
    """

    def __init__(
        self,
        dataset: StayDataset,
        transform_cxr: CxrTransform,
        batches: Sequence[Sequence[int]],
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._transform_cxr, self._device = transform_cxr, device
        self._loader = batch_loader(dataset, batches, num_workers)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        self._transform_cxr.eval()
        for batch in self._loader:
            on_device = batch.to(self._device)
            yield on_device.with_cxr(self._transform_cxr(on_device.pixels))


@contextmanager
def explain_killed_workers() -> Iterator[None]:
    """Turn PyTorch's error about a killed process that makes batches into an InputError."""
    try:
        yield
    except RuntimeError as error:  # raised by a signal handler, anywhere in the main thread
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            "a process that makes batches was killed, perhaps because memory ran out; lower --num-workers (0 "
            "needs no such process), and the same command resumes from its last checkpoint"
        ) from error
