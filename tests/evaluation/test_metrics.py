"""PRAUC and AUROC of resamples: against scikit-learn on the resampled rows, ties included."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from drfuse.evaluation.metrics import prauc_auroc, resample


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


def test_resamples_draw_as_many_units_as_there_are() -> None:
    units = np.array([7, 7, 7, 2, 9, 9])
    blocks = np.concatenate(list(resample(units, 200, seed=0)))
    assert blocks.shape == (200, 6)
    one_row_a_unit = blocks[:, [0, 3, 4]]
    assert (one_row_a_unit.sum(axis=1) == 3).all()


def test_rows_of_a_unit_come_and_go_together() -> None:
    units = np.array([7, 2, 7, 9, 9])
    (counts,) = resample(units, 50, seed=0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 3] == counts[:, 4]).all()
    assert (counts[:, 0] != counts[:, 1]).any()


def test_resamples_come_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drfuse.evaluation.metrics._CELLS_AT_A_TIME", 100)
    blocks = list(resample(np.arange(30), 10, seed=0))
    assert [len(block) for block in blocks] == [3, 3, 3, 1]


def test_the_seed_decides_the_resamples() -> None:
    first, again, other = (next(resample(np.arange(20), 5, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
