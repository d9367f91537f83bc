"""Table cells, captions and significance tests that several experiments share."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from drfuse.evaluation import Comparison, compare, holm
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.paper import PaperNumber
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import System, paper_systems

SETTINGS = (
    Setting("matched", "matched"),
    Setting("matched", "full"),
    Setting("full", "matched"),
    Setting("full", "full"),
)
"""The four settings of the paper."""


def compare_with_drfuse(
    results: Results, key: str, title: str, settings: Sequence[Setting], systems: Sequence[System]
) -> list[Table]:
    """Return a table of how much each system differs from DrFuse in each setting, with Holm-corrected tests.

    No table without DrFuse, or without a system to compare it with.

    Args:
        results: The measured runs.
        key: The table's key.
        title: The table whose systems are compared, such as `Table 2`.
        settings: The columns.
        systems: The systems, DrFuse among them.
    """
    drfuse = paper_systems()["drfuse"]
    others = [system for system in systems if system is not drfuse]
    if drfuse not in systems or not others:
        return []
    compared: dict[str, list[Comparison | None]] = {}
    for setting in settings:
        ours = results.score(drfuse, setting)
        scores = [results.score(system, setting) for system in others]
        compared[str(setting)] = [compare(theirs, ours) if theirs and ours else None for theirs in scores]
    return [tests_table(key, title, "Macro PRAUC", "system", [system.title for system in others], compared)]


def tests_table(
    key: str,
    title: str,
    what: str,
    of: str,
    names: Sequence[str],
    compared: Mapping[str, Sequence[Comparison | None]],
) -> Table:
    """Return a table of differences from DrFuse; p-values are corrected for the number of tests in a column.

    Args:
        key: The table's key.
        title: The table whose numbers are compared, such as `Table 2`.
        what: The metric.
        of: What a row stands for: `system` or `label`.
        names: The row headers.
        compared: By column head, a comparison for each row; None if there is nothing to compare.
    """
    columns = [
        list(map(_difference_cell, of_all, holm([np.nan if one is None else one.p for one in of_all])))
        for of_all in compared.values()
    ]
    return Table(
        key=key,
        title=f"{title}, tested: difference from DrFuse",
        caption=f"{what} of the system minus that of DrFuse on the same resampled subjects, means over "
        "seeds: below zero, DrFuse is better. Bias-corrected 95 % interval, two-sided p, and p corrected for "
        f"the {of}s of its column by Holm's method. {_what_is_compared(chain(*compared.values()))}",
        columns=[of, *compared],
        rows=[Row(name, cells) for name, *cells in zip(names, *columns, strict=True)],
    )


def score_cell(results: Results, system: System, setting: Setting, published: PaperNumber) -> Number:
    """Return a system's macro PRAUC in a setting: a dash if it has none, the paper's if this is its task."""
    score, published = results.score(system, setting), published if results.is_of_the_paper else {}
    if score is None:
        return Number(np.nan, **published)
    return Number.of(score.mean, spread=score.spread, **published)


def _difference_cell(one: Comparison | None, corrected: float) -> Number:
    if one is None or np.isnan(one.difference):
        return Number(np.nan)
    note = "" if np.isnan(one.p) else f"p {_p(one.p)}, corrected {_p(corrected)}"
    return Number(one.difference, one.low, one.high, note=note)


def intervals_caption(results: Results) -> str:
    """Return a phrase for captions on how the intervals were made."""
    n = results.n_seeds
    resamples = f"Bias-corrected 95 % interval from {results.n_resamples:,} half samples of the subjects"
    if n > 1:
        return f"{resamples} and the variance between seeds; mean and ± standard deviation over {n} seeds"
    return f"{resamples}; one seed"


def _what_is_compared(compared: Iterable[Comparison | None]) -> str:
    """Return a sentence on whether the tests compare systems, or only one trained model of each."""
    counts_seeds = {one.counts_seeds for one in compared if one is not None}
    if counts_seeds == {True}:
        return "The tests include the variance between seeds."
    which = "Where a system has one seed, tests" if True in counts_seeds else "With one seed these tests"
    return f"{which} compare two trained models, not two systems: another seed may reverse them."


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def numbers_of(table: Table, columns: Iterable[str]) -> dict[str, dict[str, Number]]:
    """Return the numbers of a table by row header and column, with `columns` as the names of its columns."""
    names = list(columns)
    return {
        row.header: {
            name: cell for name, cell in zip(names, row.cells, strict=True) if isinstance(cell, Number)
        }
        for row in table.rows
    }
