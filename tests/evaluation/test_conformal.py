"""Prediction sets keep their promise, and their coverage is counted right."""

import numpy as np
import pytest

from drfuse.errors import InputError
from drfuse.evaluation.conformal import ConformalSets, Limits, measure_sets
from drfuse.evaluation.estimate import mean_share


def draw(n: int, seed: int, prevalence: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < [prevalence, 0.5]).astype(np.uint8)
    return labels, rng.normal(size=(n, 2)) + labels * [1.0, 2.0]


def test_hand_worked_limits() -> None:
    # 19 positives, so a twentieth one is lower than the second lowest in a tenth of the cases
    labels = np.repeat([1, 0], [19, 9])[:, None]
    logits = np.concatenate([np.arange(19.0), np.arange(9.0)])[:, None]
    everyone = np.ones(28, bool)
    sets = ConformalSets.learn(labels, logits, everyone).with_cxr
    assert (sets.present_from, sets.absent_up_to) == ([1.0], [8.0])  # of 9 negatives, the highest
    absence, presence = ConformalSets.learn(labels, logits, everyone).contain(
        [[0.9], [1.0], [8.0], [8.1]], [True] * 4
    )
    assert presence[:, 0].tolist() == [False, True, True, True]
    assert absence[:, 0].tolist() == [True, True, True, False]
    fewer = Limits.learn(labels[:-1], logits[:-1], 0.9)  # 8 negatives tell nothing at 90 %
    assert fewer.absent_up_to == [np.inf]
    assert Limits.learn(labels[:, [0, 0]], logits[:, [0, 0]], 0.5).present_from == [9.0, 9.0]


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_a_stay_to_come_is_covered_as_often_as_promised(coverage: float) -> None:
    kept = []
    for seed in range(400):
        sets = ConformalSets.learn(*draw(60, seed), [True] * 60, coverage)
        labels, logits = draw(400, 10_000 + seed)
        absence, presence = sets.contain(logits, [True] * 400)
        kept.append([presence[labels[:, c] == 1, c].mean() for c in range(2)])
        kept[-1] += [absence[labels[:, c] == 0, c].mean() for c in range(2)]
    found = np.mean(kept, axis=0)
    assert (found > coverage - 0.01).all()
    assert (found < coverage + 0.06).all()  # 12 positives cannot say 0.9 exactly


def test_stays_without_radiograph_are_covered_as_often_as_those_with_one() -> None:
    def read_worse(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels, logits = draw(n, seed)
        has_cxr = np.arange(n) % 2 == 0
        return labels, np.where(has_cxr[:, None], logits, logits - 0.8 * labels), has_cxr

    labels, logits, has_cxr = read_worse(20_000, 0)
    sets = ConformalSets.learn(labels, logits, has_cxr)
    pooled = Limits.learn(labels, logits, 0.9)
    labels, logits, has_cxr = read_worse(20_000, 1)
    absence, presence = sets.contain(logits, has_cxr)
    for rows in (has_cxr, ~has_cxr):
        for c in range(2):
            positive = rows & (labels[:, c] == 1)
            assert presence[positive, c].mean() == pytest.approx(0.9, abs=0.02)
            assert absence[rows & (labels[:, c] == 0), c].mean() == pytest.approx(0.9, abs=0.02)
    missed = ~has_cxr & (labels[:, 0] == 1)
    assert (logits[missed, 0] >= pooled.present_from[0]).mean() < 0.87  # what limits for all would give


def test_without_held_out_stays_of_a_kind_a_set_contains_everything() -> None:
    sets = ConformalSets.learn(*draw(300, 0), [True] * 300)
    absence, presence = sets.contain([[-99.0, 99.0]] * 2, [True, False])
    assert absence.tolist() == [[True, False], [True, True]]
    assert presence.tolist() == [[False, True], [True, True]]


def test_ties_and_any_rising_map_change_no_set() -> None:
    labels, logits = draw(200, 0)
    tied = np.round(logits)
    has_cxr = np.arange(200) < 100
    for given in (logits, tied):
        sets = ConformalSets.learn(labels, given, has_cxr)
        mapped = ConformalSets.learn(labels, np.exp(given), has_cxr)
        both = zip(sets.contain(given, has_cxr), mapped.contain(np.exp(given), has_cxr), strict=True)
        for one, other in both:
            np.testing.assert_array_equal(one, other)
        assert sets.contain(given, has_cxr)[1][labels == 1].mean() >= 0.9


def test_coverage_is_counted_overall_and_without_radiograph() -> None:
    sets = ConformalSets.learn(*draw(300, 0), np.arange(300) % 3 == 0)
    labels, logits = draw(500, 1)
    has_cxr, units = np.arange(500) % 3 == 0, np.arange(500) // 2
    found = measure_sets(sets, labels, logits, has_cxr, ["gout", "shock"], units)
    assert [(one.stays, one.phenotype) for one in found.measured] == [
        (stays, name) for stays in ("all", "without CXR") for name in ("macro", "gout", "shock")
    ]
    absence, presence = sets.contain(logits, has_cxr)
    for one in found.measured:
        rows = np.ones(500, bool) if one.stays == "all" else ~has_cxr
        columns = {"macro": [0, 1], "gout": [0], "shock": [1]}[one.phenotype]
        y, a, p = labels[rows][:, columns], absence[rows][:, columns], presence[rows][:, columns]
        assert (one.n_positive, one.n_negative) == ((y == 1).sum(), (y == 0).sum())
        each = [(p[y[:, c] == 1, c].mean(), a[y[:, c] == 0, c].mean()) for c in range(len(columns))]
        assert (one.positives.value, one.negatives.value) == pytest.approx(np.mean(each, axis=0))
        assert one.decisive.value == pytest.approx((a != p).mean())
        assert one.undecided.value == pytest.approx((a & p).mean())
        for share in (one.positives, one.negatives, one.decisive):
            assert 0 < share.low < share.value < share.high < 1
    everyone = measure_sets(sets, labels, logits, np.ones(500, bool), ["gout", "shock"], units)
    assert {one.stays for one in everyone.measured} == {"all"}


def test_a_label_of_few_subjects_has_no_interval() -> None:
    sets = ConformalSets.learn(*draw(300, 0), np.arange(300) % 3 == 0)
    labels, logits = draw(100, 1)
    labels[:, 0] = 0
    labels[:8, 0] = 1  # of 4 subjects
    labels[:, 1] = 0
    found = measure_sets(sets, labels, logits, np.ones(100, bool), ["gout", "shock"], np.arange(100) // 2)
    macro, gout, shock = found.measured
    assert np.isfinite(gout.positives.value)
    assert np.isnan([gout.positives.low, gout.positives.high]).all()
    assert np.isnan([shock.positives.value, shock.positives.low]).all()
    assert macro.positives.value == gout.positives.value
    assert np.isfinite(macro.negatives.low)


def test_the_interval_of_a_mean_share_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth, held = np.array([0.9, 0.7]), []
    for _ in range(400):
        whole = rng.integers(0, 4, size=(60, 2)).astype(float)
        odds = np.clip(rng.normal(truth, 0.1, size=(60, 2)), 0, 1)  # stays of a subject resemble each other
        found = mean_share(rng.binomial(whole.astype(int), odds).astype(float), whole)
        held.append(found.low <= np.clip(rng.normal(truth, 0.1, (10_000, 2)), 0, 1).mean() <= found.high)
    assert 0.92 < np.mean(held) < 0.98


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0])
def test_a_coverage_out_of_range_is_refused(coverage: float) -> None:
    with pytest.raises(InputError, match="expected a number above 0 and below 1"):
        ConformalSets.learn(*draw(30, 0), [True] * 30, coverage)
