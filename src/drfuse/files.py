"""Writes files and folders so that nobody ever sees them half-written."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from drfuse.errors import BusyError, InputError

_LOCK_TIMEOUT_SECONDS = 1.0
"""Longer than `is_locked` holds a lock."""


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, unless it exists.

    Raises:
        InputError: If there is a file in its place or in that of a folder above it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise InputError(f"{file} is a file, not a folder; choose a different --out") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` if nothing is raised."""
    partial = beside(path, "partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(
    out: Path, what: str, marker: str, contents: Collection[str], overwrite: bool
) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `out` if nothing is raised and is deleted otherwise.

    Args:
        out: The folder to write.
        what: What the folder is, for messages.
        marker: A file that every such folder has; a folder without it is never replaced.
        contents: Every name that such a folder may hold; a folder with any other is never replaced.
        overwrite: Whether to replace an existing `out`.

    Raises:
        InputError: If `out` may not be replaced, or another command is writing it.
    """
    out = out.resolve()
    recover_interrupted_write(out)
    _check_replaceable(out, what, marker, contents, overwrite)
    partial, replaced = beside(out, "partial"), beside(out, "replaced")
    with locked(out):
        _check_replaceable(out, what, marker, contents, overwrite)  # another command may have just written it
        _recover(out)
        try:
            partial.mkdir()
            yield partial
            _check_replaceable(out, what, marker, contents, overwrite)  # something may have appeared there
            if out.exists():
                out.rename(replaced)
            partial.rename(out)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            _recover(out)
            raise


def recover_interrupted_write(out: Path) -> None:
    """Clean up after a command that was killed while it wrote `out`.

    Raises:
        BusyError: If another command is writing it.
    """
    out = out.resolve()
    if beside(out, "partial").exists() or beside(out, "replaced").exists():
        with locked(out):
            _recover(out)


def _recover(out: Path) -> None:
    partial, replaced = beside(out, "partial"), beside(out, "replaced")
    if replaced.exists() and not out.exists():  # killed between the two renames
        replaced.rename(out)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)


def beside(out: Path, state: str) -> Path:
    """Return the hidden path next to `out` for its `partial` or `replaced` version, or its `lock`."""
    return out.with_name(f".{out.name}.{state}")


@contextmanager
def locked(out: Path, seconds: float = _LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Keep other commands from writing `out`.

    The lock file is never deleted: a command that waits for it may have it open already.

    Raises:
        BusyError: If another command is writing it.
    """
    make_folder(out.parent)
    try:
        with FileLock(beside(out, "lock"), timeout=seconds):
            yield
    except Timeout:
        raise BusyError(
            f"another command is writing {out}; wait until it ends, or choose a different --out"
        ) from None


def is_locked(out: Path) -> bool:
    """Return whether another command is writing `out`."""
    if not out.parent.is_dir():
        return False
    try:
        with locked(out, seconds=0):
            return False
    except BusyError:
        return True


def _check_replaceable(out: Path, what: str, marker: str, contents: Collection[str], overwrite: bool) -> None:
    """Raise InputError if `out` may not be written or replaced."""
    if out.is_mount() or out == Path.cwd():
        raise InputError(f"{out} cannot be replaced as a whole; choose a folder inside it as --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{out} exists; choose a different --out, or replace it with --overwrite")
    if not out.is_dir():
        raise InputError(f"{out} is not a folder; choose a different --out")
    if others := {path.name for path in out.iterdir()} - set(contents):
        raise InputError(f"{out} holds more than a {what} ({min(others)}); choose a different --out")
    if not (out / marker).is_file():
        raise InputError(f"{out} is not a {what}: it has no {marker}; choose a different --out")
