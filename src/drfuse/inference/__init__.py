"""A run on disk and a cohort in, predictions out: `Predictor.open(run).predict(cohort)`.

The cohort may be the one that the run was trained on, or another with the same variables.
"""

from drfuse.inference.predictor import Predictor

__all__ = ["Predictor"]
