"""How a command ends when it cannot go on: a sentence on the terminal and an exit code."""

import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console

from drfuse.errors import InputError, describe_os_error, is_full_disk, reason_of
from drfuse.escapes import on_one_line, printable, without_secrets, without_values
from drfuse.imports import describe_error

DEBUG = "--debug"
"""The option that shows where an error was raised."""

_NOT_THE_USERS = (
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
    "<",
)


@contextmanager
def explained_failures(program: str, console: Console, debug: bool = False) -> Iterator[None]:
    """Turn what a user can cause into a sentence, SIGTERM into an interruption, and both into an exit.

    What a user's own code raised is shown with its traceback. An error that only a bug of drfuse can cause
    is raised.

    Args:
        program: How the user started the command.
        console: Where it says why it ends.
        debug: Whether to show the traceback of any error.

    Raises:
        SystemExit: With exit code 2 after an error, 130 after SIGINT and 143 after SIGTERM.
    """
    with _interrupting_sigterm() as received, _silent_threads_on_a_full_disk():
        try:
            yield
        except KeyboardInterrupt:
            word, code = ("terminated", 143) if received else ("interrupted", 130)
            console.print(f"{program}: {word}; run the same command again to continue or to start over")
            raise SystemExit(code) from None
        except Exception as error:
            sentence, own = _sentence(error), traceback_of_user(error)
            if sentence is None and not own:
                sys.excepthook = _show_bug
                raise
            said = sentence or f"code of your own raised {describe_error(error)}"
            message = on_one_line(without_secrets(f"{program}: error: {said}"))
            console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            if shown := traceback_of(error) if debug else own:
                console.print(shown, markup=False, highlight=False, soft_wrap=True)
            raise SystemExit(2) from None


@contextmanager
def _silent_threads_on_a_full_disk() -> Iterator[None]:
    """Show no traceback of a thread that a full disk ended, such as TensorBoard's: the command says why."""
    before = threading.excepthook

    def show(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or not is_full_disk(arguments.exc_value):
            before(arguments)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


def _sentence(error: Exception) -> str | None:
    """Return what the user is told of an error; None if it is not of input, the system or memory."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) or is_full_disk(error):
        return describe_os_error(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        reason = str(error).split(". ", 1)[0] or "no reason given"
        return f"memory ran out ({reason}); choose smaller batches or sizes, or a machine with more memory"
    return None


def _show_bug(_kind: type[BaseException], error: BaseException, _frames: TracebackType | None) -> None:
    """Show an error that ends Python, in place of Python itself."""
    sys.stderr.write(printable(f"{traceback_of(error)}\n"))


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the first cause first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return chain[::-1]


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error and its causes, without secrets, cells of tables and images' names.

    Messages lose what they may quote of data, unless drfuse wrote them or they are about code.
    """
    parts = []
    for one in _chain(error):
        quotes = isinstance(one, ValueError | LookupError) and not isinstance(one, InputError)
        reason = without_values(reason_of(one)) if quotes else reason_of(one)
        frames = "".join(traceback.format_tb(one.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{type(one).__name__}: {reason}")
    return "\n\nThis led to:\n\n".join(parts)


def traceback_of_user(error: BaseException) -> str:
    """Return the frames of an error's causes that are in files of the user's; may be empty.

    An InputError says in its sentence what is wrong, so that only what caused it counts.
    """
    for cause in (one for one in _chain(error) if not isinstance(one, InputError)):
        frames = traceback.extract_tb(cause.__traceback__)
        own = [frame for frame in frames if _is_of_user(frame.filename)]
        is_syntax = isinstance(cause, SyntaxError) and _is_of_user(str(cause.filename))
        if own or is_syntax:
            last = f"{type(cause).__name__}: {reason_of(cause)}"
            said = traceback.format_exception_only(cause) if is_syntax else [last]
            lines = [*traceback.format_list(own), *said]
            return "Traceback of your own code:\n" + "".join(lines).rstrip()
    return ""


def _is_of_user(file: str) -> bool:
    """Return whether a file of a traceback is the user's; compiled libraries give theirs a relative path.

    >>> _is_of_user("/home/me/model.py"), _is_of_user("pyarrow/_parquet.pyx"), _is_of_user(traceback.__file__)
    (True, False, False)
    """
    return Path(file).is_absolute() and not file.startswith(_NOT_THE_USERS)


@contextmanager
def _interrupting_sigterm() -> Iterator[list[int]]:
    """Have SIGTERM raise KeyboardInterrupt, and yield a list that then holds its number.

    A second one is ignored, so that what the first one began to clean up is cleaned up.
    """
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one can handle signals
        yield received
        return
    before: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def split_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, and whether it was among them.

    >>> split_debug(["cohort", "--debug"])
    (['cohort'], True)
    """
    return [one for one in arguments if one != DEBUG], DEBUG in arguments
