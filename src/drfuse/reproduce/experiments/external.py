"""How well each system predicts another cohort, and by how much that cohort differs."""

import numpy as np

from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.comparisons import SETTINGS, intervals_caption, score_cell
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results


def external_table(results: Results, there: Results) -> Table:
    """Return each system's macro PRAUC on the test split of its own cohort and on another cohort."""
    settings = [
        setting
        for setting in SETTINGS
        if any(there.score(system, setting) for system in results.systems if not system.is_variant)
    ]
    name = there.cohort.folder.name
    systems = [system for system in results.systems if not system.is_variant]
    rows = [
        Row(
            system.title,
            [score_cell(of, system, setting, {}) for setting in settings for of in (results, there)],
        )
        for system in systems
        if any(there.of(system, setting.train_on) for setting in settings)
    ]
    return Table(
        key="external",
        title=f"Macro PRAUC on the own test split and on all stays of {name}",
        caption=f"{intervals_caption(results)}. PRAUC rises with prevalence by itself: compare systems "
        "within a column, not one system between the two cohorts.",
        columns=["system", *(f"{setting}: {of}" for setting in settings for of in ("own", name))],
        rows=rows,
    )


def shift_table(there: Results) -> Table:
    """Return how the stays of another cohort differ from those of the training."""

    def number(value: float | None, digits: int = 3) -> Number:
        return Number(np.nan if value is None else value, digits=digits)

    return Table(
        key="external-shift",
        title=f"How the stays of {there.cohort.folder.name} differ from the training split",
        caption="Share of stays with a radiograph, of hours in which the variable was observed, of stays "
        "with the label; mean of the observed values in the variable's unit, and the difference of the means "
        "in standard deviations of the training split.",
        columns=["input", "share in training", "share here", "mean in training", "mean here", "difference"],
        rows=[
            Row(
                "any radiograph" if one.kind == "radiograph" else one.name,
                [
                    number(one.trained_share),
                    number(one.share),
                    *(
                        [number(one.trained_mean, 2), number(one.mean, 2), number(one.difference, 2)]
                        if one.kind == "variable"
                        else [""] * 3
                    ),
                ],
            )
            for one in there.shift
        ],
    )


def _measure(results: Results) -> Findings:
    there = results.elsewhere
    return Findings([] if there is None else [external_table(results, there), shift_table(there)])


EXPERIMENT = Experiment(
    title="On another cohort",
    look_for="Whether the systems keep their order on patients of another hospital, and how those differ.",
    place=85,
    measure=_measure,
    trained_on=("matched", "full"),
    elsewhere=True,
    too_wide=("external-shift",),
)
