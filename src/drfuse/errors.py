"""Errors that the user can fix: the command line shows them as one sentence and ends with exit code 2."""

import errno
import re
from collections.abc import Collection
from pathlib import Path

from drfuse.escapes import without_secrets, without_values

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ERRNO = re.compile(r"(?:os error|\[?errno) (\d+)", re.IGNORECASE)  # as libraries write it

_OF_PYTORCH = re.compile(r"^\[enforce fail at [^\]]*\] *\. *")


_QUOTING = re.compile(r"(_?duckdb|google|pandas|PIL|polars|psycopg|py4j|pyarrow|pyspark|yaml)\b")
"""Libraries that quote cells, rows or names of patients' files in their errors."""


class InputError(ValueError):
    """Invalid input; the message says what was expected, what arrived and what to do.

    It never holds a password.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_secrets(one) if isinstance(one, str) else one for one in arguments))


class MissingInputError(InputError, FileNotFoundError):
    """A folder, table or file is missing."""

    __str__ = ValueError.__str__  # OSError would print its arguments as an errno


class BusyError(InputError):
    """Another command is writing the same folder."""


class DamagedRunError(InputError):
    """An interrupted run cannot go on, but can be trained from the beginning."""


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or that a quota or a limit is reached.

    >>> is_full_disk(OSError(28, "No space left")), is_full_disk(ValueError("I/O error (os error 28)"))
    (True, True)
    """
    named = _ERRNO.search(str(error))
    number = int(named[1]) if named else None
    return (getattr(error, "errno", None) or number) in _NO_SPACE


def reason_of(error: BaseException) -> str:
    r"""Return what an error says, on one line, without secrets and what may be a cell of a table.

    Only the first line of a library of tables is taken, as rows may follow.

    >>> reason_of(ValueError("a plain\nreason"))
    'a plain reason'
    """
    text = str(error).strip()
    if isinstance(error, InputError) or not _QUOTING.match(type(error).__module__):
        return without_secrets(" ".join(text.split()))
    first = text.splitlines()[0].rstrip(".;") if text else type(error).__name__
    return without_secrets(without_values(first))


def without_data(error: BaseException) -> str:
    """Return `reason_of` an error, which from now on says no more than that, also in a traceback."""
    reason = reason_of(error)
    error.args = (reason,)
    return reason


def describe_os_error(error: BaseException) -> str:
    """Return in one sentence what the system refused, on which file, and what to do about a full disk.

    >>> describe_os_error(PermissionError(13, "Permission denied", "out"))
    'out: Permission denied'
    >>> describe_os_error(OSError(28, "No space left on device", "here", None, "there")).partition(";")[0]
    'no space is left on the disk to write there'
    """
    name = getattr(error, "filename", None)
    if is_full_disk(error):
        name = getattr(error, "filename2", None) or name  # where it was to be copied to
        where = f" to write {name}" if name else ""
        return f"no space is left on the disk{where}; free some, and run the same command again to go on"
    said = getattr(error, "strerror", None) or str(error)
    return f"{name}: {said}" if name and not isinstance(error, InputError) else str(said)


def unwritable(path: Path, error: BaseException) -> OSError:
    """Return the error of a file that a library could not write."""
    if is_full_disk(error):
        return OSError(errno.ENOSPC, "No space left on device", str(path))
    reason = _OF_PYTORCH.sub("", str(error).strip()).split("\n", 1)[0]
    return OSError(
        f"{path} cannot be written ({reason}); if the disk is full, free some space, and run the same "
        "command again to go on"
    )


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise InputError if a value is not one of the choices."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
