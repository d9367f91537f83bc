"""Batches of even shares."""

import math

import numpy as np
import pytest

from drfuse.data.sampler import EvenBatches


def sampler(n: int, n_cxr: int, batch_size: int, seed: int = 0, accumulate: int = 1) -> EvenBatches:
    rows = np.arange(500, 500 + n)
    has_cxr = np.zeros(n, bool)
    has_cxr[np.random.default_rng(1).permutation(n)[:n_cxr]] = True
    return EvenBatches(rows, has_cxr, batch_size, seed, accumulate=accumulate)


SIZES = [
    (40, 12, 16),
    (100, 20, 16),
    (100, 0, 16),
    (100, 100, 16),
    (7, 3, 16),
    (64, 32, 16),
    (33, 1, 4),
    (5, 2, 1),
]


@pytest.mark.parametrize(("n", "n_cxr", "batch_size"), SIZES)
def test_every_row_comes_once_an_epoch(n: int, n_cxr: int, batch_size: int) -> None:
    batches = list(sampler(n, n_cxr, batch_size))
    assert sorted(row for batch in batches for row in batch) == list(range(500, 500 + n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == len(sampler(n, n_cxr, batch_size)) == math.ceil(n / batch_size)
    assert sampler(n, n_cxr, batch_size).sizes == sizes


def test_no_stay_is_a_batch_alone() -> None:
    assert sampler(33, 10, 16).sizes == [11, 11, 11]  # not 16, 16 and 1
    assert sampler(17, 10, 16).sizes == [9, 8]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize(("n", "batch_size"), [(65, 16), (33, 16), (100, 16), (39, 8), (7, 3), (500, 7)])
def test_every_step_is_as_long_as_one_of_larger_batches(n: int, batch_size: int, accumulate: int) -> None:
    parts = sampler(n, n // 3, batch_size, accumulate=accumulate)
    steps = [sum(parts.sizes[at : at + accumulate]) for at in range(0, len(parts), accumulate)]
    assert steps == sampler(n, n // 3, batch_size * accumulate).sizes
    assert max(parts.sizes) <= batch_size
    assert max(parts.sizes) - min(parts.sizes) <= 1
    assert [len(batch) for batch in parts] == parts.sizes


@pytest.mark.parametrize(("n", "batch_size", "accumulate"), [(3, 16, 4), (9, 1, 4), (2, 2, 3)])
def test_no_batch_is_empty(n: int, batch_size: int, accumulate: int) -> None:
    few = sampler(n, 1, batch_size, accumulate=accumulate)
    assert min(few.sizes) >= 1
    assert sum(few.sizes) == sum(map(len, few)) == n


@pytest.mark.parametrize(
    ("n", "n_cxr", "batch_size"),
    [(400, 120, 16), (1000, 200, 16), (320, 160, 16), (999, 37, 8), (200, 190, 16)],
)
def test_every_batch_has_the_same_share_of_radiographs_up_to_one_stay(
    n: int, n_cxr: int, batch_size: int
) -> None:
    for seed in range(20):
        batches = sampler(n, n_cxr, batch_size, seed)
        with_cxr = set(batches.groups[0].tolist())
        for batch in batches:
            n_with_cxr, expected = len(with_cxr.intersection(batch)), len(batch) * n_cxr / n
            assert math.floor(expected) <= n_with_cxr <= math.ceil(expected)


def test_each_epoch_has_its_own_order_and_batches() -> None:
    batches = sampler(60, 20, 8)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    batches.set_epoch(0)
    assert list(batches) == first


def test_the_seed_decides_the_order() -> None:
    assert list(sampler(60, 20, 8, seed=3)) == list(sampler(60, 20, 8, seed=3))
    assert list(sampler(60, 20, 8, seed=3)) != list(sampler(60, 20, 8, seed=4))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = list(sampler(60, 20, 8))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert list(sampler(60, 20, 8)) == first


def test_radiographs_are_no_sooner_than_others_within_the_epoch() -> None:
    positions = []
    for seed in range(200):
        batches = sampler(30, 1, 1, seed)
        (only,) = batches.groups[0].tolist()
        positions.append([row for (row,) in batches].index(only))
    assert np.mean(positions) == pytest.approx(14.5, abs=2)
    assert min(positions) < 3
    assert max(positions) > 26


def test_the_partner_of_a_stay_changes() -> None:
    batches = sampler(60, 20, 4)
    partners: set[int] = set()
    for epoch in range(10):
        batches.set_epoch(epoch)
        partners.update(*(batch for batch in batches if 500 in batch))
    assert len(partners) > 15


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize(("n", "n_cxr", "batch_size"), [size for size in SIZES if size[2] > 3])
def test_processes_share_each_batch_evenly(n: int, n_cxr: int, batch_size: int, n_ranks: int) -> None:
    whole = sampler(n, n_cxr, batch_size)
    with_cxr = set(whole.groups[0].tolist())
    rows = np.arange(500, 500 + n)
    has_cxr = np.isin(rows, whole.groups[0])
    parts = [EvenBatches(rows, has_cxr, batch_size, 0, rank, n_ranks) for rank in range(n_ranks)]
    for sampled in (whole, *parts):
        sampled.set_epoch(2)
    n_batches = 0
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        n_batches += 1
        if len(batch) < n_ranks:
            assert of_ranks == [batch] * n_ranks
            continue
        assert sorted(row for part in of_ranks for row in part) == sorted(batch)
        for sizes in ([len(part) for part in of_ranks], [len(with_cxr & set(part)) for part in of_ranks]):
            assert max(sizes) - min(sizes) <= 1
    assert n_batches == len(whole)
