"""What the benchmark of a GPU is made of runs on a CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import (
    GRAPHED_WAYS,
    WAYS,
    copies,
    epochs,
    gpu,
    matrix_rate,
    operations,
    steps,
    stored_images,
    ways,
    with_stored_images,
)
from drfuse.data import Augmentation, Cohort, CohortDataModule
from tests.benchmarks.test_training import tiny

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence() -> None:
    assert gpu() == "There is no GPU with CUDA here, so nothing was measured."


def test_operations_are_those_of_products_and_convolutions() -> None:
    matrix, weight = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert operations(lambda: matrix @ weight.detach()) == 2 * 3 * 5 * 7
    assert operations(lambda: (matrix @ weight).sum().backward()) == 2 * 2 * 3 * 5 * 7
    image, filters = torch.randn(2, 1, 6, 6), torch.randn(4, 1, 3, 3)
    assert operations(lambda: torch.conv2d(image, filters)) == 2 * 2 * 4 * 4 * 4 * 9


def test_the_tables_hold_a_line_for_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert matrix_rate(CPU, 16, 1, lambda: None) > 0
    table = steps(tiny, (8,), 16, 1, 1e12, CPU, lambda: None, 0)
    assert "| 1 of 8 | fp32 |" in table
    assert table.count("%") == 2
    lines = ways(tiny, 8, 16, 1, False, CPU, lambda: None, 0).splitlines()[4:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "fp32",
        "TF32 in matrix products too",
        "bf16, channels_last",
        "bf16, Adam not fused",
    ]
    assert lines[0].endswith("| 1.00 |")
    assert torch.get_float32_matmul_precision() == "highest"
    assert "| pinned |" in copies(8, 16, 1, CPU, lambda: None)
    assert "| the device's memory, 0.0 GB |" in stored_images(8, 16, 10, 1, CPU, lambda: None)


@pytest.mark.slow
def test_an_epoch_is_measured_for_each_batch_size_and_way(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def capture(one: torch.nn.Module, images: tuple[torch.Tensor, ...]) -> None:
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()  # PyTorch refuses to capture with it
        captured.append(tuple(map(len, images)))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    table = epochs(tiny, (4, 16), 16, 1, (*WAYS, *GRAPHED_WAYS), CPU, lambda: None, 0)
    head, _, *lines = table.splitlines()[2:]
    assert head.split(" | ")[1:] == [
        "two networks",
        "one network",
        "two networks, CUDA graphs",
        "one network, CUDA graphs",
        "one network, CUDA graphs, padded |",
    ]
    assert [line.split("|")[1] for line in lines] == [" 1 of 4 ", " 3 of 16 "]
    assert all(float(cell) > 0 for line in lines for cell in line.split("|")[2:-1])
    assert captured == [(1,), (1,), (1,), (2, 2), (3,), (3,), (3,), (4, 4)]


@pytest.mark.parametrize("augment", [True, "shifts", False])
def test_radiographs_from_the_device_s_memory_are_those_of_the_loader(
    small_cohort: Path, augment: Augmentation
) -> None:
    cohort = Cohort.open(small_cohort)
    stored = torch.tensor(np.asarray(cohort.cxr))[:, None]

    def batches(from_device: bool) -> list[dict[str, Any]]:
        data = CohortDataModule(cohort, "matched", crop_size=32, augment=augment)
        data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
        data.read_only(("ehr", "cxr"), cxr_pixels=not from_device)
        torch.manual_seed(0)
        made = []
        for batch in data.train_dataloader():
            there = data.transfer_batch_to_device(batch, CPU, 0)
            if from_device:
                assert batch.pixels.numel() == 0
                there = with_stored_images(there, stored)
            made.append(vars(data.on_after_batch_transfer(there, 0)))
        return made

    expected, actual = batches(False), batches(True)
    assert sum(len(batch["cxr"]) for batch in expected) > 10
    for one, other in zip(actual, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_measures_a_gpu() -> None:
    tables = gpu((8,), 32, repeats=1, compiled=False, epoch_batch_sizes=(8,), runs=(1,))
    assert "share of the bf16 matrix rate" in tables
