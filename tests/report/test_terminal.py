"""Tables must say what was measured and fit a terminal of 80 columns."""

import dataclasses
import io
import math

import polars as pl
import pytest
from rich.console import Console, Group
from rich.table import Table

from drfuse.evaluation import (
    Calibration,
    Conformal,
    ConformalSets,
    DecisionCurves,
    DecisionPoint,
    Estimate,
    Evaluation,
    GroupMetrics,
    Limits,
    Measured,
    SetCoverage,
    Subgroups,
)
from drfuse.evaluation.recalibration import Method
from drfuse.report import (
    Number,
    Row,
    contest_table,
    evaluation_tables,
    metrics_table,
    paper_table,
    probabilities_table,
    sets_table,
    subgroups_table,
    trials_table,
    weights_table,
)
from drfuse.report import Table as NumberTable

LIMITS = Limits([0.0], [0.0])
UNDEFINED = Estimate(math.nan, math.nan, math.nan)
PNEUMONIA = "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)"
MEASURED = Evaluation(
    test_on="full",
    n_stays=11914,
    n_with_cxr=2136,
    n_subjects=9000,
    n_without_prediction=0,
    bootstrap_unit="subject",
    intervals="half-sampling",
    n_resamples=1000,
    seed=0,
    metrics={
        "prauc": Measured(
            Estimate(0.5, 0.4, 0.6, bias=0.01), {PNEUMONIA: Estimate(0.51, 0.41, 0.61), "gout": UNDEFINED}
        ),
        "auroc": Measured(
            Estimate(0.7, 0.6, 0.8), {PNEUMONIA: Estimate(0.71, 0.61, 0.81), "gout": UNDEFINED}
        ),
    },
    n_positive={PNEUMONIA: 2000, "gout": 0},
    calibration=Calibration(Estimate(0.041, 0.032, 0.053), 0.06, 0.02, Estimate(0.112, 0.111, 0.113), []),
)


def rendered(table: Table | Group) -> str:
    written = io.StringIO()
    Console(width=80, file=written).print(table)
    return written.getvalue()


def test_long_labels_wrap_and_undefined_numbers_are_dashes() -> None:
    text = rendered(metrics_table(MEASURED))
    assert max(map(len, text.splitlines())) <= 80
    assert "0.510 (0.410, 0.610)   0.710" in text
    assert "11,914 stays of 9,000 subjects" in text
    assert "mean of 1 labels" in text
    assert "mean AUROC 0.700 (0.600, 0.800)" in text
    assert "mean PRAUC without its bias 0.490" in text
    assert any(line.split() == ["gout", "0", "-", "-"] for line in text.splitlines())


def test_stays_that_are_not_predicted_are_counted_in_the_title() -> None:
    partly = dataclasses.replace(MEASURED, n_stays=2136, n_without_prediction=9778)
    assert "full test set: 2,136 of 11,914 stays" in rendered(metrics_table(partly))


def test_groups_stand_by_attribute_and_few_positives_are_marked() -> None:
    gap, other = Estimate(0.01, -0.02, 0.04), Estimate(0.5, 0.4, 0.6)
    shown = (Estimate(0.45, 0.41, 0.49), gap, other, other)
    groups = [
        GroupMetrics("sex", "female", 11914, 20000, False, *shown, Estimate(-0.02, -0.03, 0.01), other, gap),
        GroupMetrics("race", "Hispanic", 90, 20, True, *shown, Estimate(0.1, -0.25, 0.375), other, gap),
        GroupMetrics("admission", "observation", 3, 0, True, *[UNDEFINED] * 7),
        GroupMetrics("has_cxr", "without CXR", 11914, 0, True, other, *[Estimate(-0.1, -0.2, -0.3)] * 6),
        GroupMetrics("sex x race", "female, Hispanic", 9000, 2000, False, *[other] * 7),
    ]
    found = Subgroups(0.9, Estimate(0.52, 0.51, 0.53), Estimate(0.1, 0.1, 0.1), groups)
    text = rendered(subgroups_table(dataclasses.replace(MEASURED, subgroups=found)))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert [
        "female",
        "11,914",
        "0.450",
        "(0.410,",
        "0.490)",
        "-0.020",
        "(-0.030,",
        "+0.010)",
        "+0.010",
    ] in lines
    assert [
        "Hispanic",
        "*",
        "90",
        "0.450",
        "(0.410,",
        "0.490)",
        "+0.100",
        "(-0.250,",
        "+0.375)",
        "+0.010",
    ] in lines
    assert ["observation", "*", "3", "-", "-", "-"] in lines
    assert "female, Hispanic" not in text  # pairs are in the files
    assert lines.index(["sex"]) < lines.index(["race"]) < lines.index(["admission"])
    assert "0.520 (0.510, 0.530)" in text
    assert "* the median label has fewer than 50 positives" in text


def test_raw_and_recalibrated_probabilities_stand_together() -> None:
    points = [
        DecisionPoint(threshold, Estimate(0.0312, 0.021, 0.041), -0.2, Estimate(0.23, 0.2, 0.3))
        for threshold in (0.1, 0.15, 0.2)
    ]
    better = Calibration(Estimate(0.011, 0.0, 0.02), 0.03, 0.021, Estimate(0.101, 0.1, 0.102), [])
    methods: dict[Method, str] = {"temperature": "temperature", "platt": "Platt"}
    for method, name in methods.items():
        both = dataclasses.replace(
            MEASURED,
            recalibration=method,
            recalibrated=better,
            decision_curves=DecisionCurves(points, {}),
        )
        text = rendered(probabilities_table(both))
        assert max(map(len, text.splitlines())) <= 80
        lines = [line.split() for line in text.splitlines()]
        raw = ["no", "0.041", "(0.032,", "0.053)", "0.112", "(0.111,", "0.113)", "0.060", "(0.020)"]
        assert raw in lines
        assert lines[lines.index(raw) + 1] == [
            *(name, "0.011", "(0.000,", "0.020)", "0.101", "(0.100,", "0.102)", "0.030", "(0.021)")
        ]
        assert "net benefit at threshold 0.1: 0.031 (0.021, 0.041), of treating all -0.200" in " ".join(
            text.split()
        )
        assert "threshold 0.15" not in text
    unchanged = dataclasses.replace(MEASURED, recalibration="none", recalibrated=MEASURED.calibration)
    text = rendered(probabilities_table(unchanged))
    assert text.count("0.041 (0.032, 0.053)") == text.count("not needed") == 1
    text = rendered(probabilities_table(MEASURED))
    assert "temperature" not in text
    assert "net benefit" not in text


def test_prediction_sets_are_shown_overall_and_without_radiograph() -> None:
    shown = Estimate(0.912, 0.9, 0.93), Estimate(0.895, 0.88, 0.91), Estimate(0.4, 0.3, 0.5)
    measured = [
        SetCoverage("all", "macro", 9, 9, *shown, Estimate(0.6, 0.5, 0.7)),
        SetCoverage("all", "gout", 9, 9, UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED),
        SetCoverage("without CXR", "macro", 9, 9, *shown, UNDEFINED),
    ]
    text = rendered(sets_table(MEASURED, Conformal(ConformalSets(0.9, LIMITS, LIMITS), measured)))
    assert max(map(len, text.splitlines())) <= 80
    assert "sets that promise 90%" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["all", "0.912", "(0.900,", "0.930)", "0.895", "(0.880,", "0.910)", "0.400", "0.600"] in lines
    assert "gout" not in text
    (without,) = (line for line in lines if line[:2] == ["without", "CXR"])
    assert without[-2:] == ["0.400", "-"]


def test_an_evaluation_shows_what_was_measured() -> None:
    titles = [str(table.title) for table in evaluation_tables(MEASURED)]
    assert titles == [
        "full test set: 11,914 stays of 9,000 subjects, 2,136 with radiograph",
        "full test set, probabilities of all labels",
    ]
    more = dataclasses.replace(
        MEASURED,
        subgroups=Subgroups(0.9, UNDEFINED, UNDEFINED, []),
        conformal=Conformal(ConformalSets(0.9, LIMITS, LIMITS), []),
    )
    assert len(evaluation_tables(more)) == 4


def test_without_groups_there_is_no_table_of_them() -> None:
    with pytest.raises(ValueError, match="evaluate the run with its cohort"):
        subgroups_table(MEASURED)


def test_models_stand_beside_the_perfect_ones() -> None:
    perfect = dataclasses.replace(MEASURED, metrics={"prauc": Measured(Estimate(0.66, 0.6, 0.7), {})})
    matched = dataclasses.replace(MEASURED, test_on="matched", n_stays=2136)
    text = rendered(
        contest_table(
            {"EHR Transformer": {"matched": (matched, perfect), "full": (MEASURED, perfect)},
             "CXR ResNet": {"matched": (matched, perfect)}}
        )
    )  # fmt: skip
    lines = [line.split() for line in text.splitlines()]
    assert ["EHR", "Transformer", *["0.500", "(0.400,", "0.600)", "0.660"] * 2] in lines
    assert ["CXR", "ResNet", "0.500", "(0.400,", "0.600)", "0.660", "-", "-"] in lines
    assert "matched: 2,136 stays, full: 11,914 stays" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_patient_s_weights_name_the_better_modality() -> None:
    rows = pl.DataFrame(
        {
            "phenotype": [PNEUMONIA, "Shock"],
            "probability": [0.912, 0.3],
            "present": [True, False],
            "ehr_distinct": [0.1, 0.5],
            "shared": [0.7, 0.3],
            "cxr_distinct": [0.2, 0.2],
            "cxr_advantage": [0.04, -0.01],
        }
    )
    text = rendered(weights_table(3000000018, rows))
    lines = [line.split() for line in text.splitlines()]
    assert any(line[-6:] == ["0.91", "yes", "0.10", "0.70", "0.20", "CXR"] for line in lines)
    assert ["Shock", "0.30", "no", "0.50", "0.30", "0.20", "EHR"] in lines
    assert "stay 3000000018" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_paper_s_numbers_stand_in_brackets() -> None:
    measured = Number(0.4501, 0.426, 0.498, 0.004, 0.47, 0.42, 0.512, note="+8.2 %", mark="best")
    table = NumberTable(
        key="table2",
        title="Table 2: macro PRAUC",
        caption="Below.",
        columns=["system", "tested on matched", "tested on full"],
        rows=[
            Row("DrFuse", [measured, Number(math.nan, paper=0.384)]),
            Row("stays", [Number(11914, digits=0), Number(math.nan)], rule_above=True),
            Row("rank", ["", Number(-0.25)]),
        ],
        groups=[("", 1), ("trained on full", 2)],
    )
    text = rendered(paper_table(table))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["Table", "2:", "macro", "PRAUC"]
    assert " ".join(lines[2]) == "system trained on full: tested on matched trained on full: tested on full"
    assert [line for line in lines[4:] if line] == [
        ["DrFuse", "0.450", "[0.470]", "–", "[0.384]"],
        ["stays", "11,914", "–"],
        ["rank", "−0.250"],
        ["in", "brackets:", "the", "paper"],
    ]
    assert lines[5] == []  # the rule


def test_wide_tables_wrap_and_lose_nothing() -> None:
    systems = ["ResNet50", "Transformer", "MedFuse", "MedFuse-II", "DrFuse"]
    rows = [Row(PNEUMONIA, [Number(0.17, paper=0.18, digits=2), *[Number(0.4501, paper=0.47)] * 5])]
    table = NumberTable("table3", "Table 3", "", ["phenotype", "prevalence", *systems], rows)
    text = rendered(paper_table(table))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert (text.count("0.450"), text.count("[0.470]")) == (5, 5)


def test_a_table_of_many_columns_is_shown_in_parts() -> None:
    names = [f"system-{number}" for number in range(8)]
    cells = [Number(0.4 + number / 1000) for number in range(8)]
    table = NumberTable("table3", "Table 3", "", ["phenotype", *names], [Row(PNEUMONIA, cells)])
    lines = rendered(paper_table(table)).splitlines()
    assert [line.split() for line in lines if "phenotype" in line] == [
        ["phenotype", *names[:4]],
        ["phenotype", *names[4:]],
    ]
    assert sum("Table 3" in line for line in lines) == 1
    assert [value for line in lines for value in line.split() if value.startswith("0.")] == [
        f"{0.4 + number / 1000:.3f}" for number in range(8)
    ]
    assert max(map(len, lines)) <= 80


def test_what_sets_the_paper_s_cohort_apart_stands_below_its_numbers() -> None:
    with_paper = [Row("DrFuse", [Number(0.5, paper=0.45)])]
    without = [Row("DrFuse", [Number(0.5)])]
    for rows, is_said in ((with_paper, True), (without, False)):
        table = NumberTable("t", "title", "", ["system", "value"], rows, beside_paper="Simulated stays.")
        text = " ".join(rendered(paper_table(table)).split())
        assert ("in brackets: the paper. Simulated stays." in text) == is_said


def test_without_numbers_of_the_paper_nothing_is_said_of_it() -> None:
    table = NumberTable("t", "title", "", ["system", "value"], [Row("DrFuse", [Number(0.5)])])
    assert "paper" not in rendered(paper_table(table))


def test_the_best_trials_are_shown_with_what_they_have() -> None:
    trials = pl.DataFrame(
        {
            "alignment_weight": [1, 0, 0],
            "lr": [1e-4, 0.00123456, 1e-3],
            "val_prauc_macro": [0.43215, 0.4, None],
            "state": ["complete", "pruned", "pruned"],
            "run": ["drfuse-1", None, None],
        }
    )
    lines = [line.split() for line in rendered(trials_table(trials, most=2)).splitlines()]
    assert " ".join(lines[0]) == "The best of 3 trials, by validation macro PRAUC"
    assert lines[2] == ["alignment_weight", "lr", "val_prauc_macro", "state"]
    assert ["1", "0.0001", "0.4321", "complete"] in lines
    assert ["0", "0.001235", "0.4", "pruned"] in lines
    assert not any("0.001" in line for line in lines)
    (undefined,) = (
        line.split() for line in rendered(trials_table(trials[2:])).splitlines() if "pruned" in line
    )
    assert undefined == ["0", "0.001", "-", "pruned"]
