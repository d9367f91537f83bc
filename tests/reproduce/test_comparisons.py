"""Tests against DrFuse, of predictions made by hand."""

import dataclasses
import math

import numpy as np
import pytest

from drfuse.evaluation import compare, seeded_prauc
from drfuse.reproduce.comparisons import SETTINGS, compare_with_drfuse
from drfuse.reproduce.experiments.table3 import compare_labels
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Predictions
from drfuse.subsets import Subset
from tests.reproduce.samples import (
    MATCHED_TEST,
    RESAMPLES,
    SUBJECTS,
    draw_labels,
    make_cohort,
    make_results,
    number,
    of_seeds,
    predict,
    results_of,
    shown_p,
    values,
)


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
    (table,) = compare_with_drfuse(results, "table2-tests", "Table 2", [setting], systems)
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
        ((2, 2, 2), "The tests include the variance between seeds."),
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
    for (table,) in (
        compare_with_drfuse(results, "t", "Table 2", SETTINGS[:1], systems),
        compare_labels(results),
    ):
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
    (table,) = compare_labels(results)
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
    (table,) = compare_with_drfuse(
        results, "table2-tests", "Table 2", [Setting("full", "full")], results.systems
    )
    assert [one.note for one in table.numbers] == ["p < 0.001, corrected < 0.001"]
    assert table.numbers[0].value < 0


@pytest.mark.parametrize("names", [["transformer", "medfuse"], ["drfuse"], []])
def test_without_drfuse_or_others_nothing_is_tested(names: list[str], results: Results) -> None:
    assert (
        compare_with_drfuse(results, "t", "Table 2", SETTINGS, [paper_systems()[name] for name in names])
        == []
    )
