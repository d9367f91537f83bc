"""Every option of a training, described once: `train`, `tune`, `reproduce` and `demo` take them whole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from drfuse.data import Augmentation, Subset, TaskName
from drfuse.errors import InputError, check_choice

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Schedule = Literal["constant", "cosine"]

Role = Literal["decides", "starts", "computes"]
"""What an option is for. One that `decides` says which run this is: another value makes another run. One that
`starts` says where the weights come from; it decides, too, but an interrupted run goes on with another value,
because its checkpoint has the weights. One that `computes` says where and how a run is computed."""

_STARTS: Mapping[str, Role] = {"role": "starts"}
_COMPUTES: Mapping[str, Role] = {"role": "computes"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a model is trained; what the model is made of are arguments of its class.

    Raises:
        InputError: If a value is out of range.
    """

    train_on: Subset = "full"
    """Train on all stays (`full`), or on those with a radiograph (`matched`)."""

    validate_on: Subset | None = None
    """Stays of the validation split by which the epoch is chosen: `full` or `matched`, by default the same as
    `train_on`. Published code validates on `full`, whatever it trains on."""

    epochs: int = 100
    """The most epochs to train."""

    patience: int = 10
    """Stop after this many epochs without a better macro PRAUC on the validation split."""

    lr: float = 1e-4
    """Learning rate."""

    batch_size: int = 16
    """The most stays a batch, those of all devices together. Batches differ by one stay at most."""

    matched_cxr_dropout: float = 0.3
    """With `matched`, the share of radiographs taken away from each training batch. A model that reads
    radiographs alone keeps them all."""

    crop_size: int = 224
    """Side of the centre crop of the radiographs, in pixels."""

    augment: Augmentation = True
    """Change training radiographs at random: flip, rotate, scale and shift them (`true`, as published), only
    shift them by up to a sixteenth of the side (`shifts`), or leave them (`false`)."""

    seed: int = 0
    """Seed of the weights, the order of the batches, and everything random in training."""

    precision: Precision = "32-true"
    """Numbers to compute with. `bf16-mixed` is faster where the processor has bfloat16; `32-true` repeats bit
    by bit on a CPU."""

    accelerator: str = field(default="auto", metadata=_COMPUTES)
    """`cpu`, `gpu`, or `auto` for the fastest there is."""

    num_workers: int = field(default=0, metadata=_COMPUTES)
    """Processes that make batches; 0 makes them in this one."""

    task: TaskName = "phenotyping"
    """Predict the phenotypes, death in hospital, or the length of the ICU stay in seven classes."""

    init_ehr: Path | None = field(default=None, metadata=_STARTS)
    """Run of a model of the EHR alone, whose encoder's weights this one's EHR encoder starts from."""

    init_cxr: Path | None = field(default=None, metadata=_STARTS)
    """Run of a model of the radiograph alone, likewise."""

    accumulate: int = 1
    """Batches whose gradients are added up for one step of the optimizer: the step of a batch that many times
    as large, in the memory of one. BatchNorm still sees one at a time."""

    weight_decay: float = 0.0
    """Share of itself, times `lr`, that every weight loses at each step of Adam (AdamW). The paper's Adam has
    none."""

    optimizer: str = "torch.optim.Adam"
    """Class of the optimizer, by its import path. It gets `lr` and `weight_decay`."""

    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    """Its other arguments, such as `{momentum: 0.9}` of torch.optim.SGD."""

    schedule: Schedule = "constant"
    """Keep the learning rate (`constant`, as published), or let it rise over the first tenth of `epochs` and
    then fall to 0 at their end (`cosine`). `patience` may stop a training before."""

    cxr_share: float = 1.0
    """Share of each training batch's radiographs that is used at all. Less than 1 is faster; the other stays
    of the batch count as stays without a radiograph."""

    freeze_cxr: bool = False
    """Train everything but the radiographs' backbones, which should then be pretrained. What they give of
    each radiograph, unaugmented, is computed once, held in the device's memory, and used in every epoch."""

    compile: bool = False
    """Compile the encoders with torch.compile. It takes minutes at the start, and a C++ compiler on a CPU,
    where it gains little. Dropout then draws other numbers."""

    checkpoint_activations: bool = field(default=False, metadata=_COMPUTES)
    """Keep less of each forward pass, and compute it again for the gradients: less memory, more time, the
    same results. Does not go with `compile`."""

    devices: int | None = field(default=None, metadata=_COMPUTES)
    """Train on this many devices of this machine (with `cpu`, processes), each with a part of every batch. By
    default one or, under torchrun or srun, those that it started a process for."""

    nodes: int | None = field(default=None, metadata=_COMPUTES)
    """Train on this many machines, which all see the cohort and `out`; torchrun or srun has started a process
    for each of their devices, and says by default how many there are."""

    def __post_init__(self) -> None:
        """Check the ranges of the options."""
        for name, choices in (
            ("train_on", get_args(Subset)),
            ("validate_on", (None, *get_args(Subset))),
            ("augment", (True, False, "shifts")),
            ("precision", get_args(Precision)),
            ("schedule", get_args(Schedule)),
            ("task", get_args(TaskName)),
        ):
            check_choice(name, getattr(self, name), choices)
        for name, least, most in (
            ("epochs", 1, math.inf),
            ("patience", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("accumulate", 1, math.inf),
            ("crop_size", 1, math.inf),
            ("num_workers", 0, math.inf),
            ("seed", 0, 2**32 - 1),
            ("matched_cxr_dropout", 0, 1),
            ("cxr_share", 0, 1),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= most:
                upper = "" if most == math.inf else f" and at most {most}"
                raise InputError(f"{name} is {value}; expected at least {least}{upper}")
        if not _is_number(self.lr) or not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr}; expected a number above 0")
        if not _is_number(self.weight_decay) or not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay}; expected a number of at least 0")
        if not isinstance(self.optimizer_args, Mapping):
            raise InputError(
                f"optimizer_args is {self.optimizer_args!r}; expected a mapping of names to values"
            )
        if self.compile and self.checkpoint_activations:
            raise InputError("--compile does not go with --checkpoint-activations; choose one of them")

    @classmethod
    def names(cls, *roles: Role) -> list[str]:
        """Return the names of the options with one of some roles, or of all options."""
        return [one.name for one in fields(cls) if not roles or one.metadata.get("role", "decides") in roles]

    def changed(self, **changes: Any) -> Self:
        """Return the options with some of them changed.

        Raises:
            InputError: If one of them is not an option, or is out of range.
        """
        if unknown := sorted(changes.keys() - set(self.names())):
            raise InputError(
                f"{unknown[0]!r} is not an option of a training; expected one of {', '.join(self.names())}"
            )
        return replace(self, **changes)

    @property
    def validated_on(self) -> Subset:
        """The stays of the validation split by which the epoch is chosen."""
        return self.validate_on or self.train_on

    def written(self) -> dict[str, Any]:
        """Return the options as `config.yaml` has them: nothing but numbers, text, lists and mappings.

        Paths are absolute, and `validate_on` says what it is by default.
        """
        text = {
            name: None if path is None else str(Path(path).resolve())
            for name, path in (("init_ehr", self.init_ehr), ("init_cxr", self.init_cxr))
        }
        return asdict(self) | text | {"validate_on": self.validated_on}

    def deciding(self) -> dict[str, Any]:
        """Return the options that tell a run from others, where they are not the defaults.

        So an option that a later version adds changes no run that was trained without it.
        """
        defaults = type(self)()
        names = self.names("decides", "starts")
        given = {name: getattr(self, name) for name in names}
        if self.validated_on == self.train_on:
            given["validate_on"] = None
        return {name: value for name, value in given.items() if value != getattr(defaults, name)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULTS = TrainOptions()
"""The options of the paper."""


class Without:
    """Says which options a command decides itself, beside `TrainOptions` in its signature.

    Args:
        names: Of the options.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


def refuse_decided(options: TrainOptions, decided: Sequence[str], command: str) -> None:
    """Check that nobody set the options that a command decides itself.

    Raises:
        InputError: If one of them is not its default.
    """
    if given := [name for name in decided if getattr(options, name) != getattr(DEFAULTS, name)]:
        raise InputError(f"{command} decides {given[0]} for each run; leave it out")
