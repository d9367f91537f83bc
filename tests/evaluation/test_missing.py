"""The missing-modality curve: its ends are known, and what lies between is nested."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from drfuse.errors import InputError
from drfuse.evaluation import macro_prauc, missing_curve, prauc_auroc, resample


def example(n: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 3)) < 0.3).astype(np.uint8)
    noise = rng.normal(size=(n, 3))
    return labels, noise + 3 * labels, noise, np.arange(n) // 2


def macro(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(average_precision_score(labels, scores, average="macro"))


def test_the_ends_are_the_model_with_and_without() -> None:
    labels, seen, unseen, units = example()
    first, *_, last = missing_curve(labels, seen, unseen, units, n_resamples=20)
    assert first.prauc_macro.value == pytest.approx(macro(labels, seen))
    assert last.prauc_macro.value == pytest.approx(macro(labels, unseen))
    assert (first.n_without_cxr, last.n_without_cxr) == (0, 90)
    assert last.prauc_macro == macro_prauc(labels, unseen, units, n_resamples=20)


def test_every_share_costs_more() -> None:
    labels, seen, unseen, units = example(n=600)
    points = missing_curve(labels, seen, unseen, units, n_resamples=2)
    assert [point.share for point in points] == pytest.approx(np.arange(11) / 10)
    assert [point.n_without_cxr for point in points] == list(range(0, 601, 60))
    assert (np.diff([point.prauc_macro.value for point in points]) < 0).all()


def test_draws_are_averaged() -> None:
    labels, seen, unseen, units = example()
    (found,) = missing_curve(
        labels, seen, unseen, units, shares=[0.5], n_draws=3, n_resamples=4, seed=6, intervals="bootstrap"
    )
    generator = np.random.default_rng(6)
    orders = [generator.permutation(90) for _ in range(3)]
    drawn = [np.where((places < 45)[:, None], unseen, seen) for places in orders]
    assert found.prauc_macro.value == pytest.approx(np.mean([macro(labels, scores) for scores in drawn]))
    resampled = [prauc_auroc(labels, scores, resample(units, 4, 6))[0].mean(axis=1) for scores in drawn]
    ends = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975])
    assert (found.prauc_macro.low, found.prauc_macro.high) == pytest.approx(ends)


def test_a_model_of_radiographs_alone_ends_at_the_prevalence() -> None:
    labels, seen, unseen, units = example()
    points = missing_curve(labels, seen, np.full_like(unseen, np.nan), units, [0, 0.5, 1], n_resamples=3)
    assert [point.n_guessed for point in points] == [0, 45, 90]
    assert points[-1].prauc_macro.value == pytest.approx(labels.mean())


def test_a_guess_stands_where_its_prevalence_puts_it() -> None:
    labels, seen = np.array([[1], [0], [0]]), np.array([[0.0], [-3.0], [1.0]])
    unseen = np.full((3, 1), np.nan)
    shares = [1 / 3]  # with this seed the last stay loses its radiograph
    place = np.random.default_rng(3).permutation(3)
    assert place[2] == 0
    for prevalence, expected in ((0.9, 0.5), (0.1, 1.0)):  # logit 2.2 is above the positive, -2.2 below
        (found,) = missing_curve(
            labels, seen, unseen, np.arange(3), shares, [prevalence], n_draws=1, n_resamples=1, seed=3
        )
        assert found.prauc_macro.value == pytest.approx(expected)


def test_a_stay_without_prediction_is_refused() -> None:
    labels, seen, unseen, units = example()
    seen[3] = np.nan
    with pytest.raises(InputError, match="no prediction with its radiograph"):
        missing_curve(labels, seen, unseen, units)


@pytest.mark.parametrize(("shares", "n_draws"), [([0, 1.1], 5), ([-0.1], 5), ([0.5], 0)])
def test_impossible_shares_and_draws_are_refused(shares: list[float], n_draws: int) -> None:
    with pytest.raises(InputError, match="at least 1 draw and shares from 0 to 1"):
        missing_curve(*example(), shares=shares, n_draws=n_draws)
