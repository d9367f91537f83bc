"""Calibration: hand-worked, and against a plain loop on the resampled rows."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from drfuse.errors import InputError
from drfuse.evaluation import Estimate, calibration, resample


def naive_ece(labels: np.ndarray, probabilities: np.ndarray, n_bins: int) -> float:
    total = 0.0
    for b in range(n_bins):
        last = b == n_bins - 1
        here = (probabilities >= b / n_bins) & ((probabilities < (b + 1) / n_bins) | last)
        if here.any():
            total += here.mean() * abs(labels[here].mean() - probabilities[here].mean())
    return total


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
    found = calibration(labels, probabilities, np.arange(4), n_resamples=5, n_bins=2)
    assert found.ece.value == pytest.approx((0.275 + 0.2) / 2)
    assert found.brier.value == pytest.approx((0.1875 + 0.04) / 2)
    low, high = found.reliability
    assert (low.low, low.high, high.low, high.high) == (0, 0.5, 0.5, 1)
    assert (low.n_predictions, high.n_predictions) == (6, 2)
    assert low.predicted == pytest.approx((0.1 + 0.3 + 4 * 0.2) / 6)
    assert low.observed.value == pytest.approx(1 / 6)
    assert high.observed == Estimate(1, 1, 1)


def test_each_resample_equals_a_plain_loop() -> None:
    labels, probabilities = example()
    units = np.arange(60) // 2
    found = calibration(labels, probabilities, units, n_resamples=70, seed=4)
    eces, briers, shares = [], [], []
    for counts in np.concatenate(list(resample(units, 70, 4))):
        drawn = np.repeat(np.arange(60), counts)
        y, p = labels[drawn], probabilities[drawn]
        eces.append(np.mean([naive_ece(y[:, c], p[:, c], 10) for c in range(3)]))
        briers.append(np.mean([brier_score_loss(y[:, c], p[:, c]) for c in range(3)]))
        shares.append(y[(p >= 0.9)].mean())
    added = np.mean(eces) - found.ece.value
    assert (found.ece.low, found.ece.high) == pytest.approx(np.quantile(eces, [0.025, 0.975]) - added)
    assert (found.brier.low, found.brier.high) == pytest.approx(np.quantile(briers, [0.025, 0.975]))
    last = found.reliability[-1].observed
    assert (last.low, last.high) == pytest.approx(np.quantile(shares, [0.025, 0.975]))


def test_the_curve_is_scikit_learn_s() -> None:
    labels, probabilities = example(n=500)
    found = calibration(labels, probabilities, np.arange(500), n_resamples=1).reliability
    observed, predicted = calibration_curve(labels.ravel(), probabilities.ravel(), n_bins=10)
    assert [one.observed.value for one in found] == pytest.approx(observed)
    assert [one.predicted for one in found] == pytest.approx(predicted)


def test_an_empty_bin_is_undefined() -> None:
    found = calibration([[1], [0]], [[0.9], [0.9]], [0, 1], n_resamples=3).reliability[0]
    assert found.n_predictions == 0
    assert np.isnan([found.predicted, found.observed.value, found.observed.low]).all()


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="probabilities from 0 to 1"):
        calibration([[1], [0]], [[wrong], [0.2]], [0, 1])
