"""Writes files and folders that nobody sees half-written, that are private, and never through a link."""

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from drfuse.errors import BusyError, InputError

_LOCK_TIMEOUT_SECONDS = 1.0
"""Longer than `is_locked` holds a lock."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<state>partial|replaced|scratch)", re.DOTALL)
"""The names of temporary files and folders; see `_temporary` and `scratch_folder`."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h

_earlier_umasks: list[int] = []
_umask_changes = Lock()


@contextmanager
def private() -> Iterator[None]:
    """Give the user alone rights to what is made in this block, or in the function that it decorates.

    That holds for files that libraries make, and for processes that start meanwhile.
    """
    with _umask_changes:
        _earlier_umasks.append(os.umask(0o077))
    try:
        yield
    finally:
        with _umask_changes:  # of two blocks in two threads, the one that ends last restores the first value
            os.umask(_earlier_umasks.pop())


def make_folder(folder: Path) -> None:
    """Make a private folder and those that it lies in; what exists keeps its rights.

    Raises:
        InputError: If there is a file in its place or in that of a folder above it.
    """
    try:
        with private():
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        raise InputError(f"{file} is a file, not a folder; choose a different --out") from error


def make_own_folder(folder: Path) -> None:
    """Make a folder that only drfuse writes to, and take the rights of others from an existing one.

    Raises:
        InputError: If there is a file or a link in its place.
    """
    refuse_link(folder)
    make_folder(folder)
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        with suppress(PermissionError):  # it is another user's
            folder.chmod(0o700)


def make_output_folder(folder: Path) -> None:
    """Make a folder for output; one that holds something already keeps its rights.

    Raises:
        InputError: If there is a file in its place.
    """
    make_folder(folder)
    if not any(folder.iterdir()):
        make_own_folder(folder)


def make_private(folder: Path) -> None:
    """Take the rights of others from a folder and all that it holds; links are left alone."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            mode = path.lstat().st_mode
            if mode & 0o077 and not stat.S_ISLNK(mode):
                with suppress(PermissionError):  # it is another user's
                    path.chmod(stat.S_IMODE(mode) & 0o700)


def refuse_link(path: Path) -> None:
    """Raise InputError if a path is a link, which may lead out of the folder that it lies in."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a link, and nothing is written through links; delete it, or choose a different --out"
        )


def refuse_links_in(folder: Path) -> None:
    """Raise InputError if a folder, or anything in it or in its folders, is a link."""
    refuse_link(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            refuse_link(Path(parent, name))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to; it replaces `path` if nothing is raised.

    Its name is random, so that it is not one that someone else has prepared. It is private. A link in the
    place of `path` is replaced, not followed.
    """
    remove_leftovers(path.parent, path.name)
    with _new_file(path) as partial:
        try:
            yield partial
            partial.replace(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (partial, str(partial)):
                error.filename, error.filename2 = str(path), None  # the file that the user knows
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Make an empty temporary file for `path`, and lock it, which tells it from those of killed commands."""
    while True:
        partial = _temporary(path, "partial")
        try:
            descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            error.filename = str(path)
            raise
        try:
            with suppress(OSError):  # some network file systems have no such locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # or another command has just taken it for a leftover
                yield partial
                return
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files that killed commands left in a folder: those of one file, or all."""
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and name in (None, found["name"]) and _is_ours(path, stat.S_ISREG):
            with suppress(OSError):  # it is being written, or cannot be locked
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new private folder next to `path`, hidden, for what is needed only meanwhile.

    It is deleted at the end, and so are those that killed commands left for the same `path`. A temporary file
    beside each folder, locked by the command that uses it, tells them apart.
    """
    make_folder(path.parent)
    remove_leftovers(path.parent, path.name)
    for state, folder in _temporary_folders(path):
        if state == "scratch" and not folder.with_suffix(".partial").exists():
            shutil.rmtree(folder, ignore_errors=True)
    with _new_file(path) as lock:
        folder = lock.with_suffix(".scratch")

        def clean_up() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)

        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            _to_the_end(clean_up)


@contextmanager
def atomic_folder(
    out: Path, what: str, marker: str, contents: Collection[str], overwrite: bool
) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `out` if nothing is raised and is deleted otherwise.

    The folder and all that is made in it are private. Where the file system can exchange two folders, there
    is no moment at which `out` does not exist.

    Args:
        out: The folder to write.
        what: What the folder is, for messages.
        marker: A file that every such folder has; a folder without it is never replaced.
        contents: Every file that such a folder may hold (see `find_foreign`); a folder with any other is
            never replaced.
        overwrite: Whether to replace an existing `out`.

    Raises:
        InputError: If `out` may not be replaced, or another command is writing it.
    """
    out = out.resolve()
    recover_interrupted_write(out)
    _check_replaceable(out, what, marker, contents, overwrite)
    with locked(out), private():
        _check_replaceable(out, what, marker, contents, overwrite)  # another command may have just written it
        _recover(out)
        partial = _temporary(out, "partial")
        try:
            partial.mkdir()
            yield partial
            _check_replaceable(out, what, marker, contents, overwrite)  # something may have appeared there
            if not (out.exists() and _exchange(partial, out)):
                if out.exists():
                    out.rename(_temporary(out, "replaced"))
                partial.rename(out)
        finally:
            _to_the_end(lambda: _recover(out))


def _to_the_end(clean_up: Callable[[], object]) -> None:
    """Clean up, and start again if a signal comes meanwhile."""
    try:
        clean_up()
    except KeyboardInterrupt:
        clean_up()
        raise


def recover_interrupted_write(out: Path) -> None:
    """Clean up after a command that was killed while it wrote `out`.

    Raises:
        BusyError: If another command is writing it.
    """
    out = out.resolve()
    if any(state != "scratch" for state, _ in _temporary_folders(out)):
        with locked(out):
            _recover(out)


def _recover(out: Path) -> None:
    """Put a replaced folder back if there is none in its place, and delete the other temporary folders."""
    for state, path in sorted(_temporary_folders(out), reverse=True):
        if state == "replaced" and not out.exists():  # killed between the two renames
            path.rename(out)
        elif state != "scratch":
            shutil.rmtree(path, ignore_errors=True)


def _temporary_folders(out: Path) -> Iterator[tuple[str, Path]]:
    """Yield the temporary folders of `out`, each after its state; never a link, or what another user made."""
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["name"] == out.name and _is_ours(path, stat.S_ISDIR):
            yield found["state"], path


def _temporary(path: Path, state: str) -> Path:
    """Return a new hidden path next to `path`, for its `partial` or `replaced` version."""
    return beside(path, f"{secrets.token_hex(8)}.{state}")


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Return whether something exists, is of a kind, and is this user's."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        return is_kind(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once; return whether this system and file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def beside(out: Path, state: str) -> Path:
    """Return the hidden path next to `out` for its version in a state, such as `replaced`, or its `lock`."""
    return out.with_name(f".{out.name}.{state}")


@contextmanager
def locked(out: Path, seconds: float = _LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Keep other commands from writing `out`.

    Raises:
        BusyError: If another command is writing it.
    """
    make_folder(out.parent)
    try:
        with file_lock(beside(out, "lock"), seconds):
            yield
    except Timeout:
        raise BusyError(
            f"another command is writing {out}; wait until it ends, or choose a different --out"
        ) from None


def file_lock(path: Path, seconds: float = -1) -> FileLock:
    """Return a lock between processes; entering it raises Timeout after some seconds, unless negative.

    Its file is never deleted: a command that waits for it may have it open already.

    Raises:
        InputError: If there is a link in its place.
    """
    refuse_link(path)
    return FileLock(path, timeout=seconds, mode=0o600)


def is_locked(out: Path) -> bool:
    """Return whether another command is writing `out`."""
    if not out.parent.is_dir():
        return False
    try:
        with locked(out, seconds=0):
            return False
    except BusyError:
        return True


def find_foreign(folder: Path, contents: Collection[str]) -> str | None:
    """Return the path, relative to a folder, of a file that is not one of its contents; None without one.

    Temporary files do not count.

    Args:
        folder: The folder.
        contents: The paths that it may hold; `*` stands for any characters but `/`.
    """
    known = _any_of(contents)
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for path in sorted(Path(parent, name) for name in (*folders, *files)):
            is_folder = path.is_dir() and not path.is_symlink()
            relative = path.relative_to(folder).as_posix()
            if not is_folder and not known.fullmatch(relative) and not is_temporary(path):
                return relative
    return None


def remove_contents(folder: Path, contents: Collection[str], last: str) -> None:
    """Delete the contents of a folder, one of them last; other files stay, and so do the folders of them.

    Args:
        folder: The folder.
        contents: The paths to delete, as in `find_foreign`.
        last: The name of the file that marks the folder as ours, so that a killed command can be repeated.
    """
    known = _any_of(contents)
    for parent, folders, files in os.walk(folder, topdown=False, onerror=_raise):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it holds other files
                    path.rmdir()
            elif (known.fullmatch(name := path.relative_to(folder).as_posix()) and name != last) or (
                is_temporary(path)
            ):
                path.unlink()
    (folder / last).unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary file of `atomic_file`."""
    return bool(_TEMPORARY.fullmatch(path.name)) and _is_ours(path, stat.S_ISREG)


def _any_of(contents: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join("[^/]*".join(map(re.escape, path.split("*"))) for path in contents), re.DOTALL)


def _raise(error: OSError) -> None:
    raise error


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
    if foreign := find_foreign(out, contents):
        raise InputError(f"{out} holds more than a {what} ({foreign}); choose a different --out")
    if not (out / marker).is_file():
        raise InputError(f"{out} is not a {what}: it has no {marker}; choose a different --out")
