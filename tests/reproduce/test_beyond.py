"""Beyond the paper's tables, of predictions made by hand: each number against plain loops."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from drfuse.data import Subset
from drfuse.errors import InputError
from drfuse.evaluation import groups_of, missing_curve
from drfuse.report import Number, Row, Table
from drfuse.reproduce.beyond import (
    MOST_SHOWN,
    calibration_table,
    calibrations,
    groups_measured,
    missing_curves,
    missing_table,
    subgroup_tables,
)
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from tests.reproduce.samples import (
    DIED,
    HAS_CXR,
    PHENOTYPES,
    RESAMPLES,
    SPLITS,
    STAYED,
    SUBJECTS,
    TEST,
    N,
    draw_labels,
    macro,
    make_results,
)

NAMES = ("transformer", "resnet50", "drfuse", "drfuse-mse")
MATCHED_TEST = TEST & HAS_CXR
BOTH: tuple[Subset, Subset] = ("matched", "full")


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results(NAMES)


@pytest.fixture(scope="module")
def mortality() -> Results:
    return make_results(["resnet50", "drfuse"], task="mortality")


def matched(of_test: np.ndarray | None) -> np.ndarray:
    """Return the rows of the matched test stays of an array of all test stays."""
    assert of_test is not None
    return of_test[HAS_CXR[TEST]]


def numbers(row: Row) -> list[Number]:
    return [cell for cell in row.cells if isinstance(cell, Number)]


def by_title(table: Table) -> dict[str, list[Number]]:
    return {row.header: numbers(row) for row in table.rows}


# --- missing radiographs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_on", BOTH)
def test_the_curve_ends_with_and_without_every_radiograph(results: Results, train_on: Subset) -> None:
    curve = missing_curves(results, train_on)[paper_systems()["drfuse"]]
    labels = draw_labels()[MATCHED_TEST]
    runs = results.predictions["drfuse", train_on]
    with_all = [macro(labels, matched(run.logits)) for run in runs]
    with_none = [macro(labels, matched(run.logits_without_cxr)) for run in runs]
    assert curve[0].prauc_macro.value == pytest.approx(np.mean(with_all))
    assert curve[-1].prauc_macro.value == pytest.approx(np.mean(with_none))
    assert (curve[0].share, curve[-1].share) == (0, 1)
    assert [point.n_without_cxr for point in (curve[0], curve[-1])] == [0, 30]


def test_variants_are_left_out_and_shares_ascend(results: Results) -> None:
    curves = missing_curves(results, "full")
    assert [system.name for system in curves] == ["transformer", "resnet50", "drfuse"]
    shares = [point.share for point in curves[paper_systems()["drfuse"]]]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1])


def test_a_model_of_the_record_loses_nothing(results: Results) -> None:
    curve = missing_curves(results, "full")[paper_systems()["transformer"]]
    assert len({round(point.prauc_macro.value, 12) for point in curve}) == 1


def test_a_model_of_images_alone_ends_at_the_prevalence(results: Results) -> None:
    curve = missing_curves(results, "matched")[paper_systems()["resnet50"]]
    assert curve[-1].prauc_macro.value == pytest.approx(draw_labels()[MATCHED_TEST].mean())
    assert [point.n_guessed for point in curve] == [point.n_without_cxr for point in curve]


@pytest.mark.parametrize("train_on", BOTH)
def test_it_guesses_the_prevalence_of_what_it_was_trained_on(results: Results, train_on: Subset) -> None:
    labels = draw_labels()
    trained = (np.array(SPLITS) == "train") & (HAS_CXR if train_on == "matched" else True)
    runs = results.predictions["resnet50", train_on]
    expected = missing_curve(
        labels[MATCHED_TEST],
        [matched(run.logits) for run in runs],
        np.full((2, 30, 3), np.nan),
        SUBJECTS[MATCHED_TEST],
        shares=[0.5],
        prevalence=labels[trained].mean(axis=0),
        n_resamples=RESAMPLES,
    )
    curve = missing_curves(results, train_on)[paper_systems()["resnet50"]]
    assert [point for point in curve if point.share == 0.5] == expected


def test_five_points_of_each_curve_are_in_the_table(results: Results) -> None:
    curves = missing_curves(results, "full")
    table = missing_table(curves, "full")
    assert table.key == "missing-full"
    assert table.columns == ["system", *(f"{share} % missing" for share in (0, 25, 50, 75, 100))]
    for system, curve in curves.items():
        shown = [(one.value, one.low, one.high) for one in by_title(table)[system.title]]
        points = [point for share in MOST_SHOWN for point in curve if point.share == share]
        assert shown == [dataclasses.astuple(point.prauc_macro)[:3] for point in points]


def test_runs_without_what_is_needed_are_refused(results: Results) -> None:
    earlier = [dataclasses.replace(results.predictions["drfuse", "full"][0], logits_without_cxr=None)]
    lacking = dataclasses.replace(results, predictions={("drfuse", "full"): earlier})
    with pytest.raises(InputError, match="no predictions without radiographs; choose a different --out"):
        missing_curves(lacking, "full")


def test_missing_radiographs_of_a_task_in_which_not_all_take_part(mortality: Results) -> None:
    curve = missing_curves(mortality, "full")[paper_systems()["resnet50"]]
    rows = MATCHED_TEST & STAYED
    assert curve[-1].n_without_cxr == rows.sum() == 19
    assert curve[-1].prauc_macro.value == pytest.approx(DIED[rows].mean())
    expected = missing_curve(
        DIED[rows, None],
        [run.logits[HAS_CXR[TEST & STAYED]] for run in mortality.predictions["resnet50", "full"]],
        np.full((2, 19, 1), np.nan),
        SUBJECTS[rows],
        shares=[0.5],
        prevalence=[DIED[(np.array(SPLITS) == "train") & STAYED].mean()],
        n_resamples=RESAMPLES,
    )
    assert [point for point in curve if point.share == 0.5] == expected


# --- calibration --------------------------------------------------------------------------------------------


def naive_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the calibration error of one label, bin by bin."""
    error = 0.0
    for b in range(10):
        within = (probabilities >= b / 10) & (probabilities < (b + 1) / 10)
        error += abs((probabilities - labels)[within].sum())
    return error / len(labels)


@pytest.mark.parametrize(("name", "n_stays"), [("transformer", 40), ("resnet50", 30), ("drfuse", 40)])
def test_calibration_is_of_the_stays_that_are_predicted(results: Results, name: str, n_stays: int) -> None:
    measured = calibrations(results)
    stays, error, ece, chance, brier = by_title(calibration_table(results, measured))[
        paper_systems()[name].title
    ]
    rows = MATCHED_TEST if name == "resnet50" else TEST
    assert stays.shown.value == str(rows.sum()) == str(n_stays)
    labels = draw_labels()[rows]
    eces, briers = [], []
    for run in results.predictions[name, "full"]:
        p = 1 / (1 + np.exp(-run.logits[rows[TEST]].astype(float)))
        eces += [naive_ece(labels[:, c], p[:, c]) for c in range(len(PHENOTYPES))]
        briers += [brier_score_loss(labels[:, c], p[:, c]) for c in range(len(PHENOTYPES))]
    assert ece.value == pytest.approx(np.mean(eces))
    assert brier.value == pytest.approx(np.mean(briers))
    found = measured[paper_systems()[name]]
    assert chance.value == found.ece_if_calibrated > 0
    assert (error.value, error.low, error.high) == (found.error.value, found.error.low, found.error.high)
    assert sum(one.n_predictions for one in found.reliability) == 2 * n_stays * len(PHENOTYPES)


def test_calibration_of_a_task_in_which_not_all_take_part(mortality: Results) -> None:
    table = calibration_table(mortality, calibrations(mortality))
    assert [row[0].value for row in by_title(table).values()] == [19, 26]


# --- groups of patients -------------------------------------------------------------------------------------


def test_groups_are_counted_once_however_many_seeds(results: Results) -> None:
    for n_seeds in (1, 2):
        found = groups_measured(make_results(["drfuse"], seeds=n_seeds))[paper_systems()["drfuse"]]
        sexes = {one.group: one for one in found.groups if one.attribute == "sex"}
        for group, is_in in (("male", SUBJECTS % 3 == 0), ("female", SUBJECTS % 3 != 0)):
            assert sexes[group].n_stays == (TEST & is_in).sum()
            assert sexes[group].n_positive == draw_labels()[TEST & is_in].sum()


def test_a_group_s_prauc_is_the_mean_over_the_seeds(results: Results) -> None:
    measured = groups_measured(results)
    assert [system.name for system in measured] == ["transformer", "resnet50", "drfuse"]
    for name, predicted in (("drfuse", TEST), ("resnet50", MATCHED_TEST)):
        (women,) = (one for one in measured[paper_systems()[name]].groups if one.group == "female")
        rows = predicted & (SUBJECTS % 3 != 0)
        runs = results.predictions[name, "full"]
        expected = np.mean([macro(draw_labels()[rows], run.logits[rows[TEST]]) for run in runs])
        assert women.n_stays == rows.sum()
        assert women.prauc_macro.value == pytest.approx(expected)


def test_groups_are_of_the_stays_that_take_part(mortality: Results) -> None:
    found = groups_measured(mortality)[paper_systems()["drfuse"]]
    rows = TEST & STAYED
    runs = mortality.predictions["drfuse", "full"]
    scores = [np.full((N, 1), np.nan) for _ in runs]
    for of_all, run in zip(scores, runs, strict=True):
        of_all[rows] = run.logits  # a run has the stays that take part only
    bands = groups_of(mortality.cohort.stays)["age"].cast(str).to_numpy()
    for one in found.groups:
        if one.attribute != "age":
            continue
        members = rows & (bands == one.group)
        assert one.n_stays == members.sum()
        assert one.n_positive == DIED[members].sum()
        expected = np.mean([macro(DIED[members, None], of_all[members]) for of_all in scores])
        assert one.prauc_macro.value == pytest.approx(expected)


def test_each_system_has_a_table_with_a_rule_between_the_attributes(results: Results) -> None:
    measured = groups_measured(results)
    tables = subgroup_tables(measured)
    assert [table.key for table in tables] == [
        *("subgroups-transformer", "subgroups-resnet50", "subgroups-drfuse")
    ]
    for table, found in zip(tables, measured.values(), strict=True):
        headers = [row.header for row in table.rows]
        few = {True: " *", False: ""}
        assert headers == [f"{one.attribute}: {one.group}{few[one.few]}" for one in found.groups]
        ruled = [row.header.split(":")[0] for row in table.rows if row.rule_above]
        assert ruled == ["sex", "race", "admission"]
        for row, one in zip(table.rows, found.groups, strict=True):
            stays, positives, auroc, auroc_gap, prauc, tpr, gap = numbers(row)
            assert (stays.shown.value, positives.shown.value) == (str(one.n_stays), str(one.n_positive))
            estimates = (one.auroc_macro, one.auroc_gap, one.tpr_macro, one.tpr_gap)
            shown = [(cell.value, cell.low, cell.high) for cell in (auroc, auroc_gap, tpr, gap)]
            np.testing.assert_array_equal(shown, [dataclasses.astuple(part)[:3] for part in estimates])
            np.testing.assert_array_equal(prauc.value, one.prauc_macro.corrected)
