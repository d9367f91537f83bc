"""Whether acting on each system's probabilities is better than treating every stay, or none."""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from drfuse.evaluation import DecisionCurves, decision_curves
from drfuse.report.figures import net_benefit_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results, predicted_by_all, select
from drfuse.reproduce.systems import System

_SHOWN = (0.05, 0.1, 0.2, 0.3, 0.5)


def curves_of_systems(results: Results) -> dict[System, DecisionCurves]:
    """Return the decision curves of each system, trained on full, on the test stays that it predicts.

    They are of recalibrated probabilities if every run has a recalibration.
    """
    measured = {}
    for system, runs in results.by_system("full").items():
        labels, logits, subjects = select(runs, predicted_by_all(runs))
        maps = results.recalibrations(system, "full")
        probabilities = (
            np.array([one.apply(of_seed) for one, of_seed in zip(maps, logits, strict=True)])
            if maps
            else expit(np.array(logits, np.float64))
        )
        measured[system] = decision_curves(
            labels, probabilities, runs[0].phenotypes, subjects, results.n_resamples
        )
    return measured


def net_benefit_table(measured: Mapping[System, DecisionCurves]) -> Table:
    """Return the mean net benefit of each system at some thresholds, next to that of treating all."""
    rows: list[Row] = []
    for system, found in measured.items():
        shown = [point for point in found.macro if point.threshold in _SHOWN]
        net_benefits = [Number.of(point.net_benefit) for point in shown]
        rows.append(Row(system.title, net_benefits, rule_above=bool(rows)))
        rows.append(Row(f"{system.title}: treating all", [Number(point.treat_all) for point in shown]))
    return Table(
        key="net-benefit",
        title="Net benefit by threshold probability, trained and tested on full",
        caption="Share of the stays that are rightly treated, minus the share wrongly treated, weighted by "
        "the odds of the threshold; treating none has 0. Of recalibrated probabilities; means over the "
        "labels and seeds, with 95 % interval over subjects and seeds. Below each system: treating all of "
        "the stays that it predicts.",
        columns=["system", *(f"{threshold:.0%}" for threshold in _SHOWN)],
        rows=rows,
    )


def _measure(results: Results) -> Findings:
    measured = curves_of_systems(results)
    figure = net_benefit_figure({system.title: found.macro for system, found in measured.items()})
    caption = "Net benefit by threshold probability, mean over the labels"
    return Findings([net_benefit_table(measured)], [(caption, figure)])


EXPERIMENT = Experiment(
    title="Net benefit",
    look_for="At which thresholds acting on the predictions is better than treating every stay, or none.",
    place=75,
    measure=_measure,
    trained_on=["full"],
)
