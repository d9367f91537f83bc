"""What the user can put right: the command line shows these as one sentence and ends with exit code 2."""


class InputError(ValueError):
    """Input that cannot be used; the message says what was expected, what arrived and what to do."""


class MissingInputError(InputError, FileNotFoundError):
    """A folder, table or file that should be there and is not."""

    __str__ = ValueError.__str__  # OSError would print its arguments as an errno
