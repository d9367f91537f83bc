"""Calibration, of predictions made by hand: each number against plain loops."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from drfuse.reproduce.experiments import EXPERIMENTS
from drfuse.reproduce.experiments.calibration import calibration_table, calibrations
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from tests.reproduce.samples import (
    LINES,
    MATCHED_TEST,
    PHENOTYPES,
    TEST,
    by_title,
    draw_labels,
    with_recalibrations,
)


def naive_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the calibration error of one label, bin by bin."""
    error = 0.0
    for b in range(10):
        within = (probabilities >= b / 10) & (probabilities < (b + 1) / 10)
        error += abs((probabilities - labels)[within].sum())
    return error / len(labels)


@pytest.mark.parametrize(("name", "n_stays"), [("transformer", 40), ("resnet50", 30), ("drfuse", 40)])
def test_calibration_is_of_the_stays_that_are_predicted(
    four_systems: Results, name: str, n_stays: int
) -> None:
    measured = calibrations(four_systems)
    stays, error, ece, chance, brier = by_title(calibration_table(four_systems, measured))[
        paper_systems()[name].title
    ]
    rows = MATCHED_TEST if name == "resnet50" else TEST
    assert stays.shown.value == str(rows.sum()) == str(n_stays)
    labels = draw_labels()[rows]
    eces, briers = [], []
    for run in four_systems.predictions[name, "full"]:
        p = 1 / (1 + np.exp(-run.logits[rows[TEST]].astype(float)))
        eces += [naive_ece(labels[:, c], p[:, c]) for c in range(len(PHENOTYPES))]
        briers += [brier_score_loss(labels[:, c], p[:, c]) for c in range(len(PHENOTYPES))]
    assert ece.value == pytest.approx(np.mean(eces))
    assert brier.value == pytest.approx(np.mean(briers))
    found = measured[paper_systems()[name]].raw
    assert chance.value == found.ece_if_calibrated > 0
    assert (error.value, error.low, error.high) == (found.error.value, found.error.low, found.error.high)
    assert sum(one.n_predictions for one in found.reliability) == 2 * n_stays * len(PHENOTYPES)


def test_calibration_of_a_task_in_which_not_all_take_part(mortality: Results) -> None:
    table = calibration_table(mortality, calibrations(mortality))
    assert [row[0].value for row in by_title(table).values()] == [19, 26]


def test_recalibrated_probabilities_stand_below_the_raw(four_systems: Results, tmp_path: Path) -> None:
    results = with_recalibrations(four_systems, tmp_path, {"drfuse": LINES})
    measured = calibrations(results)
    table = calibration_table(results, measured)
    title = paper_systems()["drfuse"].title
    headers = [row.header for row in table.rows]
    assert headers[-2:] == [title, f"{title}, recalibrated"]
    assert [header for header in headers if "recalibrated" in header] == headers[-1:]
    assert [row.cells[-1] for row in table.rows[-2:]] == ["", "temperature, Platt"]
    labels, briers = draw_labels()[TEST], []
    for one, run in zip(LINES, results.predictions["drfuse", "full"], strict=True):
        z = run.logits.astype(float) * one.slopes + one.intercepts
        briers.append(np.mean((1 / (1 + np.exp(-z)) - labels) ** 2))
    raw, recalibrated = (by_title(table)[header][-1] for header in headers[-2:])
    assert recalibrated.value == pytest.approx(np.mean(briers))
    assert raw.value == measured[paper_systems()["drfuse"]].raw.brier.value != recalibrated.value
    section = EXPERIMENTS["calibration"].measure(results)
    assert [caption for caption, _ in section.figures]
