"""The paper's tables, of predictions made by hand: against scikit-learn, and numbers worked out on paper."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from drfuse.data import Subset, Task
from drfuse.evaluation import compare, macro_prauc, seeded_prauc
from drfuse.report import Number, Table
from drfuse.reproduce import paper, tables
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import paper_systems
from drfuse.reproduce.tables import SETTINGS, ablated, table1, table2, table3, table4
from drfuse.run import Predictions
from tests.reproduce.samples import (
    DIED,
    HAS_CXR,
    MAIN,
    PHENOTYPES,
    RESAMPLES,
    STAYED,
    SUBJECTS,
    TEST,
    draw_labels,
    macro,
    make_cohort,
    make_results,
    predict,
    results_of,
)

VARIANTS = ("drfuse-no-disentangling", "drfuse-mse", "drfuse-no-ranking")
MATCHED_TEST = TEST & HAS_CXR


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results([*MAIN, *VARIANTS])


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def number(table: Table, header: str, column: str) -> Number:
    """Return a cell by the heads of its row and its column."""
    (row,) = (row for row in table.rows if row.header == header)
    cell = row.cells[table.full_columns.index(column) - 1]
    assert isinstance(cell, Number)
    return cell


def column_of(setting: Setting) -> str:
    return f"trained on {setting.train_on}: tested on {setting.test_on}"


def of_seeds(results: Results, name: str, setting: Setting) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a system's test rows, and what each seed says of them."""
    rows = TEST & HAS_CXR if setting.test_on == "matched" else TEST
    return rows, [run.logits[rows[TEST]] for run in results.predictions[name, setting.train_on]]


def values(results: Results, name: str, setting: Setting) -> list[float]:
    rows, scores = of_seeds(results, name, setting)
    return [macro(draw_labels()[rows], one) for one in scores]


def published(numbers: Sequence[Number]) -> list[float | None]:
    return [part for one in numbers for part in (one.paper, one.paper_low, one.paper_high)]


# --- table 1 ------------------------------------------------------------------------------------------------


def test_table_1_counts_the_stays_of_each_split() -> None:
    cohort = make_cohort()
    table = table1(cohort, Task.of(cohort))
    assert [row.header for row in table.rows] == ["full dataset", "matched subset"]
    counted = [[cell.shown.value for cell in row.cells] for row in table.rows]  # type: ignore[union-attr]
    # every fourth stay has no radiograph, from the second on: 8 of the first 30, 1 of 6, 10 of the last 40
    assert counted == [["30", "6", "40"], ["22", "5", "30"]]
    assert [one.paper for one in table.numbers] == [42628, 4802, 11914, 7637, 857, 2136]


def test_table_1_counts_only_stays_that_take_part() -> None:
    cohort = make_cohort()
    table = table1(cohort, Task.of(cohort, "mortality"))
    # every third stay leaves before the window ends: 10, 2 and 14 of the splits; 6, 0 and 7 of the others
    # have no radiograph
    assert [one.value for one in table.numbers] == [20, 4, 26, 14, 4, 19]
    assert published(table.numbers) == [None] * 18


# --- table 2 ------------------------------------------------------------------------------------------------


def test_table_2_is_scikit_learn_s_macro_average_precision_over_the_seeds(results: Results) -> None:
    table = table2(results)
    assert [row.header for row in table.rows] == [paper_systems()[name].title for name in MAIN]
    for name in MAIN:
        for setting in SETTINGS:
            if name == "resnet50" and setting.test_on == "full":
                continue
            found = number(table, paper_systems()[name].title, column_of(setting))
            of_each = values(results, name, setting)
            assert found.value == pytest.approx(sum(of_each) / 2)
            assert found.spread == pytest.approx(abs(of_each[0] - of_each[1]) / math.sqrt(2))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_interval_is_of_resampled_subjects(results: Results, setting: Setting) -> None:
    found = number(table2(results), "MedFuse", column_of(setting))
    rows, scores = of_seeds(results, "medfuse", setting)
    expected = macro_prauc(draw_labels()[rows], np.array(scores), SUBJECTS[rows], RESAMPLES)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


def test_a_system_that_does_not_predict_every_stay_has_a_dash(results: Results) -> None:
    (row,) = (row for row in table2(results).rows if row.header == "ResNet50")
    assert [cell.shown.value == "–" for cell in row.cells] == [False, True, False, True]  # type: ignore[union-attr]


def test_the_best_of_each_column_is_marked(results: Results) -> None:
    table = table2(results)
    for place, setting in enumerate(SETTINGS):
        column = [row.cells[place] for row in table.rows]
        marked = [row.header for row, cell in zip(table.rows, column, strict=True) if cell.mark == "best"]  # type: ignore[union-attr]
        able = [name for name in MAIN if (name, setting.test_on) != ("resnet50", "full")]
        best = max(able, key=lambda name: sum(values(results, name, setting)))
        assert marked == [paper_systems()[best].title]


def test_the_paper_s_numbers_stand_in_their_place(results: Results) -> None:
    table = table2(results)
    shown = {setting: number(table, "DrFuse", column_of(setting)) for setting in SETTINGS}
    assert published([shown[SETTINGS[0]], shown[SETTINGS[1]]]) == [0.45, 0.426, 0.498, 0.384, 0.371, 0.402]
    assert published([shown[SETTINGS[2]], shown[SETTINGS[3]]]) == [0.47, 0.42, 0.512, 0.419, 0.391, 0.434]
    assert published([number(table, "MedFuse-II", column_of(SETTINGS[1]))]) == [0.329, 0.314, 0.348]
    for header in ("late fusion", "ResNet50"):
        (row,) = (row for row in table.rows if row.header == header)
        assert published(row.cells) == [None] * 12  # type: ignore[arg-type]


def test_one_seed_has_no_spread() -> None:
    table = table2(make_results(["transformer", "drfuse"], seeds=1))
    assert [one.spread for one in table.numbers] == [None] * 8
    assert "one seed" in table.caption


# --- tests against DrFuse -----------------------------------------------------------------------------------


def naive_test(results: Results, name: str, setting: Setting) -> tuple[float, tuple[float, float], float]:
    """Return the difference from DrFuse, its interval and its p-value."""
    rows, ours = of_seeds(results, "drfuse", setting)
    _, theirs = of_seeds(results, name, setting)
    labels, subjects = draw_labels()[rows], SUBJECTS[rows]
    found = compare(*(seeded_prauc(labels, of, subjects, RESAMPLES) for of in (theirs, ours)))
    difference = np.mean(values(results, name, setting)) - np.mean(values(results, "drfuse", setting))
    return float(difference), (found.low, found.high), found.p


@pytest.mark.parametrize("test_on", ["matched", "full"])
def test_systems_are_tested_against_drfuse_on_the_same_subjects(test_on: Subset) -> None:
    names = ["transformer", "resnet50", "medfuse", "drfuse"]
    results = make_results(names)
    setting = Setting("full", test_on)
    systems = [paper_systems()[name] for name in names]
    table = tables.tests(results, "table2-tests", [setting], systems)
    assert table is not None
    assert [row.header for row in table.rows] == ["Transformer", "ResNet50", "MedFuse"]
    others = [name for name in names[:-1] if (name, test_on) != ("resnet50", "full")]
    expected = {name: naive_test(results, name, setting) for name in others}
    ordered = sorted(others, key=lambda name: expected[name][2])
    corrected, least = {}, 0.0
    for left, name in zip(range(len(ordered), 0, -1), ordered, strict=True):  # Holm: times 3, 2, 1
        least = max(least, min(1.0, left * expected[name][2]))
        corrected[name] = least
    for name, (difference, interval, p) in expected.items():
        found = number(table, paper_systems()[name].title, str(setting))
        assert found.value == pytest.approx(difference)
        assert (found.low, found.high) == pytest.approx(interval)
        assert found.note == f"p {shown_p(p)}, corrected {shown_p(corrected[name])}"
    if test_on == "full":
        assert math.isnan(number(table, "ResNet50", str(setting)).value)


@pytest.mark.parametrize(
    ("n_seeds", "caption"),
    [
        ((2, 2, 2), "The variance between trainings counts, too."),
        ((1, 1, 1), "With one seed these tests compare two trained models"),
        ((1, 2, 2), "Where a system has one seed, tests compare two trained models"),
        ((2, 2, 1), "With one seed these tests compare two trained models"),
    ],
)
def test_the_caption_says_whether_systems_are_compared(n_seeds: tuple[int, ...], caption: str) -> None:
    labels = draw_labels()
    names = ("transformer", "medfuse", "drfuse")
    results = results_of(
        {
            (name, "matched"): [predict(name, labels, "matched", seed).of_split("test") for seed in range(n)]
            for name, n in zip(names, n_seeds, strict=True)
        }
    )
    systems = [paper_systems()[name] for name in names]
    for table in (tables.tests(results, "table2-tests", SETTINGS[:1], systems), tables.label_tests(results)):
        assert table is not None
        assert caption in table.caption


def test_a_label_of_few_positives_is_not_tested() -> None:
    labels = draw_labels()
    labels[:, 2] = 0
    labels[np.flatnonzero(MATCHED_TEST)[0], 2] = 1
    results = results_of(
        {
            (name, "matched"): [predict(name, labels, "matched", 0).of_split("test")]
            for name in ("transformer", "drfuse")
        },
        make_cohort(labels),
    )
    table = tables.label_tests(results)
    assert table is not None
    tested, *_, few = table.numbers
    assert tested.note.startswith("p ")
    assert (few.note, few.shown.interval) == ("", "")
    assert abs(few.value) > 0


def test_a_small_p_value_is_said_to_be_small() -> None:
    labels = draw_labels()
    certain = dataclasses.replace(predict("drfuse", labels, "full", 0), logits=labels.astype(np.float32))
    runs: dict[tuple[str, Subset], list[Predictions]] = {
        ("transformer", "full"): [predict("transformer", labels, "full", 0)],
        ("drfuse", "full"): [certain],
    }
    results = results_of(runs, n_resamples=2999)  # the smallest p is 2 / 3000
    table = tables.tests(results, "table2-tests", [Setting("full", "full")], results.systems)
    assert table is not None
    assert [one.note for one in table.numbers] == ["p < 0.001, corrected < 0.001"]
    assert table.numbers[0].value < 0


@pytest.mark.parametrize("names", [["transformer", "medfuse"], ["drfuse"], []])
def test_without_drfuse_or_others_nothing_is_tested(names: list[str], results: Results) -> None:
    assert tables.tests(results, "t", SETTINGS, [paper_systems()[name] for name in names]) is None


# --- table 3 ------------------------------------------------------------------------------------------------

RANKS = {  # of the one positive of each phenotype, whose PRAUC is 1 / rank
    "resnet50": (4, 25, 1),
    "transformer": (2, 20, 2),
    "medfuse": (3, 21, 2),
    "medfuse-ii": (2, 19, 4),
    "drfuse": (1, 20, 4),
}


def ranked(name: str) -> Predictions:
    """Return predictions of the matched test stays that put each phenotype's positive at its rank."""
    stays = np.flatnonzero(MATCHED_TEST)
    logits = predict(name, draw_labels(), "matched", 0).logits.copy()
    labels = np.zeros_like(draw_labels())
    labels[stays[0]] = 1
    for c, rank in enumerate(RANKS[name]):
        logits[stays[1:], c] = np.where(np.arange(len(stays) - 1) < rank - 1, 2.0, -2.0)
        logits[stays[0], c] = 0.0
    return dataclasses.replace(predict(name, labels, "matched", 0), logits=logits)


@pytest.fixture(scope="module")
def by_rank() -> Table:
    # in another order than the paper's, with systems that its table leaves out
    runs: dict[tuple[str, Subset], list[Predictions]] = {
        (name, "matched"): [ranked(name)] for name in reversed(RANKS)
    }
    for name in ("mmtm", "late-fusion", *VARIANTS):
        runs[name, "matched"] = [predict(name, draw_labels(), "matched", 0)]
    labels = np.zeros_like(draw_labels())
    labels[np.flatnonzero(MATCHED_TEST)[0]] = 1
    return table3(results_of(runs, make_cohort(labels)))


def test_table_3_has_the_paper_s_systems_in_its_order(by_rank: Table) -> None:
    titles = ["ResNet50", "Transformer", "MedFuse", "MedFuse-II", "DrFuse"]
    assert list(by_rank.columns) == ["phenotype", "prevalence", *titles]
    assert [row.header for row in by_rank.rows] == [*PHENOTYPES, "average rank"]


def test_table_3_holds_fusion_against_the_better_modality(by_rank: Table) -> None:
    shock, septicemia, dysrhythmias = PHENOTYPES
    notes = {
        (phenotype, system): (cell.note, cell.mark)
        for phenotype in PHENOTYPES
        for system in by_rank.columns[2:]
        for cell in [number(by_rank, phenotype, system)]
    }
    # PRAUC of the better modality: 1/2, 1/20 and 1
    assert notes[shock, "DrFuse"] == ("+100.0 %", "better")  # 1
    assert notes[shock, "MedFuse"] == ("−33.3 %", "worse")  # 1/3
    assert notes[shock, "MedFuse-II"] == ("+0.0 %", "")  # 1/2
    assert notes[septicemia, "MedFuse"] == ("−4.8 %", "")  # 20/21 of it: within 5 %
    assert notes[septicemia, "MedFuse-II"] == ("+5.3 %", "better")  # 20/19 of it
    assert notes[dysrhythmias, "MedFuse"] == ("−50.0 %", "worse")
    for phenotype in PHENOTYPES:
        assert notes[phenotype, "ResNet50"] == notes[phenotype, "Transformer"] == ("", "")
        for system, title in (("resnet50", "ResNet50"), ("drfuse", "DrFuse")):
            rank = RANKS[system][PHENOTYPES.index(phenotype)]
            assert number(by_rank, phenotype, title).value == pytest.approx(1 / rank)


def test_a_users_own_system_is_beside_the_ranks_of_the_paper_s() -> None:
    results = make_results(["resnet50", "transformer", "medfuse", "medfuse-ii", "drfuse", "mmtm"])
    mine = dataclasses.replace(paper_systems()["mmtm"], name="mine", title="mine", paper=None)
    runs = results.predictions["mmtm", "matched"]
    with_mine = dataclasses.replace(
        results,
        systems=[mine, *results.systems],
        predictions={**results.predictions, ("mine", "matched"): runs},
    )
    table = table3(with_mine)
    assert table.columns[-1] == "mine"
    *ranks, of_mine = table.rows[-1].cells[1:]
    assert of_mine == ""
    assert [ranks] == [table3(results).rows[-1].cells[1:]]
    assert number(table, "Shock", "mine").value > 0


def test_ranks_among_fewer_systems_are_not_held_against_the_paper_s() -> None:
    table = table3(make_results(["transformer", "drfuse"]))
    assert published(table.rows[-1].cells[1:]) == [None] * 6  # type: ignore[arg-type]
    assert number(table, "Shock", "DrFuse").paper == 0.542


def test_table_3_averages_the_ranks_ties_included(by_rank: Table) -> None:
    # ResNet50: 5, 5, 1; Transformer: 2, 2, 2; MedFuse: 4, 4, 2; MedFuse-II: 2, 1, 4; DrFuse: 1, 2, 4
    *_, last = by_rank.rows
    ranks = [cell.value for cell in last.cells[1:]]  # type: ignore[union-attr]
    assert ranks == pytest.approx([11 / 3, 6 / 3, 10 / 3, 7 / 3, 7 / 3])
    assert [cell.paper for cell in last.cells[1:]] == [3.96, 3.24, 2.68, 2.84, 2.04]  # type: ignore[union-attr]
    assert last.rule_above
    assert last.cells[0] == ""


def test_ranks_of_the_paper_s_own_praucs_are_the_paper_s() -> None:
    names = [row["phenotype"] for row in paper._tables()["table3_prauc_by_phenotype"]]
    praucs = [
        np.array([paper.phenotype_prauc(system, name) for name in names], float) for system in tables.TABLE3
    ]
    printed = [paper.average_rank(system) for system in tables.TABLE3]
    assert tables._average_ranks(praucs) == pytest.approx(printed)


def test_table_3_shows_the_prevalence_of_the_matched_test_set(by_rank: Table) -> None:
    shown = [number(by_rank, phenotype, "prevalence") for phenotype in PHENOTYPES]
    assert [one.value for one in shown] == pytest.approx([1 / 30] * 3)
    assert [one.paper for one in shown] == [0.17, 0.22, 0.38]
    assert number(by_rank, "Shock", "DrFuse").paper == 0.542


def test_a_phenotype_without_positive_is_in_no_rank() -> None:
    labels = draw_labels()
    labels[MATCHED_TEST, 1] = 0
    names = ("resnet50", "transformer", "drfuse")
    runs: dict[tuple[str, Subset], list[Predictions]] = {
        (name, "matched"): [predict(name, labels, "matched", seed) for seed in (0, 1)] for name in names
    }
    results = results_of(runs, make_cohort(labels))
    table = table3(results)
    absent = [number(table, PHENOTYPES[1], paper_systems()[name].title) for name in names]
    assert [(one.shown.value, one.shown.interval, one.note, one.mark) for one in absent] == [
        ("–", "", "", "")
    ] * 3
    occurring = np.array(
        [[number(table, PHENOTYPES[c], paper_systems()[name].title).value for name in names] for c in (0, 2)]
    )
    expected = [np.mean([1 + (row > row[place]).sum() for row in occurring]) for place in range(len(names))]
    assert [cell.value for cell in table.rows[-1].cells[1:]] == pytest.approx(expected)  # type: ignore[union-attr]


def test_without_a_model_of_one_modality_nothing_is_held_against_it() -> None:
    table = table3(make_results(["medfuse", "drfuse"]))
    assert {(one.note, one.mark) for one in table.numbers} == {("", "")}


def test_each_phenotype_is_tested_against_drfuse() -> None:
    results = make_results(["resnet50", "transformer", "drfuse", "mmtm"])
    table = tables.label_tests(results)
    assert table is not None
    assert list(table.columns) == ["label", "ResNet50", "Transformer"]
    labels, subjects = draw_labels()[MATCHED_TEST], SUBJECTS[MATCHED_TEST]
    matched = Setting("matched", "matched")
    for name, title in (("resnet50", "ResNet50"), ("transformer", "Transformer")):
        expected = []
        for c in range(len(PHENOTYPES)):
            one = labels[:, [c]]
            theirs, ours = (
                [scores[:, [c]] for scores in of_seeds(results, system, matched)[1]]
                for system in (name, "drfuse")
            )
            difference = np.mean([macro(one, scores) for scores in theirs])
            difference -= np.mean([macro(one, scores) for scores in ours])
            p = compare(*(seeded_prauc(one, of, subjects, RESAMPLES) for of in (theirs, ours))).p
            expected.append((difference, p))
        order = sorted(range(3), key=lambda c: expected[c][1])
        least, corrected = 0.0, {}
        for left, c in zip((3, 2, 1), order, strict=True):
            corrected[c] = least = max(least, min(1.0, left * expected[c][1]))
        for c, phenotype in enumerate(PHENOTYPES):
            found = number(table, phenotype, title)
            assert found.value == pytest.approx(expected[c][0])
            assert found.note == f"p {shown_p(expected[c][1])}, corrected {shown_p(corrected[c])}"


def test_a_phenotype_without_positive_is_not_tested() -> None:
    labels = draw_labels()
    labels[MATCHED_TEST, 1] = 0
    runs: dict[tuple[str, Subset], list[Predictions]] = {
        (name, "matched"): [predict(name, labels, "matched", 0)] for name in ("transformer", "drfuse")
    }
    table = tables.label_tests(results_of(runs, make_cohort(labels)))
    assert table is not None
    absent = number(table, PHENOTYPES[1], "Transformer")
    assert (absent.shown.value, absent.note) == ("–", "")
    p, corrected = re.fullmatch(r"p = (.*), corrected = (.*)", table.numbers[0].note).groups()  # type: ignore[union-attr]
    assert float(corrected) <= min(1, 2 * float(p)) + 0.001  # of two labels, not three


@pytest.mark.parametrize("names", [["transformer", "medfuse"], ["drfuse"]])
def test_without_drfuse_or_others_no_phenotype_is_tested(names: list[str]) -> None:
    assert tables.label_tests(make_results(names)) is None


# --- table 4 ------------------------------------------------------------------------------------------------


def test_table_4_ends_with_drfuse_as_the_paper_s(results: Results) -> None:
    table = table4(results)
    assert [row.header for row in table.rows] == [
        "w/o disentangled",
        "MSE alignment",
        "w/o attn. ranking",
        "DrFuse",
    ]
    assert [row.rule_above for row in table.rows] == [False, False, False, True]
    assert table.columns[1:] == ["tested on matched", "tested on full"]
    for name, row in zip((*VARIANTS, "drfuse"), table.rows, strict=True):
        for setting, cell in zip(SETTINGS[:2], row.cells, strict=True):
            assert isinstance(cell, Number)
            assert cell.value == pytest.approx(np.mean(values(results, name, setting)))
    assert published(table.rows[0].cells) == [0.446, 0.411, 0.501, 0.374, 0.355, 0.395]  # type: ignore[arg-type]
    assert published(table.rows[3].cells) == [0.45, 0.426, 0.498, 0.384, 0.371, 0.402]  # type: ignore[arg-type]


def test_only_drfuse_and_its_variants_are_ablated(results: Results) -> None:
    assert [system.name for system in ablated(results.systems)] == [*VARIANTS, "drfuse"]


# --- other tasks --------------------------------------------------------------------------------------------


def test_other_tasks_have_no_numbers_of_the_paper() -> None:
    results = make_results([*MAIN, *VARIANTS], task="mortality")
    for table in (table2(results), table3(results), table4(results)):
        assert published(table.numbers) == [None] * 3 * len(table.numbers)
    assert table3(results).columns[0] == "label"
    assert table2(results).title == "Table 2: PRAUC of death in hospital in four settings"


def test_a_task_is_measured_on_the_stays_that_take_part() -> None:
    results = make_results(["transformer"], seeds=1, task="mortality")
    scores = predict("transformer", DIED[:, None].astype("f4"), "full", 0, ["death in hospital"]).logits
    rows = TEST & STAYED & HAS_CXR
    found = number(table2(results), "Transformer", column_of(Setting("full", "matched")))
    assert found.value == pytest.approx(macro(DIED[rows, None], scores[rows]))
    prevalence = number(table3(results), "death in hospital", "prevalence")
    assert prevalence.value == pytest.approx(DIED[rows].mean())


def test_every_number_s_note_is_short(results: Results) -> None:
    assert all(re.fullmatch(r"([+−]\d+\.\d %)?", one.note) for one in table3(results).numbers)
