"""Intervals and macro means leave out what is not defined."""

import numpy as np
import pytest

from drfuse.evaluation import Estimate, macro_mean
from drfuse.evaluation.estimate import beside_each_other


def test_the_interval_holds_the_middle_95_percent_of_what_is_defined() -> None:
    found = Estimate.of(7, np.append(np.arange(101.0), np.nan))
    assert found == Estimate(7.0, 2.5, 97.5)


def test_nothing_defined_has_no_interval() -> None:
    found = Estimate.of(0.5, np.array([np.nan]))
    assert np.isnan([found.low, found.high]).all()


def test_the_macro_mean_is_over_what_is_defined() -> None:
    means = macro_mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [5.0, 6.0, 7.0]]))
    assert means == pytest.approx([2.0, np.nan, 6.0], nan_ok=True)


def test_seeds_stand_beside_each_other_each_with_the_labels() -> None:
    labels = np.array([[0, 1], [1, 1]])
    first, second = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.6], [0.7, 0.8]])
    repeated, scores = beside_each_other(labels, [first, second])
    assert repeated.tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert scores.tolist() == [[0.1, 0.2, 0.5, 0.6], [0.3, 0.4, 0.7, 0.8]]


def test_the_scores_of_one_seed_stay_as_they_are() -> None:
    labels, scores = np.array([[0, 1], [1, 1]]), np.array([[0.1, 0.2], [0.3, 0.4]])
    for of_one in (scores, scores[None]):
        same, kept = beside_each_other(labels, of_one)
        assert np.array_equal(same, labels)
        assert np.array_equal(kept, scores)
