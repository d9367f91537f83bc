"""Files and folders that are never seen half-written."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from drfuse.errors import BusyError, InputError

_SECONDS_OF_A_LOOK = 1.0
"""How long to wait for a lock: longer than `is_locked` holds one."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` when it is complete."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(
    out: Path, what: str, marker: str, contents: Collection[str], overwrite: bool
) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when all went well, and vanishes when not.

    Args:
        out: The folder to write.
        what: What it will be, for messages.
        marker: Name of the file by which such a folder is known; one without it is never replaced.
        contents: Names of all that lies in such a folder; one that holds anything else is never replaced.
        overwrite: Whether one that lies at `out` is replaced.

    Raises:
        InputError: If `out` is in the way, or another command is writing it.
    """
    out = out.resolve()
    recover_interrupted_write(out)
    _check_place(out, what, marker, contents, overwrite)
    partial, replaced = beside(out, "partial"), beside(out, "replaced")
    with locked(out):
        _check_place(out, what, marker, contents, overwrite)  # another command may just have written it
        _settle(out)
        try:
            partial.mkdir()
            yield partial
            _check_place(out, what, marker, contents, overwrite)  # somebody may have put something there
            if out.exists():
                out.rename(replaced)
            partial.rename(out)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            _settle(out)
            raise


def recover_interrupted_write(out: Path) -> None:
    """Undo or complete what a killed command left of `out`.

    Raises:
        BusyError: If another command is writing it.
    """
    out = out.resolve()
    if beside(out, "partial").exists() or beside(out, "replaced").exists():
        with locked(out):
            _settle(out)


def _settle(out: Path) -> None:
    partial, replaced = beside(out, "partial"), beside(out, "replaced")
    if replaced.exists() and not out.exists():  # it is the only one there is
        replaced.rename(out)
    for left in (partial, replaced):
        shutil.rmtree(left, ignore_errors=True)


def beside(out: Path, state: str) -> Path:
    """Return where a `partial` or `replaced` folder, or the `lock`, of `out` lies."""
    return out.with_name(f".{out.name}.{state}")


@contextmanager
def locked(out: Path, seconds: float = _SECONDS_OF_A_LOOK) -> Iterator[None]:
    """Keep other commands from writing `out`.

    The lock is a file beside `out`, which stays: a command that waits for it may have it open already.

    Raises:
        BusyError: If another command is writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(beside(out, "lock"), timeout=seconds):
            yield
    except Timeout:
        raise BusyError(
            f"another command is writing {out}; wait for it, or choose a different --out"
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


def _check_place(out: Path, what: str, marker: str, contents: Collection[str], overwrite: bool) -> None:
    """Check that a folder may appear at `out`.

    Raises:
        InputError: If not.
    """
    if out.is_mount() or out == Path.cwd():
        raise InputError(f"{out} cannot be replaced as a whole; name a folder within it as --out")
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
