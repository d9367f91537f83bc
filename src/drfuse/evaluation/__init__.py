"""A run's predictions in, metrics with intervals out; no model ever runs here.

`evaluate` measures a run on disk, with the functions in `metrics`. The rest takes arrays and returns frozen
dataclasses: PRAUC of resamples, comparisons of systems over seeds, calibration, groups of patients, and the
loss without radiographs.
"""

from drfuse.evaluation.advantage import modality_advantage
from drfuse.evaluation.calibration import Calibration, ReliabilityBin, calibration
from drfuse.evaluation.compare import Comparison, SeededPrauc, compare, holm, macro_prauc, seeded_prauc
from drfuse.evaluation.conformal import Conformal, ConformalSets, Limits, SetCoverage, measure_sets
from drfuse.evaluation.decisions import DecisionCurves, DecisionPoint, decision_curves
from drfuse.evaluation.estimate import Estimate, Intervals, macro_mean
from drfuse.evaluation.evaluate import Evaluation, Measured, evaluate, evaluate_test_set
from drfuse.evaluation.missing import MissingPoint, missing_curve
from drfuse.evaluation.ranking import bootstrap_prauc, prauc_auroc
from drfuse.evaluation.recalibration import Recalibration, fit_recalibration, recalibrate
from drfuse.evaluation.resampling import resample
from drfuse.evaluation.subgroups import GroupMetrics, Subgroups, groups_of, subgroups

__all__ = [
    "Calibration",
    "Comparison",
    "Conformal",
    "ConformalSets",
    "DecisionCurves",
    "DecisionPoint",
    "Estimate",
    "Evaluation",
    "GroupMetrics",
    "Intervals",
    "Limits",
    "Measured",
    "MissingPoint",
    "Recalibration",
    "ReliabilityBin",
    "SeededPrauc",
    "SetCoverage",
    "Subgroups",
    "bootstrap_prauc",
    "calibration",
    "compare",
    "decision_curves",
    "evaluate",
    "evaluate_test_set",
    "fit_recalibration",
    "groups_of",
    "holm",
    "macro_mean",
    "macro_prauc",
    "measure_sets",
    "missing_curve",
    "modality_advantage",
    "prauc_auroc",
    "recalibrate",
    "resample",
    "seeded_prauc",
    "subgroups",
]
