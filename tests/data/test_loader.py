"""Batches are made ahead, in order, and what goes wrong is told."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from drfuse.data.loader import BatchLoader, TrainingLoader
from drfuse.data.sampler import EvenBatches


class Noting(Dataset[Any]):
    """Gives the row it is asked for, and notes it; one row cannot be read."""

    def __init__(self, broken: int | None = None) -> None:
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.broken = broken

    def __getitem__(self, row: int) -> int:
        if row == self.broken:
            raise OSError("the disk is gone")
        self.made.append(row)
        self.threads.add(threading.current_thread().name)
        return row


def loader(dataset: Noting, n: int) -> BatchLoader:
    return BatchLoader(dataset, sampler=range(n), batch_size=None)


def test_batches_come_in_order_and_each_time_anew() -> None:
    dataset = Noting()
    loading = loader(dataset, 20)
    assert [list(loading), list(loading)] == [list(range(20))] * 2
    assert len(loading) == 20
    assert threading.main_thread().name not in dataset.threads


def test_the_next_batches_are_made_while_one_is_in_use() -> None:
    dataset = Noting()
    batches = iter(loader(dataset, 20))
    assert next(batches) == 0
    end = time.monotonic() + 10
    while len(dataset.made) < 3 and time.monotonic() < end:
        time.sleep(0.001)
    assert dataset.made == [0, 1, 2]  # two ahead, and no more


def test_what_a_batch_raises_is_raised_when_its_turn_comes() -> None:
    batches = iter(loader(Noting(broken=2), 5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = iter(loader(Noting(), 20))
    next(batches)
    del batches
    assert threading.active_count() == before


@pytest.mark.parametrize("n_yielded", [0, 1, 4])
def test_a_loader_of_training_batches_goes_on_inside_an_epoch(n_yielded: int) -> None:
    def loading() -> TrainingLoader:
        rows = np.arange(11)
        return TrainingLoader(Noting(), sampler=EvenBatches(rows, rows < 5, 3, seed=0), batch_size=None)

    whole, first, resumed = loading(), loading(), loading()
    epoch, begun = list(whole), iter(first)
    assert [next(begun) for _ in range(n_yielded)] == epoch[:n_yielded]
    resumed.load_state_dict(first.state_dict())
    left = list(resumed)
    assert left == (
        epoch if n_yielded == len(epoch) else epoch[n_yielded:]
    )  # all done: the next epoch is whole
    assert resumed.state_dict() == {"n_yielded": len(epoch)}
    assert list(resumed) == epoch  # the sampler was not told of another epoch
