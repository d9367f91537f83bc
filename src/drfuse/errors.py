"""What the user can put right: the command line shows these as one sentence and ends with exit code 2."""

from collections.abc import Collection


class InputError(ValueError):
    """Input that cannot be used; the message says what was expected, what arrived and what to do."""


class MissingInputError(InputError, FileNotFoundError):
    """A folder, table or file that should be there and is not."""

    __str__ = ValueError.__str__  # OSError would print its arguments as an errno


class BusyError(InputError):
    """Another command is writing what this one was to write."""


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        InputError: If `value` is none of `choices`.
    """
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
