"""A run on disk and a cohort in, predictions out: `load(run).predict(cohort)`.

The cohort may be the one that the run was trained on, or another with the same variables.
"""

from drfuse.inference.predictor import Predictor, load

__all__ = ["Predictor", "load"]
