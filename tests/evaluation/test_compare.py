"""Systems with seeds: against scikit-learn on the resampled rows, and hand-worked p-values."""

import numpy as np
import pytest
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


def test_seeds_are_averaged_within_each_resample() -> None:
    labels, scores, units = example()
    found = seeded_prauc(labels, scores, units, n_resamples=30, seed=2)
    assert found.values == pytest.approx([naive_macro(labels, one) for one in scores])
    for r, counts in enumerate(next(resample(units, 30, 2))):
        drawn = np.repeat(np.arange(40), counts)
        expected = np.mean([naive_macro(labels[drawn], one[drawn]) for one in scores])
        assert found.resampled[r] == pytest.approx(expected)
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
    assert better.p == worse.p == 2 / 100
    assert worse.difference == -better.difference
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 1, 1, 1], 2 * 1 / 5),
        ([1, 1, 1, -1], 2 * 2 / 5),
        ([1, 1, -1, -1], 1.0),  # 2 * 3 / 5 is above 1
        ([0, 1, 1, 1], 2 * 2 / 5),  # no difference is on both sides
        ([1, 1, np.nan, 1], 2 * 1 / 4),
    ],
)
def test_the_p_value(differences: list[float], p: float) -> None:
    ours, theirs = (
        SeededPrauc(np.array([value]), of, np.full((1, 1), value), of[:, None])
        for value, of in ((0.6, np.array(differences, float)), (0.5, np.zeros(4)))
    )
    found = compare(ours, theirs)
    assert found.p == pytest.approx(p)
    assert found.difference == pytest.approx(0.1)


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
