"""NumPy files, written and read a block at a time so that they need not fit in memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

_BLOCK_BYTES = 64 * 2**20


def items_a_block(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Return how many items of a shape and type fit into a block of 64 MiB; at least 1.

    >>> items_a_block((48, 17), np.float32)
    20560
    """
    return max(1, _BLOCK_BYTES // (prod(shape) * np.dtype(dtype).itemsize))


@contextmanager
def array_in_order(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike
) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Yield a function that appends items (n, *shape) to a new file; it is complete when the context ends."""
    with path.open("wb") as file:
        _write_header(file, (0, *shape), dtype)
        start = file.tell()
        yield lambda items: file.write(np.ascontiguousarray(items, dtype).data)
        length = (file.tell() - start) // (prod(shape) * np.dtype(dtype).itemsize)
        file.seek(0)
        _write_header(file, (length, *shape), dtype)  # as long as the first: NumPy pads headers


def item_of(path: Path, row: int) -> NDArray[Any]:
    """Return one item of the array at `path`."""
    with path.open("rb") as file:
        (_, *item), dtype = _read_header(file)
        file.seek(row * prod(item) * dtype.itemsize, os.SEEK_CUR)
        return np.fromfile(file, dtype, prod(item)).reshape(item)


def blocks_of(path: Path) -> Iterator[NDArray[Any]]:
    """Yield the array at `path` a block at a time; unlike a memory map, it frees each block after use."""
    with path.open("rb") as file:
        (length, *item), dtype = _read_header(file)
        block = items_a_block(tuple(item), dtype)
        for start in range(0, length, block):
            n = min(block, length - start)
            yield np.fromfile(file, dtype, n * prod(item)).reshape(n, *item)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    descr = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
