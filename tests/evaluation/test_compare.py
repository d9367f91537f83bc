"""Systems with seeds: against scikit-learn on the resampled rows, and hand-worked tests."""

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

from drfuse.errors import InputError
from drfuse.evaluation import SeededPrauc, compare, holm, resample, seeded_prauc


def example(n: int = 40, n_seeds: int = 3) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 4)) < 0.2).astype(np.uint8)
    labels[:, 2] = np.arange(n) == 5  # of one stay: not in every resample
    labels[:, 3] = 0
    return labels, [rng.normal(size=(n, 4)) + labels for _ in range(n_seeds)], np.arange(n) // 2


def naive_macro(labels: np.ndarray, scores: np.ndarray) -> float:
    occur = labels.any(axis=0)
    return float(average_precision_score(labels[:, occur], scores[:, occur], average="macro"))


def test_each_seed_is_measured_on_each_resample() -> None:
    labels, scores, units = example()
    found = seeded_prauc(labels, scores, units, n_resamples=30, seed=2)
    assert found.values == pytest.approx([naive_macro(labels, one) for one in scores])
    shares = [naive_macro(labels[:, [0, 1, 2]], one[:, [0, 1, 2]]) for one in scores]
    for r, counts in enumerate(next(resample(units, 30, 2, "half-sampling"))):
        drawn = np.flatnonzero(counts)
        for s, one in enumerate(scores):
            # a label that the half lacks keeps the value that it has on all stays
            moved = [
                average_precision_score(labels[drawn, c], one[drawn, c])
                - average_precision_score(labels[:, c], one[:, c])
                for c in range(3)
                if labels[drawn, c].any()
            ]
            assert found.resampled[r, s] == pytest.approx(shares[s] + np.mean(moved))
    assert found.mean.value == pytest.approx(found.values.mean())


def test_a_system_does_not_differ_from_itself() -> None:
    labels, scores, units = example()
    system = seeded_prauc(labels, scores, units, 50)
    found = compare(system, seeded_prauc(labels, scores[::-1], units, 50))
    assert [found.difference, found.low, found.high] == pytest.approx([0, 0, 0], abs=1e-12)
    same = compare(system, system)
    assert (same.difference, same.p) == (0, 1)


def test_a_perfect_system_is_better_and_both_directions_agree() -> None:
    labels, _, units = example(n=200)
    perfect = seeded_prauc(labels, [labels.astype(float)], units, 99)
    chance = seeded_prauc(labels, [np.random.default_rng(1).random(labels.shape)], units, 99)
    better, worse = compare(perfect, chance), compare(chance, perfect)
    assert better.low > 0
    assert better.p == worse.p < 1e-6
    assert worse.difference == -better.difference
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def system(values: list[float], resampled: list[list[float]]) -> SeededPrauc:
    of_seeds, drawn = np.array(values), np.array(resampled)
    return SeededPrauc(of_seeds, drawn, of_seeds[:, None], drawn[..., None], np.array([False]))


def test_the_p_value_of_one_seed_each_is_that_of_a_normal_difference() -> None:
    # differences 0.1 + (-0.05, 0.05): no bias, variance 0.005
    ours, theirs = system([0.6], [[0.55], [0.65]]), system([0.5], [[0.5], [0.5]])
    found = compare(ours, theirs)
    assert found.p == pytest.approx(2 * norm.sf(0.1 / np.sqrt(0.005)))
    assert (found.difference, found.counts_seeds) == (pytest.approx(0.1), False)
    reach = 1.959964 * np.sqrt(0.005)
    assert (found.low, found.high) == pytest.approx((0.1 - reach, 0.1 + reach))


def test_seeds_count_in_interval_and_p_value() -> None:
    # on every resample the same: all the variance is between trainings, s^2 = 0.02 of each, two seeds each
    ours, theirs = system([0.5, 0.7], [[0.5, 0.7]] * 3), system([0.4, 0.6], [[0.4, 0.6]] * 3)
    found = compare(ours, theirs)
    error = np.sqrt(0.02 / 2 + 0.02 / 2)
    assert found.counts_seeds
    assert found.p == pytest.approx(2 * student.sf(0.1 / error, 2))
    assert found.high - found.low == pytest.approx(2 * student.ppf(0.975, 2) * error)


def test_trainings_of_one_system_seldom_differ() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < 0.3).astype(np.uint8)
    units, p_values = np.arange(300), []
    for _ in range(60):
        # each training mixes its own noise into what the label tells: better or worse by luck
        seeds = [labels + rng.uniform(0.8, 2.2) * rng.normal(size=labels.shape) for _ in range(4)]
        ours, theirs = (seeded_prauc(labels, of, units, 100) for of in (seeds[:2], seeds[2:]))
        p_values.append(compare(ours, theirs).p)
    assert np.mean(np.array(p_values) < 0.05) < 0.12


def test_a_label_of_few_positives_has_no_interval() -> None:
    labels, scores, units = example()
    found = seeded_prauc(labels, scores, units, 50)
    assert np.isnan(found.of_label(2).mean.low)
    assert found.of_label(2).mean.value > 0
    assert not np.isnan(found.mean.low)


def test_systems_that_are_compared_by_few_positives_or_one_subject_have_no_p_value() -> None:
    labels, scores, units = example()
    one_subject = np.zeros(len(labels))
    for ours, theirs in (
        [seeded_prauc(labels, [of], units, 50).of_label(2) for of in scores[:2]],
        [seeded_prauc(labels, [of], one_subject, 50) for of in scores[:2]],
    ):
        found = compare(ours, theirs)
        assert found.difference == ours.values[0] - theirs.values[0] != 0
        assert np.isnan([found.low, found.high, found.p]).all()


def test_systems_on_other_resamples_are_refused() -> None:
    labels, scores, units = example()
    with pytest.raises(InputError, match="on 5 resamples, the other on 6"):
        compare(seeded_prauc(labels, scores, units, 5), seeded_prauc(labels, scores, units, 6))


def test_scores_of_another_shape_are_refused() -> None:
    labels, scores, units = example()
    for wrong in ([], [scores[0], scores[1][:-1]]):
        with pytest.raises(InputError, match="scores of at least one seed"):
            seeded_prauc(labels, wrong, units)


def test_holm_by_hand() -> None:
    # ordered 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; 0.04 must not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])


def test_nan_is_no_p_value() -> None:
    assert holm([0.02, np.nan, 0.01]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)
    assert len(holm([])) == 0
