"""What the paper leaves out: missing radiographs one by one, calibration, and groups of patients."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from drfuse.data import Subset
from drfuse.errors import InputError
from drfuse.evaluation import (
    Calibration,
    MissingPoint,
    Subgroups,
    calibration,
    groups_of,
    missing_curve,
    subgroups,
)
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.plan import takes_part
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System
from drfuse.run import Predictions

MOST_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The shares of missing radiographs in the table; the figure has more."""

_SHARES = sorted({*(share / 10 for share in range(11)), *MOST_SHOWN})


def missing_curves(results: Results, train_on: Subset) -> dict[System, list[MissingPoint]]:
    """Return each system's macro PRAUC as radiographs of the matched test set are taken away at random."""
    task, in_training = results.task, results.cohort.rows("train", train_on)
    prevalence = task.labels[in_training][task.eligible[in_training]].mean(axis=0)
    curves = {}
    for system, runs in _predicted(results, "missing", train_on).items():
        rows = runs[0].rows("test", "matched")
        if not _told(runs)[rows].all():
            continue
        curves[system] = missing_curve(
            runs[0].labels[rows],
            [run.logits[rows] for run in runs],
            [_without_cxr(run)[rows] for run in runs],
            runs[0].stays["subject_id"].to_numpy()[rows],
            shares=_SHARES,
            prevalence=prevalence,
            n_resamples=results.n_resamples,
        )
    return curves


def missing_table(curves: Mapping[System, list[MissingPoint]], train_on: Subset) -> Table:
    """Return the curves at five shares."""
    return Table(
        key=f"missing-{train_on}",
        title=f"Radiographs taken away from the matched test set, trained on {train_on}",
        caption="Macro PRAUC, mean over random choices of the radiographs and over seeds, with 95 % "
        "interval over subjects and seeds. A stay that a system cannot predict without its radiograph "
        "gets the prevalence of the training split. "
        "Left out: systems that do not predict every stay even with its radiograph.",
        columns=["system", *(f"{100 * share:.0f} % missing" for share in MOST_SHOWN)],
        rows=[
            Row(
                system.title,
                [Number.of(point.prauc_macro) for point in curve if point.share in MOST_SHOWN],
            )
            for system, curve in curves.items()
        ],
    )


def calibrations(results: Results) -> dict[System, Calibration]:
    """Return each system's calibration, trained on the full dataset, on the test stays that it predicts."""
    measured = {}
    for system, runs in _predicted(results, "calibration", "full").items():
        rows = _told(runs)
        measured[system] = calibration(
            runs[0].labels[rows],
            expit(np.array([run.logits[rows] for run in runs], np.float64)),
            runs[0].stays["subject_id"].to_numpy()[rows],
        )
    return measured


def calibration_table(results: Results, measured: Mapping[System, Calibration]) -> Table:
    """Return calibration error and Brier score of each system."""
    return Table(
        key="calibration",
        title="Calibration, trained and tested on full",
        caption="Calibration error: the root of the mean squared distance between predicted and observed "
        "shares, without what chance adds. ECE: expected calibration error as published (10 bins of equal "
        "width), which chance makes larger than 0, beside what it would be if the labels were drawn from the "
        "predictions. Means over the labels and seeds, with 95 % interval over subjects and seeds; lower is "
        "better. Stays: those that the system predicts.",
        columns=["system", "stays", "calibration error", "ECE", "ECE if calibrated", "Brier score"],
        rows=[
            Row(
                system.title,
                [
                    Number(float(_told(results.of(system, "full")).sum()), digits=0),
                    Number.of(one.error),
                    Number(one.ece),
                    Number(one.ece_if_calibrated),
                    Number.of(one.brier),
                ],
            )
            for system, one in measured.items()
        ],
    )


def groups_measured(results: Results) -> dict[System, Subgroups]:
    """Return how well each system, trained on the full dataset, predicts groups of the full test set."""
    measured = {}
    for system, runs in _predicted(results, "subgroups", "full").items():
        rows = _told(runs)
        stays = runs[0].stays.filter(rows).select("stay_id")
        stays = stays.join(results.cohort.stays, on="stay_id", how="left", maintain_order="left")
        found = subgroups(
            runs[0].labels[rows],
            [run.logits[rows] for run in runs],
            groups_of(stays),
            runs[0].stays["subject_id"].to_numpy()[rows],
            results.n_resamples,
        )
        measured[system] = found
    return measured


def subgroup_tables(measured: Mapping[System, Subgroups]) -> list[Table]:
    """Return a table of groups for each system."""
    return [
        Table(
            key=f"subgroups-{system.name}",
            title=f"{system.title} in groups of patients, trained and tested on full",
            caption="Macro averages with 95 % interval over subjects and seeds. PRAUC is without its bias, "
            "which is large in small groups, and rises with prevalence. TPR: true positive rate at "
            f"a specificity of {found.specificity:.0%}, with one threshold a label for all; gaps: the "
            "group's less that of all other stays. A star marks groups in which the median label has "
            f"fewer than 50 positives.{'' if 'ehr' in system.reads else ' Only stays with a radiograph.'}",
            columns=["group", "stays", "positives", "AUROC", "AUROC gap", "PRAUC", "TPR", "TPR gap"],
            rows=[
                Row(
                    f"{one.attribute}: {one.group}{' *' if one.few else ''}",
                    [
                        Number(float(one.n_stays), digits=0),
                        Number(float(one.n_positive), digits=0),
                        Number.of(one.auroc_macro),
                        Number.of(one.auroc_gap),
                        Number(one.prauc_macro.corrected, one.prauc_macro.low, one.prauc_macro.high),
                        Number.of(one.tpr_macro),
                        Number.of(one.tpr_gap),
                    ],
                    rule_above=place > 0 and one.attribute != found.groups[place - 1].attribute,
                )
                for place, one in enumerate(found.groups)
            ],
        )
        for system, found in measured.items()
    ]


def _predicted(results: Results, experiment: str, train_on: Subset) -> dict[System, list[Predictions]]:
    """Return the runs of every system that takes part and has some."""
    return {
        system: list(runs)
        for system in results.systems
        if takes_part(system, experiment) and (runs := results.of(system, train_on))
    }


def _told(runs: Sequence[Predictions]) -> NDArray[np.bool_]:
    """Return the test stays that a system predicts with every seed (N,)."""
    unknown = np.isnan([run.logits for run in runs]).any(axis=(0, 2))
    return runs[0].rows("test") & ~unknown


def _without_cxr(run: Predictions) -> NDArray[np.float32]:
    if run.logits_without_cxr is None:
        raise InputError(
            "a run has no predictions without radiographs; choose a different --out to train anew"
        )
    return run.logits_without_cxr
