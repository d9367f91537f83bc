"""The predictions of a run in, metrics with their intervals out; no model is ever run here."""

from drfuse.evaluation.evaluate import (
    Estimate,
    Evaluation,
    PhenotypeMetrics,
    TestSet,
    evaluate,
    evaluate_test_set,
)
from drfuse.evaluation.metrics import prauc_auroc, resample

__all__ = [
    "Estimate",
    "Evaluation",
    "PhenotypeMetrics",
    "TestSet",
    "evaluate",
    "evaluate_test_set",
    "prauc_auroc",
    "resample",
]
