"""Intervals and macro means leave out what is not defined."""

from typing import get_args

import numpy as np
import pytest
from scipy.special import expit, logit

from drfuse.evaluation import Estimate, Intervals, macro_mean
from drfuse.evaluation.estimate import macro_of_seeds, seed_variance, stack_seeds


def test_a_bootstrap_interval_holds_the_middle_95_percent_of_what_is_defined() -> None:
    found = Estimate.of(7, np.append(np.arange(101.0), np.nan), "bootstrap")
    assert (found.value, found.low, found.high) == (7.0, 2.5, 97.5)
    assert found.corrected == 7 - 43


def test_a_half_sampling_interval_lies_around_the_value_without_its_bias() -> None:
    # resamples 0.5 and 0.7 of 0.55: bias 0.05, variance 0.02; normal with one seed
    found = Estimate.of(0.55, [0.5, 0.7], bounded=False)
    assert (found.value, found.bias, found.corrected) == pytest.approx((0.55, 0.05, 0.5))
    reach = 1.959964 * np.sqrt(0.02)
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach))


def test_an_interval_between_0_and_1_is_that_of_the_log_odds() -> None:
    found = Estimate.of(0.9, [0.85, 0.95])
    reach = 1.959964 * np.sqrt(0.005) / (0.9 * 0.1)
    assert (found.low, found.high) == pytest.approx((expit(logit(0.9) - reach), expit(logit(0.9) + reach)))
    # near an end, where the log-odds would reach from 0 to 1, it is cut off
    rare = [0.0] * 9 + [0.04]
    found = Estimate.of(0.004, rare)
    assert (found.low, found.high) == pytest.approx((0, 0.004 + 1.959964 * np.std(rare, ddof=1)))
    found = Estimate.of(0.98, [0.94, 0.96])  # 1.01 without its bias
    assert (found.low, found.high) == pytest.approx((1.01 - 1.959964 * np.sqrt(0.0002), 1))
    always_right = Estimate.of(1.0, [1.0, 1.0])
    assert (always_right.low, always_right.high) == (1, 1)


def test_the_variance_between_seeds_counts_without_what_chance_makes_of_it() -> None:
    # seeds 0.4 and 0.6 differ by s^2 = 0.02; both move alike in the resamples, so none of it is chance
    alike = np.array([[0.45, 0.65], [0.35, 0.55]])
    assert seed_variance(np.array([0.4, 0.6]), alike)[0] == pytest.approx(0.02 / 2)
    # resamples in which their difference varies as much as they differ: all of it may be chance
    apart = np.array([[0.5, 0.5], [0.3, 0.7], [0.5, 0.5], [0.3, 0.7]])
    assert seed_variance(np.array([0.4, 0.6]), apart)[0] == 0
    # each seed's distance from the mean varies by 0.01 * 4 / 3, twice that is taken off 0.5
    assert seed_variance(np.array([0.0, 1.0]), apart)[0] == pytest.approx((0.5 - 2 * 0.01 * 4 / 3) / 2)
    assert seed_variance(np.array([0.4]), alike[:, :1]) == (0.0, 0.0)


def test_few_seeds_widen_the_interval_by_student_s_t() -> None:
    steady = np.array([[0.4, 0.6], [0.4, 0.6]])  # the stays do not matter, the trainings do
    found = Estimate.of([0.4, 0.6], steady, bounded=False)
    assert (found.low, found.high) == pytest.approx((0.5 - 12.7062 * 0.1, 0.5 + 12.7062 * 0.1), rel=1e-5)


def test_a_label_that_a_resample_lacks_does_not_move_its_mean() -> None:
    values = np.array([[0.2, 0.8]])
    means, resampled = macro_of_seeds(values, np.array([[[0.3, np.nan]], [[0.2, 0.9]]]))
    assert means == pytest.approx([0.5])
    assert resampled[:, 0] == pytest.approx([0.6, 0.55])


def test_nothing_defined_has_no_interval() -> None:
    for intervals in get_args(Intervals):
        found = Estimate.of(0.5, np.array([np.nan]), intervals)
        assert np.isnan([found.low, found.high]).all()
        assert found.corrected == 0.5


def test_the_macro_mean_is_over_what_is_defined() -> None:
    means = macro_mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [5.0, 6.0, 7.0]]))
    assert means == pytest.approx([2.0, np.nan, 6.0], nan_ok=True)


def test_seeds_stand_stack_seeds_each_with_the_labels() -> None:
    labels = np.array([[0, 1], [1, 1]])
    first, second = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.5, 0.6], [0.7, 0.8]])
    repeated, scores, n_seeds = stack_seeds(labels, [first, second])
    assert n_seeds == 2
    assert repeated.tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert scores.tolist() == [[0.1, 0.2, 0.5, 0.6], [0.3, 0.4, 0.7, 0.8]]


def test_the_scores_of_one_seed_stay_as_they_are() -> None:
    labels, scores = np.array([[0, 1], [1, 1]]), np.array([[0.1, 0.2], [0.3, 0.4]])
    for of_one in (scores, scores[None]):
        same, kept, _ = stack_seeds(labels, of_one)
        assert np.array_equal(same, labels)
        assert np.array_equal(kept, scores)
