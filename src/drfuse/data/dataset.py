"""The stays of a cohort, a batch of rows at a time."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from drfuse.choices import TaskName
from drfuse.data.batch import StoredBatch
from drfuse.data.cohort import Cohort
from drfuse.data.features import EhrFeatures
from drfuse.data.tasks import Task

CxrContent = Literal["pixels", "rows", "nothing"]
"""What batches hold of radiographs: pixels and rows in the cohort, only rows, or nothing, as if no stay had
one."""


class StayDataset(Dataset[StoredBatch]):
    """The stays of a cohort; indexing with a list of B rows returns their batch.

    Args:
        cohort: The cohort.
        task: What is predicted: a task of the cohort, or its name.
        cxr: What the batches hold of radiographs.
        features: Makes features of the hourly values; by default with the cohort's own normalization.
    """

    def __init__(
        self,
        cohort: Cohort,
        task: TaskName | Task = "phenotyping",
        cxr: CxrContent = "pixels",
        features: EhrFeatures | None = None,
    ) -> None:
        self.cohort = cohort
        self.task = task if isinstance(task, Task) else Task.of(cohort, task)
        self.cxr = cxr
        self.features = features or EhrFeatures(cohort.manifest.variables, cohort.normalization)
        # read the columns of every batch now: a forked worker process would wait for Polars forever
        self._columns = cohort.stay_id, cohort.n_hours, cohort.cxr_row

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, rows: list[int]) -> StoredBatch:
        """Return the batch of the given rows, in their order."""
        at = np.asarray(rows, np.int64)
        stay_id, n_hours, rows_of_cxr = (column[at] for column in self._columns)
        values = torch.from_numpy(self.cohort.ehr[at, : n_hours.max()])
        cxr_of = torch.from_numpy(np.flatnonzero((rows_of_cxr >= 0) & (self.cxr != "nothing")))
        cxr_row = torch.from_numpy(rows_of_cxr)[cxr_of]
        hours = torch.from_numpy(n_hours)
        without_pixels = torch.empty((len(cxr_row), 1, 0, 0), dtype=torch.uint8)
        return StoredBatch(
            stay_id=torch.from_numpy(stay_id),
            ehr=self.features(values, hours),
            n_hours=hours,
            cxr_of=cxr_of,
            cxr_row=cxr_row,
            labels=torch.from_numpy(self.task.labels_of(at)),
            pixels=without_pixels if self.cxr == "rows" else self.pixels(cxr_row.numpy()),
        )

    def pixels(self, cxr_row: NDArray[np.int64]) -> Tensor:
        """Return radiographs, uint8 (M, 1, size, size), by their rows (M,) in the cohort's `cxr`."""
        return torch.from_numpy(self.cohort.cxr[cxr_row])[:, None]
