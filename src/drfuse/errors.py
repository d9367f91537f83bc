"""Errors that the user can fix: the command line shows them as one sentence and ends with exit code 2."""

from collections.abc import Collection


class InputError(ValueError):
    """Invalid input; the message says what was expected, what arrived and what to do."""


class MissingInputError(InputError, FileNotFoundError):
    """A folder, table or file is missing."""

    __str__ = ValueError.__str__  # OSError would print its arguments as an errno


class BusyError(InputError):
    """Another command is writing the same folder."""


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise InputError if a value is not one of the choices."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
