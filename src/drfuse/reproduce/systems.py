"""The systems that are compared: each a model with its published settings."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.models import FittedModel, FusionModel


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
        reads: `ehr` or `cxr` for a model of that modality alone; both for any other.
        first_stage: By modality, the shipped system of that one alone whose encoder it starts from.
        reference: Whether it is a baseline that stands in every table, although the paper has none.
        asked_for: Whether it is compared only if `--models` lists it.
    """

    name: str
    title: str
    model: Mapping[str, Any]
    lr: float | None = None
    paper: str | None = None
    ablation: str | None = None
    reads: Sequence[str] = ("ehr", "cxr")
    first_stage: Mapping[str, str] = field(default_factory=dict)
    reference: bool = False
    asked_for: bool = False

    @property
    def is_unimodal(self) -> bool:
        """Whether it reads one modality only."""
        return len(self.reads) == 1

    @property
    def is_fitted(self) -> bool:
        """Whether a solver fits it, so that it has no learning rate."""
        return issubclass(import_class(self.model["class_path"], FusionModel), FittedModel)

    @property
    def is_variant(self) -> bool:
        """Whether it is a variant of table 4, which changes one part of DrFuse."""
        return self.ablation is not None and self.paper is None

    def with_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return its model with the arguments that the model takes; others are left out.

        They replace its own, except for the argument that makes a variant a variant.
        """
        taken = inspect.signature(import_class(self.model["class_path"], FusionModel)).parameters
        own = dict(self.model.get("init_args") or {})
        given = {key: value for key, value in arguments.items() if key in taken}
        return {
            "class_path": self.model["class_path"],
            "init_args": given | own if self.is_variant else own | given,
        }


@cache
def paper_systems() -> Mapping[str, System]:
    """Return the shipped systems by name, in the order of the tables."""
    text = resources.files("drfuse.reproduce").joinpath("systems.yaml").read_text(encoding="utf-8")
    return {name: System(name, **fields) for name, fields in yaml.safe_load(text).items()}


def choose_systems(names: Sequence[str] | None) -> list[System]:
    """Return systems by name; the path of a YAML file adds one of the user's own.

    Such a file holds the fields of one system: `title` and `model`, which has `class_path` and `init_args`.
    The file's own name is the system's.

    Raises:
        InputError: If there is no such system, its file does not describe one, or two have the same name.
    """
    shipped = paper_systems()
    if names is None:
        return [system for system in shipped.values() if not system.asked_for]
    if not names:
        raise InputError(f"--models is empty; expected some of {', '.join(shipped)}")
    chosen = [shipped[name] if name in shipped else _read(name) for name in dict.fromkeys(names)]
    called = [name for system in chosen for name in {system.name, system.title}]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise InputError(f"two systems are called {twice[0]}; rename a YAML file, or the title in it")
    return chosen


def _read(name: str) -> System:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise InputError(
            f"there is no system {name!r}; expected some of {', '.join(paper_systems())}, or a YAML file"
        )
    if path.stem in paper_systems() or not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        raise InputError(
            f"{path} cannot be the name of a system; rename it to letters, digits, - and _ that no shipped "
            "system has"
        )
    try:
        system = System(path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))
        import_class(system.model["class_path"], FusionModel)
        names = [system.title, *(name for name in (system.paper, system.ablation) if name is not None)]
        if not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise TypeError("title, paper and ablation are text in one line")
        if not isinstance(system.model.get("init_args") or {}, dict):
            raise TypeError("init_args is not a mapping")
        if system.lr is not None and not 0 < float(system.lr) < math.inf:
            raise TypeError(f"lr is {system.lr}; expected a number above 0")
        if list(system.reads) not in (["ehr"], ["cxr"], ["ehr", "cxr"]):
            raise TypeError(f"reads is {system.reads}; expected [ehr], [cxr] or [ehr, cxr]")
        alone = {(one.reads[0], one.name) for one in paper_systems().values() if one.is_unimodal}
        if unknown := set(dict(system.first_stage).items()) - alone:
            raise TypeError(f"first_stage has {min(unknown)}, not a shipped system of that modality alone")
        return replace(system, lr=None if system.lr is None else float(system.lr))  # YAML reads 1e-4 as text
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} does not describe a system: {reason}; expected title, and model with class_path and "
            "init_args"
        ) from error
