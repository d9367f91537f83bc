"""A cohort and a model in, a run on disk out (see `drfuse.run`).

`options` describes every option, `fit` trains one run, `matrix` trains many, `tune` searches for the best.
"""

from drfuse.training.fit import TrainedRun, data_module, train
from drfuse.training.module import FusionTraining
from drfuse.training.network import describe_model
from drfuse.training.options import Precision, Schedule, TrainOptions

__all__ = [
    "FusionTraining",
    "Precision",
    "Schedule",
    "TrainOptions",
    "TrainedRun",
    "data_module",
    "describe_model",
    "train",
]
