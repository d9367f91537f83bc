"""A cohort and a model in, a run on disk out (`drfuse.run`): fit, resume, best weights, predictions."""

from drfuse.training.fit import TrainedRun, describe_model, train
from drfuse.training.task import FusionTask

__all__ = ["FusionTask", "TrainedRun", "describe_model", "train"]
