"""Table 4: DrFuse without one of its parts."""

from collections.abc import Sequence

from drfuse.report.tables import Row, Table
from drfuse.reproduce import paper
from drfuse.reproduce.comparisons import SETTINGS, compare_with_drfuse, intervals_caption, score_cell
from drfuse.reproduce.differences import differences
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System

_SETTINGS = [setting for setting in SETTINGS if setting.train_on == "matched"]


def table4(results: Results) -> Table:
    """Return the macro PRAUC of DrFuse's variants, below the references that every table shows."""
    rows = []
    for system in ablated(results.systems):
        cells = [
            score_cell(results, system, setting, paper.ablation(system.ablation, setting.test_on))
            for setting in _SETTINGS
        ]
        rows.append(Row(system.ablation or system.title, cells, rule_above=system.name == "drfuse"))
    return Table(
        key="table4",
        title="Table 4: what each part of DrFuse adds, trained on matched",
        caption=f"{intervals_caption(results)}. Logistic regressions are references, not variants.",
        beside_paper=differences(results.cohort),
        columns=["model", *(f"tested on {setting.test_on}" for setting in _SETTINGS)],
        rows=rows,
    )


def ablated(systems: Sequence[System]) -> list[System]:
    """Return the systems of the table: references first, DrFuse itself last."""
    return sorted(filter(_takes_part, systems), key=lambda system: system.name == "drfuse")


def _takes_part(system: System) -> bool:
    return system.ablation is not None or system.reference


def _measure(results: Results) -> Findings:
    systems = ablated(results.systems)
    tested = compare_with_drfuse(results, "table4-tests", "Table 4", _SETTINGS, systems)
    return Findings([table4(results), *tested])


EXPERIMENT = Experiment(
    title="Ablation",
    look_for="DrFuse without one of its parts.",
    place=40,
    measure=_measure,
    trained_on=["matched"],
    takes_part=_takes_part,
    too_wide=["table4-tests"],
    headline=True,
)
