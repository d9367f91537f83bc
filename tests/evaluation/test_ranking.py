"""PRAUC and AUROC of resamples: against scikit-learn on the resampled rows, ties included."""

from collections.abc import Iterator

import numpy as np
import pytest
from numba import config
from numba.core import caching
from sklearn.metrics import average_precision_score, roc_auc_score

from drfuse.evaluation import ranking
from drfuse.evaluation.ranking import bootstrap_prauc, prauc_auroc, prauc_auroc_of_groups, rank
from drfuse.evaluation.resampling import resample


def tied_example(n: int = 60, n_labels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random((n, n_labels)) < 0.3
    return labels.astype(np.uint8), np.round(rng.normal(size=(n, n_labels)) + labels, 1).astype(np.float32)


def test_without_resampling_equals_scikit_learn() -> None:
    labels, scores = tied_example()
    prauc, auroc = prauc_auroc(labels, scores)
    for c in range(labels.shape[1]):
        assert prauc[0, c] == pytest.approx(average_precision_score(labels[:, c], scores[:, c]), abs=1e-12)
        assert auroc[0, c] == pytest.approx(roc_auc_score(labels[:, c], scores[:, c]), abs=1e-12)


def test_each_resample_equals_scikit_learn_on_the_drawn_rows() -> None:
    labels, scores = tied_example(n=40)
    counts = next(resample(np.arange(40), 25, seed=3))
    prauc, auroc = prauc_auroc(labels, scores, [counts])
    for r, row in enumerate(counts):
        drawn = np.repeat(np.arange(40), row)
        for c in range(labels.shape[1]):
            y, s = labels[drawn, c], scores[drawn, c]
            assert prauc[r, c] == pytest.approx(average_precision_score(y, s), abs=1e-12)
            assert auroc[r, c] == pytest.approx(roc_auc_score(y, s), abs=1e-12)


def test_hand_worked_value() -> None:
    # ranked: positive, negative, positive -> (1/1 + 2/3) / 2; one of two negative-positive pairs is wrong
    prauc, auroc = prauc_auroc([[1], [0], [1]], [[3.0], [2.0], [1.0]])
    assert prauc.item() == pytest.approx((1 + 2 / 3) / 2)
    assert auroc.item() == pytest.approx(0.5)


def test_equal_scores_make_one_threshold() -> None:
    prauc, auroc = prauc_auroc([[1], [0], [0], [1]], [[0.0]] * 4)
    assert prauc.item() == pytest.approx(0.5)
    assert auroc.item() == pytest.approx(0.5)


def test_a_label_of_one_value_is_undefined() -> None:
    prauc, auroc = prauc_auroc([[0, 1], [0, 1]], [[0.1, 0.2], [0.3, 0.4]])
    assert np.isnan(prauc[0, 0])
    assert prauc[0, 1] == 1.0
    assert np.isnan(auroc).all()


@pytest.mark.parametrize("n_resamples", [1, 63, 64, 65])
def test_the_bootstrap_equals_a_loop_of_scikit_learn(n_resamples: int) -> None:
    labels, scores = tied_example(n=50)
    units = np.arange(50) // 3
    found = bootstrap_prauc(labels, scores, n_resamples, seed=5, units=units)
    assert found.shape == (n_resamples, 3)
    counts = np.concatenate(list(resample(units, n_resamples, seed=5)))
    for r in {0, n_resamples // 2, n_resamples - 1}:
        drawn = np.repeat(np.arange(50), counts[r])
        for c in range(3):
            expected = average_precision_score(labels[drawn, c], scores[drawn, c])
            assert found[r, c] == pytest.approx(expected, abs=1e-12)


def test_without_units_rows_are_drawn() -> None:
    labels, scores = tied_example()
    rows = bootstrap_prauc(labels, scores, 10, units=np.arange(60))
    np.testing.assert_array_equal(bootstrap_prauc(labels, scores, 10), rows)


def test_a_resample_without_a_positive_is_undefined() -> None:
    labels, scores = np.array([[1], [0], [0]]), np.array([[2.0], [1.0], [0.0]])
    prauc, auroc = prauc_auroc(labels, scores, [np.array([[0, 2, 1], [1, 1, 1], [3, 0, 0]])])
    np.testing.assert_array_equal(prauc[:, 0], [np.nan, 1, 1])
    np.testing.assert_array_equal(auroc[:, 0], [np.nan, 1, np.nan])


def test_rows_that_are_not_drawn_make_no_threshold() -> None:
    prauc, _ = prauc_auroc([[0], [1], [0]], [[3.0], [2.0], [1.0]], [np.array([[0, 1, 5]])])
    assert prauc.item() == 1


@pytest.mark.parametrize("times", [255, 256, 2**20, 2**33])
def test_counts_of_any_size_are_exact(times: int) -> None:
    labels, scores = tied_example(n=30)
    once = prauc_auroc(labels, scores)
    many = prauc_auroc(labels, scores, [np.full((2, 30), times, np.int64)])
    for found, expected in zip(many, once, strict=True):
        np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), rtol=1e-12)


def test_one_unit_of_many_rows_is_drawn_whole() -> None:
    labels, scores = tied_example(n=300)
    found = bootstrap_prauc(labels, scores, 3, units=np.zeros(300))
    np.testing.assert_allclose(found, np.repeat(prauc_auroc(labels, scores)[0], 3, axis=0), rtol=1e-12)


def test_groups_are_measured_as_if_each_were_alone() -> None:
    labels, scores = tied_example(n=300)
    blocks = list(resample(np.arange(300) // 2, 70, seed=1))
    groups = np.random.default_rng(1).random((4, 300)) < np.array([[0.5], [0.05], [1.0], [0.0]])
    prauc, auroc = prauc_auroc_of_groups(rank(labels, scores), groups, blocks)
    for g, rows in enumerate(groups):
        alone = prauc_auroc(labels[rows], scores[rows], [block[:, rows] for block in blocks])
        np.testing.assert_array_equal((prauc[g], auroc[g]), alone)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = tied_example(n=200, n_labels=7)
    several = bootstrap_prauc(labels, scores, 150)
    for threads in (1, 5):
        monkeypatch.setattr(config, "NUMBA_NUM_THREADS", threads)
        np.testing.assert_array_equal(bootstrap_prauc(labels, scores, 150), several)


@pytest.fixture
def fresh_kernel() -> Iterator[None]:
    ranking._kernel.cache_clear()
    yield
    ranking._kernel.cache_clear()


def test_no_place_for_what_is_compiled_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, fresh_kernel: None
) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    prauc, _ = prauc_auroc([[0], [1]], [[0.0], [1.0]])
    assert prauc.item() == 1


def test_a_full_disk_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, fresh_kernel: None) -> None:
    def nothing_kept(*arguments: object) -> None:
        return None

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(caching.Cache, "load_overload", nothing_kept)
    monkeypatch.setattr(caching.Cache, "save_overload", full)
    prauc, _ = prauc_auroc([[0], [1]], [[0.0], [1.0]])
    assert prauc.item() == 1
