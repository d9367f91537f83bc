"""Table 2, of predictions made by hand, against scikit-learn."""

import math

import numpy as np
import pytest

from drfuse.evaluation import macro_prauc
from drfuse.reproduce.comparisons import SETTINGS
from drfuse.reproduce.experiments.table2 import table2
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import paper_systems
from tests.reproduce.samples import (
    MAIN,
    RESAMPLES,
    SUBJECTS,
    column_of,
    draw_labels,
    make_results,
    number,
    numbers,
    of_seeds,
    published,
    values,
)


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
    assert [cell.shown.value == "–" for cell in row.cells] == [False, True, False, True]


def test_the_best_of_each_column_is_marked(results: Results) -> None:
    table = table2(results)
    for place, setting in enumerate(SETTINGS):
        column = [row.cells[place] for row in table.rows]
        marked = [row.header for row, cell in zip(table.rows, column, strict=True) if cell.mark == "best"]
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
        assert published(numbers(row)) == [None] * 12


def test_one_seed_has_no_spread() -> None:
    table = table2(make_results(["transformer", "drfuse"], seeds=1))
    assert [one.spread for one in table.numbers] == [None] * 8
    assert "one seed" in table.caption
