"""`drfuse predict`: any stays and any number of runs in, one table out."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal
from scipy.special import expit

from drfuse.cohort import prepare
from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.evaluation import Recalibration
from drfuse.inference import Predictor
from drfuse.inference.predict import predict
from drfuse.models import CxrResNet, DrFuse
from drfuse.run import Predictions, Run
from drfuse.training import train
from tests.training.own_model import FirstHour

QUICK: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu"}
ARRAYS = {"probability": "logits", "probability_without_cxr": "logits_without_cxr"}


@pytest.fixture(scope="module")
def runs(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two runs of a DrFuse with other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    backbone = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    model = partial(DrFuse, dim=8, heads=2, cxr_backbone=backbone)
    return [train(small_cohort, folder / str(seed), model, seed=seed, **QUICK).folder for seed in (0, 1)]


def by_stay(table: pl.DataFrame, column: str) -> dict[int, np.ndarray[Any, Any]]:
    """Return a column (C,) of each stay."""
    return {
        int(stay): of[column].to_numpy() for (stay,), of in table.group_by("stay_id", maintain_order=True)
    }


def test_the_stays_of_a_run_are_predicted_to_the_bit(
    runs: list[Path], small_cohort: Path, tmp_path: Path
) -> None:
    written = Predictions.read(Run(runs[0]).predictions)
    recalibration = Recalibration.read(runs[0])
    assert recalibration is not None
    done = predict(runs[0], small_cohort, out=tmp_path / "out" / "all.parquet")
    table = pl.read_parquet(tmp_path / "out" / "all.parquet")
    assert (done.n_stays, done.table) == (len(Cohort.open(small_cohort)), None)
    assert table.height == done.n_stays * len(written.phenotypes)
    for column, array in ARRAYS.items():
        found = by_stay(table, column)
        expected = recalibration.apply(getattr(written, array))
        assert_array_equal(np.stack([found[stay] for stay in written.stays["stay_id"]]), expected)
    weights = np.stack([table[name] for name in ("weight_ehr", "weight_shared", "weight_cxr")], axis=-1)
    known = table["stay_id"].is_in(written.stays["stay_id"].implode()).to_numpy()
    assert written.modality_weights is not None
    assert_array_equal(weights[known].reshape(written.modality_weights.shape), written.modality_weights)


def test_several_runs_give_their_mean_and_range(runs: list[Path], small_cohort: Path, tmp_path: Path) -> None:
    tables = []
    for number, run in enumerate(runs):
        predict(run, small_cohort, out=tmp_path / f"{number}.parquet")
        tables.append(pl.read_parquet(tmp_path / f"{number}.parquet"))
    predict(runs[0], small_cohort, more_runs=runs[1:], out=tmp_path / "both.csv")
    both = pl.read_csv(tmp_path / "both.csv")
    alone = np.stack([table["probability"] for table in tables])
    np.testing.assert_allclose(both["probability"], alone.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(both["low"], alone.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(both["high"], alone.max(axis=0), atol=1e-6)
    assert both.columns == tables[0].columns


def test_runs_of_other_batch_sizes_are_predicted_in_the_same_blocks(
    runs: list[Path], small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train(small_cohort, tmp_path / "run", FirstHour, batch_size=7, **QUICK).folder
    predict(runs[0], small_cohort, more_runs=[other], out=tmp_path / "one.parquet")
    monkeypatch.setattr("drfuse.inference.predictor._STAYS_A_BLOCK", 40)
    predict(runs[0], small_cohort, more_runs=[other], out=tmp_path / "several.parquet")
    assert pl.read_parquet(tmp_path / "one.parquet").equals(pl.read_parquet(tmp_path / "several.parquet"))


def test_stays_without_a_prediction_are_counted(
    small_cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = {"embedding_size": 16, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}
    model = partial(CxrResNet, dim=8, cxr_backbone=backbone)
    run = train(small_cohort, tmp_path / "run", model, **QUICK).folder
    predict(run, small_cohort, out=tmp_path / "all.parquet")
    table = pl.read_parquet(tmp_path / "all.parquet")
    assert table["probability"].is_null().equals(~table["has_cxr"])
    n_without = int((~Cohort.open(small_cohort).has_cxr).sum())
    assert f"{n_without} of 80 stays have no prediction" in caplog.text


@pytest.mark.slow
def test_records_are_predicted_without_diagnoses(
    runs: list[Path], small_cohort: Path, tmp_path: Path
) -> None:
    release, images = small_cohort.parent / "mimic-iv", small_cohort.parent / "mimic-cxr"
    shutil.copytree(release, tmp_path / "mimic-iv")
    (tmp_path / "mimic-iv" / "hosp" / "diagnoses_icd.csv.gz").unlink()
    predict(runs[0], mimic_iv=tmp_path / "mimic-iv", mimic_cxr=images, out=tmp_path / "new.parquet")
    predict(runs[0], small_cohort, out=tmp_path / "own.parquet")
    new, own = (pl.read_parquet(tmp_path / f"{name}.parquet").sort("stay_id") for name in ("new", "own"))
    for name in ("probability", "probability_without_cxr"):
        np.testing.assert_allclose(new[name], own[name], atol=1e-5)
    assert new.select("stay_id", "phenotype", "has_cxr", "unobserved").equals(
        own.select("stay_id", "phenotype", "has_cxr", "unobserved")
    )


def test_a_patient_is_predicted_from_files(runs: list[Path], tmp_path: Path) -> None:
    rows = {"stay_id": [8] * 2, "hours": [0.5, 30], "variable": ["heart_rate", "ph"], "value": ["80", "7.3"]}
    pl.DataFrame(rows).write_csv(tmp_path / "ehr.csv")
    done = predict(runs[0], ehr=tmp_path / "ehr.csv")
    assert done.table is not None
    assert set(done.table["stay_id"]) == {8}
    assert done.table["probability"].equals(done.table["probability_without_cxr"])
    assert not done.table["has_cxr"].any()
    assert "heart_rate" not in done.table["unobserved"][0].split("; ")
    assert len(done.table["unobserved"][0].split("; ")) == 15
    assert Predictor.open(runs[0]).predict_stays(pl.DataFrame(rows)).equals(done.table)


def test_a_run_that_has_not_learned_to_recalibrate_gives_its_own_probabilities(
    runs: list[Path], small_cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    Run(tmp_path / "run").recalibration.unlink()
    done = predict(tmp_path / "run", small_cohort, out=tmp_path / "all.parquet")
    assert done.methods == [None]
    written = Predictions.read(Run(runs[0]).predictions)
    found = by_stay(pl.read_parquet(tmp_path / "all.parquet"), "probability")
    expected = expit(written.logits, dtype=np.float64)
    assert_array_equal(np.stack([found[stay] for stay in written.stays["stay_id"]]), expected)


def test_the_length_of_stay_is_predicted_for_stays_that_outlast_the_window(
    small_cohort: Path, tmp_path: Path
) -> None:
    run = train(small_cohort, tmp_path / "run", FirstHour, task="los", **QUICK).folder
    predict(run, small_cohort, out=tmp_path / "all.parquet")
    predicted = set(pl.read_parquet(tmp_path / "all.parquet")["stay_id"])
    stays = Cohort.open(small_cohort).stays
    assert predicted == set(stays.filter(pl.col("los") > 2)["stay_id"])
    with pytest.raises(InputError, match="ended within the window, so its los is not predicted"):
        Predictor.open(run).explain(small_cohort, stays.filter(pl.col("los") <= 2)["stay_id"][0])
    rows = {"stay_id": [8], "hours": [30.0], "variable": ["heart_rate"], "value": ["80"]}
    pl.DataFrame(rows).write_csv(tmp_path / "short.csv")
    with pytest.raises(InputError, match="no stay of the given patients can be predicted"):
        predict(run, ehr=tmp_path / "short.csv")


@pytest.mark.slow
def test_what_does_not_fit_is_refused(runs: list[Path], small_cohort: Path, tmp_path: Path) -> None:
    refused = partial(predict, runs[0])
    (tmp_path / "there.csv").touch()
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    hospital = small_cohort.parent
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "expected stays from one of COHORT, --mimic-iv and --ehr, got none"),
        ({"cohort": small_cohort, "ehr": "x.csv"}, "got COHORT and --ehr"),
        ({"cohort": small_cohort, "cxr": "x.png"}, "--cxr needs --ehr; give both"),
        ({"cohort": small_cohort, "mimic_cxr": hospital}, "--mimic-cxr needs --mimic-iv; give both"),
        ({"cohort": small_cohort}, "there are 80 stays to predict; choose a file for them with --out"),
        ({"cohort": small_cohort, "out": tmp_path / "x.txt"}, r"expected a name that ends in \.parquet or"),
        ({"cohort": small_cohort, "out": tmp_path / "there.csv"}, "exists; choose a different --out"),
        ({"mimic_iv": "none", "out": tmp_path / "there.csv"}, "exists; choose a different --out"),  # at once
        ({"cohort": small_cohort, "out": folder, "overwrite": True}, "is a folder; choose a different --out"),
        (
            {"cohort": small_cohort, "more_runs": runs},
            "is the same model as another of the runs; leave it out",
        ),
        ({"cohort": small_cohort, "model": "tests.none.Model"}, "cannot be imported"),
        ({"cohort": tmp_path}, "is not a cohort"),
        ({"mimic_iv": tmp_path}, "does not hold a MIMIC-IV release"),
    ]
    for arguments, expected in cases:
        with pytest.raises(InputError, match=expected):
            refused(**arguments)
    prepare(hospital / "mimic-iv", tmp_path / "short", window_hours=24)
    with pytest.raises(InputError, match="different window_hours"):
        refused(tmp_path / "short", out=tmp_path / "x.csv")
    other = train(small_cohort, tmp_path / "run", FirstHour, task="los", **QUICK).folder
    with pytest.raises(InputError, match="predicts other labels than"):
        refused(small_cohort, more_runs=[other], out=tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
    predict(runs[0], small_cohort, out=tmp_path / "there.csv", overwrite=True)
    assert (tmp_path / "there.csv").stat().st_size > 0


def test_a_stay_of_a_cohort_is_explained_by_its_id(runs: list[Path], small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    stay = int(cohort.stay_id[5])
    explanation = Predictor.open(runs[0]).explain(small_cohort, stay)
    assert explanation.stay_id == stay
    expected = Predictor.open(runs[0]).predict(cohort, np.array([5]))
    np.testing.assert_allclose(explanation.logits["both"], expected.logits[0], atol=1e-5)
    with pytest.raises(InputError, match="has no stay 1;"):
        Predictor.open(runs[0]).explain(cohort, 1)
