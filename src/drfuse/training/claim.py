"""Lets one command at a time write a run's folder, without losing an earlier run."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from drfuse.errors import InputError
from drfuse.files import beside, locked, write_whole
from drfuse.run import RunFiles
from drfuse.training.checkpoints import load_checkpoint
from drfuse.training.options import DEFAULTS, TrainOptions

logger = logging.getLogger(__name__)

_MAY_CHANGE = {"cohort", *TrainOptions.names("starts", "computes")}
"""Settings that may differ when a run resumes; `cohort` is a path, and the fingerprint is checked instead."""


@contextmanager
def claim(
    run: RunFiles, config: dict[str, Any], cohort: str, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Lock a run's folder, and yield the checkpoint to resume from, or None to start from scratch.

    A replaced run is kept until the new one is complete. If the new one fails before its first checkpoint,
    it is deleted and the replaced run is restored.

    Args:
        run: The run.
        config: The content of `config.yaml`.
        cohort: Fingerprint of the cohort.
        overwrite: Whether to replace an existing run.

    Raises:
        InputError: If the folder holds a finished run, an interrupted run with different options, or
            something else.
        BusyError: If another command is writing it.
    """
    text = yaml.safe_dump(config, sort_keys=False)
    replaced = beside(run.folder, "replaced")
    with locked(run.folder):
        if not _is_empty(run.folder) and not _is_run(run):
            raise InputError(f"{run.folder} holds something that is not a run; choose a different --out")
        if overwrite:
            _put_aside(run, replaced)
        checkpoint = _last_checkpoint(run, yaml.safe_load(text), cohort)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            if checkpoint is None:
                shutil.rmtree(run.checkpoints, ignore_errors=True)  # of an epoch that was not completed
            write_whole(run.config, text)
            yield checkpoint
        except BaseException:
            if not _has_weights(run):
                _empty(run)
                with suppress(OSError):  # someone else put a file there
                    run.folder.rmdir()
                    replaced.rename(run.folder)
            elif replaced.exists():
                logger.warning("the replaced run is kept in %s until this one is finished", replaced)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _put_aside(run: RunFiles, replaced: Path) -> None:
    """Make room for a new run; if two earlier runs exist, a finished one is kept over an interrupted one."""
    is_better = RunFiles(replaced).is_finished and not run.is_finished
    if _has_weights(run) and not is_better:
        shutil.rmtree(replaced, ignore_errors=True)
        run.folder.rename(replaced)
    else:
        _empty(run)


def _last_checkpoint(run: RunFiles, config: dict[str, Any], cohort: str) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, if there is one; refuse a finished or a different run."""
    if run.is_finished:
        raise InputError(f"{run.folder} is a finished run; choose a different --out, or add --overwrite")
    if not run.last_checkpoint.is_file():
        return None
    # an option missing from an older run had its default value
    earlier = DEFAULTS.written() | yaml.safe_load(run.config.read_text(encoding="utf-8"))
    changed = sorted(name for name in config if name not in _MAY_CHANGE and config[name] != earlier.get(name))
    if changed:
        raise InputError(
            f"{run.folder} is an interrupted run with a different {', '.join(changed)}; "
            "use the options of its config.yaml to resume it, or --overwrite to replace it"
        )
    checkpoint = load_checkpoint(run, run.last_checkpoint.name)
    if checkpoint["cohort"] != cohort:
        raise InputError(f"{run.folder} is an interrupted run on another cohort; replace it with --overwrite")
    return checkpoint


def _empty(run: RunFiles) -> None:
    """Delete everything in the folder; `config.yaml`, which marks it as a run, goes last."""
    if run.folder.is_dir():
        for path in sorted(run.folder.iterdir(), key=lambda path: path == run.config):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_empty(folder: Path) -> bool:
    """Return whether a folder is missing, empty, or holds only the temporary file of a killed command."""
    leftover = {".config.yaml.partial"}
    return not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= leftover)


def _has_weights(run: RunFiles) -> bool:
    """Return whether the folder holds the result of any training."""
    return run.is_finished or run.model.is_file() or any(run.checkpoints.glob("*.ckpt"))


def _is_run(run: RunFiles) -> bool:
    """Return whether the folder has the `config.yaml` of a run."""
    try:
        options = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(options, dict) and {"cohort", "model", "train_on"} <= options.keys()
