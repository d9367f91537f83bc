"""What a training watches: the macro PRAUC of the validation split, and the mean of each loss."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MONITORED: dict[str, Any] = {"monitor": "val/prauc_macro", "mode": "max"}
"""What decides which epoch is the best."""

_HALF = (torch.bfloat16, torch.float16)


class MacroPrauc(Metric):
    """Mean PRAUC over the phenotypes that have a positive.

    Stays whose logits are NaN are left out: the model says nothing of them. NaN if nothing is left, or if
    logits are infinite.
    """

    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # every process has the logits of all
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits and labels (B, C) of some stays."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)

    @property
    def is_rounded(self) -> bool:
        """Whether the logits were computed in half precision: stays tie that a model tells apart."""
        logits = dim_zero_cat(self.logits)
        told = logits[logits.isfinite()]
        return len(told) > 0 and any(torch.equal(told, told.to(half).float()) for half in _HALF)

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        logits, labels = (dim_zero_cat(state).cpu().numpy() for state in (self.logits, self.labels))
        told = ~np.isnan(logits).any(axis=1)
        logits, labels = logits[told], labels[told]
        occurs = labels.any(axis=0)
        if not occurs.any() or not np.isfinite(logits).all():
            return torch.tensor(torch.nan)
        return torch.tensor(average_precision_score(labels[:, occurs], logits[:, occurs], average="macro"))


class MeanLosses:
    """Means of named losses over stays. Every process of a run counts the same batches, whole."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self.sums: dict[str, Tensor] = {}
        self.n_stays: dict[str, int] = {}

    def update(self, losses: dict[str, Tensor], n_stays: int) -> None:
        """Add the losses of a batch, scalars."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + n_stays * loss.detach().float()
            self.n_stays[name] = self.n_stays.get(name, 0) + n_stays

    def compute(self) -> dict[str, Tensor]:
        """Return the means, scalars, each over the stays of the batches that had that loss."""
        return {name: total / self.n_stays[name] for name, total in self.sums.items()}
