"""The systems that are compared: a model each, with what was published of its settings."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from drfuse.errors import InputError
from drfuse.training.matrix import class_of


@dataclass(frozen=True, eq=False)
class System:
    """A model under the name that tables give it.

    Attributes:
        name: Short, for folders and options.
        title: For people.
        model: `class_path` and `init_args`.
        lr: The published learning rate, or None for the one of `drfuse train`.
        paper: Its name in the paper's tables 2 and 3, or None.
        ablation: Its name in the paper's table 4, or None.
        reads: The modalities that it cannot do without, if it is a model of one alone.
    """

    name: str
    title: str
    model: Mapping[str, Any]
    lr: float | None = None
    paper: str | None = None
    ablation: str | None = None
    reads: Sequence[str] = field(default=("ehr", "cxr"))

    @property
    def is_unimodal(self) -> bool:
        """Whether it reads one modality only."""
        return len(self.reads) == 1

    @property
    def is_variant(self) -> bool:
        """Whether it is one of table 4's, which change one thing about DrFuse."""
        return self.ablation is not None and self.paper is None

    def with_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return its model with those of the arguments that the model takes."""
        taken = inspect.signature(class_of(self.model)).parameters
        own = dict(self.model.get("init_args") or {})
        return {
            "class_path": self.model["class_path"],
            "init_args": {**own, **{key: value for key, value in arguments.items() if key in taken}},
        }


@cache
def paper_systems() -> Mapping[str, System]:
    """Return the shipped systems by name, in the order of the tables."""
    text = resources.files("drfuse.reproduce").joinpath("systems.yaml").read_text(encoding="utf-8")
    return {name: System(name, **fields) for name, fields in yaml.safe_load(text).items()}


def choose_systems(names: Sequence[str] | None) -> list[System]:
    """Return systems by name; a path of a YAML file names one of the user's own.

    Such a file holds the fields of one system: `title` and `model`, which has `class_path` and `init_args`.

    Raises:
        InputError: If there is no such system, or its file does not describe one.
    """
    shipped = paper_systems()
    if names is None:
        return list(shipped.values())
    if not names:
        raise InputError(f"--models names no system; expected some of {', '.join(shipped)}")
    chosen = {name: shipped[name] if name in shipped else _read(name) for name in names}
    return list(chosen.values())


def _read(name: str) -> System:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise InputError(
            f"there is no system {name!r}; expected some of {', '.join(paper_systems())}, or a YAML file"
        )
    try:
        system = System(path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))
        class_of(system.model)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} describes no system: {error}; expected title, and model with class_path and init_args"
        ) from error
    return system
