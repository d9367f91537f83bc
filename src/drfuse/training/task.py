"""The Lightning module that trains any model under the contract."""

import math
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.training.distributed import Ranks, SplitModel, collect


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

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        logits, labels = (dim_zero_cat(state).cpu().numpy() for state in (self.logits, self.labels))
        told = ~np.isnan(logits).any(axis=1)
        logits, labels = logits[told], labels[told]
        occurs = labels.any(axis=0)
        if not occurs.any() or not np.isfinite(logits).all():
            return torch.tensor(torch.nan)
        return torch.tensor(average_precision_score(labels[:, occurs], logits[:, occurs], average="macro"))


class Predicted(NamedTuple):  # Lightning moves what a tuple holds to the CPU
    """What is kept of a batch of B stays, in float32.

    Attributes:
        logits: (B, C).
        logits_without_cxr: (B, C), with every radiograph taken away.
        modality_weights: (B, C, 3), if the model has them.
    """

    logits: Tensor
    logits_without_cxr: Tensor
    modality_weights: Tensor | None


class FusionTask(L.LightningModule):
    """Train a model with Adam, and watch its macro PRAUC on the validation split.

    Args:
        model: The model.
        lr: Learning rate.
        seed: Seed of everything random within an epoch. Each epoch has its own, so that a run resumed after
            one goes on as it would have.
        cohort: Fingerprint of the cohort, noted in every checkpoint.
        ranks: The processes that train it together, each on its part of every batch.
    """

    def __init__(
        self, model: FusionModel, lr: float, seed: int, cohort: str = "", ranks: Ranks | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.seed = seed
        self.cohort = cohort
        self.rank = 0 if ranks is None else ranks.rank
        self.split = None if ranks is None or ranks.is_alone else SplitModel(model)
        self.val_prauc = MacroPrauc()
        self.latest_val_prauc = math.nan

    def on_train_epoch_start(self) -> None:
        """Seed what is random in this epoch: dropout, augmentation, dropped radiographs."""
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch + (self.rank << 53))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the total loss.

        Raises:
            InputError: If it is not finite.
        """
        output, batch = self._run(batch, batch_idx)
        losses = self.model.loss(output, batch)
        if not losses["total"].isfinite():
            raise InputError(
                f"the training loss is {losses['total'].item()} in epoch {self.current_epoch}; "
                "choose a smaller --lr, or mend the model"
            )
        self._log("train", losses, batch)
        return losses["total"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect logits and labels, and log the losses."""
        output, batch = self._run(batch, batch_idx)
        self._log("val", self.model.loss(output, batch), batch)
        self.val_prauc.update(output.logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log `val/prauc_macro`, by which the best epoch is chosen."""
        prauc = self.val_prauc.compute()
        self.log("val/prauc_macro", prauc, prog_bar=True, sync_dist=True)
        self.latest_val_prauc = prauc.item()
        self.val_prauc.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Predicted:
        """Return what `predictions.parquet` keeps of a batch."""
        output = self.model(batch)
        without, weights = output.logits, output.modality_weights
        if len(batch.cxr):
            no_image = batch.keep_cxr(batch.cxr_of[:0])
            without = torch.where(batch.has_cxr[:, None], self.model(no_image).logits, without)
        told = [output.logits.float(), without.float(), *([] if weights is None else [weights.float()])]
        if self._is_part(batch_idx):
            told = collect(told)
        return Predicted(told[0], told[1], told[2] if len(told) > 2 else None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which cohort the weights come from, and how good they are."""
        checkpoint["cohort"] = self.cohort
        checkpoint["val_prauc"] = self.latest_val_prauc

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with its default moments."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _run(self, batch: Batch, batch_idx: int) -> tuple[FusionOutput, Batch]:
        """Return what the model says of a batch, and the batch; of a part, those of the whole."""
        if self.split is None:
            return self.model(batch), batch
        return self.split(batch, self._is_part(batch_idx))

    def _is_part(self, batch_idx: int) -> bool:
        return self.split is not None and not cast(Any, self.trainer).datamodule.is_whole(batch_idx)

    def _log(self, split: str, losses: dict[str, Tensor], batch: Batch) -> None:
        named: dict[str, Any] = {f"{split}/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
