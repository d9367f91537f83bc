"""What a loader makes of some stays (`StoredBatch`), and what every model receives (`Batch`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

Modality = Literal["ehr", "cxr"]


@dataclass(frozen=True, kw_only=True)
class Stays:
    """B stays, M <= B of them with a radiograph: everything about them but the pixels.

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
        """Return the batch with only the radiographs whose numbers, 0 to M - 1, are in `kept` (K,)."""
        kept = kept.sort().values
        names = ("cxr_of", "cxr_row", self._images)
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def with_cxr(self, cxr: Tensor) -> "Batch":
        """Return the batch of these stays whose radiographs are `cxr` (M, 1, H, W)."""
        stays = {field.name: getattr(self, field.name) for field in fields(Stays)}
        return Batch(**stays, cxr=cxr)

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """Return the batch on a device; `kwargs` as those of `Tensor.to`."""
        return self._each(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class StoredBatch(Stays):
    """A batch whose radiographs are as the cohort stores them; the data module makes a `Batch` of it.

    Attributes:
        pixels: Uint8 (M, 1, S, S), S the side of stored radiographs; 0 if no pixels were asked for.
    """

    pixels: Tensor

    _images: ClassVar[str] = "pixels"


@dataclass(frozen=True, kw_only=True)
class Batch(Stays):
    """B stays and the M <= B radiographs that exist among them; absent ones take no memory and no compute.

    Attributes:
        cxr: Float32 (M, 1, H, W), scaled and cropped. H and W are 0 for a model with frozen backbones, which
            needs only `cxr_row`.
    """

    cxr: Tensor

    _images: ClassVar[str] = "cxr"

    def nan_without_cxr(self, of_cxr: Tensor) -> Tensor:
        """Return (B, C) from values of the radiographs (M, C), NaN for stays without one."""
        unknown = of_cxr.new_full((len(self), of_cxr.shape[-1]), math.nan)
        return unknown.index_copy(0, self.cxr_of, of_cxr)

    def cxr_or_zeros(self) -> Tensor:
        """Return one image per stay (B, 1, H, W); a stay without a radiograph gets zeros."""
        zeros = self.cxr.new_zeros(len(self), *self.cxr.shape[1:])
        return zeros.index_copy(0, self.cxr_of, self.cxr)

    def matched_without_cxr(self) -> "Batch":
        """Return the M stays that have a radiograph, with all radiographs taken away."""
        rows = self.cxr_of
        matched = {name: getattr(self, name)[rows] for name in ("stay_id", "ehr", "n_hours", "labels")}
        return replace(self.keep_cxr(rows[:0]), **matched)
