"""Who may write a run's folder: one command at a time, and nothing is lost."""

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
import yaml
from filelock import FileLock, Timeout

from drfuse.errors import BusyError, InputError
from drfuse.files import write_whole
from drfuse.run import RunFiles

_MAY_CHANGE = {
    "cohort",  # known by its fingerprint, wherever it lies
    "init_ehr",  # the checkpoint has what came of them
    "init_cxr",
    "accelerator",
    "num_workers",
    "checkpoint_activations",
    "devices",  # batches are those of all devices together
    "nodes",
}
_SECONDS_OF_A_LOOK = 1.0  # more than `is_claimed` holds a lock


@contextmanager
def claim(
    run: RunFiles, options: dict[str, Any], cohort: str, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Yield the last checkpoint of an interrupted run with the same options, or None to start anew.

    Within, the folder belongs to this command. A run that is replaced is kept until the new one is complete;
    it comes back, and nothing of the new one stays, if that fails before its first checkpoint.

    Args:
        run: The run.
        options: What goes into `config.yaml`.
        cohort: Fingerprint of the cohort.
        overwrite: Whether a run that lies there is replaced.

    Raises:
        InputError: If the folder holds a finished run, an interrupted one that this is not, or something
            else.
        BusyError: If another command is writing it.
    """
    text = yaml.safe_dump(options, sort_keys=False)
    replaced = run.folder.with_name(f".{run.folder.name}.replaced")
    if run.folder.exists() and not _is_fresh(run.folder):
        if not _is_run(run):
            raise InputError(f"{run.folder} holds something that is not a run; choose a different --out")
        if overwrite:
            with _locked(run):
                is_better = RunFiles(replaced).predictions.is_file() and not run.predictions.is_file()
                if _has_begun(run) and not is_better:
                    shutil.rmtree(replaced, ignore_errors=True)
                    run.folder.rename(replaced)
                else:  # what an interrupted command left; the run that it was to replace lies beside
                    _empty(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(run):
            try:
                checkpoint = _last_checkpoint(run, yaml.safe_load(text), cohort)
                if checkpoint is None:
                    shutil.rmtree(run.checkpoints, ignore_errors=True)  # of an epoch that was not completed
                write_whole(run.config, text)
                yield checkpoint
            except BaseException:
                if not _has_begun(run):
                    _empty(run)
                raise
    except BaseException:
        with suppress(OSError):  # it holds something, of this command or already of another one
            run.folder.rmdir()
            if overwrite and replaced.exists():
                replaced.rename(run.folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def is_claimed(run: RunFiles) -> bool:
    """Return whether another command is writing a run's folder."""
    if not run.folder.is_dir():
        return False
    try:
        with _locked(run, seconds=0):
            return False
    except BusyError:
        return True


@contextmanager
def _locked(run: RunFiles, seconds: float = _SECONDS_OF_A_LOOK) -> Iterator[None]:
    lock = FileLock(_lock_file(run), timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"another command is writing {run.folder}; wait for it, or choose a different --out"
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held; who waits for it notices
        lock.release()


def _last_checkpoint(run: RunFiles, options: dict[str, Any], cohort: str) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, if there is one."""
    if run.predictions.is_file():
        raise InputError(f"{run.folder} is a finished run; choose a different --out, or give --overwrite")
    if not run.last_checkpoint.is_file():
        return None
    earlier = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    changed = sorted(
        name for name in options if name not in _MAY_CHANGE and options[name] != earlier.get(name)
    )
    if changed:
        raise InputError(
            f"{run.folder} is an interrupted run with another {', '.join(changed)}; "
            "start it with the options of its config.yaml, or give --overwrite"
        )
    checkpoint = load_checkpoint(run, run.last_checkpoint.name)
    if checkpoint["cohort"] != cohort:
        raise InputError(f"{run.folder} was interrupted on another cohort; start it anew with --overwrite")
    return checkpoint


def load_checkpoint(run: RunFiles, name: str) -> dict[str, Any]:
    """Return a checkpoint of a run, on the CPU.

    Raises:
        InputError: If it is damaged.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(run.checkpoints / name, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, BadZipFile) as error:
        raise InputError(
            f"{run.checkpoints / name} is damaged; start the run anew with --overwrite"
        ) from error
    return checkpoint


def _lock_file(run: RunFiles) -> Path:
    return run.folder / ".lock"


def _empty(run: RunFiles) -> None:
    """Remove all that a folder holds but the lock; what makes it known as a run goes last."""
    for path in sorted(run.folder.iterdir(), key=lambda path: path == run.config):
        if path.is_dir():
            shutil.rmtree(path)
        elif path != _lock_file(run):
            path.unlink()


def _is_fresh(folder: Path) -> bool:
    """Return whether a folder is empty but for what a command leaves that has just begun to write a run."""
    begun = {".lock", ".config.yaml.partial"}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= begun


def _has_begun(run: RunFiles) -> bool:
    """Return whether the folder holds anything that was trained."""
    return run.predictions.is_file() or run.model.is_file() or any(run.checkpoints.glob("*.ckpt"))


def _is_run(run: RunFiles) -> bool:
    """Return whether the folder's `config.yaml` is one of ours."""
    try:
        options = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(options, dict) and {"cohort", "model", "train_on"} <= options.keys()
