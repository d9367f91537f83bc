"""The Lightning trainer of a run, and what it cannot do said in a sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerStatus

from drfuse.data import CohortDataModule
from drfuse.data.loader import explain_killed_workers
from drfuse.errors import InputError
from drfuse.models import FusionModel, check_contract
from drfuse.training.distributed import Ranks
from drfuse.training.options import Precision

logger = logging.getLogger(__name__)


def make_trainer(ranks: Ranks, accelerator: str, precision: Precision, **options: Any) -> L.Trainer:
    """Return a trainer.

    Raises:
        InputError: If the accelerator is not there, or does not compute in the precision.
    """
    try:
        trainer = L.Trainer(
            accelerator=accelerator,
            precision=precision,
            **ranks.placement(),
            **options,
            deterministic="warn",
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
        devices_too = "" if ranks.is_alone else f" on {ranks.devices} devices"
        raise InputError(
            f"accelerator {accelerator!r} with precision {precision!r}{devices_too}: {error}"
        ) from error
    if trainer.precision != precision:  # Lightning warns, and takes another
        raise InputError(f"--precision {precision} needs a GPU; choose bf16-mixed or 32-true on a CPU")
    return trainer


def check_kernels(network: FusionModel, data: CohortDataModule, trainer: L.Trainer) -> None:
    """Run a model once in half precision: not every processor has every layer in it.

    Raises:
        InputError: If one is missing.
    """
    if trainer.precision == "32-true" or trainer.strategy.root_device.type != "cpu":
        return
    has_kernels = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if has_kernels is not None and not has_kernels():
        logger.warning("this processor emulates bfloat16, several times slower than --precision 32-true")
    try:
        with trainer.precision_plugin.forward_context():
            check_contract(network, data.example(), len(data.dataset.task.label_names))
    except RuntimeError as error:
        reason = str(error).split(". ", 1)[0]
        raise InputError(
            f"{type(network).__name__} does not run with --precision {trainer.precision} on this processor "
            f"({reason}); choose 32-true, or make its LSTMs with drfuse.models.precision.Lstm"
        ) from error


def check_alone(ranks: Ranks, **options: bool) -> None:
    """Refuse options that work on one device.

    Raises:
        InputError: If there are several, and one of these options is on.
    """
    on = [name.replace("_", "-") for name, is_on in options.items() if is_on]
    if on and not ranks.is_alone:
        raise InputError(f"--{on[0]} works on one device; leave it or --devices out")


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let a signal end what the trainer does as it ends everything else.

    Raises:
        KeyboardInterrupt: If a signal ended it; Lightning makes an exit, or nothing at all, of that.
        InputError: If a process that makes batches was killed.
    """
    try:
        with explain_killed_workers():
            yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.state.status != TrainerStatus.FINISHED:
        raise KeyboardInterrupt
