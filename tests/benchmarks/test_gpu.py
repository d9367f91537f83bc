"""What the benchmark of a GPU is made of runs on a CPU."""

import pytest
import torch

from benchmarks.gpu import copies, gpu, matrix_rate, operations, steps, ways
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_measures_a_gpu() -> None:
    tables = gpu(batch_sizes=(8,), crop_size=32, repeats=1, compiled=False)
    assert "share of the bf16 matrix rate" in tables
