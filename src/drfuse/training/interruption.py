"""Stops a training at a signal, where the same command can go on exactly."""

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist

from drfuse.training.distributed import Ranks
from drfuse.training.module import FusionTraining

logger = logging.getLogger(__name__)

_SECONDS_OF_ONE_SIGNAL = 2.0
"""In this time, a cluster may send a signal to all processes, and those that started this one pass it on."""


class StopAtSignal(L.Callback):
    """Holds the first SIGINT or SIGTERM back until the optimizer's step is complete, and saves that state.

    In validation, it saves the state before it. Between epochs nothing is saved, because the state after the
    last epoch is. A second signal, two seconds later or more, ends the training at once. A kill loses what is
    not saved.

    All processes that train together stop after the same step. A process that does not train in its main
    thread holds nothing back.

    Args:
        path: Where the state is saved.
        ranks: The processes that train together.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        self._received: int | None = None
        self._received_at = 0.0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remember what the signals do, before Lightning changes it."""
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._handlers = {n: does for n, does in found.items() if does not in (signal.SIG_IGN, None)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Hold the signals back from now on."""
        for number in self._handlers:
            signal.signal(number, self._receive)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop between two epochs, if asked to."""
        if self._is_asked():
            self._stop()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop after a step, if asked to. After the last step of an epoch, validation does."""
        n_batches = args[-1] + 1
        if trainer.is_last_batch or n_batches % trainer.accumulate_grad_batches or not self._is_asked():
            return
        cast(FusionTraining, pl_module).check_losses()
        self._save(trainer)
        logger.info("stopped in epoch %d after %d batches", trainer.current_epoch, n_batches)
        self._stop()

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Stop in the validation, if asked to. It will start again."""
        if self._is_asked():
            progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.total.ready = progress.total.started = 1  # which tells Lightning to run it
            self._save(trainer)
            logger.info("stopped in the validation of epoch %d", trainer.current_epoch)
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop before the predictions, if asked to."""
        is_asked = self._is_asked()
        self._let_through()
        if is_asked:
            self._stop()

    def on_exception(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Hold nothing back any more."""
        self._let_through()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at >= _SECONDS_OF_ONE_SIGNAL:
            self._pass_on(number, frame)

    def _is_asked(self) -> bool:
        """Return whether a process received a signal. All of them ask at the same points."""
        if self.ranks.is_alone:
            return self._received is not None
        n_received = torch.tensor(int(self._received is not None))
        dist.all_reduce(n_received)
        return bool(n_received)

    def _save(self, trainer: L.Trainer) -> None:
        """Write the state, and what the loggers have not written yet."""
        trainer.save_checkpoint(self.path)
        trainer.strategy.checkpoint_io.teardown()
        for one in trainer.loggers:
            one.save()
        trainer.strategy.barrier()  # whoever started the processes ends them all after the first

    def _stop(self) -> None:
        self._pass_on(self._received, None)

    def _pass_on(self, number: int | None, frame: FrameType | None) -> None:
        """Do what the signal would have done, and end the training in any case.

        Raises:
            KeyboardInterrupt: Always.
        """
        handler = self._handlers.get(number) if number is not None else None
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt

    def _let_through(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
