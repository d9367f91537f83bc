"""A run on disk and a cohort in, predictions out: `Predictor.open(run).predict(cohort)`.

The cohort may be the one that the run was trained on, or another with the same variables.
`explain(predictor, cohort, row)` says why a stay gets its prediction.
"""

from drfuse.inference.explanation import Explanation, explain
from drfuse.inference.predictor import Predictor

__all__ = ["Explanation", "Predictor", "explain"]
