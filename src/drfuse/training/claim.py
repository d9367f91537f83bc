"""Who may write a run's folder: one command at a time, and nothing is lost."""

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
"""What an interrupted run goes on with another value of; a cohort is known by its fingerprint."""


@contextmanager
def claim(
    run: RunFiles, config: dict[str, Any], cohort: str, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Yield the last checkpoint of an interrupted run with the same options, or None to start anew.

    Within, the folder belongs to this command. A run that is replaced is kept until the new one is complete;
    it comes back, and nothing of the new one stays, if that fails before its first checkpoint.

    Args:
        run: The run.
        config: What goes into `config.yaml`.
        cohort: Fingerprint of the cohort.
        overwrite: Whether a run that lies there is replaced.

    Raises:
        InputError: If the folder holds a finished run, an interrupted one that this is not, or something
            else.
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
            if not _has_begun(run):
                _empty(run)
                with suppress(OSError):  # something that is not ours
                    run.folder.rmdir()
                    replaced.rename(run.folder)
            elif replaced.exists():
                logger.warning("the replaced run is kept in %s until this one is finished", replaced)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _put_aside(run: RunFiles, replaced: Path) -> None:
    """Make room for a new run; of two earlier ones, a finished one is kept rather than an interrupted one."""
    is_better = RunFiles(replaced).is_finished and not run.is_finished
    if _has_begun(run) and not is_better:
        shutil.rmtree(replaced, ignore_errors=True)
        run.folder.rename(replaced)
    else:
        _empty(run)


def _last_checkpoint(run: RunFiles, config: dict[str, Any], cohort: str) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, if there is one."""
    if run.is_finished:
        raise InputError(f"{run.folder} is a finished run; choose a different --out, or give --overwrite")
    if not run.last_checkpoint.is_file():
        return None
    # an option that a later version added had its default
    earlier = DEFAULTS.written() | yaml.safe_load(run.config.read_text(encoding="utf-8"))
    changed = sorted(name for name in config if name not in _MAY_CHANGE and config[name] != earlier.get(name))
    if changed:
        raise InputError(
            f"{run.folder} is an interrupted run with another {', '.join(changed)}; "
            "start it with the options of its config.yaml, or give --overwrite"
        )
    checkpoint = load_checkpoint(run, run.last_checkpoint.name)
    if checkpoint["cohort"] != cohort:
        raise InputError(f"{run.folder} was interrupted on another cohort; start it anew with --overwrite")
    return checkpoint


def _empty(run: RunFiles) -> None:
    """Remove everything in the folder; what makes it known as a run goes last."""
    if run.folder.is_dir():
        for path in sorted(run.folder.iterdir(), key=lambda path: path == run.config):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_empty(folder: Path) -> bool:
    """Return whether there is nothing at a path but what a command leaves that has just begun a run."""
    begun = {".config.yaml.partial"}
    return not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= begun)


def _has_begun(run: RunFiles) -> bool:
    """Return whether the folder holds anything that was trained."""
    return run.is_finished or run.model.is_file() or any(run.checkpoints.glob("*.ckpt"))


def _is_run(run: RunFiles) -> bool:
    """Return whether the folder's `config.yaml` is one of ours."""
    try:
        options = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(options, dict) and {"cohort", "model", "train_on"} <= options.keys()
