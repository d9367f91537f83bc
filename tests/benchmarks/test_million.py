"""The benchmark of a million stays, on a few hundred."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import million
from drfuse.data import Cohort
from drfuse.run import Predictions


@pytest.mark.slow
def test_the_stages_make_a_cohort_a_run_and_its_metrics(tmp_path: Path) -> None:
    cohort, run = tmp_path / "cohort", tmp_path / "run"
    million.assemble(cohort, 600, 4)
    assert million.check(cohort) == 600
    opened = Cohort.open(cohort)
    assert len(opened.cxr) == 150
    assert 0.02 < np.isfinite(opened.ehr).mean() < 30 / (48 * 17)
    million.predict(cohort, run)
    predictions = Predictions.read(run / "predictions.parquet")
    assert predictions.logits.shape == (600, 25)
    assert predictions.modality_weights is not None
    assert np.isfinite(predictions.logits).all()
    assert million.evaluate(cohort, run) == pytest.approx(0.5, abs=0.1)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert metrics["full"]["n_stays"] == len(opened.rows("test"))
    assert set(pl.read_csv(run / "subgroups.csv")["attribute"]) == {
        "age",
        "sex",
        "race",
        "admission",
        "has_cxr",
    }
