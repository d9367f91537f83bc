"""A run on disk and a cohort in, predictions out: `load(run).predict(cohort)`.

A run is all that is needed: its model, its weights, and how it reads variables and radiographs. The cohort
may be the one that it was trained on or another of the same variables.
"""

from drfuse.inference.predictor import Predictor, load

__all__ = ["Predictor", "load"]
