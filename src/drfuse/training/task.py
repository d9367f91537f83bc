"""The Lightning module that trains any model under the contract."""

import logging
import math
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.training.distributed import Ranks, SplitModel, collect

logger = logging.getLogger(__name__)

_HALF = (torch.bfloat16, torch.float16)
_STEPS_UNSEEN = 50
"""Of training, at most, before a loss that is not finite is noticed."""


Schedule = Literal["constant", "cosine"]
"""The learning rate stays, or rises over the first tenth of the steps and falls to 0 as a cosine does."""

_WARM_UP = 0.1


def cosine(n_steps: int, step: int) -> float:
    """Return the share of the learning rate at a step (the first is 0) of a training of `n_steps`.

    >>> [round(cosine(20, step), 3) for step in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    >>> cosine(1, 0)
    1.0
    """
    warm_up = _WARM_UP * n_steps
    if step < warm_up:
        return (step + 1) / math.ceil(warm_up)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (n_steps - warm_up)))


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
        accumulate: Batches whose gradients make one step of Adam. Each counts by its stays, so that they add
            up to the gradient of all of these stays together, in the last group of an epoch as well.
        ranks: The processes that train it together, each on its part of every batch.
        weight_decay: Share of itself, times the learning rate, that every weight loses at each step.
        schedule: What becomes of the learning rate over all epochs that may be trained.
    """

    def __init__(
        self,
        model: FusionModel,
        lr: float,
        seed: int,
        cohort: str = "",
        accumulate: int = 1,
        ranks: Ranks | None = None,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.seed = seed
        self.cohort = cohort
        self.accumulate = accumulate
        self.train_losses = MeanLosses()
        self.val_losses = MeanLosses()
        self.rank = 0 if ranks is None else ranks.rank
        self.split = None if ranks is None or ranks.is_alone else SplitModel(model)
        self.val_prauc = MacroPrauc()
        self.latest_val_prauc = math.nan

    def on_train_epoch_start(self) -> None:
        """Seed what is random in this epoch: dropout, augmentation, dropped radiographs."""
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch + (self.rank << 53))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the total loss."""
        output, batch = self._run(batch, batch_idx)
        losses = self.model.loss(output, batch)
        self.train_losses.update(losses, len(batch))
        return losses["total"] * self._weight(batch_idx) if self.accumulate > 1 else losses["total"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Look at the losses from time to time: to look is to wait for the device.

        Raises:
            InputError: If one of them was not finite.
        """
        if (batch_idx + 1) % _STEPS_UNSEEN == 0 or self.trainer.is_last_batch:
            total = self.train_losses.compute()["total"].item()
            if not math.isfinite(total):
                raise InputError(
                    f"the training loss is {total} in epoch {self.current_epoch}; "
                    "lower --lr or --weight-decay, or check the model for a division by zero or a "
                    "logarithm of 0"
                )

    def on_train_epoch_end(self) -> None:
        """Log the mean training losses."""
        self._log("train", self.train_losses)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect logits and labels, and log the losses."""
        output, batch = self._run(batch, batch_idx)
        self.val_losses.update(self.model.loss(output, batch), len(batch))
        self.val_prauc.update(output.logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses, and `val/prauc_macro`, by which the best epoch is chosen.

        It is NaN where the loss is: a model that says NaN of some stays must not be judged by the others.
        """
        prauc = self.val_prauc.compute()
        if not self.val_losses.compute()["total"].isfinite():
            prauc = torch.full_like(prauc, math.nan)
        self._log("val", self.val_losses)
        if self.trainer.is_global_zero and self.current_epoch == 0 and self.val_prauc.is_rounded:
            logger.warning(
                "the logits of %s have the few digits of half precision; make the layers that they come from "
                "with drfuse.models.precision.Head",
                type(self.model).__name__,
            )
        self.log("val/prauc_macro", prauc, prog_bar=True, sync_dist=True)
        self.latest_val_prauc = prauc.item()
        self.val_prauc.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Predicted:
        """Return what `predictions.parquet` keeps of a batch."""
        output = self.model(batch)
        without, weights = output.logits, output.modality_weights
        if len(batch.cxr):  # no image is encoded twice, and no stay without one
            blind = self.model(batch.matched_without_cxr())
            without = without.index_copy(0, batch.cxr_of, blind.logits)
        told = [output.logits.float(), without.float(), *([] if weights is None else [weights.float()])]
        if self._is_part(batch_idx):
            told = collect(told)
        return Predicted(told[0], told[1], told[2] if len(told) > 2 else None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which cohort the weights come from, and how good they are."""
        checkpoint["cohort"] = self.cohort
        checkpoint["val_prauc"] = self.latest_val_prauc

    def configure_optimizers(self) -> Any:
        """Return Adam with its default moments and the schedule; weights decay apart from the gradient."""
        adam = torch.optim.Adam(
            self.parameters(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=True,
            fused=True,
        )
        if self.schedule == "constant":
            return adam
        share = partial(cosine, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(adam, share)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _run(self, batch: Batch, batch_idx: int) -> tuple[FusionOutput, Batch]:
        """Return what the model says of a batch, and the batch; of a part, those of the whole."""
        if self.split is None:
            return self.model(batch), batch
        return self.split(batch, self._is_part(batch_idx))

    def _is_part(self, batch_idx: int) -> bool:
        return self.split is not None and not cast(Any, self.trainer).datamodule.is_whole(batch_idx)

    def _weight(self, batch_idx: int) -> float:
        """Return a batch's share of the stays of its group, times what Lightning divides by."""
        sizes = cast(DataLoader[Batch], self.trainer.train_dataloader).sampler.sizes  # type: ignore[attr-defined]
        first = batch_idx - batch_idx % self.accumulate
        share: float = sizes[batch_idx] / sum(sizes[first : first + self.accumulate])
        return share * self.accumulate

    def _log(self, split: str, means: MeanLosses) -> None:
        named = {f"{split}/{name}": mean for name, mean in means.compute().items()}
        self.log_dict(named, sync_dist=True)  # they are the same everywhere
        means.reset()
