"""Resamples draw whole units, as often as the seed says, in blocks of bytes."""

from typing import get_args

import numpy as np
import pytest

from drfuse.evaluation.estimate import Intervals
from drfuse.evaluation.resampling import Resamples, resample


def test_resamples_draw_as_many_units_as_there_are() -> None:
    units = np.array([7, 7, 7, 2, 9, 9])
    blocks = np.concatenate(list(resample(units, 200, seed=0)))
    assert blocks.shape == (200, 6)
    one_row_a_unit = blocks[:, [0, 3, 4]]
    assert (one_row_a_unit.sum(axis=1) == 3).all()


def test_rows_of_a_unit_come_and_go_together() -> None:
    units = np.array([7, 2, 7, 9, 9])
    (counts,) = resample(units, 50, seed=0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 3] == counts[:, 4]).all()
    assert (counts[:, 0] != counts[:, 1]).any()


def test_resamples_come_in_blocks_of_bytes() -> None:
    blocks = list(resample(np.arange(30), 130, seed=0))
    assert [len(block) for block in blocks] == [64, 64, 2]
    assert {block.dtype for block in blocks} == {np.dtype(np.uint8)}


def test_blocks_do_not_change_the_draws() -> None:
    generator = np.random.default_rng(3)
    expected = [np.bincount(generator.integers(0, 7, 7), minlength=7) for _ in range(100)]
    np.testing.assert_array_equal(np.concatenate(list(resample(np.arange(7), 100, seed=3))), expected)


def test_the_seed_decides_the_resamples() -> None:
    first, again, other = (next(resample(np.arange(20), 5, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("intervals", get_args(Intervals))
def test_stored_resamples_are_those_that_are_drawn_one_by_one(intervals: Intervals) -> None:
    units = np.random.default_rng(0).integers(0, 25, 60)
    stored = Resamples.draw(units, 130, 3, intervals)
    everyone, *drawn = stored
    assert (everyone == np.ones((1, 60))).all()
    np.testing.assert_array_equal(
        np.concatenate(drawn), np.concatenate(list(resample(units, 130, 3, intervals)))
    )
    for first, again in zip(stored, stored, strict=True):
        np.testing.assert_array_equal(first, again)


def test_a_half_sample_has_half_of_the_units() -> None:
    (counts,) = resample(np.arange(7), 20, 0, "half-sampling")
    assert counts.sum(axis=1).tolist() == [3, 4] * 10
    assert set(counts.ravel()) == {0, 1}
