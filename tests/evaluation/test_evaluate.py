"""From predictions on disk to metrics on disk."""

import dataclasses
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from drfuse.errors import InputError
from drfuse.evaluation import (
    ConformalSets,
    Intervals,
    Recalibration,
    evaluate,
    evaluate_test_set,
    fit_recalibration,
    macro_prauc,
    missing_curve,
    seeded_prauc,
    subgroups,
)
from drfuse.evaluation.decisions import THRESHOLDS
from drfuse.run import Predictions, Run


def predictions(n: int = 80, n_labels: int = 4, seed: int = 0) -> Predictions:
    """Return random predictions; the last label never occurs, every second stay has a radiograph."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, n_labels)) < 0.3).astype(np.uint8)
    labels[:, -1] = 0
    stays = pl.DataFrame(
        {
            "subject_id": np.arange(n) // 2,
            "stay_id": 1000 + np.arange(n),
            "split": np.where(np.arange(n) // 2 % 4 == 0, "train", "test"),
            "has_cxr": np.arange(n) % 2 == 0,
        }
    )
    logits = rng.normal(size=(n, n_labels)).astype(np.float32) + labels
    return Predictions([f"p{c}" for c in range(n_labels)], stays, logits, labels, None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    predictions().write(Run(tmp_path).predictions)
    return tmp_path


def test_macro_is_the_mean_over_the_labels_that_occur() -> None:
    given = predictions()
    measured = evaluate_test_set(given, "full", n_resamples=20)
    test = (given.stays["split"] == "test").to_numpy()
    expected = [average_precision_score(given.labels[test, c], given.logits[test, c]) for c in range(3)]
    assert measured.prauc_macro.value == pytest.approx(np.mean(expected))
    assert measured.left_out == ["p3"]
    assert np.isnan(measured.metrics["prauc"].by_label["p3"].value)


@pytest.mark.parametrize("intervals", get_args(Intervals))
def test_every_macro_prauc_is_that_of_the_public_function(intervals: Intervals) -> None:
    given = predictions()
    test = (given.stays["split"] == "test").to_numpy()
    labels, logits, units = given.labels[test], given.logits[test], given.stays["subject_id"].to_numpy()[test]
    everyone = pl.DataFrame({"ward": ["all"] * len(labels)})
    expected = macro_prauc(labels, logits, units, 90, 3, intervals)
    assert not np.isnan(expected.low)
    measured = evaluate_test_set(given, "full", 90, seed=3, intervals=intervals)
    curve = missing_curve(labels, logits, logits, units, [0], n_resamples=90, seed=3, intervals=intervals)
    (group,) = subgroups(labels, logits, everyone, units, 90, 3, intervals=intervals).groups
    seeded = seeded_prauc(labels, [logits], units, 90, 3, intervals).mean
    for found in (measured.prauc_macro, curve[0].prauc_macro, group.prauc_macro, seeded):
        assert found == expected


def test_a_mean_over_labels_that_all_have_few_positives_has_no_interval() -> None:
    given = predictions()
    labels = np.zeros_like(given.labels)
    for c in range(3):
        labels[np.arange(8, 8 * (c + 2), 8) + 2, c] = 1  # of 1, 2 and 3 subjects of the test split
    few = replace(given, labels=labels)
    everyone = pl.DataFrame({"ward": ["all"] * len(labels)})
    units = given.stays["subject_id"].to_numpy()
    (point,) = missing_curve(labels, given.logits, given.logits, units, [1], n_resamples=20)
    (group,) = subgroups(labels, given.logits, everyone, units, 20).groups
    measured = evaluate_test_set(few, "full", n_resamples=20)
    for found in (
        measured.prauc_macro,
        measured.metrics["auroc"].macro,
        macro_prauc(labels, given.logits, units, 20),
        seeded_prauc(labels, [given.logits], units, 20).mean,
        point.prauc_macro,
        group.prauc_macro,
        group.auroc_macro,
        group.tpr_macro,
    ):
        assert not np.isnan(found.value)
        assert np.isnan([found.low, found.high]).all()


def test_only_the_test_split_counts() -> None:
    given = predictions()
    other_logits = given.logits.copy()
    other_logits[(given.stays["split"] != "test").to_numpy()] = 9.0
    changed = Predictions(given.phenotypes, given.stays, other_logits, given.labels, None)
    assert (
        evaluate_test_set(given, "full", 50).prauc_macro == evaluate_test_set(changed, "full", 50).prauc_macro
    )


def test_matched_are_the_test_stays_with_a_radiograph() -> None:
    full = evaluate_test_set(predictions(), "full", n_resamples=5)
    matched = evaluate_test_set(predictions(), "matched", n_resamples=5)
    assert (full.n_stays, full.n_with_cxr) == (60, 30)
    assert (matched.n_stays, matched.n_with_cxr) == (30, 30)


def test_the_interval_holds_the_value_and_repeats_with_its_seed() -> None:
    first = evaluate_test_set(predictions(), "full", seed=4).prauc_macro
    assert first.low < first.value < first.high
    assert first == evaluate_test_set(predictions(), "full", seed=4).prauc_macro
    assert first != evaluate_test_set(predictions(), "full", seed=5).prauc_macro


def test_subjects_of_many_stays_widen_the_interval() -> None:
    given = predictions(n=40)
    copies = 6  # each stay six times: six times the rows, no more information
    repeated = Predictions(
        given.phenotypes,
        pl.concat([given.stays] * copies),
        np.tile(given.logits, (copies, 1)),
        np.tile(given.labels, (copies, 1)),
        None,
    )
    by_subject = evaluate_test_set(repeated, "full", 300, "subject").prauc_macro
    by_stay = evaluate_test_set(
        Predictions(
            repeated.phenotypes,
            repeated.stays.with_columns(stay_id=pl.int_range(pl.len())),
            repeated.logits,
            repeated.labels,
            None,
        ),
        "full",
        300,
        "stay",
    ).prauc_macro
    assert by_subject.high - by_subject.low > 1.5 * (by_stay.high - by_stay.low)


def test_stays_without_prediction_are_left_out_and_counted(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = predictions()
    given.logits[~given.stays["has_cxr"].to_numpy()] = np.nan
    given.write(Run(run).predictions)
    with caplog.at_level(logging.WARNING):
        (full,) = evaluate(run, "full", n_resamples=5)
    assert (full.n_stays, full.n_without_prediction) == (30, 30)
    assert "30 stays of the full test set have no prediction" in caplog.text


def test_both_test_sets_are_written(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        measured = evaluate(run, n_resamples=10)
    assert "labels without a positive in the matched test set, left out of its mean: p3" in caplog.text
    written = json.loads((run / "metrics.json").read_text())["test"]
    assert list(written) == ["matched", "full"]
    assert written["full"]["prauc_macro"]["value"] == measured[1].prauc_macro.value
    assert written["full"]["phenotypes"][3]["prauc"]["value"] is None
    assert {"n_stays", "n_subjects", "bootstrap_unit", "n_resamples", "seed"} <= written["full"].keys()
    table = pl.read_csv(run / "metrics.csv")
    assert table.height == 2 * (4 + 1)
    assert table.filter(phenotype="macro", test_on="full")["prauc"].item() == pytest.approx(
        measured[1].prauc_macro.value
    )
    assert table.filter(phenotype="p0", test_on="full")["prauc"].item() == pytest.approx(
        measured[1].metrics["prauc"].by_label["p0"].value
    )


@pytest.mark.parametrize("test_on", ["full", "matched"])
def test_a_test_set_without_positives_is_refused(test_on: str) -> None:
    given = predictions()
    given.labels[:] = 0
    with pytest.raises(InputError, match=f"the {test_on} test set has .* no positive"):
        evaluate_test_set(given, test_on)  # type: ignore[arg-type]


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    for n_resamples in (0, 100_001):
        with pytest.raises(InputError, match=f"n_resamples is {n_resamples}; expected 1 to 100000"):
            evaluate(tmp_path, n_resamples=n_resamples)
    with pytest.raises(InputError, match=r"has no predictions\.parquet"):
        evaluate(tmp_path)


def test_measuring_one_test_set_keeps_the_other(run: Path) -> None:
    evaluate(run, n_resamples=5)
    before = json.loads((run / "metrics.json").read_text())["test"]
    evaluate(run, "matched", n_resamples=6)
    after = json.loads((run / "metrics.json").read_text())["test"]
    assert after["full"] == before["full"]
    assert after["matched"]["n_resamples"] == 6
    assert set(pl.read_csv(run / "metrics.csv")["test_on"]) == {"full", "matched"}


def test_without_radiographs_only_the_full_test_set_is_measured(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = predictions()
    without = given.stays.with_columns(has_cxr=pl.lit(False))
    Predictions(given.phenotypes, without, given.logits, given.labels, None).write(Run(run).predictions)
    with caplog.at_level(logging.WARNING):
        (measured,) = evaluate(run, n_resamples=5)
    assert measured.test_on == "full"
    assert "skipping the matched test set" in caplog.text


def test_a_run_that_predicts_nothing_is_told_so() -> None:
    given = predictions()
    given.logits[:] = np.nan
    with pytest.raises(InputError, match="the run predicts none of the 60 stays of the full test set"):
        evaluate_test_set(given, "full")


def test_an_infinite_logit_is_a_prediction() -> None:
    given = predictions()
    given.logits[0] = np.inf
    assert evaluate_test_set(given, "full", n_resamples=5).n_without_prediction == 0


@pytest.mark.parametrize(("test_on", "unit"), [("all", "subject"), ("full", "patient")])
def test_unknown_choices_are_refused(test_on: str, unit: str) -> None:
    with pytest.raises(InputError, match="expected one of"):
        evaluate_test_set(predictions(), test_on, 5, unit)  # type: ignore[arg-type]


def test_a_folder_whose_name_is_a_pattern_is_read_itself(tmp_path: Path) -> None:
    for name, seed in (("run1", 1), ("run[1]", 2)):
        (tmp_path / name).mkdir()
        predictions(seed=seed).write(Run(tmp_path / name).predictions)
    read = Predictions.read(Run(tmp_path / "run[1]").predictions)
    np.testing.assert_array_equal(read.logits, predictions(seed=2).logits)


def write_stays(folder: Path, given: Predictions) -> Path:
    """Write the table of a cohort that has the stays of `given`, and others, in another order."""
    n = given.stays.height
    folder.mkdir()
    stays = given.stays.select("subject_id", "stay_id", "split").with_columns(
        age=np.where(np.arange(n) % 3 == 0, 50.0, 70.0),
        gender=pl.Series(["F", "M", None, "M"] * (n // 4)),
        race=pl.lit("WHITE - RUSSIAN"),
        admission_type=pl.lit("URGENT"),
    )
    other = stays.head(1).with_columns(stay_id=pl.lit(1, pl.Int64))
    pl.concat([other, stays.reverse()]).write_parquet(folder / "stays.parquet")
    return folder


def test_calibration_is_of_the_logistic_of_the_logits(run: Path) -> None:
    given = predictions()
    (measured,) = evaluate(run, "full", n_resamples=5)
    test = (given.stays["split"] == "test").to_numpy()
    probabilities = 1 / (1 + np.exp(-given.logits[test].astype(float)))
    brier = np.mean((probabilities - given.labels[test]) ** 2)
    assert measured.calibration.brier.value == pytest.approx(brier)
    assert measured.calibration.error.low <= measured.calibration.error.high
    assert measured.calibration.ece > 0
    written = json.loads((run / "metrics.json").read_text())["test"]["full"]
    assert written["calibration"]["brier"]["value"] == pytest.approx(brier)
    assert [one["n_predictions"] for one in written["calibration"]["reliability"]] == [
        one.n_predictions for one in measured.calibration.reliability
    ]
    assert written["recalibration"] is written["recalibrated"] is written["conformal"] is None
    assert not (run / "conformal.csv").exists()  # there is no validation split


def test_logits_of_any_size_are_probabilities() -> None:
    given = predictions()
    given.logits[:] = np.where(given.labels, np.inf, -1e30)
    measured = evaluate_test_set(given, "full", n_resamples=2).calibration
    assert (measured.ece, measured.brier.value) == (0, 0)


def test_with_the_cohort_groups_are_measured(run: Path, tmp_path: Path) -> None:
    given = predictions()
    cohort = write_stays(tmp_path / "cohort", given)
    matched, full = evaluate(run, n_resamples=5, cohort=cohort)
    assert full.subgroups is not None
    counted = {(one.attribute, one.group): one.n_stays for one in full.subgroups.groups}
    row = np.flatnonzero(given.stays["split"] == "test")
    assert counted == {
        ("age", "45-64"): (row % 3 == 0).sum(),
        ("age", "65-79"): (row % 3 != 0).sum(),
        ("sex", "female"): (row % 4 == 0).sum(),
        ("sex", "male"): (row % 4 % 2 == 1).sum(),
        ("sex", "unknown"): (row % 4 == 2).sum(),
        ("race", "White"): 60,
        ("admission", "urgent"): 60,
        ("has_cxr", "with CXR"): 30,
        ("has_cxr", "without CXR"): 30,
    }
    (everyone,) = (one for one in full.subgroups.groups if one.group == "urgent")
    assert everyone.prauc_macro == full.prauc_macro
    assert np.isnan(everyone.tpr_gap.value)  # there are no others
    assert matched.subgroups is not None
    assert (matched.subgroups.groups[-1].group, matched.subgroups.groups[-1].n_stays) == ("urgent", 30)
    written = json.loads((run / "metrics.json").read_text())["test"]["full"]["subgroups"]
    assert written["groups"][0]["n_stays"] == full.subgroups.groups[0].n_stays
    table = pl.read_csv(run / "subgroups.csv")
    assert table.filter(test_on="full", group="male")["n_stays"].item() == counted["sex", "male"]
    of_all = table.filter(test_on="full", group="urgent")["prauc_macro"].item()
    assert of_all == pytest.approx(full.prauc_macro.value)
    assert {"tpr_gap", "tpr_gap_low", "fpr_gap", "fpr_gap_high", "few"} <= set(table.columns)


def test_without_a_cohort_stays_with_and_without_radiograph_are_compared(run: Path) -> None:
    matched, full = evaluate(run, n_resamples=5)
    assert matched.subgroups is None  # all have one
    assert [one.group for one in full.subgroups.groups] == ["with CXR", "without CXR"]
    assert full.subgroups.groups[0].prauc_macro.value == pytest.approx(matched.prauc_macro.value)
    assert pl.read_csv(run / "subgroups.csv")["n_stays"].to_list() == [30, 30]


def test_groups_that_are_measured_no_more_are_gone(run: Path, tmp_path: Path) -> None:
    cohort = write_stays(tmp_path / "cohort", predictions())
    evaluate(run, n_resamples=2, cohort=cohort)
    evaluate(run, "full", n_resamples=2)
    table = pl.read_csv(run / "subgroups.csv")
    assert set(table.filter(test_on="matched")["attribute"]) == {"age", "sex", "race", "admission"}
    assert set(table.filter(test_on="full")["attribute"]) == {"has_cxr"}
    evaluate(run, "matched", n_resamples=2)
    assert set(pl.read_csv(run / "subgroups.csv")["test_on"]) == {"full"}
    given = predictions()
    replace(given, stays=given.stays.with_columns(has_cxr=pl.lit(True))).write(Run(run).predictions)
    evaluate(run, n_resamples=2)
    assert not (run / "subgroups.csv").exists()


def overconfident(n: int = 1200) -> Predictions:
    """Return predictions, thrice as far from 0 as is true, of a validation and a test split."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-1, 1, size=(n, 4)).astype(np.float32)
    labels = (rng.random((n, 4)) < expit(logits)).astype(np.uint8)
    stays = pl.DataFrame({"subject_id": np.arange(n) // 2, "stay_id": np.arange(n)}).with_columns(
        split=pl.Series(["validation"] * (n // 3) + ["test"] * (n - n // 3)),
        has_cxr=pl.Series(np.arange(n) % 3 == 0),
    )
    return Predictions([f"p{c}" for c in range(4)], stays, 3 * logits, labels, None)


@pytest.fixture(scope="module")
def recalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recalibrated")
    overconfident().write(Run(run).predictions)
    evaluate(run, n_resamples=70)
    return run


def test_a_run_without_a_recalibration_gets_one(recalibrated: Path) -> None:
    assert Recalibration.read(recalibrated) == fit_recalibration(overconfident())


def test_calibration_is_measured_raw_and_recalibrated(recalibrated: Path) -> None:
    given = overconfident().of_split("test")
    recalibration = Recalibration.read(recalibrated)
    written = json.loads((recalibrated / "metrics.json").read_text())["test"]["full"]
    assert written["recalibration"] == recalibration.method == "temperature"
    for key, p in (
        ("calibration", expit(given.logits.astype(float))),
        ("recalibrated", recalibration.apply(given.logits)),
    ):
        assert written[key]["brier"]["value"] == pytest.approx(np.mean((p - given.labels) ** 2))
    assert written["recalibrated"]["error"]["high"] < written["calibration"]["error"]["low"]
    prauc = average_precision_score(given.labels, given.logits, average="macro")
    assert written["prauc_macro"]["value"] == pytest.approx(prauc)


def test_net_benefit_is_of_the_recalibrated_probabilities(recalibrated: Path) -> None:
    given = overconfident().of_split("test")
    p = Recalibration.read(recalibrated).apply(given.logits)[:, 1] >= 0.2
    benefit = (p & (given.labels[:, 1] == 1)).mean() - (p & (given.labels[:, 1] == 0)).mean() / 4
    table = pl.read_csv(recalibrated / "decision_curves.csv")
    assert table.height == 2 * (4 + 1) * len(THRESHOLDS)
    row = table.filter(test_on="full", phenotype="p1", threshold=0.2).row(0, named=True)
    assert row["net_benefit"] == pytest.approx(benefit)
    assert row["net_benefit_low"] < benefit < row["net_benefit_high"]
    assert row["gain"] == pytest.approx(benefit - row["treat_all"])


def test_prediction_sets_are_learned_on_the_validation_split(recalibrated: Path) -> None:
    given = overconfident()
    validation, test = given.of_split("validation"), given.of_split("test")
    sets = ConformalSets.learn(validation.labels, validation.logits, validation.stays["has_cxr"])
    written = json.loads((recalibrated / "metrics.json").read_text())["test"]["full"]["conformal"]
    assert written["sets"] == dataclasses.asdict(sets)
    table = pl.read_csv(recalibrated / "conformal.csv")
    counted = table.group_by("test_on", "stays", maintain_order=True).len().rows()
    assert counted == [("matched", "all", 5), ("full", "all", 5), ("full", "without CXR", 5)]
    rows = ~test.stays["has_cxr"].to_numpy() & (test.labels[:, 2] == 1)
    found = table.filter(test_on="full", stays="without CXR", phenotype="p2")
    assert found["n_positive"].item() == rows.sum()
    assert found["positives"].item() == pytest.approx(
        sets.contain(test.logits, test.stays["has_cxr"])[1][rows, 2].mean()
    )
    assert found["positives_low"].item() < found["positives"].item() < found["positives_high"].item()


def test_metrics_of_an_earlier_version_are_kept(recalibrated: Path, tmp_path: Path) -> None:
    for file in ("predictions.parquet", "metrics.json"):
        shutil.copy(recalibrated / file, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    earlier = metrics["test"]["full"]
    for key in ("recalibration", "recalibrated", "decision_curves", "conformal"):
        del earlier[key]
    del earlier["subgroups"]["fpr_macro"]
    for group in earlier["subgroups"]["groups"]:
        del group["fpr_macro"], group["fpr_gap"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    evaluate(tmp_path, "matched", n_resamples=2)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["full"] == earlier
    assert set(pl.read_csv(tmp_path / "conformal.csv")["test_on"]) == {"matched"}
    assert pl.read_csv(tmp_path / "subgroups.csv")["fpr_gap"].to_list() == [None, None]


def test_another_cohort_is_refused(run: Path, tmp_path: Path) -> None:
    given = predictions()
    path = write_stays(tmp_path / "cohort", given) / "stays.parquet"
    pl.read_parquet(path).filter(pl.col("stay_id") > 1003).write_parquet(path)
    with pytest.raises(InputError, match="lacks 2 of the 60 test stays of the run"):
        evaluate(run, cohort=tmp_path / "cohort")
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(InputError, match="lacks 60 of the 60 test stays"):
        evaluate(run, cohort=tmp_path / "cohort")
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match="is damaged"):
        evaluate(run, cohort=tmp_path / "cohort")
    with pytest.raises(InputError, match=r"has no stays\.parquet"):
        evaluate(run, cohort=run)
