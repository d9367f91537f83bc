"""Reads the YAML files that users write; the command line reads its values by the same rules."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader  # safe; unlike PyYAML's, 1e-4 is a number

from drfuse.errors import InputError, MissingInputError
from drfuse.escapes import without_values

_LOADER: Any = get_yaml_default_loader()  # type: ignore[no-untyped-call]


def _unique_keys(loader: Any, node: yaml.MappingNode) -> Any:
    """Construct a mapping, in which YAML itself takes the last of two equal keys."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if first := lines.get(at := (key.tag, str(key.value))):
            where = f"line {line}" if first == line else f"lines {first} and {line}"
            raise InputError(f"{key.value!r} is given twice, in {where}; delete one")
        lines[at] = line
    return loader.construct_yaml_map(node)


_LOADER.add_constructor("tag:yaml.org,2002:map", _unique_keys)


def _reason(error: Exception) -> str:
    """Return why a file is not YAML, without what it says: it may be a table."""
    if isinstance(error, UnicodeDecodeError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        said = ": ".join(one for one in (error.context, error.problem) if one)
        return without_values(f"{said}, in line {error.problem_mark.line + 1}")
    return without_values(" ".join(str(error).split()))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If it is not YAML, holds anything but a mapping, or has a key twice.
    """
    if not path.is_file():
        raise MissingInputError(f"there is no file {path}; check the path")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except InputError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    except (UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not valid YAML: {_reason(error)}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else "is not a mapping"
        raise InputError(f"{path} {found}; expected names with values, such as `epochs: 3`")
    return content
