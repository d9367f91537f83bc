"""The systems under comparison: models with their published settings."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from drfuse.arguments import as_annotated
from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.models import FittedModel, FusionModel
from drfuse.yaml_files import read_yaml


@dataclass(frozen=True, eq=False)
class System:
    """A model and how tables show it.

    Attributes:
        name: Short name, for folders and options.
        title: Name in tables.
        model: `class_path` and `init_args`.
        lr: The published learning rate; None for the default of `drfuse train`.
        paper: Its name in the paper's tables 2 and 3; None if it is not in them.
        ablation: Its name in the paper's table 4; None if it is not in it.
        reads: The modalities that it reads: `ehr`, `cxr` or both.
        first_stage: By modality, the shipped unimodal system whose trained encoder it starts from.
        reference: Whether it is a baseline in every table although the paper has no such row.
        asked_for: Whether it takes part only if `--models` lists it.
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
        """Whether it reads only one modality."""
        return len(self.reads) == 1

    @property
    def is_fitted(self) -> bool:
        """Whether a solver fits it; it then has no learning rate."""
        return issubclass(import_class(self.model["class_path"], FusionModel), FittedModel)

    @property
    def is_variant(self) -> bool:
        """Whether it is a variant of table 4, which changes one part of DrFuse."""
        return self.ablation is not None and self.paper is None

    def with_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `model` with those of the arguments that its class takes.

        They override its own `init_args`, except those of a variant, which make it one.
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
    with resources.as_file(resources.files("drfuse.reproduce") / "systems.yaml") as path:
        return {name: System(name, **values) for name, values in read_yaml(path).items()}


def choose_systems(names: Sequence[str] | None) -> list[System]:
    """Return systems by name or from YAML files; None stands for all that need not be asked for.

    A YAML file holds the fields of one `System`, at least `title` and `model`; the file's stem is its name.

    Raises:
        InputError: If a name is unknown, a file does not describe a system, or two have the same name.
    """
    shipped = paper_systems()
    if names is None:
        return [system for system in shipped.values() if not system.asked_for]
    if not names:
        raise InputError(f"--models is empty; expected some of {', '.join(shipped)}")
    chosen = [shipped[name] if name in shipped else _read(name) for name in dict.fromkeys(names)]
    called = [name for system in chosen for name in {system.name, system.title}]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise InputError(f"two systems are called {twice[0]}; rename a YAML file or change its title")
    return chosen


def _read(name: str) -> System:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise InputError(
            f"there is no system {name!r}; expected some of {', '.join(paper_systems())}, or a YAML file"
        )
    if path.stem in paper_systems() or not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        raise InputError(
            f"{path} cannot be the name of a system; rename it: use only letters, digits, - and _, and no "
            "shipped system's name"
        )
    try:
        system = System(path.stem, **read_yaml(path))
        for one in fields(System):
            as_annotated(one.name, getattr(system, one.name), one.type)
        import_class(system.model["class_path"], FusionModel)
        names = [system.title, *(name for name in (system.paper, system.ablation) if name is not None)]
        if not all(name and name.isprintable() for name in names):
            raise TypeError("title, paper and ablation must each be one line of text")
        if not isinstance(system.model.get("init_args") or {}, dict):
            raise TypeError("init_args is not a mapping")
        if system.lr is not None and not 0 < system.lr < math.inf:
            raise TypeError(f"lr is {system.lr}; expected a number above 0")
        if list(system.reads) not in (["ehr"], ["cxr"], ["ehr", "cxr"]):
            raise TypeError(f"reads is {system.reads}; expected [ehr], [cxr] or [ehr, cxr]")
        alone = {(one.reads[0], one.name) for one in paper_systems().values() if one.is_unimodal}
        if unknown := set(system.first_stage.items()) - alone:
            raise TypeError(f"first_stage has {min(unknown)}, which is not a shipped unimodal system")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} does not describe a system: {reason}; expected title, and model with class_path and "
            "init_args"
        ) from error
    return system
