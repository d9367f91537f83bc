"""A cohort and a model in, a run on disk out (see `drfuse.run`).

`options` describes every option, `train` trains one run, `matrix` trains many, `tune` searches for the best.
"""

from typing import TYPE_CHECKING, Any

from drfuse.training.options import Precision, Schedule, TrainOptions
from drfuse.training.train import TrainedRun, train

if TYPE_CHECKING:
    from drfuse.training.module import FusionTraining

__all__ = [
    "FusionTraining",
    "Precision",
    "Schedule",
    "TrainOptions",
    "TrainedRun",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what needs Lightning when it is asked for, because that takes seconds."""
    if name == "FusionTraining":
        from drfuse.training.module import FusionTraining

        return FusionTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
