"""Cells, captions and tests that several experiments share."""

from collections.abc import Iterable, Sequence
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

    No table if there is no DrFuse, or nothing to compare it with.

    Args:
        results: The finished runs.
        key: Of the table.
        title: Of the table whose systems are compared, such as `Table 2`.
        settings: A column each.
        systems: DrFuse, and a row for each of the others.
    """
    drfuse = next((system for system in systems if system.name == "drfuse"), None)
    others = [system for system in systems if system is not drfuse]
    if drfuse is None or not others:
        return []
    compared: dict[Setting, list[Comparison | None]] = {}
    for setting in settings:
        ours = results.score(drfuse, setting)
        compared[setting] = [
            None
            if ours is None or (theirs := results.score(system, setting)) is None
            else compare(theirs, ours)
            for system in others
        ]
    corrected = {
        setting: holm([np.nan if one is None else one.p for one in of_all])
        for setting, of_all in compared.items()
    }
    table = Table(
        key=key,
        title=f"{title}, tested: difference from DrFuse",
        caption="Macro PRAUC of the system less that of DrFuse on the same resampled subjects, means over "
        "seeds: below zero, DrFuse is better. 95 % interval without bias, two-sided p, and p corrected for "
        f"the systems of its column by Holm's method. {what_is_compared(chain(*compared.values()))}",
        columns=["system", *(str(setting) for setting in settings)],
        rows=[
            Row(
                system.title,
                [difference_cell(compared[setting][row], corrected[setting][row]) for setting in settings],
            )
            for row, system in enumerate(others)
        ],
    )
    return [table]


def score_cell(score: SeededPrauc | None, published: PaperNumber, best: float = np.nan) -> Number:
    """Return a macro PRAUC as a cell; a dash where there is none, and marked where it is the best."""
    if score is None:
        return Number(np.nan, **published)
    mean = score.mean
    return Number.of(mean, spread=score.spread, mark="best" if mean.value == best else "", **published)


def difference_cell(one: Comparison | None, corrected: float) -> Number:
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


def what_is_compared(compared: Iterable[Comparison | None]) -> str:
    """Return a sentence on whether tests compare systems, or only one training of each."""
    counts_seeds = {one.counts_seeds for one in compared if one is not None}
    if counts_seeds == {True}:
        return "The variance between trainings counts, too."
    which = "Where a system has one seed, tests" if True in counts_seeds else "With one seed these tests"
    return f"{which} compare two trained models, not two systems: another seed may turn them."


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
