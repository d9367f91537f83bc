"""Every run is measured on another cohort as well."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drfuse.errors import InputError
from drfuse.evaluation.external import Shift
from drfuse.report.tables import Number
from drfuse.reproduce import reproduce
from drfuse.reproduce.experiments.external import EXPERIMENT, external_table, shift_table
from drfuse.reproduce.results import Setting
from tests.reproduce.samples import draw_labels, make_results, predict, results_of


def test_each_system_has_its_score_on_both_cohorts() -> None:
    results = make_results(("transformer", "resnet50"))
    there = results_of(
        {
            ("transformer", "full"): [
                predict("transformer", draw_labels(1), "full", seed) for seed in (0, 1)
            ],
            ("resnet50", "full"): [predict("resnet50", draw_labels(1), "full", seed) for seed in (0, 1)],
        }
    )
    table = external_table(results, there)
    assert [row.header for row in table.rows] == ["Transformer", "ResNet50"]
    assert len(table.columns) == 1 + 4  # trained on matched has no run there
    transformer, resnet = (row.cells for row in table.rows)
    (system, _) = results.systems
    for place, (of, test_on) in enumerate(
        [(results, "matched"), (there, "matched"), (results, "full"), (there, "full")]
    ):
        score = of.score(system, Setting("full", test_on))  # type: ignore[arg-type]
        assert score is not None
        assert transformer[place] == Number.of(score.mean, spread=score.spread)
    last = resnet[-1]
    assert isinstance(last, Number)
    assert np.isnan(last.value)  # without a radiograph, it makes no prediction


def test_it_needs_another_cohort(small_cohort: Path, tmp_path: Path) -> None:
    results = make_results(("transformer",))
    assert not EXPERIMENT.can_be_measured(results)
    assert EXPERIMENT.can_be_measured(replace(results, elsewhere=results))
    with pytest.raises(InputError, match="external needs another cohort; name it with --also-test-on"):
        reproduce("external", small_cohort, tmp_path)


def test_the_shift_is_a_table() -> None:
    there = replace(
        make_results(("transformer",)),
        shift=[
            Shift("radiograph", "radiograph", 0.5, 0.2),
            Shift("variable", "ph", None, 0.1, None, 7.4, None),
            Shift("label", "Shock", 0.3, 0.4),
        ],
    )
    table = shift_table(there)
    assert [row.header for row in table.rows] == ["any radiograph", "ph", "Shock"]
    assert [len(row.cells) for row in table.rows] == [5] * 3
    assert table.rows[1].cells[3] == Number(7.4, digits=2)


@pytest.mark.slow
def test_a_run_predicts_the_other_cohort_once(
    small_cohort: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "models": ["logistic-ehr"],
        "n_resamples": 20,
        "accelerator": "cpu",
        "crop_size": 48,
        "also_test_on": elsewhere,
    }
    done = reproduce("external", small_cohort, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert [table.key for table in done.tables][:2] == ["external", "external-shift"]
    (row,) = done.tables[0].rows
    assert all(isinstance(cell, Number) and 0 < cell.value <= 1 for cell in row.cells)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("it predicts again")

    monkeypatch.setattr("drfuse.inference.Predictor.predict_blocks", refused)
    again = reproduce("external", small_cohort, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert repr(again.tables[0]) == repr(done.tables[0])
    with pytest.raises(InputError, match="subjects in the training or validation split of"):
        reproduce("external", small_cohort, tmp_path / "out", **options | {"also_test_on": small_cohort})  # type: ignore[arg-type]
