"""Runs one `drfuse` command in a process of its own, and does something to it: kills it, or fills its disk.

The process is forked from this one, so that nothing has to be imported again. What happens to it is decided
by an audit hook, which Python calls before each operation on a file: none of it is in `drfuse`.
"""

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from drfuse.cli import main

Action = Literal["kill", "terminate", "full disk"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEEDS_ROOM = ("open", "os.mkdir", "os.link")
_CHANGES = (*_NEEDS_ROOM, "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "ctypes.dlsym")
"""The audit events before something in a folder changes; `shutil` and `pathlib` cause these as well."""

_NEW_MOUNTS, _PRIVATE_MOUNTS, _REMOUNT = 0x20000, (1 << 18) | (1 << 14), 1 << 5
"""CLONE_NEWNS of linux/sched.h; MS_PRIVATE and MS_REC, and MS_REMOUNT, of linux/mount.h."""

_OF_THE_HOOK = f'Traceback of your own code:\n  File "{__file__}"'
"""What a command says of the error that the hook below raises: not its own words."""

_LARGE = 1 << 30
"""Bytes of a disk with room."""

_processes = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; negative: the signal that killed it.
        said: What it wrote to the terminal.
        seconds: How long it ran.
        operations: How many operations on files it began.
    """

    code: int
    said: str
    seconds: float
    operations: int


class _Hook:
    """Counts the operations that change a folder, and acts before one of them.

    A disk that is full stays full: every later operation that needs room fails as well.
    """

    def __init__(self, folder: Path, at: int | None, action: Action, counted: Any) -> None:
        self.folder, self.at, self.action, self.counted = f"{folder}/", at, action, counted
        self.process = os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or os.getpid() != self.process or not self._is_inside(event, arguments):
            return
        self.counted.value += 1
        if self.at is None or self.counted.value < self.at:
            return
        if self.action == "full disk" and event in _NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.counted.value == self.at and self.action != "full disk":
            os.kill(self.process, signal.SIGKILL if self.action == "kill" else signal.SIGTERM)

    def _is_inside(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether an operation changes something in the folder."""
        if event == "ctypes.dlsym":  # what follows is a call that Python has no function for
            return bool(arguments[1] == "renameat2")
        if event == "open" and not arguments[2] & _WRITES:
            return False
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        path = os.fsdecode(path)
        if (
            event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0
        ):  # relative to an open folder
            path = f"/proc/self/fd/{arguments[-1]}/{path}"
        return os.path.realpath(os.path.dirname(path)).startswith(self.folder[:-1])  # noqa: PTH120 - called often


def run(
    arguments: Sequence[str],
    folder: Path,
    at: int | None = None,
    action: Action = "kill",
    seconds: float | None = None,
) -> Ended:
    """Run a `drfuse` command in a folder, which also holds its cache and its temporary files.

    Args:
        arguments: The command's words after `drfuse`.
        folder: The folder that it runs in; what it changes elsewhere is not watched.
        at: Act before this operation on a file, counted from 1.
        action: What to do then.
        seconds: Kill it after so long, in any case.
    """
    counted = _processes.Value("q", 0, lock=False)
    log = folder.with_name(f"{folder.name}.log")
    process = _processes.Process(target=_command, args=(arguments, folder, at, action, counted, log))
    start = perf_counter()
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    elapsed = perf_counter() - start
    said, _, _ = log.read_text(errors="replace").partition(_OF_THE_HOOK)
    return Ended(process.exitcode or 0, said, elapsed, counted.value)


def in_child(work: Callable[[], Any]) -> Any:
    """Return what a function returns, or raise what it raises, in a process that is forked from this one."""
    results, others = _processes.Pipe(duplex=False)

    def send() -> None:
        try:
            others.send(work())
        except Exception as error:
            others.send(error)

    process = _processes.Process(target=send)
    process.start()
    others.close()
    found = results.recv()
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def run_and_import(arguments: Sequence[str], folder: Path) -> None:
    """Run a command in a process of its own, and import here what it imported, for the processes after it.

    This process itself uses none of it: locks of threads that run would be copied with a fork.
    """

    def imported() -> list[str]:
        log = folder.with_name(f"{folder.name}.log")
        if code := _call(arguments, folder, log):
            raise ValueError(f"exit code {code} of {' '.join(arguments)}: {log.read_text(errors='replace')}")
        return list(sys.modules)

    for name in in_child(imported):
        with suppress(Exception):  # modules of a package that is not there, or of a main program
            import_module(name)


def on_small_disk(folder: Path, size: int, then: Callable[[Callable[[], object]], Any]) -> Any:
    """Return what a function returns in a process in which a folder is a disk of its own, of some bytes.

    The function gets a function that makes the disk large. Returns None where this user may mount nothing.
    """

    def work() -> Any:
        return then(lambda: _mount(folder, _LARGE, _REMOUNT)) if _mount_alone(folder, size) else None

    return in_child(work)


def _mount_alone(folder: Path, size: int) -> bool:
    """Mount a disk that only this process and its children see; return whether that was possible."""
    libc = ctypes.CDLL(None)
    alone = libc.unshare(_NEW_MOUNTS) == 0 and libc.mount(b"none", b"/", None, _PRIVATE_MOUNTS, None) == 0
    return alone and _mount(folder, size, 0)


def _mount(folder: Path, size: int, flags: int) -> bool:
    options = f"size={size}".encode()
    mounted = ctypes.CDLL(None).mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options)
    return bool(mounted == 0)


def _command(
    arguments: Sequence[str], folder: Path, at: int | None, action: Action, counted: Any, log: Path
) -> None:
    """Run a command and end this process, without what the parent registered for its own end."""
    os._exit(_call(arguments, folder, log, _Hook(folder, at, action, counted)))


def _call(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    hook: Callable[[str, tuple[Any, ...]], None] | None = None,
) -> int:
    """Call a command in this process, with its output in a file; return its exit code."""
    os.chdir(folder)
    os.environ |= {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
    tempfile.tempdir = None
    with log.open("w", buffering=1) as output:
        sys.stdout = sys.stderr = output
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        if hook is not None:
            sys.addaudithook(hook)
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        return code
