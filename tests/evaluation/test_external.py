"""A run is measured on a cohort of other people, and says by how much their inputs differ."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import prepare
from drfuse.data import Cohort
from drfuse.data.summary import summarize_inputs
from drfuse.errors import InputError
from drfuse.evaluation import evaluate, evaluate_test_set
from drfuse.inference import Predictor
from drfuse.run import Run
from drfuse.training import train
from tests.training.own_model import FirstHour

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_cohort, tmp_path_factory.mktemp("run") / "run", FirstHour, **QUICK).folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_measured_on_all_stays_of_another_cohort(copied: Path, elsewhere: Path) -> None:
    own_alone = evaluate(copied, n_resamples=20)
    measured = evaluate(copied, on=elsewhere, n_resamples=20)
    own = [one for one in measured if one.external is None]
    other = {one.test_on: one for one in measured if one.external is not None}
    assert repr(own) == repr(own_alone)  # NaN is not equal to itself
    predicted = Predictor.open(copied).predict(elsewhere).as_split("test")
    assert other["full"].n_stays == len(predicted.stays) == len(Cohort.open(elsewhere))
    expected = evaluate_test_set(predicted, "full", n_resamples=20)
    assert repr(other["full"].metrics) == repr(expected.metrics)
    external = other["full"].external
    assert external is not None
    assert external.folder.parent == copied / "external"
    stored = Run(external.folder)
    np.testing.assert_array_equal(stored.read_predictions().logits, predicted.logits)
    assert stored.read_metrics()["test"]["full"]["external"]["cohort"] == "theirs"
    assert {one.attribute for one in other["full"].subgroups.groups} >= {"age", "race", "has_cxr"}
    assert json.loads((copied / "metrics.json").read_text())["test"].keys() == {"matched", "full"}


def test_the_shift_of_each_input_is_told(copied: Path, elsewhere: Path, small_cohort: Path) -> None:
    (measured, *_) = (one for one in evaluate(copied, "full", 20, on=elsewhere) if one.external)
    assert measured.external is not None
    rows = {(one.kind, one.name): one for one in measured.external.shift}
    own, other = Cohort.open(small_cohort), Cohort.open(elsewhere)
    train_rows = own.rows("train")
    radiograph = rows["radiograph", "radiograph"]
    assert radiograph.trained_share == pytest.approx(own.has_cxr[train_rows].mean())
    assert radiograph.share == pytest.approx(other.has_cxr.mean())
    column = [variable.name for variable in own.manifest.variables].index("heart_rate")
    before, now = own.ehr[train_rows, :, column], other.ehr[..., column]
    pulse = rows["variable", "heart_rate"]
    assert pulse.trained_share == pytest.approx(np.isfinite(before).sum() / own.n_hours[train_rows].sum())
    assert (pulse.trained_mean, pulse.mean) == pytest.approx((np.nanmean(before), np.nanmean(now)))
    assert pulse.difference == pytest.approx((np.nanmean(now) - np.nanmean(before)) / np.nanstd(before))
    shock = rows["label", "Shock"]
    assert shock.share == pytest.approx(np.nanmean(other.labels[:, other.phenotypes.index("Shock")]))
    table = pl.read_csv(measured.external.folder / "shift.csv")
    assert table.height == len(rows) == 1 + 17 + 25


def test_a_variable_that_was_never_observed_has_no_mean(small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    empty = np.full_like(cohort.ehr, np.nan)
    object.__setattr__(cohort, "ehr", empty)
    found = summarize_inputs(cohort, cohort.rows())
    assert all(one == {"observed": 0, "mean": None, "std": None} for one in found.values())


@pytest.mark.slow
def test_subjects_of_the_training_are_refused(copied: Path, small_cohort: Path) -> None:
    run, stays = Run(copied), Cohort.open(small_cohort).columns("subject_id", "split")
    learned = stays.filter(pl.col("split") != "test")["subject_id"].n_unique()
    with pytest.raises(InputError, match=rf"{learned} subjects of .* in the training or validation split of"):
        evaluate(copied, on=small_cohort)
    assert not (copied / "external").exists()
    measured = evaluate(copied, n_resamples=20, on=small_cohort, other_people=True)
    assert measured[-1].n_stays == len(run.read_predictions().stays)


@pytest.mark.slow
def test_a_cohort_of_other_variables_or_labels_is_refused(
    copied: Path, elsewhere: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text("phenotype,icd_version,icd_code\nSepsis,10,A419\n")
    release = elsewhere.parent / "mimic-iv"
    prepare(release, tmp_path / "labels", elsewhere.parent / "mimic-cxr", image_size=48, phenotypes=own)
    with pytest.raises(InputError, match="has different labels from those that the model predicts"):
        evaluate(copied, on=tmp_path / "labels")
    prepare(release, tmp_path / "hours", elsewhere.parent / "mimic-cxr", image_size=48, window_hours=24)
    with pytest.raises(InputError, match="has a different window_hours"):
        evaluate(copied, on=tmp_path / "hours")
    with pytest.raises(InputError, match="is not a cohort"):
        evaluate(copied, on=tmp_path)


def test_a_run_of_an_earlier_version_does_not_say_what_was_observed(copied: Path, elsewhere: Path) -> None:
    facts = json.loads((copied / "config.json").read_text())
    del facts["inputs"], facts["sha256"]
    (copied / "config.json").write_text(json.dumps(facts))
    (copied / "sums.json").unlink()
    measured = evaluate(copied, "full", 20, on=elsewhere)[-1]
    assert measured.external is not None
    of_variable = [one for one in measured.external.shift if one.kind == "variable"]
    assert all(one.trained_share is None and one.difference is None for one in of_variable)
    assert all(one.share is not None for one in of_variable)


@pytest.mark.slow
def test_overwriting_a_run_removes_what_was_measured_elsewhere(
    copied: Path, elsewhere: Path, small_cohort: Path
) -> None:
    evaluate(copied, "full", 20, on=elsewhere)
    train(small_cohort, copied, FirstHour, overwrite=True, **QUICK)
    assert not (copied / "external").exists()
