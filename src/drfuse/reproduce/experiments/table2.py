"""Table 2: every system in four settings, with a test of each against DrFuse."""

import numpy as np

from drfuse.report.figures import intervals_figure
from drfuse.report.tables import Row, Table
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
    systems = list(filter(is_not_a_variant, results.systems))
    scores = {setting: [results.score(system, setting) for system in systems] for setting in SETTINGS}
    published = results.is_of_the_paper
    best = {
        setting: max((score.mean.value for score in of_all if score is not None), default=np.nan)
        for setting, of_all in scores.items()
    }
    return Table(
        key="table2",
        title=f"Table 2: {_what_is_measured(results)} in four settings",
        caption=f"{intervals_caption(results)}. A dash: the system does not predict every stay of the test "
        "set, or that has no positive. Bold: the best of a column.",
        beside_paper=differences(results.cohort),
        groups=[("", 1), ("trained on matched", 2), ("trained on full", 2)],
        columns=["system", *(f"tested on {setting.test_on}" for setting in SETTINGS)],
        rows=[
            Row(
                system.title,
                [
                    score_cell(
                        scores[setting][row],
                        paper.macro_prauc(system.paper, setting.train_on, setting.test_on)
                        if published
                        else {},
                        best=best[setting],
                    )
                    for setting in SETTINGS
                ],
            )
            for row, system in enumerate(systems)
        ],
    )


def _what_is_measured(results: Results) -> str:
    names = results.task.label_names
    return f"PRAUC of {names[0]}" if len(names) == 1 else f"macro PRAUC over {len(names)} labels"


def _measure(results: Results) -> Findings:
    table = table2(results)
    numbers = numbers_of(table, map(str, SETTINGS))
    systems = list(filter(is_not_a_variant, results.systems))
    tested = compare_with_drfuse(results, "table2-tests", "Table 2", SETTINGS, systems)
    caption = "Macro PRAUC of every system in the four settings"
    return Findings([table, *tested], [(caption, intervals_figure(numbers))])


EXPERIMENT = Experiment(
    title="All systems",
    look_for="Trained on the matched subset or on the full dataset, and tested on both.",
    place=20,
    measure=_measure,
    trained_on=("matched", "full"),
    too_wide=["table2-tests"],
    headline=True,
)
