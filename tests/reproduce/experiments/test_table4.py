"""Table 4, of predictions made by hand."""

import numpy as np
import pytest

from drfuse.report import Number
from drfuse.reproduce.comparisons import SETTINGS
from drfuse.reproduce.experiments.table4 import ablated, table4
from drfuse.reproduce.results import Results
from tests.reproduce.samples import (
    VARIANTS,
    numbers,
    published,
    values,
)


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
    assert published(numbers(table.rows[0])) == [0.446, 0.411, 0.501, 0.374, 0.355, 0.395]
    assert published(numbers(table.rows[3])) == [0.45, 0.426, 0.498, 0.384, 0.371, 0.402]


def test_only_drfuse_and_its_variants_are_ablated(results: Results) -> None:
    assert [system.name for system in ablated(results.systems)] == [*VARIANTS, "drfuse"]
