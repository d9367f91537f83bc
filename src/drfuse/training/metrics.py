"""Metrics of a training: the macro PRAUC of the validation split, and the mean of each loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MONITORED: dict[str, Any] = {"monitor": "val/prauc_macro", "mode": "max"}
"""The metric that decides which epoch is the best."""

_HALF = (torch.bfloat16, torch.float16)


class MacroPrauc(Metric):
    """Mean PRAUC over the phenotypes that have a positive.

    Stays with NaN logits are left out: the model does not predict them. The mean is NaN if nothing is left or
    a logit is infinite.
    """

    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # every process already has all logits
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits and labels (B, C) of some stays."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)

    @property
    def is_rounded(self) -> bool:
        """Whether all logits are rounded to half precision, so that different stays may tie."""
        logits = dim_zero_cat(self.logits)
        finite = logits[logits.isfinite()]
        return len(finite) > 0 and any(torch.equal(finite, finite.to(half).float()) for half in _HALF)

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        logits, labels = (dim_zero_cat(state).cpu().numpy() for state in (self.logits, self.labels))
        predicted = ~np.isnan(logits).any(axis=1)
        logits, labels = logits[predicted], labels[predicted]
        occurs = labels.any(axis=0)
        if not occurs.any() or not np.isfinite(logits).all():
            return torch.tensor(torch.nan)
        from sklearn.metrics import average_precision_score  # not sooner: its import delays the first step

        return torch.tensor(average_precision_score(labels[:, occurs], logits[:, occurs], average="macro"))


class MeanLosses:
    """Means of named losses over stays. Every process of a run counts all batches, whole."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self.sums: dict[str, Tensor] = {}
        self.n_stays: dict[str, int] = {}

    def update(self, losses: dict[str, Tensor], n_stays: int) -> None:
        """Add the losses (scalars) of a batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + n_stays * loss.detach().float()
            self.n_stays[name] = self.n_stays.get(name, 0) + n_stays

    def compute(self) -> dict[str, Tensor]:
        """Return the means (scalars), each over the stays of the batches that had that loss."""
        return {name: total / self.n_stays[name] for name, total in self.sums.items()}
