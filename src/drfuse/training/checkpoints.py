"""The checkpoints of a run: of the last epoch, to resume from, and of the best epoch, to keep."""

import math
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from drfuse.errors import InputError
from drfuse.files import atomic_file
from drfuse.run import Run
from drfuse.training.metrics import MONITORED

_IN_BEST = {"cohort", "epoch", "state_dict", "val_prauc"}
_IN_LAST = {*_IN_BEST, "callbacks", "optimizer_states", "loops"}


class BackgroundWriter(TorchCheckpointIO):
    """Writes checkpoints while the next epoch is trained, each from a copy of its tensors, in order.

    Lightning's `AsyncCheckpointIO` deletes a checkpoint before the one that replaces it is written.
    A killed run loses at most the checkpoints of its last complete epoch, and resumes from those before.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._has_failed = False

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002 - Lightning's signature
    ) -> None:
        """Copy a checkpoint, and write it later."""
        self._submit(_write, apply_to_collection(checkpoint, Tensor, _copy), Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint when all before it are written, such as the one that replaces it."""
        self._submit(super().remove_checkpoint, path)

    def teardown(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: If something cannot be written.
        """
        for task in self._pending:
            task.result()
        self._pending = []

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        for task in [task for task in self._pending if task.done()]:
            task.result()  # raises its error
            self._pending.remove(task)
        self._pending.append(self._pool.submit(self._run, work, *arguments))

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._has_failed:  # do not delete a checkpoint whose successor could not be written
            return
        try:
            work(*arguments)
        except BaseException:
            self._has_failed = True
            raise


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # what PyTorch raises if the disk is full
            raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def checkpoint_callbacks(run: Run, patience: int) -> list[L.Callback]:
    """Return callbacks for early stopping, the weights of the best epoch and the state after the last one."""
    return [
        EarlyStopping(**MONITORED, patience=patience, check_finite=False),
        _BestCheckpoint(
            run.checkpoints, "best-{epoch}", **MONITORED, save_weights_only=True, enable_version_counter=False
        ),
        ModelCheckpoint(run.checkpoints, run.last_checkpoint.stem, enable_version_counter=False),
    ]


def load_checkpoint(run: Run, name: str) -> dict[str, Any]:
    """Return a checkpoint of a run, on the CPU.

    Raises:
        InputError: If it is damaged, or is not a checkpoint.
    """
    problem: Exception | None = None
    checkpoint: Any = None
    try:
        checkpoint = torch.load(run.checkpoints / name, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, BadZipFile) as error:
        problem = error
    needed = _IN_LAST if name == run.last_checkpoint.name else _IN_BEST
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise InputError(
            f"{run.checkpoints / name} is damaged; start the run again with --overwrite"
        ) from problem
    return checkpoint


def restore_weights(fusion: L.LightningModule, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load a checkpoint's weights.

    Raises:
        InputError: If they are those of another model.
    """
    try:
        fusion.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} has the weights of another model; start the run again with --overwrite"
        ) from error


def load_best(run: Run) -> dict[str, Any]:
    """Return the checkpoint of a run's best epoch.

    Raises:
        InputError: If there is none, or it has no validation PRAUC.
    """
    # a kill while a better checkpoint replaces the old one may leave both
    names = sorted(path.name for path in run.checkpoints.glob("best-*.ckpt"))
    if not names:
        raise InputError(f"{run.folder} has lost its best checkpoint; start the run again with --overwrite")
    best = max((load_checkpoint(run, name) for name in names), key=_score)
    if not math.isfinite(best["val_prauc"]):
        raise InputError(
            f"no epoch of {run.folder} has a validation PRAUC: the model's predictions or losses are not "
            "finite; lower --lr, or check the model for a division by zero or a logarithm of 0"
        )
    return best


def is_done(checkpoint: dict[str, Any], epochs: int, patience: int) -> bool:
    """Return whether training was complete when a checkpoint was written."""
    states = checkpoint["callbacks"].items()
    waited = max((state["wait_count"] for key, state in states if key.startswith("EarlyStopping")), default=0)
    return bool(checkpoint["epoch"] + 1 >= epochs or waited >= patience)


def _score(checkpoint: dict[str, Any]) -> tuple[float, int]:
    """Return the validation PRAUC, then the epoch: of equal ones, the earlier is better."""
    prauc = checkpoint["val_prauc"]
    return (prauc if math.isfinite(prauc) else -math.inf, -checkpoint["epoch"])


class _BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch's checkpoint, and finds it again after the run's folder has moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": best, "dirpath": str(self.dirpath)})
