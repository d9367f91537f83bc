"""Files and folders that are never seen half-written."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from drfuse.errors import InputError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` when it is complete."""
    beside = path.with_name(f".{path.name}.partial")
    yield beside
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with appearing(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def folder_that_appears(
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise InputError(f"{out} exists; name another --out, or replace it with --overwrite")
        others = {path.name for path in out.iterdir()} - set(contents) if out.is_dir() else {out.name}
        if others:
            raise InputError(f"{out} holds more than a {what} ({min(others)}); name another --out")
        if not (out / marker).is_file():
            raise InputError(f"{out} is no {what}, it has no {marker}; name another --out")
    beside, replaced = (out.with_name(f".{out.name}.{state}") for state in ("partial", "replaced"))
    beside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another command is writing {out}; wait for it, or name another --out") from None
    try:
        for leftover in beside.iterdir():  # of a command that was killed
            if leftover.name != "lock":
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if replaced.exists() and out.exists():  # without `out` it is the only one there is
            shutil.rmtree(replaced)
        yield beside
        (beside / "lock").unlink()
        if out.exists():
            out.rename(replaced)
        beside.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        lock.release()
    shutil.rmtree(replaced, ignore_errors=True)
