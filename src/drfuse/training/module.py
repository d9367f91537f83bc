"""The Lightning module that trains any model under the contract."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import polars as pl
import torch
from torch import Tensor

from drfuse.data.batch import Batch
from drfuse.data.loader import TrainingLoader
from drfuse.errors import InputError
from drfuse.files import write_whole
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.training.distributed import Ranks
from drfuse.training.metrics import MONITORED, MacroPrauc, MeanLosses
from drfuse.training.optimizers import cosine, make_optimizer
from drfuse.training.options import TrainOptions
from drfuse.training.randomness import random_state, restore_random_state
from drfuse.training.split_model import SplitModel

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_CHECKS = 50
"""How often training checks that the loss is finite."""


class FusionTraining(L.LightningModule):
    """Trains a model and tracks its macro PRAUC on the validation split.

    With `accumulate`, each batch is weighted by its stays, so that a step has the gradient of the mean loss
    over its stays, even in the shorter last step of an epoch. Each epoch has its own seed, and checkpoints
    have the losses of their epoch and the states of all random generators, so that a resumed run continues as
    if it had never stopped.

    Args:
        model: The model.
        options: How it is trained.
        cohort: Fingerprint of the cohort, stored in every checkpoint.
        ranks: The processes that train it together, each on its part of every batch.
        not_finite: Where to write the stays of a batch whose loss is not finite.
    """

    def __init__(
        self,
        model: FusionModel,
        options: TrainOptions,
        cohort: str = "",
        ranks: Ranks | None = None,
        not_finite: Path | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.cohort = cohort
        self.train_losses = MeanLosses()
        self.val_losses = MeanLosses()
        self.ranks = ranks or Ranks()
        self.split = None if self.ranks.is_alone else SplitModel(model)
        self.not_finite = not_finite
        self._unchecked: list[tuple[Tensor, Tensor]] = []  # the loss and the stays of each batch
        self.val_prauc = MacroPrauc()
        self.latest_val_prauc = math.nan
        self._resumed: dict[str, Any] = {}  # a checkpoint
        self._before_validation: dict[str, Any] = {}

    def on_train_start(self) -> None:
        """Go on with the batches, the losses and the random numbers of a checkpoint."""
        checkpoint, self._resumed = self._resumed, {}
        if "random_states" not in checkpoint:
            return
        if checkpoint["mid_epoch"]:  # Lightning forgets it if a schedule of the learning rate is made first
            state = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
            cast(TrainingLoader, self.trainer.train_dataloader).load_state_dict(state)
        self._seed_epoch()  # for a device that the checkpoint has no state of
        if len(states := checkpoint["random_states"]) == self.ranks.size:
            restore_random_state(states[self.ranks.rank], self.device)
        sums, n_stays = checkpoint["train_losses"]
        self.train_losses.sums = {name: total.to(self.device) for name, total in sums.items()}
        self.train_losses.n_stays = dict(n_stays)

    def on_train_epoch_start(self) -> None:
        """Seed this epoch's dropout, augmentation and dropped radiographs."""
        self._seed_epoch()

    def _seed_epoch(self) -> None:
        torch.manual_seed(self.options.seed * 1_000_003 + self.current_epoch + (self.ranks.rank << 53))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the total loss."""
        output, batch = self._run(batch, batch_idx)
        losses = self.model.loss(output, batch)
        self.train_losses.update(losses, len(batch))
        self._unchecked.append((losses["total"].detach(), batch.stay_id))
        return losses["total"] * self._weight(batch_idx) if self.options.accumulate > 1 else losses["total"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Check the losses, but only now and then: reading them waits for the device."""
        if (batch_idx + 1) % _STEPS_BETWEEN_CHECKS == 0 or self.trainer.is_last_batch:
            self.check_losses()

    def check_losses(self) -> None:
        """Check the losses since the last check.

        Raises:
            InputError: If one of them was not finite.
        """
        total = self.train_losses.compute()["total"].item()
        if not math.isfinite(total):
            raise InputError(
                f"the training loss is {total} in epoch {self.current_epoch}; "
                "lower --lr or --weight-decay, or check the model for a division by zero or a "
                f"logarithm of 0{self._write_not_finite()}"
            )
        self._unchecked.clear()

    def _write_not_finite(self) -> str:
        """Write the stays of the first batch whose loss was not finite, and return where they are."""
        found = next((stays for loss, stays in self._unchecked if not loss.isfinite()), None)
        if found is None or self.not_finite is None:
            return ""
        if self.ranks.is_first:
            write_whole(self.not_finite, pl.DataFrame({"stay_id": found.cpu().numpy()}).write_csv())
        return f"; {self.not_finite} has the stays of the first such batch"

    def on_train_epoch_end(self) -> None:
        """Log the mean training losses."""
        self._log("train", self.train_losses)

    def on_validation_start(self) -> None:
        """Keep the states of the random generators, for a training that stops in its validation."""
        self._before_validation = random_state(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect logits and labels, and log the losses."""
        output, batch = self._run(batch, batch_idx)
        self.val_losses.update(self.model.loss(output, batch), len(batch))
        self.val_prauc.update(output.logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses and `val/prauc_macro`, by which the best epoch is chosen.

        It is NaN if the loss is: a model that returns NaN for some stays must not be judged by the others.
        """
        prauc = self.val_prauc.compute()
        if not self.val_losses.compute()["total"].isfinite():
            prauc = torch.full_like(prauc, math.nan)
        self._log("val", self.val_losses)
        if self.trainer.is_global_zero and self.current_epoch == 0 and self.val_prauc.is_rounded:
            logger.warning(
                "the logits of %s are rounded to half precision; make its last layers with "
                "drfuse.models.precision.Head",
                type(self.model).__name__,
            )
        self.log(MONITORED["monitor"], prauc, prog_bar=True, sync_dist=True)
        self.latest_val_prauc = prauc.item()
        self.val_prauc.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the cohort's fingerprint, the validation PRAUC, and what a resumed training needs."""
        checkpoint["cohort"] = self.cohort
        checkpoint["val_prauc"] = self.latest_val_prauc
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        checkpoint["mid_epoch"] = epochs.processed < epochs.ready
        own = self._before_validation if self.trainer.validating else random_state(self.device)
        checkpoint["random_states"] = self.ranks.gather(own)
        checkpoint["train_losses"] = (self.train_losses.sums, self.train_losses.n_stays)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training goes on with until the model is on its device."""
        self._resumed = checkpoint

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, unless the learning rate is constant, its schedule by step."""
        optimizer = make_optimizer(self.options, self.parameters())
        if self.options.schedule == "constant":
            return optimizer
        share = partial(cosine, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _run(self, batch: Batch, batch_idx: int) -> tuple[FusionOutput, Batch]:
        """Return the model's output for a batch, and the batch: for a part of a batch, those of the whole."""
        if self.split is None:
            return self.model(batch), batch
        return self.split(batch, is_part=not cast(Any, self.trainer).datamodule.is_whole(batch_idx))

    def _weight(self, batch_idx: int) -> float:
        """Return a batch's share of its step's stays, times `accumulate`, by which Lightning divides."""
        sizes = cast(TrainingLoader, self.trainer.train_dataloader).sampler.sizes
        first = batch_idx - batch_idx % self.options.accumulate
        share: float = sizes[batch_idx] / sum(sizes[first : first + self.options.accumulate])
        return share * self.options.accumulate

    def _log(self, split: str, means: MeanLosses) -> None:
        named = {f"{split}/{name}": mean for name, mean in means.compute().items()}
        self.log_dict(named, sync_dist=True)  # the values are the same in every process
        means.reset()
