"""The Lightning trainer of a run; its errors and interruptions become ours."""

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
from drfuse.training.checkpoints import BackgroundWriter
from drfuse.training.distributed import Ranks
from drfuse.training.options import Precision

logger = logging.getLogger(__name__)


def make_trainer(ranks: Ranks, accelerator: str, precision: Precision, **options: Any) -> L.Trainer:
    """Return a trainer.

    Raises:
        InputError: If the accelerator is missing, or does not support the precision.
    """
    placement = ranks.placement()
    plugins = [*placement.pop("plugins"), BackgroundWriter()]
    try:
        trainer = L.Trainer(
            accelerator=accelerator,
            precision=precision,
            **placement,
            plugins=plugins,
            **options,
            deterministic="warn",
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (ValueError, ImportError, RuntimeError, MisconfigurationException) as error:
        devices = "" if ranks.is_alone else f" on {ranks.devices} devices"
        reason = " ".join(str(error).split())
        raise InputError(
            f"accelerator {accelerator!r} with precision {precision!r}{devices}: {reason}"
        ) from error
    if trainer.precision != precision:  # Lightning only warns, and uses another
        raise InputError(f"--precision {precision} needs a GPU; choose bf16-mixed or 32-true on a CPU")
    return trainer


def check_kernels(network: FusionModel, data: CohortDataModule, trainer: L.Trainer) -> None:
    """Run a model once in half precision, which some processors support only for some layers.

    Raises:
        InputError: If a layer is not supported.
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


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Turn an interrupted training, which Lightning hides or ends with an exit, into an error.

    Raises:
        KeyboardInterrupt: If a signal ended the training.
        InputError: If a process that makes batches was killed.
    """
    try:
        with explain_killed_workers():
            yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        trainer.fit_loop.teardown()  # after an interrupted validation, Lightning does not
    if trainer.state.status != TrainerStatus.FINISHED:
        raise KeyboardInterrupt
