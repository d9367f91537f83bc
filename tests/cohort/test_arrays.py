from pathlib import Path

import numpy as np
import pytest

from drfuse.cohort import arrays
from drfuse.cohort.arrays import array_in_order, blocks_of, item_of, items_a_block


@pytest.mark.parametrize("lengths", [[], [0], [3], [2, 0, 5, 1]])
def test_numpy_reads_what_was_written_in_order(lengths: list[int], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    items = [generator.normal(size=(n, 2, 3)).astype(np.float32) for n in lengths]
    with array_in_order(tmp_path / "a.npy", (2, 3), np.float32) as append:
        for some in items:
            append(some)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.dtype == np.float32
    assert np.array_equal(read, np.concatenate([np.empty((0, 2, 3)), *items]))


def test_what_is_appended_gets_the_type_of_the_file(tmp_path: Path) -> None:
    with array_in_order(tmp_path / "a.npy", (4,), np.uint8) as append:
        append(np.arange(8).reshape(4, 2).T)  # neither of its type nor of its order in memory
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_an_array_is_read_back_in_blocks_and_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_BLOCK_BYTES", 100)
    expected = np.arange(70, dtype=np.int16).reshape(7, 5, 2)
    np.save(tmp_path / "a.npy", expected)
    blocks = list(blocks_of(tmp_path / "a.npy"))
    assert [len(block) for block in blocks] == [5, 2]  # an item has 20 bytes
    assert np.array_equal(np.concatenate(blocks), expected)
    for row in range(7):
        assert np.array_equal(item_of(tmp_path / "a.npy", row), expected[row])


def test_a_block_holds_at_least_one_item() -> None:
    assert items_a_block((8760, 17), np.float32) == 112
    assert items_a_block((2**30,), np.uint8) == 1
