"""How much predictions lose as radiographs go missing."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drfuse.errors import InputError
from drfuse.evaluation import MissingPoint, missing_curve
from drfuse.report.figures import missing_curve_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results, predicted_by_all, select
from drfuse.reproduce.systems import System
from drfuse.run import Predictions
from drfuse.subsets import Subset

_TRAINED_ON: tuple[Subset, ...] = ("matched", "full")

MOST_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The shares of missing radiographs in the table; the figure shows more."""

_SHARES = sorted({*(share / 10 for share in range(11)), *MOST_SHOWN})


def missing_curves(results: Results, train_on: Subset) -> dict[System, list[MissingPoint]]:
    """Return each system's macro PRAUC as radiographs are removed at random from the matched test set.

    Systems that do not predict every stay even with its radiograph are left out.

    Raises:
        InputError: If a run has no predictions without radiographs.
    """
    prevalence, curves = results.prevalence("train", train_on), {}
    for system, runs in results.by_system(train_on).items():
        rows = runs[0].rows("test", "matched")
        if not predicted_by_all(runs)[rows].all():
            continue
        labels, logits, subjects = select(runs, rows)
        curves[system] = missing_curve(
            labels,
            logits,
            [_without_cxr(run)[rows] for run in runs],
            subjects,
            shares=_SHARES,
            prevalence=prevalence,
            n_resamples=results.n_resamples,
        )
    return curves


def missing_table(curves: Mapping[System, list[MissingPoint]], train_on: Subset) -> Table:
    """Return the curves at the shares of `MOST_SHOWN`."""
    return Table(
        key=f"missing-{train_on}",
        title=f"Radiographs removed from the matched test set, trained on {train_on}",
        caption="Macro PRAUC, mean over random choices of the radiographs and over seeds, with 95 % "
        "interval over subjects and seeds. A stay that a system cannot predict without its radiograph "
        "gets the prevalence of the training split. "
        "Left out: systems that do not predict every stay even with its radiograph.",
        columns=["system", *(f"{100 * share:.0f} % missing" for share in MOST_SHOWN)],
        rows=[
            Row(system.title, [Number.of(one.prauc_macro) for one in curve if one.share in MOST_SHOWN])
            for system, curve in curves.items()
        ],
    )


def _without_cxr(run: Predictions) -> NDArray[np.float32]:
    if run.logits_without_cxr is None:
        raise InputError(
            "a run has no predictions without radiographs; choose a different --out to train it again"
        )
    return run.logits_without_cxr


def _measure(results: Results) -> Findings:
    tables, figures = [], []
    for train_on in _TRAINED_ON:
        if curves := missing_curves(results, train_on):
            tables.append(missing_table(curves, train_on))
            figure = missing_curve_figure({system.title: curve for system, curve in curves.items()})
            figures.append((f"Macro PRAUC as radiographs go missing, trained on {train_on}", figure))
    return Findings(tables, figures)


EXPERIMENT = Experiment(
    title="Missing radiographs",
    look_for="How each system does on the same stays as more and more of their radiographs go missing.",
    place=60,
    measure=_measure,
    trained_on=_TRAINED_ON,
)
