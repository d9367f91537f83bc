"""Cells, captions and tests that several experiments share."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from drfuse.evaluation import Comparison, SeededPrauc, compare, holm
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.paper import PaperNumber
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import System

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
    """Return how much each system differs from DrFuse in each setting, with Holm-corrected tests.

    `title` is that of the table whose systems are compared, such as `Table 2`. There is no table without
    DrFuse, or without a system to compare it with.
    """
    drfuse = next((system for system in systems if system.name == "drfuse"), None)
    others = [system for system in systems if system is not drfuse]
    if drfuse is None or not others:
        return []
    compared = {
        str(setting): [
            _compare(results.score(system, setting), results.score(drfuse, setting)) for system in others
        ]
        for setting in settings
    }
    return [tests_table(key, title, "Macro PRAUC", "system", [system.title for system in others], compared)]


def tests_table(
    key: str,
    title: str,
    what: str,
    of: str,
    names: Sequence[str],
    compared: Mapping[str, Sequence[Comparison | None]],
) -> Table:
    """Return differences from DrFuse with tests, which are corrected for their number in a column.

    Args:
        key: The table's key.
        title: Title of the table whose numbers are compared.
        what: The number that is compared.
        of: What a row is: `system` or `label`.
        names: The rows.
        compared: The comparisons of each column, one for each row.
    """
    columns = [
        list(map(_difference_cell, of_all, holm([np.nan if one is None else one.p for one in of_all])))
        for of_all in compared.values()
    ]
    return Table(
        key=key,
        title=f"{title}, tested: difference from DrFuse",
        caption=f"{what} of the system less that of DrFuse on the same resampled subjects, means over "
        "seeds: below zero, DrFuse is better. 95 % interval without bias, two-sided p, and p corrected for "
        f"the {of}s of its column by Holm's method. {_what_is_compared(chain(*compared.values()))}",
        columns=[of, *compared],
        rows=[Row(name, cells) for name, *cells in zip(names, *columns, strict=True)],
    )


def score_cell(score: SeededPrauc | None, published: PaperNumber, best: float = np.nan) -> Number:
    """Return a macro PRAUC as a cell: a dash if there is none, marked if it is the best."""
    if score is None:
        return Number(np.nan, **published)
    mean = score.mean
    return Number.of(mean, spread=score.spread, mark="best" if mean.value == best else "", **published)


def _compare(theirs: SeededPrauc | None, ours: SeededPrauc | None) -> Comparison | None:
    return None if theirs is None or ours is None else compare(theirs, ours)


def _difference_cell(one: Comparison | None, corrected: float) -> Number:
    """Return a difference as a cell, with p and corrected p where there is a p."""
    if one is None or np.isnan(one.difference):
        return Number(np.nan)
    note = "" if np.isnan(one.p) else f"p {_p(one.p)}, corrected {_p(corrected)}"
    return Number(one.difference, one.low, one.high, note=note)


def intervals_caption(results: Results) -> str:
    """Return a phrase on how intervals were made, for a caption."""
    n = results.n_seeds
    resamples = f"95 % interval without bias from {results.n_resamples:,} half samples of the subjects"
    if n > 1:
        return f"{resamples}, and the variance between seeds; mean and ± standard deviation over {n} seeds"
    return f"{resamples}; one seed"


def _what_is_compared(compared: Iterable[Comparison | None]) -> str:
    """Return a sentence on whether tests compare systems, or only one training of each."""
    counts_seeds = {one.counts_seeds for one in compared if one is not None}
    if counts_seeds == {True}:
        return "The variance between trainings counts, too."
    which = "Where a system has one seed, tests" if True in counts_seeds else "With one seed these tests"
    return f"{which} compare two trained models, not two systems: another seed may turn them."


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def numbers_of(table: Table, columns: Iterable[str]) -> dict[str, dict[str, Number]]:
    """Return the numbers of a table, as figures take them: by row and by the given names of its columns."""
    names = list(columns)
    return {
        row.header: {
            name: cell for name, cell in zip(names, row.cells, strict=True) if isinstance(cell, Number)
        }
        for row in table.rows
    }
