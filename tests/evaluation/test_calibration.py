"""Calibration: hand-worked, and against plain loops."""

from importlib import import_module

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from drfuse.errors import InputError
from drfuse.evaluation import calibration


def example(n: int = 60, n_labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = rng.random((n, n_labels))
    return (rng.random((n, n_labels)) < probabilities**2).astype(np.uint8), probabilities


def test_hand_worked() -> None:
    # first phenotype: bin 0 holds 0.1 and 0.3 (one ill), bin 1 holds 0.5 and 1 (both ill)
    #   ECE = 2/4 |0.5 - 0.2| + 2/4 |1 - 0.75| = 0.275; Brier = (0.01 + 0.49 + 0.25 + 0) / 4 = 0.1875
    # second: all 0.2, none ill: ECE 0.2, Brier 0.04
    labels = np.array([[0, 0], [1, 0], [1, 0], [1, 0]])
    probabilities = np.array([[0.1, 0.2], [0.3, 0.2], [0.5, 0.2], [1.0, 0.2]])
    found = calibration(labels, probabilities, np.arange(4), n_bins=2)
    assert found.ece == pytest.approx((0.275 + 0.2) / 2)
    assert found.brier.value == pytest.approx((0.1875 + 0.04) / 2)
    low, high = found.reliability
    assert (low.low, low.high, high.low, high.high) == (0, 0.5, 0.5, 1)
    assert (low.n_predictions, high.n_predictions) == (6, 2)
    assert low.predicted == pytest.approx((0.1 + 0.3 + 4 * 0.2) / 6)
    assert low.observed.value == pytest.approx(1 / 6)
    assert high.observed.value == 1
    # of two independent stays with all positive, Wilson's interval begins at 2 / (2 + 1.96^2)
    assert high.observed.low == pytest.approx(2 / (2 + 1.959964**2))


def naive_squared_error(labels: np.ndarray, probabilities: np.ndarray, units: np.ndarray) -> float:
    """Return the debiased squared error: the mean product of residuals of different units, cell by cell."""
    of_cells, sizes = [], []
    for c in range(labels.shape[1]):
        residuals = probabilities[:, c] - labels[:, c]
        for b in range(10):
            here = np.flatnonzero(np.minimum((probabilities[:, c] * 10).astype(int), 9) == b)
            products = [residuals[i] * residuals[j] for i in here for j in here if units[i] != units[j]]
            if products:
                of_cells.append(np.mean(products))
                sizes.append(len(here))
    return float(np.average(of_cells, weights=sizes))


def test_the_squared_error_is_of_pairs_of_different_units() -> None:
    labels, probabilities = example()
    units = np.arange(60) // 2
    expected = naive_squared_error(labels, probabilities, units)
    assert expected > 0
    assert calibration(labels, probabilities, units).error.value == pytest.approx(np.sqrt(expected))


@pytest.mark.parametrize("stays_each", [1, 2, 4])
def test_the_error_does_not_depend_on_how_many_stays_a_subject_has(stays_each: int) -> None:
    labels = np.repeat([[0.0], [0.0], [1.0], [1.0]], stays_each, axis=0)
    found = calibration(labels, 1 - labels, np.repeat(np.arange(4), stays_each)).error
    assert (found.value, found.high) == (1, 1)


def test_there_is_no_calibration_error_of_one_subject() -> None:
    labels, probabilities = example()
    found = calibration(labels, probabilities, np.zeros(60)).error
    assert np.isnan([found.value, found.low, found.high]).all()


def test_the_error_of_calibrated_predictions_is_0_within_its_interval_and_ece_is_not() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.random((2000, 5))
    found = calibration(rng.random((2000, 5)) < probabilities, probabilities, np.arange(2000))
    assert found.error.low == 0
    assert found.error.value < 0.02
    assert found.ece > 0.02
    assert found.ece_if_calibrated == pytest.approx(found.ece, rel=0.2)


def test_the_interval_holds_a_known_error() -> None:
    rng = np.random.default_rng(2)
    truly = rng.uniform(0.1, 0.8, (3000, 4))
    found = calibration(rng.random((3000, 4)) < truly, truly + 0.1, np.arange(3000)).error
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.04


def test_the_brier_score_has_the_interval_of_a_mean_over_subjects() -> None:
    labels, probabilities = example()
    squares = ((labels - probabilities) ** 2).mean(axis=1).reshape(30, 2).sum(axis=1)
    reach = 1.959964 * squares.std(ddof=1) / np.sqrt(30) / 2
    found = calibration(labels, probabilities, np.arange(60) // 2).brier
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))


def test_the_curve_is_scikit_learn_s() -> None:
    labels, probabilities = example(n=500)
    found = calibration(labels, probabilities, np.arange(500)).reliability
    observed, predicted = calibration_curve(labels.ravel(), probabilities.ravel(), n_bins=10)
    assert [one.observed.value for one in found] == pytest.approx(observed)
    assert [one.predicted for one in found] == pytest.approx(predicted)


def test_an_empty_bin_is_undefined() -> None:
    found = calibration([[1], [0]], [[0.9], [0.9]], [0, 1]).reliability[0]
    assert found.n_predictions == 0
    assert np.isnan([found.predicted, found.observed.value, found.observed.low]).all()


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="probabilities from 0 to 1"):
        calibration([[1], [0]], [[wrong], [0.2]], [0, 1])


@pytest.mark.parametrize("block", [1, 7])
def test_reading_in_blocks_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    labels, probabilities = example()
    of_seeds = np.stack([probabilities, probabilities**1.2])
    units = np.random.default_rng(2).integers(0, 20, len(labels))
    whole = calibration(labels, of_seeds, units, n_draws=5)
    monkeypatch.setattr(import_module("drfuse.evaluation.calibration"), "_STAYS_A_BLOCK", block)
    assert calibration(labels, of_seeds, units, n_draws=5) == whole
