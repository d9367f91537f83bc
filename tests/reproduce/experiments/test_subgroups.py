"""Groups of patients, of predictions made by hand: each number against plain loops."""

import dataclasses

import numpy as np
import pytest

from drfuse.evaluation import groups_of
from drfuse.reproduce.experiments import EXPERIMENTS
from drfuse.reproduce.experiments.subgroups import groups_measured, subgroup_tables
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from tests.reproduce.samples import (
    DIED,
    MATCHED_TEST,
    STAYED,
    SUBJECTS,
    TEST,
    N,
    draw_labels,
    macro,
    make_results,
    numbers,
)


def test_groups_are_counted_once_however_many_seeds() -> None:
    for n_seeds in (1, 2):
        found = groups_measured(make_results(["drfuse"], seeds=n_seeds))[paper_systems()["drfuse"]]
        sexes = {one.group: one for one in found.groups if one.attribute == "sex"}
        for group, is_in in (("male", SUBJECTS % 3 == 0), ("female", SUBJECTS % 3 != 0)):
            assert sexes[group].n_stays == (TEST & is_in).sum()
            assert sexes[group].n_positive == draw_labels()[TEST & is_in].sum()


def test_a_group_s_prauc_is_the_mean_over_the_seeds(four_systems: Results) -> None:
    measured = groups_measured(four_systems)
    assert [system.name for system in measured] == ["transformer", "resnet50", "drfuse"]
    for name, predicted in (("drfuse", TEST), ("resnet50", MATCHED_TEST)):
        (women,) = (one for one in measured[paper_systems()[name]].groups if one.group == "female")
        rows = predicted & (SUBJECTS % 3 != 0)
        runs = four_systems.predictions[name, "full"]
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


def test_each_system_has_a_table_with_a_rule_between_the_attributes(four_systems: Results) -> None:
    measured = groups_measured(four_systems)
    tables = subgroup_tables(measured)
    assert [table.key for table in tables] == [
        *("subgroups-transformer", "subgroups-resnet50", "subgroups-drfuse")
    ]
    for table, found in zip(tables, measured.values(), strict=True):
        headers = [row.header for row in table.rows]
        few = {True: " *", False: ""}
        assert headers == [f"{one.attribute}: {one.group}{few[one.few]}" for one in found.groups]
        ruled = [row.header.split(":")[0] for row in table.rows if row.rule_above]
        assert ruled == [
            "sex",
            "race",
            "admission",
            *(["has_cxr"] if table.key != "subgroups-resnet50" else []),
        ]
        for row, one in zip(table.rows, found.groups, strict=True):
            stays, positives, auroc, auroc_gap, prauc, *rates = numbers(row)
            assert (stays.shown.value, positives.shown.value) == (str(one.n_stays), str(one.n_positive))
            estimates = [
                one.auroc_macro,
                one.auroc_gap,
                one.tpr_macro,
                one.tpr_gap,
                one.fpr_macro,
                one.fpr_gap,
            ]
            shown = [(cell.value, cell.low, cell.high) for cell in (auroc, auroc_gap, *rates)]
            np.testing.assert_array_equal(shown, [dataclasses.astuple(part)[:3] for part in estimates])
            np.testing.assert_array_equal(prauc.value, one.prauc_macro.corrected)


def test_pairs_of_groups_have_a_table_of_their_own(four_systems: Results) -> None:
    measured = groups_measured(four_systems)
    drfuse = paper_systems()["drfuse"]
    first = measured[drfuse].groups[0]
    pair = dataclasses.replace(first, attribute="sex x race", group="female, Asian", few=False)
    with_pair = dataclasses.replace(measured[drfuse], groups=[*measured[drfuse].groups, pair])
    *_, single, paired = subgroup_tables(measured | {drfuse: with_pair})
    assert (single.key, paired.key) == ("subgroups-drfuse", "subgroups-pairs-drfuse")
    assert [row.header for row in paired.rows] == ["sex x race: female, Asian"]
    assert not any("sex x race" in row.header for row in single.rows)
    assert paired.key in EXPERIMENTS["subgroups"].too_wide
