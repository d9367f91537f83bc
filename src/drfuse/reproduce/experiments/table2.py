"""Table 2: every system in four settings, with a test of each against DrFuse."""

from dataclasses import replace

import numpy as np

from drfuse.report.figures import intervals_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce import paper
from drfuse.reproduce.comparisons import (
    SETTINGS,
    compare_with_drfuse,
    intervals_caption,
    numbers_of,
    score_cell,
)
from drfuse.reproduce.differences import differences
from drfuse.reproduce.experiment import Experiment, Findings, is_not_a_variant
from drfuse.reproduce.results import Results


def table2(results: Results) -> Table:
    """Return the macro PRAUC of every system in four settings."""
    names = results.task.label_names
    measured = f"PRAUC of {names[0]}" if len(names) == 1 else f"macro PRAUC over {len(names)} labels"
    systems = list(filter(is_not_a_variant, results.systems))
    columns = []
    for setting in SETTINGS:
        on = (setting.train_on, setting.test_on)
        cells = [score_cell(results, one, setting, paper.macro_prauc(one.paper, *on)) for one in systems]
        columns.append(_mark_best(cells))
    return Table(
        key="table2",
        title=f"Table 2: {measured} in four settings",
        caption=f"{intervals_caption(results)}. A dash: the system does not predict every stay of the test "
        "set, or the test set has no positive. Bold: the best of a column.",
        beside_paper=differences(results.cohort),
        groups=[("", 1), ("trained on matched", 2), ("trained on full", 2)],
        columns=["system", *(f"tested on {setting.test_on}" for setting in SETTINGS)],
        rows=[Row(system.title, cells) for system, *cells in zip(systems, *columns, strict=True)],
    )


def _mark_best(column: list[Number]) -> list[Number]:
    best = max((cell.value for cell in column if not np.isnan(cell.value)), default=np.nan)
    return [replace(cell, mark="best") if cell.value == best else cell for cell in column]


def _measure(results: Results) -> Findings:
    table = table2(results)
    systems = list(filter(is_not_a_variant, results.systems))
    tested = compare_with_drfuse(results, "table2-tests", "Table 2", SETTINGS, systems)
    figure = intervals_figure(numbers_of(table, map(str, SETTINGS)))
    return Findings([table, *tested], [("Macro PRAUC of every system in the four settings", figure)])


EXPERIMENT = Experiment(
    title="All systems",
    look_for="Trained on the matched subset or on the full dataset, and tested on both.",
    place=20,
    measure=_measure,
    trained_on=("matched", "full"),
    too_wide=["table2-tests"],
    headline=True,
)
