"""Several trainings at once are processes whose steps overlap."""

from functools import partial

import pytest
import torch

from benchmarks import several_runs as benchmark
from benchmarks.several_runs import several_runs
from drfuse.models import DrFuse
from tests.builders import TINY_BACKBONE

TINY = partial(DrFuse, dim=8, heads=2, feedforward=16, cxr_backbone=TINY_BACKBONE)
CPU = torch.device("cpu")


def test_throughput_counts_the_stays_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_seconds", lambda _, n: {1: 2.0, 2: 2.5}[n])
    lines = several_runs(TINY, 16, 16, 10, CPU, 0, (1, 2)).splitlines()[-2:]
    assert [line.split("|")[1:4] for line in lines] == [[" 1 ", " 80 ", " 1.00 "], [" 2 ", " 128 ", " 1.60 "]]


@pytest.mark.slow
def test_two_runs_train_at_the_same_time() -> None:
    assert several_runs(TINY, 8, 16, 2, CPU, 0, (1, 2)).count("\n| ") == 3
