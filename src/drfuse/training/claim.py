"""Lets one command at a time write a run's folder, without losing an earlier run."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from drfuse.errors import DamagedRunError, InputError
from drfuse.files import (
    atomic_file,
    beside,
    find_foreign,
    is_temporary,
    locked,
    make_own_folder,
    make_private,
    private,
    refuse_links_in,
    remove_contents,
    remove_leftovers,
    write_whole,
)
from drfuse.run import Run
from drfuse.training.checkpoints import PREVIOUS, SUMS, load_last
from drfuse.training.options import DEFAULTS, TrainOptions

logger = logging.getLogger(__name__)

_MAY_CHANGE = {"cohort", *TrainOptions.names("starts", "computes")}
"""Settings that may differ when a run resumes; `cohort` is a path, and the fingerprint is checked instead."""

_LOGS = ("metrics.csv", "hparams.yaml", "events.out.tfevents.*")
"""What Lightning's loggers write."""


@contextmanager
def claim(
    run: Run, config: dict[str, Any], cohort: str, overwrite: bool, resumable: bool = True
) -> Iterator[dict[str, Any] | None]:
    """Lock a run's folder, and yield the checkpoint to resume from, or None to start from scratch.

    The folder and all that is made in it are private.

    A replaced run is kept until the new one is complete. If the new one fails before its first checkpoint,
    it is deleted and the replaced run is restored; if it was killed, the next command does that, unless it
    replaces the run as well.

    Args:
        run: The run.
        config: The content of `config.yaml`. A run that resumes keeps the options that started it.
        cohort: Fingerprint of the cohort.
        overwrite: Whether to replace an existing run.
        resumable: Whether the model's training writes checkpoints; otherwise it starts from scratch.

    Raises:
        InputError: If the folder holds a finished run, an interrupted run with different options,
            something else, or links in place of its folders.
        BusyError: If another command is writing it.
    """
    replaced = beside(run.folder, "replaced")
    with locked(run.folder), private():
        _check_writable(run, replaced)
        if overwrite:
            _check_replaceable(run)
        own_config = None if _has_weights(run) or not run.config.is_file() else run.config.read_bytes()
        if overwrite:
            _put_aside(run, replaced)
        elif replaced.is_dir() and not _has_weights(run):  # a command was killed
            _discard(run, replaced)
        earlier, checkpoint = _interrupted(run, yaml.safe_load(yaml.safe_dump(config)), cohort, resumable)
        if checkpoint is not None:
            config = config | {name: earlier[name] for name in TrainOptions.names("starts")}
        try:
            _make_ready(run)
            if checkpoint is None:
                shutil.rmtree(run.checkpoints, ignore_errors=True)  # of an epoch that was not completed
            write_whole(run.config, yaml.safe_dump(config, sort_keys=False))
            run.not_finite.unlink(missing_ok=True)  # of an earlier start
            yield checkpoint
        except BaseException:
            if not _has_weights(run):
                not_finite = run.not_finite.read_bytes() if run.not_finite.is_file() else None
                _discard(run, replaced)
                if not_finite is not None:  # the reason why the training ended
                    _keep(run, config, not_finite)
                elif own_config is not None and not run.folder.exists():  # perhaps a file of the user's
                    make_own_folder(run.folder)
                    run.config.write_bytes(own_config)
            elif replaced.exists():
                logger.warning("the replaced run is kept in %s until this one is finished", replaced)
            raise
        if overwrite:
            shutil.rmtree(replaced, ignore_errors=True)
        elif replaced.exists():
            logger.warning("%s still has the run that this one replaced; delete it if not needed", replaced)


def _check_replaceable(run: Run) -> None:
    """Raise InputError if deleting the folder could delete more than a run."""
    if run.folder.is_mount() or run.folder == Path.cwd():
        raise InputError(f"{run.folder} cannot be replaced as a whole; choose a folder inside it as --out")
    if other := _other(run):
        raise InputError(
            f"{run.folder} holds more than a run ({other}); move that elsewhere, or choose a different --out"
        )


def _check_writable(run: Run, replaced: Path) -> None:
    """Raise InputError if no run may be written to the folder, or if `replaced` is not a replaced run."""
    for folder in (run.checkpoints, run.logs):
        refuse_links_in(folder)
    if not _is_empty(run.folder) and not _is_run(run):
        raise InputError(f"{run.folder} holds something that is not a run; choose a different --out")
    if replaced.is_symlink() or (replaced.exists() and (not _is_run(Run(replaced)) or _other(Run(replaced)))):
        raise InputError(
            f"{replaced}, the place of a run that is replaced, holds something else; move it elsewhere, or "
            "choose a different --out"
        )


def _make_ready(run: Run) -> None:
    """Make the folder of a run, or make an existing one private and free of what a killed command left."""
    make_own_folder(run.folder)
    make_private(run.folder)
    for folder in (run.folder, run.checkpoints):
        if folder.exists():
            remove_leftovers(folder)


def _discard(run: Run, replaced: Path) -> None:
    """Delete a run that has no weights yet, and move the one that it was to replace back."""
    _empty(run)
    with suppress(OSError):  # someone else put a file there, or nothing was replaced
        if run.folder.exists():
            run.folder.rmdir()
        replaced.rename(run.folder)


def _keep(run: Run, config: Mapping[str, Any], not_finite: bytes) -> None:
    """Write what a training that failed has to tell into the replaced run, or into a run without weights."""
    make_own_folder(run.folder)
    if not run.config.exists():
        write_whole(run.config, yaml.safe_dump(dict(config), sort_keys=False))
    with atomic_file(run.not_finite) as partial:
        partial.write_bytes(not_finite)


def _put_aside(run: Run, replaced: Path) -> None:
    """Make room for a new run; if two earlier runs exist, a finished one is kept over an interrupted one."""
    is_better = Run(replaced).is_finished and not run.is_finished
    if _has_weights(run) and not is_better:
        shutil.rmtree(replaced, ignore_errors=True)
        run.folder.rename(replaced)
    else:
        _empty(run)


def _interrupted(
    run: Run, config: dict[str, Any], cohort: str, resumable: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return an interrupted run's options and the checkpoint to resume from, if there is one.

    Raises:
        InputError: If the run is finished, has different options, or was trained on another cohort.
        DamagedRunError: If its options or checkpoints are missing or damaged.
    """
    instead = "choose a different --out, or add --overwrite"
    if run.is_finished:
        raise InputError(f"{run.folder} is a finished run; {instead}")
    has_checkpoint = any(
        run.checkpoints.joinpath(name).is_file() for name in (run.last_checkpoint.name, PREVIOUS)
    )
    if not has_checkpoint and not run.model.is_file():
        return {}, None
    try:
        # an option missing from an older run had its default value
        earlier = DEFAULTS.written() | _config_of(run)
    except InputError as error:
        raise DamagedRunError(
            f"{run.config} is missing or damaged, so {run.folder} cannot resume; {instead}"
        ) from error
    changed = sorted(name for name in config if name not in _MAY_CHANGE and config[name] != earlier.get(name))
    if changed:
        raise InputError(
            f"{run.folder} is an interrupted run with a different {', '.join(changed)}; "
            "use the options of its config.yaml to resume it, or --overwrite to replace it"
        )
    if not has_checkpoint and resumable:
        raise DamagedRunError(
            f"{run.folder} has {run.model.name} but no checkpoint to resume from; {instead}"
        )
    checkpoint = load_last(run)
    trained_on = run.read_facts().cohort if checkpoint is None else checkpoint["cohort"]
    if trained_on != cohort:
        raise InputError(f"{run.folder} is an interrupted run on another cohort; replace it with --overwrite")
    return earlier, checkpoint


def _empty(run: Run) -> None:
    """Delete the run in the folder; `config.yaml`, which marks it as a run, goes last."""
    if run.folder.is_dir():
        remove_contents(run.folder, _contents(run), last=run.config.name)


def _is_empty(folder: Path) -> bool:
    """Return whether a folder is missing, empty, or holds only temporary files of killed commands."""
    return not folder.exists() or (folder.is_dir() and all(map(is_temporary, folder.iterdir())))


def _has_weights(run: Run) -> bool:
    """Return whether the folder holds the result of any training."""
    return run.is_finished or run.model.is_file() or any(run.checkpoints.glob("*.ckpt"))


def _is_run(run: Run) -> bool:
    """Return whether the folder holds a run: `config.yaml` and weights, or one of them and nothing else."""
    try:
        has_config = bool(_config_of(run))
    except InputError:
        has_config = False
    has_weights = run.folder.is_dir() and _has_weights(run)
    return (has_config and has_weights) or ((has_config or has_weights) and not _other(run))


def _other(run: Run) -> str | None:
    """Return a file in the folder that no run has, if there is one."""
    return find_foreign(run.folder, _contents(run)) if run.folder.is_dir() else None


def _contents(run: Run) -> list[str]:
    """Return the paths that a run may hold, relative to its folder."""
    folders = (run.folder, run.checkpoints, run.last_checkpoint, run.external, run.logs)
    names = [path.name for path in vars(run).values() if path not in folders]
    return [
        *names,
        f"{run.checkpoints.name}/*.ckpt",
        f"{run.checkpoints.name}/{SUMS}",
        *(f"{run.external.name}/*/{name}" for name in names),
        *(f"{run.logs.name}/{folder}{name}" for folder in ("", "version_*/") for name in _LOGS),
    ]


def _config_of(run: Run) -> dict[str, Any]:
    """Return the content of a run's `config.yaml`; raise InputError if it is not a run's."""
    config = run.read_options()
    if lacking := {"cohort", "model", "train_on"} - config.keys():
        raise InputError(f"{run.config} lacks {min(lacking)}; it is not of a run")
    return config
