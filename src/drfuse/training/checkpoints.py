"""The checkpoints of a run: its last two states, to resume from, and that of the best epoch, to keep.

A state is that after an epoch, or after the step at which a signal stopped the training. A run that is killed
loses what came after its last state. Each checkpoint is written beside its place and then renamed.
`sums.json` beside them has their SHA-256; a checkpoint that is damaged is not used.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from drfuse.arguments import as_annotated
from drfuse.errors import DamagedRunError, InputError, unwritable
from drfuse.files import atomic_file, write_whole
from drfuse.run import Run
from drfuse.sums import sha256
from drfuse.training.metrics import MONITORED

logger = logging.getLogger(__name__)

SUMS = "sums.json"
"""In the folder of checkpoints: by name, the SHA-256 of what was written under it, the latest last."""

PREVIOUS = "previous.ckpt"
"""The state before the last one."""

_LAST = "last.ckpt"
_SUMS_KEPT = 3  # of the last checkpoint, the one before it and one that is about to appear
_IN_BEST = {"cohort", "epoch", "state_dict", "val_prauc"}
_IN_LAST = {*_IN_BEST, "callbacks", "optimizer_states", "loops"}


class BackgroundWriter(TorchCheckpointIO):
    """Writes checkpoints while the next epoch is trained, each from a copy of its tensors, in order.

    Lightning's `AsyncCheckpointIO` deletes a checkpoint before the one that replaces it is written.
    A killed run loses at most the checkpoints of its last complete epoch, and resumes from those before.
    What was `last.ckpt` becomes `previous.ckpt`.
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
            with file.open("wb") as opened:
                torch.save(checkpoint, opened)
        except (RuntimeError, OSError) as error:  # PyTorch hides why the disk refused
            raise unwritable(path, error) from error
        _add_sum(path, sha256(file))  # before the file appears: a kill in between leaves one that is known
        if path.name == _LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))


def _add_sum(path: Path, sum_: str) -> None:
    """Write the sum of a checkpoint that is about to appear; those that it may replace stay known."""
    folder = path.parent
    sums = _read_sums(folder)
    if sums is None:  # an earlier version wrote those that are there
        sums = {one.name: [sha256(one)] for one in folder.glob("*.ckpt")}
    present = {name: known for name, known in sums.items() if (folder / name).exists()}
    known = [*sums.get(path.name, []), sum_][-_SUMS_KEPT:]
    write_whole(folder / SUMS, json.dumps(present | {path.name: known}, indent=2) + "\n")


def _read_sums(folder: Path) -> dict[str, list[str]] | None:
    """Return the sums of a folder of checkpoints: none if they are damaged, None if it has none."""
    try:
        stored = json.loads((folder / SUMS).read_text("utf-8"))
        sums: dict[str, list[str]] = as_annotated("its content", stored, dict[str, Sequence[str]])
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return sums


def checkpoint_callbacks(run: Run, patience: int) -> list[L.Callback]:
    """Return callbacks for early stopping, the weights of the best epoch and the state after each one."""
    return [
        EarlyStopping(**MONITORED, patience=patience, check_finite=False),
        _BestCheckpoint(
            run.checkpoints, "best-{epoch}", **MONITORED, save_weights_only=True, enable_version_counter=False
        ),
        ModelCheckpoint(run.checkpoints, run.last_checkpoint.stem, enable_version_counter=False),
    ]


def load_last(run: Run) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, on the CPU; None if there is none.

    If `last.ckpt` is damaged or missing, the one before it takes its place.

    Raises:
        DamagedRunError: If no checkpoint is whole.
    """
    paths = (run.last_checkpoint, run.last_checkpoint.with_name(PREVIOUS))
    present = [path for path in paths if path.is_file()]
    for path in present:
        try:
            checkpoint = load_checkpoint(path)
        except DamagedRunError:
            if path == present[-1]:
                raise
            logger.warning("%s is damaged; the run goes on from the checkpoint before it", path)
            continue
        if path != run.last_checkpoint:
            path.replace(run.last_checkpoint)
        return checkpoint
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, on the CPU.

    Raises:
        DamagedRunError: If it is damaged, or is not a checkpoint.
    """
    problem: Exception | None = None
    checkpoint: Any = None
    sums = _read_sums(path.parent)
    try:
        if sums is None or sha256(path) in chain.from_iterable(sums.values()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything; none of its code is run
        problem = error
    needed = _IN_LAST if path.name in (_LAST, PREVIOUS) else _IN_BEST
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise DamagedRunError(f"{path} is damaged; start the run again with --overwrite") from problem
    return checkpoint


def restore_weights(fusion: L.LightningModule, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load a checkpoint's weights.

    Raises:
        DamagedRunError: If they are those of another model.
    """
    try:
        fusion.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DamagedRunError(
            f"{path} has the weights of another model; start the run again with --overwrite"
        ) from error


def load_best(run: Run) -> dict[str, Any]:
    """Return the checkpoint of a run's best epoch.

    If it is damaged, that of the last epochs has the same weights if it is of the same epoch.

    Raises:
        DamagedRunError: If there is none, or it is damaged.
        InputError: If it has no validation PRAUC.
    """
    # a kill while a better checkpoint replaces the old one may leave both
    paths = sorted(run.checkpoints.glob("best-*.ckpt"))
    if not paths:
        raise DamagedRunError(
            f"{run.folder} has lost its best checkpoint; start the run again with --overwrite"
        )
    best = max((_load_or_replace(path, run) for path in paths), key=_score)
    if not math.isfinite(best["val_prauc"]):
        raise InputError(
            f"no epoch of {run.folder} has a validation PRAUC: the model's predictions or losses are not "
            "finite; lower --lr, or check the model for a division by zero or a logarithm of 0"
        )
    return best


def _load_or_replace(path: Path, run: Run) -> dict[str, Any]:
    """Return the checkpoint of a best epoch, or of the same epoch among the last ones if it is damaged."""
    try:
        return load_checkpoint(path)
    except DamagedRunError:
        epoch = re.search(r"epoch=(\d+)", path.name)
        for last in (run.last_checkpoint, run.last_checkpoint.with_name(PREVIOUS)):
            with suppress(DamagedRunError):
                checkpoint = load_checkpoint(last)
                if epoch and complete_epochs(checkpoint) == checkpoint["epoch"] + 1 == int(epoch[1]) + 1:
                    logger.warning("%s is damaged; %s has the same weights", path, last.name)
                    return checkpoint
        raise


def is_done(checkpoint: dict[str, Any], epochs: int, patience: int) -> bool:
    """Return whether training was complete when a checkpoint was written."""
    states = checkpoint["callbacks"].items()
    waited = max((state["wait_count"] for key, state in states if key.startswith("EarlyStopping")), default=0)
    return complete_epochs(checkpoint) >= epochs or waited >= patience


def complete_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs were complete when a checkpoint was written, validation included."""
    return int(checkpoint["epoch"]) + (not checkpoint.get("mid_epoch", False))


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
