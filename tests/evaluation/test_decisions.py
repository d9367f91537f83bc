"""Decision curves against plain loops and hand-worked values."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from drfuse.errors import InputError
from drfuse.evaluation import resample
from drfuse.evaluation.decisions import THRESHOLDS, decision_curves, decision_curves_in
from drfuse.evaluation.resampling import Resamples

NAMES = ["gout", "shock"]


def example(n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = np.round(rng.random((n, 2)), 2)  # some lie exactly on a threshold
    return (rng.random((n, 2)) < probabilities).astype(np.uint8), probabilities, np.arange(n) // 3


def naive(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> float:
    """Return the net benefit of one label as Vickers and Elkin define it."""
    (_, false), (_, true) = confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
    return float(true / len(labels) - false / len(labels) * threshold / (1 - threshold))


def test_hand_worked_net_benefit() -> None:
    labels = np.array([[1], [1], [0], [0], [0]])
    probabilities = np.array([[0.9], [0.2], [0.5], [0.1], [0.0]])
    (half, most) = decision_curves(
        labels, probabilities, ["gout"], np.arange(5), 4, thresholds=[0.5, 0.8]
    ).macro
    assert (half.threshold, half.net_benefit.value) == (0.5, 1 / 5 - 1 / 5)
    assert half.treat_all == pytest.approx(2 / 5 - 3 / 5)
    assert half.gain.value == pytest.approx(1 / 5)
    assert most.net_benefit.value == pytest.approx(1 / 5)
    assert most.treat_all == pytest.approx(2 / 5 - 3 / 5 * 4)


def test_every_point_is_that_of_a_plain_loop() -> None:
    labels, probabilities, units = example()
    found = decision_curves(labels, probabilities, NAMES, units, n_resamples=2)
    assert [point.threshold for point in found.macro] == list(THRESHOLDS)
    for t, threshold in enumerate(THRESHOLDS):
        each = [naive(labels[:, c], probabilities[:, c], threshold) for c in range(2)]
        everyone = [naive(labels[:, c], np.ones(len(labels)), threshold) for c in range(2)]
        for c, name in enumerate(NAMES):
            point = found.by_label[name][t]
            assert point.net_benefit.value == pytest.approx(each[c])
            assert point.treat_all == pytest.approx(everyone[c])
            assert point.gain.value == pytest.approx(each[c] - everyone[c])
        assert found.macro[t].net_benefit.value == pytest.approx(np.mean(each))
        assert found.macro[t].gain.value == pytest.approx(np.mean(each) - np.mean(everyone))


def test_intervals_are_those_of_a_plain_loop_over_the_same_resamples() -> None:
    labels, probabilities, units = example()
    found = decision_curves(labels, probabilities, NAMES, units, 70, 1, [0.3], intervals="bootstrap")
    benefits, gains = [], []
    for counts in np.concatenate(list(resample(units, 70, 1))):
        rows = np.repeat(np.arange(len(labels)), counts)
        each = [naive(labels[rows, c], probabilities[rows, c], 0.3) for c in range(2)]
        everyone = [naive(labels[rows, c], np.ones(len(rows)), 0.3) for c in range(2)]
        benefits.append(np.mean(each))
        gains.append(np.mean(each) - np.mean(everyone))
    (point,) = found.macro
    for one, resampled in ((point.net_benefit, benefits), (point.gain, gains)):
        assert (one.low, one.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]))


def test_seeds_are_averaged() -> None:
    labels, probabilities, units = example()
    other = np.sqrt(probabilities)
    both = decision_curves(labels, np.stack([probabilities, other]), NAMES, units, 20)
    each = [decision_curves(labels, one, NAMES, units, 20) for one in (probabilities, other)]
    for t in range(len(THRESHOLDS)):
        for of in ("net_benefit", "gain"):
            values = [getattr(one.by_label["shock"][t], of).value for one in each]
            assert getattr(both.by_label["shock"][t], of).value == pytest.approx(np.mean(values))
        assert both.macro[t].treat_all == pytest.approx(each[0].macro[t].treat_all)
    assert np.isfinite([both.macro[9].net_benefit.low, both.macro[9].net_benefit.high]).all()


def test_labels_without_or_with_few_positives() -> None:
    labels, probabilities, units = example()
    labels[:, 1] = 0
    found = decision_curves(labels, probabilities, NAMES, units, 20, thresholds=[0.2])
    assert np.isnan(
        [found.by_label["shock"][0].net_benefit.value, found.by_label["shock"][0].treat_all]
    ).all()
    assert found.macro[0].net_benefit == found.by_label["gout"][0].net_benefit
    labels[:3, 1] = 1  # one subject
    (few,) = decision_curves(labels, probabilities, NAMES, units, 20, thresholds=[0.2]).by_label["shock"]
    assert few.net_benefit.value == pytest.approx(naive(labels[:, 1], probabilities[:, 1], 0.2))
    assert np.isnan([few.net_benefit.low, few.gain.high]).all()


def test_resamples_drawn_before_give_the_same() -> None:
    labels, probabilities, units = example()
    drawn = Resamples.draw(units, 70, 5)
    assert decision_curves_in(drawn, labels, probabilities, NAMES, units) == decision_curves(
        labels, probabilities, NAMES, units, 70, 5
    )


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.0], [0.3, 0.2], [0.2, 0.2]])
def test_thresholds_out_of_range_are_refused(thresholds: list[float]) -> None:
    labels, probabilities, units = example(30)
    with pytest.raises(InputError, match="expected ascending thresholds above 0 and below 1"):
        decision_curves(labels, probabilities, NAMES, units, 2, thresholds=thresholds)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_what_is_not_a_probability_is_refused(value: float) -> None:
    labels, probabilities, units = example(30)
    probabilities[4, 1] = value
    with pytest.raises(InputError, match="expected probabilities from 0 to 1"):
        decision_curves(labels, probabilities, NAMES, units, 2)
