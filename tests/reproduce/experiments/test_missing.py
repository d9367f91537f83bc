"""Missing radiographs, of predictions made by hand: each number against plain loops."""

import dataclasses

import numpy as np
import pytest

from drfuse.errors import InputError
from drfuse.evaluation import missing_curve
from drfuse.reproduce.experiments.missing import MOST_SHOWN, missing_curves, missing_table
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from drfuse.subsets import Subset
from tests.reproduce.samples import (
    DIED,
    HAS_CXR,
    MATCHED_TEST,
    RESAMPLES,
    SPLITS,
    STAYED,
    SUBJECTS,
    TEST,
    by_title,
    draw_labels,
    macro,
)

BOTH: tuple[Subset, Subset] = ("matched", "full")


def matched(of_test: np.ndarray | None) -> np.ndarray:
    """Return the rows of the matched test stays of an array of all test stays."""
    assert of_test is not None
    found: np.ndarray = of_test[HAS_CXR[TEST]]
    return found


@pytest.mark.parametrize("train_on", BOTH)
def test_the_curve_ends_with_and_without_every_radiograph(four_systems: Results, train_on: Subset) -> None:
    curve = missing_curves(four_systems, train_on)[paper_systems()["drfuse"]]
    labels = draw_labels()[MATCHED_TEST]
    runs = four_systems.predictions["drfuse", train_on]
    with_all = [macro(labels, matched(run.logits)) for run in runs]
    with_none = [macro(labels, matched(run.logits_without_cxr)) for run in runs]
    assert curve[0].prauc_macro.value == pytest.approx(np.mean(with_all))
    assert curve[-1].prauc_macro.value == pytest.approx(np.mean(with_none))
    assert (curve[0].share, curve[-1].share) == (0, 1)
    assert [point.n_without_cxr for point in (curve[0], curve[-1])] == [0, 30]


def test_variants_are_left_out_and_shares_ascend(four_systems: Results) -> None:
    curves = missing_curves(four_systems, "full")
    assert [system.name for system in curves] == ["transformer", "resnet50", "drfuse"]
    shares = [point.share for point in curves[paper_systems()["drfuse"]]]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1])


def test_a_model_of_the_record_loses_nothing(four_systems: Results) -> None:
    curve = missing_curves(four_systems, "full")[paper_systems()["transformer"]]
    assert len({round(point.prauc_macro.value, 12) for point in curve}) == 1


def test_a_model_of_images_alone_ends_at_the_prevalence(four_systems: Results) -> None:
    curve = missing_curves(four_systems, "matched")[paper_systems()["resnet50"]]
    assert curve[-1].prauc_macro.value == pytest.approx(draw_labels()[MATCHED_TEST].mean())
    assert [point.n_guessed for point in curve] == [point.n_without_cxr for point in curve]


@pytest.mark.parametrize("train_on", BOTH)
def test_it_guesses_the_prevalence_of_what_it_was_trained_on(four_systems: Results, train_on: Subset) -> None:
    labels = draw_labels()
    trained = (np.array(SPLITS) == "train") & (HAS_CXR if train_on == "matched" else True)
    runs = four_systems.predictions["resnet50", train_on]
    expected = missing_curve(
        labels[MATCHED_TEST],
        [matched(run.logits) for run in runs],
        np.full((2, 30, 3), np.nan),
        SUBJECTS[MATCHED_TEST],
        shares=[0.5],
        prevalence=labels[trained].mean(axis=0),
        n_resamples=RESAMPLES,
    )
    curve = missing_curves(four_systems, train_on)[paper_systems()["resnet50"]]
    assert [point for point in curve if point.share == 0.5] == expected


def test_five_points_of_each_curve_are_in_the_table(four_systems: Results) -> None:
    curves = missing_curves(four_systems, "full")
    table = missing_table(curves, "full")
    assert table.key == "missing-full"
    assert table.columns == ["system", *(f"{share} % missing" for share in (0, 25, 50, 75, 100))]
    for system, curve in curves.items():
        shown = [(one.value, one.low, one.high) for one in by_title(table)[system.title]]
        points = [point for share in MOST_SHOWN for point in curve if point.share == share]
        assert shown == [dataclasses.astuple(point.prauc_macro)[:3] for point in points]


def test_runs_without_what_is_needed_are_refused(four_systems: Results) -> None:
    earlier = [dataclasses.replace(four_systems.predictions["drfuse", "full"][0], logits_without_cxr=None)]
    lacking = dataclasses.replace(four_systems, predictions={("drfuse", "full"): earlier})
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
