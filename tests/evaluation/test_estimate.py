"""Intervals and macro means leave out what is not defined."""

import numpy as np
import pytest

from drfuse.evaluation import Estimate, macro_mean


def test_the_interval_holds_the_middle_95_percent_of_what_is_defined() -> None:
    found = Estimate.of(7, np.append(np.arange(101.0), np.nan))
    assert found == Estimate(7.0, 2.5, 97.5)


def test_nothing_defined_has_no_interval() -> None:
    found = Estimate.of(0.5, np.array([np.nan]))
    assert np.isnan([found.low, found.high]).all()


def test_the_macro_mean_is_over_what_is_defined() -> None:
    means = macro_mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [5.0, 6.0, 7.0]]))
    assert means == pytest.approx([2.0, np.nan, 6.0], nan_ok=True)
