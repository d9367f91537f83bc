"""Checks options and arguments that come from Python against their annotations."""

import inspect
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

from drfuse.errors import InputError, check_choice

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (bool | np.bool_, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    Path: (str | PathLike, "a path"),
}
"""By annotation, the types that are accepted for it and converted to it, and its name in messages."""

_PLAIN = bool | int | float | str | Path | Sequence[Any] | Mapping[str, Any] | None
"""The values that an `Any` annotation accepts: those that YAML can store."""


def check_arguments(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return the function with its arguments checked against their annotations by `as_annotated`."""
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is not parameter.VAR_KEYWORD:
                given.arguments[name] = as_annotated(name, value, parameter.annotation)
        return function(*given.args, **given.kwargs)

    return checked


def as_annotated(name: str, value: Any, kind: Any) -> Any:
    """Return a value of the annotated type.

    NumPy's numbers become Python's, text becomes a path where one is expected, and every mapping a dict.

    Args:
        name: The value's name in messages.
        value: The value.
        kind: Its annotation.

    Raises:
        InputError: If it has another type.

    >>> as_annotated("epochs", np.int64(3), int), as_annotated("lr", 1, float)
    (3, 1)
    >>> as_annotated("epochs", "3", int)
    Traceback (most recent call last):
    drfuse.errors.InputError: epochs is the text '3'; expected a whole number
    """
    origin, parts = _origin(kind), get_args(kind)
    if kind is Any or origin is Annotated:
        return as_annotated(name, value, _PLAIN if kind is Any else parts[0])
    if origin is Union:
        return _of_union(name, value, kind)
    if origin is Literal:
        check_choice(name, value, parts)
        return parts[parts.index(value)]
    accepted = _SCALARS[origin][0] if origin in _SCALARS else origin
    is_bool, is_text = isinstance(value, bool | np.bool_), isinstance(value, str | bytes)
    if not isinstance(value, accepted) or is_bool != (origin is bool) or (is_text and origin is Sequence):
        raise InputError(f"{name} is {_shown(value)}; expected {_expected(kind)}")
    if origin is Mapping:
        of_key, of_item = parts
        return {
            as_annotated(f"a key of {name}", key, of_key): as_annotated(f"{name}[{key!r}]", item, of_item)
            for key, item in value.items()
        }
    if origin is Sequence:
        items = [as_annotated(f"{name}[{at}]", item, parts[0]) for at, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return origin(value) if origin in _SCALARS and type(value) not in (bool, int, float) else value


def _of_union(name: str, value: Any, kind: Any) -> Any:
    """Return a value of the first type in a union that takes it."""
    if value is None and NoneType in get_args(kind):
        return None
    errors = []
    for part in (part for part in get_args(kind) if part is not NoneType):
        try:
            return as_annotated(name, value, part)
        except InputError as error:
            errors.append(error)
    of_an_item = [error for error in errors if not str(error).startswith(f"{name} is ")]
    if of_an_item or len(errors) == 1:
        raise (of_an_item or errors)[0]
    raise InputError(f"{name} is {_shown(value)}; expected {_expected(kind)}")


def _origin(kind: Any) -> Any:
    origin = get_origin(kind) or kind
    return {UnionType: Union, dict: Mapping}.get(origin, origin)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    known = isinstance(value, bool | int | float | list | tuple | dict | None)
    return repr(value) if known else f"of type {type(value).__name__}"


def _expected(kind: Any) -> str:
    origin, parts = _origin(kind), get_args(kind)
    if kind == _PLAIN:
        return "a number, text, true, false, or a list or mapping of these"
    if origin is Union:
        return " or ".join(_expected(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Sequence:
        return f"a list with {_expected(parts[0])} for each item"
    names = {Mapping: "a mapping", abc.Callable: "a class or a function"}
    return _SCALARS[origin][1] if origin in _SCALARS else names.get(origin, f"a {origin.__name__}")
