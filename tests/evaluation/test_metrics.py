"""A metric is one function: what somebody adds is in every file and table, and agrees with scikit-learn."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from drfuse.evaluation import Estimate, evaluate, evaluate_test_set, resample
from drfuse.evaluation.metrics import METRICS, Resampled, auroc, metric, prauc
from drfuse.report import metrics_table
from drfuse.run import Run
from tests.evaluation.test_evaluate import predictions


@pytest.fixture
def brier() -> Iterator[None]:
    """Add the Brier score, as somebody would write it."""

    @metric("Brier score")
    def brier(stays: Resampled) -> np.ndarray:
        squares = (expit(stays.logits.astype(np.float64)) - stays.labels) ** 2
        return np.concatenate([block @ squares / block.sum(axis=1)[:, None] for block in stays.blocks])

    yield
    del METRICS["brier"]


def of_the_test_split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, logits and subjects of the test stays."""
    given = predictions()
    test = (given.stays["split"] == "test").to_numpy()
    return given.labels[test], given.logits[test], given.stays["subject_id"].to_numpy()[test]


def test_metrics_have_a_row_a_resample_and_a_column_a_label() -> None:
    labels, logits, subjects = of_the_test_split()
    (counts,) = resample(subjects, 9, seed=2)
    stays = Resampled(labels, logits, [np.ones((1, len(labels)), np.uint8), counts])
    for found, expected in (
        (prauc(stays), average_precision_score),
        (auroc(stays), roc_auc_score),
    ):
        assert found.shape == (10, 4)
        for r, row in enumerate(np.concatenate(list(stays.blocks))):
            drawn = np.repeat(np.arange(len(labels)), row)
            assert found[r, 0] == pytest.approx(expected(labels[drawn, 0], logits[drawn, 0]))
        assert np.isnan(found[:, 3]).all()


def test_prauc_and_auroc_come_first() -> None:
    assert list(METRICS)[:2] == ["prauc", "auroc"]
    assert [METRICS[name].title for name in ("prauc", "auroc")] == ["PRAUC", "AUROC"]


def test_a_new_metric_is_measured_with_its_interval(brier: None) -> None:
    labels, logits, _ = of_the_test_split()
    measured = evaluate_test_set(predictions(), "full", n_resamples=50).metrics["brier"]
    expected = [brier_score_loss(labels[:, c], expit(logits[:, c])) for c in range(3)]
    assert [measured.by_label[f"p{c}"].value for c in range(3)] == pytest.approx(expected, rel=1e-5)
    assert measured.macro.value == pytest.approx(np.mean(expected), rel=1e-5)
    for one in (measured.macro, measured.by_label["p0"]):
        assert one.low < one.value < one.high


def test_a_label_without_a_positive_is_in_no_mean(brier: None) -> None:
    measured = evaluate_test_set(predictions(), "full", n_resamples=5)
    assert measured.left_out == ["p3"]
    assert np.isnan(measured.metrics["brier"].by_label["p3"].value)


def test_a_new_metric_is_in_every_file(brier: None, tmp_path: Path) -> None:
    predictions().write(Run(tmp_path).predictions)
    (measured,) = evaluate(tmp_path, "full", n_resamples=5)
    written = json.loads((tmp_path / "metrics.json").read_text())["test"]["full"]
    assert written["brier_macro"]["value"] == measured.metrics["brier"].macro.value
    assert written["phenotypes"][1]["brier"]["low"] == measured.metrics["brier"].by_label["p1"].low
    table = pl.read_csv(tmp_path / "metrics.csv")
    assert table.columns[-4:] == ["brier", "brier_low", "brier_high", "brier_bias"]
    assert table.filter(phenotype="macro")["brier"].item() == pytest.approx(written["brier_macro"]["value"])


def test_what_an_earlier_version_did_not_measure_is_empty(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    predictions().write(Run(tmp_path).predictions)
    evaluate(tmp_path, n_resamples=5)
    request.getfixturevalue("brier")
    evaluate(tmp_path, "full", n_resamples=5)
    table = pl.read_csv(tmp_path / "metrics.csv")
    assert table.filter(test_on="matched")["brier"].null_count() == 5
    assert table.filter(test_on="full")["brier"].null_count() == 1  # p3 has no positive


def shown(width: int = 80) -> str:
    written = io.StringIO()
    measured = evaluate_test_set(predictions(), "full", n_resamples=5)
    Console(width=width, file=written).print(metrics_table(measured))
    return written.getvalue()


def test_a_new_metric_is_in_the_terminal(brier: None) -> None:
    head = next(line for line in shown().splitlines() if "positive" in line)
    assert head.split()[-3:] == ["AUROC", "Brier", "score"]
    measured = evaluate_test_set(predictions(), "full", n_resamples=5).metrics["brier"].macro
    assert f"mean Brier score {measured.value:.3f} ({measured.low:.3f}, {measured.high:.3f})" in shown()


def test_metrics_without_room_stand_in_the_caption_alone(
    brier: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        monkeypatch.setitem(METRICS, f"more{number}", replace(METRICS["brier"], title=f"more {number}"))
    text = shown()
    assert max(map(len, text.splitlines())) <= 80
    assert "more 3" not in next(line for line in text.splitlines() if "positive" in line)
    assert "mean more 3 0." in text


def test_a_metric_above_1_keeps_its_interval_there(monkeypatch: pytest.MonkeyPatch) -> None:
    @metric("log loss", bounded=False)
    def log_losses(stays: Resampled) -> np.ndarray:
        p = expit(stays.logits.astype(np.float64))
        losses = -np.log(np.where(stays.labels == 1, p, 1 - p))
        return np.concatenate([block @ losses / block.sum(axis=1)[:, None] for block in stays.blocks])

    monkeypatch.setitem(METRICS, "log_losses", METRICS.pop("log_losses"))  # so that it is taken back
    given = predictions()
    given = replace(given, logits=-4 * given.logits)
    found = evaluate_test_set(given, "full", n_resamples=50).metrics["log_losses"].by_label["p0"]
    test = (given.stays["split"] == "test").to_numpy()
    assert found.value == pytest.approx(
        log_loss(given.labels[test, 0], expit(given.logits[test, 0])), rel=1e-4
    )
    assert 1 < found.value < found.high
    assert not math.isnan(found.low)
    assert isinstance(found, Estimate)
