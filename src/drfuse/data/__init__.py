"""A cohort on disk in, batches out.

`Cohort` opens the folder that `drfuse prepare` wrote, memory-mapped. A `Task` says what is predicted, and of
which stays. `CohortDataModule` makes a `Batch` of any rows at once: imputed, scaled and one-hot hourly values
of every stay, and the radiographs that exist.
"""

from typing import TYPE_CHECKING, Any

from drfuse.choices import Augmentation, TaskName
from drfuse.data.batch import Batch, Modality, StoredBatch
from drfuse.data.cohort import Cohort
from drfuse.data.dataset import StayDataset
from drfuse.data.features import EhrFeatures
from drfuse.data.tasks import Task
from drfuse.subsets import Split, Subset

if TYPE_CHECKING:
    from drfuse.data.datamodule import CohortDataModule

__all__ = [
    "Augmentation",
    "Batch",
    "Cohort",
    "CohortDataModule",
    "EhrFeatures",
    "Modality",
    "Split",
    "StayDataset",
    "StoredBatch",
    "Subset",
    "Task",
    "TaskName",
]


def __getattr__(name: str) -> Any:
    """Import the data module when it is asked for: Lightning takes seconds to import."""
    if name == "CohortDataModule":
        from drfuse.data.datamodule import CohortDataModule

        return CohortDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
