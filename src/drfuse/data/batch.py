"""The batches that a loader makes (`StoredBatch`) and that every model reads (`Batch`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

Modality = Literal["ehr", "cxr"]


@dataclass(frozen=True, kw_only=True)
class Stays:
    """Everything about B stays, M of them with a radiograph, except the pixels.

    Attributes:
        stay_id: Int64 (B,).
        ehr: Float32 (B, T, F), padded with zeros to the T hours of the batch's longest stay.
        n_hours: Int64 (B,), hours of each stay's window, 1 to T.
        cxr_of: Int64 (M,), the row of the batch that each radiograph belongs to, ascending.
        cxr_row: Int64 (M,), the row of each radiograph in the cohort's `cxr`.
        labels: Float32 (B, C).
    """

    stay_id: Tensor
    ehr: Tensor
    n_hours: Tensor
    cxr_of: Tensor
    cxr_row: Tensor
    labels: Tensor

    _images: ClassVar[str]
    """The field that holds the pixels."""

    def __len__(self) -> int:
        return len(self.stay_id)

    @property
    def has_cxr(self) -> Tensor:
        """Boolean (B,), True where there is a radiograph."""
        present = torch.zeros(len(self), dtype=torch.bool, device=self.cxr_of.device)
        return present.index_fill(0, self.cxr_of, True)

    def keep_cxr(self, kept: Tensor) -> Self:
        """Return the batch with K of its radiographs, by their numbers from 0 to M - 1 in `kept` (K,)."""
        kept = kept.sort().values
        names = ("cxr_of", "cxr_row", self._images)
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def with_cxr(self, cxr: Tensor) -> "Batch":
        """Return these stays with `cxr` (M, 1, H, W) as their radiographs."""
        stays = {field.name: getattr(self, field.name) for field in fields(Stays)}
        return Batch(**stays, cxr=cxr)

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """Return the batch on a device; `kwargs` go to `Tensor.to`."""
        return self._each(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class StoredBatch(Stays):
    """A batch with its radiographs as stored; the data module turns it into a `Batch`.

    Attributes:
        pixels: Uint8 (M, 1, S, S), S the side of stored radiographs; S is 0 if the pixels are left out.
    """

    pixels: Tensor

    _images: ClassVar[str] = "pixels"


@dataclass(frozen=True, kw_only=True)
class Batch(Stays):
    """B stays and the M <= B radiographs that exist among them; absent ones cost no memory or compute.

    Attributes:
        cxr: Float32 (M, 1, H, W), scaled and cropped. H and W are 0 for a model with frozen backbones, which
            only needs `cxr_row`.
    """

    cxr: Tensor

    _images: ClassVar[str] = "cxr"

    def nan_without_cxr(self, of_cxr: Tensor) -> Tensor:
        """Return (B, C) from values of the radiographs (M, C): NaN for stays without one."""
        unknown = of_cxr.new_full((len(self), of_cxr.shape[-1]), math.nan)
        return unknown.index_copy(0, self.cxr_of, of_cxr)

    def cxr_or_zeros(self) -> Tensor:
        """Return one image per stay (B, 1, H, W); a stay without a radiograph gets zeros."""
        zeros = self.cxr.new_zeros(len(self), *self.cxr.shape[1:])
        return zeros.index_copy(0, self.cxr_of, self.cxr)

    def matched_without_cxr(self) -> "Batch":
        """Return the M stays with a radiograph, but without their radiographs."""
        rows = self.cxr_of
        matched = {name: getattr(self, name)[rows] for name in ("stay_id", "ehr", "n_hours", "labels")}
        return replace(self.keep_cxr(rows[:0]), **matched)

    def matched_without_ehr(self, mean_hour: Tensor) -> "Batch":
        """Return the M stays with a radiograph; their record is the same for all, so it tells nothing.

        Args:
            mean_hour: The features (F,) of every hour, such as one of `EhrFeatures.mean_record`.
        """
        rows = self.cxr_of
        matched = {name: getattr(self, name)[rows] for name in ("stay_id", "n_hours", "labels")}
        hours = torch.arange(self.ehr.shape[1], device=mean_hour.device)
        is_hour = hours < self.n_hours[rows, None]  # (M, T)
        return replace(
            self, **matched, ehr=is_hour[..., None] * mean_hour, cxr_of=torch.arange(len(rows)).to(rows)
        )
