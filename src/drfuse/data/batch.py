"""Batch: what every model receives."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B stays and the M <= B radiographs that exist among them; absent ones take no memory and no compute.

    Attributes:
        stay_id: Int64 (B,).
        ehr: Float32 (B, T, F), padded with zeros to the T hours of the batch's longest stay.
        n_hours: Int64 (B,), hours of each stay's window, 1 to T.
        cxr: (M, 1, H, W): uint8 as stored, float32 scaled once the data module has transformed it. Int64 (M,)
            for a model that keeps what it needs of each radiograph: their rows in the cohort.
        cxr_of: Int64 (M,), the row of the batch that each radiograph belongs to, ascending.
        labels: Float32 (B, C).
    """

    stay_id: Tensor
    ehr: Tensor
    n_hours: Tensor
    cxr: Tensor
    cxr_of: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.stay_id)

    @property
    def has_cxr(self) -> Tensor:
        """Boolean (B,), True where there is a radiograph."""
        present = torch.zeros(len(self), dtype=torch.bool, device=self.cxr_of.device)
        return present.index_fill(0, self.cxr_of, True)

    def cxr_or_zeros(self) -> Tensor:
        """Return an image for each stay (B, 1, H, W), all zeros where there is no radiograph."""
        zeros = self.cxr.new_zeros(len(self), *self.cxr.shape[1:])
        return zeros.index_copy(0, self.cxr_of, self.cxr)

    def keep_cxr(self, kept: Tensor) -> "Batch":
        """Return the batch with only the radiographs at the indices `kept` (K,) into `cxr`."""
        kept = kept.sort().values
        return replace(self, cxr=self.cxr[kept], cxr_of=self.cxr_of[kept])

    def matched_without_cxr(self) -> "Batch":
        """Return the M stays that have a radiograph, with all radiographs taken away."""
        rows, nothing = self.cxr_of, self.cxr_of[:0]
        return Batch(
            stay_id=self.stay_id[rows],
            ehr=self.ehr[rows],
            n_hours=self.n_hours[rows],
            cxr=self.cxr[nothing],
            cxr_of=nothing,
            labels=self.labels[rows],
        )

    def with_cxr(self, cxr: Tensor) -> "Batch":
        """Return the batch with other pixels (M, 1, H, W) for the same radiographs."""
        return replace(self, cxr=cxr)

    def to(self, device: torch.device | str, **kwargs: Any) -> "Batch":
        """Return the batch on a device; `kwargs` as those of `Tensor.to`."""
        return self._each(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(**{field.name: function(getattr(self, field.name)) for field in fields(self)})
