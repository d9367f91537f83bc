"""A run on disk and stays in, predictions out: `Predictor.open(run).predict(cohort)`, or `drfuse predict`.

The stays may be those of the run's own cohort, of another with the same variables, or of single patients.
`explain_stay(predictor, cohort, row)` says why a stay gets its prediction.
"""

from drfuse.inference.explanation import Explanation, explain_stay
from drfuse.inference.predictor import Predictor

__all__ = ["Explanation", "Predictor", "explain_stay"]
