"""Whether the predicted probabilities of each system match how often a label occurs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from drfuse.evaluation import Calibration, calibration
from drfuse.report.figures import reliability_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.report.terminal import RECALIBRATED
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results, predicted_by_all, select
from drfuse.reproduce.systems import System


@dataclass(frozen=True)
class Calibrations:
    """The calibration of one system.

    Attributes:
        raw: Of the logistic function of its logits.
        recalibrated: Of its recalibrated probabilities, if every run has a recalibration.
        methods: The methods of its runs, for tables.
    """

    raw: Calibration
    recalibrated: Calibration | None = None
    methods: str = ""


def calibrations(results: Results) -> dict[System, Calibrations]:
    """Return the calibration of each system, trained on full, on the test stays that it predicts."""
    measured = {}
    for system, runs in results.by_system("full").items():
        labels, logits, subjects = select(runs, predicted_by_all(runs))
        raw = calibration(labels, expit(np.array(logits, np.float64)), subjects)
        if maps := results.recalibrations(system, "full"):
            mapped = np.array([one.apply(of_seed) for one, of_seed in zip(maps, logits, strict=True)])
            methods = ", ".join(dict.fromkeys(RECALIBRATED[one.method] for one in maps))
            measured[system] = Calibrations(raw, calibration(labels, mapped, subjects), methods)
        else:
            measured[system] = Calibrations(raw)
    return measured


def calibration_table(results: Results, measured: Mapping[System, Calibrations]) -> Table:
    """Return the calibration error, ECE and Brier score of each system, raw and recalibrated."""
    rows: list[Row] = []
    for system, found in measured.items():
        n_stays = Number(float(predicted_by_all(results.of(system, "full")).sum()), digits=0)
        rows.append(Row(system.title, [n_stays, *_numbers(found.raw), ""], rule_above=bool(rows)))
        if found.recalibrated is not None:
            rows.append(
                Row(f"{system.title}, recalibrated", [n_stays, *_numbers(found.recalibrated), found.methods])
            )
    return Table(
        key="calibration",
        title="Calibration, trained and tested on full",
        caption="Calibration error: the root mean squared distance between predicted and observed shares, "
        "corrected for what chance adds. ECE: expected calibration error as published (10 bins of equal "
        "width), which chance makes larger than 0; next to it, the ECE if the labels were drawn from the "
        "predictions. Means over the labels and seeds, with 95 % interval over subjects and seeds; lower is "
        "better. Recalibrated: each run's probabilities after the method that had the lowest log loss on its "
        "validation split. Stays: those that the system predicts.",
        columns=["system", "stays", "calibration error", "ECE", "ECE if calibrated", "Brier score", "method"],
        rows=rows,
    )


def _numbers(found: Calibration) -> list[Number]:
    return [
        Number.of(found.error),
        Number(found.ece),
        Number(found.ece_if_calibrated),
        Number.of(found.brier),
    ]


def _measure(results: Results) -> Findings:
    measured = calibrations(results)
    figure = reliability_figure(
        {system.title: one.raw.reliability for system, one in measured.items()},
        {
            system.title: one.recalibrated.reliability
            for system, one in measured.items()
            if one.recalibrated is not None
        },
    )
    caption = "Observed share by predicted probability, all labels together"
    return Findings([calibration_table(results, measured)], [(caption, figure)])


EXPERIMENT = Experiment(
    title="Calibration",
    look_for="Whether a label predicted at 30 % occurs in 30 % of the stays, before and after recalibration.",
    place=70,
    measure=_measure,
    trained_on=["full"],
)
