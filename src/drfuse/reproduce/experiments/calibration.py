"""Whether the predicted probabilities of each system match how often a label occurs."""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from drfuse.evaluation import Calibration, calibration
from drfuse.report.figures import reliability_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results, predicted_by_all, select
from drfuse.reproduce.systems import System


def calibrations(results: Results) -> dict[System, Calibration]:
    """Return the calibration of each system, trained on full, on the test stays that it predicts."""
    measured = {}
    for system, runs in results.by_system("full").items():
        labels, logits, subjects = select(runs, predicted_by_all(runs))
        measured[system] = calibration(labels, expit(np.array(logits, np.float64)), subjects)
    return measured


def calibration_table(results: Results, measured: Mapping[System, Calibration]) -> Table:
    """Return the calibration error, ECE and Brier score of each system."""
    return Table(
        key="calibration",
        title="Calibration, trained and tested on full",
        caption="Calibration error: the root mean squared distance between predicted and observed shares, "
        "corrected for what chance adds. ECE: expected calibration error as published (10 bins of equal "
        "width), which chance makes larger than 0; next to it, the ECE if the labels were drawn from the "
        "predictions. Means over the labels and seeds, with 95 % interval over subjects and seeds; lower is "
        "better. Stays: those that the system predicts.",
        columns=["system", "stays", "calibration error", "ECE", "ECE if calibrated", "Brier score"],
        rows=[
            Row(
                system.title,
                [
                    Number(float(predicted_by_all(results.of(system, "full")).sum()), digits=0),
                    Number.of(one.error),
                    Number(one.ece),
                    Number(one.ece_if_calibrated),
                    Number.of(one.brier),
                ],
            )
            for system, one in measured.items()
        ],
    )


def _measure(results: Results) -> Findings:
    measured = calibrations(results)
    figure = reliability_figure({system.title: one.reliability for system, one in measured.items()})
    caption = "Observed share by predicted probability, all labels together"
    return Findings([calibration_table(results, measured)], [(caption, figure)])


EXPERIMENT = Experiment(
    title="Calibration",
    look_for="Whether a label predicted at 30 % occurs in 30 % of the stays.",
    place=70,
    measure=_measure,
    trained_on=["full"],
)
