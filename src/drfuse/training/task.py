"""The Lightning module that trains any model under the contract."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FusionModel, FusionOutput


class MacroPrauc(MultilabelAveragePrecision):
    """Mean PRAUC over the phenotypes that have a positive; NaN if none has."""

    def compute(self) -> Tensor:  # type: ignore[override]  # a mean, not one value a label
        """Return the mean, a scalar."""
        logits, labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        occurs = (labels == 1).any(dim=0)
        if not occurs.any():
            return logits.new_tensor(torch.nan)
        return multilabel_average_precision(logits[:, occurs], labels[:, occurs], int(occurs.sum()))


class FusionTask(L.LightningModule):
    """Train a model with Adam, and watch its macro PRAUC on the validation split.

    Args:
        model: The model.
        n_labels: C, the phenotypes.
        lr: Learning rate.
        seed: Seed of everything random within an epoch. Each epoch has its own, so that a run resumed after
            one goes on as it would have.
        cohort: Fingerprint of the cohort; a checkpoint of another one is refused.
    """

    def __init__(self, model: FusionModel, n_labels: int, lr: float, seed: int, cohort: str = "") -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.seed = seed
        self.cohort = cohort
        self.val_prauc = MacroPrauc(n_labels, average=None, validate_args=False)

    def on_train_epoch_start(self) -> None:
        """Seed what is random in this epoch: dropout, augmentation, dropped radiographs."""
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the total loss."""
        losses = self.model.loss(self.model(batch), batch)
        self._log("train", losses, batch)
        return losses["total"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect logits and labels, and log the losses."""
        output = self.model(batch)
        self._log("val", self.model.loss(output, batch), batch)
        self.val_prauc.update(output.logits.float(), batch.labels.long())

    def on_validation_epoch_end(self) -> None:
        """Log `val/prauc_macro`, by which the best epoch is chosen."""
        self.log("val/prauc_macro", self.val_prauc.compute(), prog_bar=True)
        self.val_prauc.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> FusionOutput:  # noqa: ARG002
        """Return what `predictions.parquet` keeps of a batch: logits and modality weights, in float32."""
        output = self.model(batch)
        weights = output.modality_weights
        return FusionOutput(output.logits.float(), None if weights is None else weights.float())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which cohort the weights come from."""
        checkpoint["cohort"] = self.cohort

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another cohort.

        Raises:
            InputError: If the checkpoint comes from another cohort.
        """
        if checkpoint["cohort"] != self.cohort:
            raise InputError("the interrupted run was trained on another cohort; start it with --overwrite")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with its default moments."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _log(self, split: str, losses: dict[str, Tensor], batch: Batch) -> None:
        named: dict[str, Any] = {f"{split}/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=split == "val")
