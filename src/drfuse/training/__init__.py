"""A cohort and a model in, a run on disk out (`drfuse.run`): fit, resume, best weights, predictions.

`fit` trains one run, `matrix` many, each once, and `tune` searches for the best.
"""

from drfuse.training.fit import (
    Precision,
    TrainedRun,
    check_options,
    describe_model,
    load_model,
    read_facts,
    train,
)
from drfuse.training.task import FusionTask, Schedule

__all__ = [
    "FusionTask",
    "Precision",
    "Schedule",
    "TrainedRun",
    "check_options",
    "describe_model",
    "load_model",
    "read_facts",
    "train",
]
