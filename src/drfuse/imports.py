"""Classes that users choose by import path: models and optimizers."""

import sysconfig
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from drfuse.errors import InputError


def import_class(path: str, base: type) -> Any:
    """Return the class at an import path, such as `drfuse.models.DrFuse`.

    Raises:
        InputError: If it cannot be imported, or is not a subclass of `base`.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, or end the program
        raise InputError(f"{path} cannot be imported ({describe_error(error)})") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InputError(f"{path} is not a subclass of {base.__name__}")
    return kind


def imported_classes(base: type[Any]) -> dict[str, type]:
    """Return by import path the subclasses of a class that this program has imported so far."""
    found: dict[str, type] = {}
    for kind in base.__subclasses__():
        found |= {import_path(kind): kind} | imported_classes(kind)
    return found


def describe_error(error: BaseException) -> str:
    """Return what an error says, its class and, if a user's own file raised it, the line."""
    ours = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parent), "<")
    frames = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return " ".join(f"{type(error).__name__}{where}: {error}".split())


def import_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
