"""Classes that users choose by import path: models and optimizers."""

from importlib import import_module
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
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"{path} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InputError(f"{path} is not a subclass of {base.__name__}")
    return kind


def import_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
