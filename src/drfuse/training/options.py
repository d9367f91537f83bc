"""The options of a training, described once for `train`, `tune`, `reproduce` and `demo`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from drfuse.arguments import as_annotated
from drfuse.choices import Augmentation, TaskName
from drfuse.errors import InputError
from drfuse.subsets import Subset

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Schedule = Literal["constant", "cosine"]

Role = Literal["decides", "starts", "computes"]
"""What an option does. `decides`: a different value makes a different run. `starts`: the same, but it may
change when an interrupted run resumes, because the checkpoint has the weights. `computes`: it only says where
and how the run computes."""

_STARTS: Mapping[str, Role] = {"role": "starts"}
_COMPUTES: Mapping[str, Role] = {"role": "computes"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a model is trained; the model's own options are the arguments of its class.

    Raises:
        InputError: If a value has another type, or is out of range.
    """

    train_on: Subset = "full"
    """Train on all stays (`full`), or on those with a radiograph (`matched`)."""

    validate_on: Subset | None = None
    """Choose the epoch by all stays of the validation split (`full`) or by those with a radiograph
    (`matched`); by default as the training set. Published code always validates on `full`."""

    epochs: int = 100
    """Train for at most this many epochs."""

    patience: int = 10
    """Stop after this many epochs without a better macro PRAUC on the validation split."""

    lr: float = 1e-4
    """Learning rate."""

    batch_size: int = 16
    """The most stays per batch, over all devices together. Batches differ by at most one stay."""

    matched_cxr_dropout: float = 0.3
    """The share of radiographs dropped from each training batch of the set `matched`. A model that reads only
    radiographs keeps them all."""

    crop_size: int = 224
    """Side of the centre crop of the radiographs, in pixels."""

    augment: Augmentation = True
    """Change training radiographs at random: flip, rotate, scale and shift them (`true`, as published), only
    shift them by up to a sixteenth of the side (`shifts`), or leave them as they are (`false`)."""

    seed: int = 0
    """Seed of the weights, the order of the batches, and everything random in training."""

    precision: Precision = "32-true"
    """Numeric precision. `bf16-mixed` is faster where the hardware has bfloat16, `16-mixed` needs a GPU;
    `32-true` gives the same bits every time on a CPU."""

    accelerator: str = field(default="auto", metadata=_COMPUTES)
    """`cpu`, `gpu`, or `auto` for the fastest available."""

    num_workers: int = field(default=0, metadata=_COMPUTES)
    """Processes that make batches; 0 makes them in this one."""

    task: TaskName = "phenotyping"
    """Predict the phenotypes, death in hospital, or the length of the ICU stay in seven classes."""

    init_ehr: Path | None = field(default=None, metadata=_STARTS)
    """Start the EHR encoder from the weights of this run, of a model that reads only the EHR."""

    init_cxr: Path | None = field(default=None, metadata=_STARTS)
    """Start the CXR encoder from the weights of this run, of a model that reads only radiographs."""

    accumulate: int = 1
    """Add up the gradients of this many batches for each optimizer step: the step of a larger batch in the
    memory of a smaller one. BatchNorm still sees one batch at a time."""

    weight_decay: float = 0.0
    """With Adam, each step shrinks every weight by `lr` times this share of it (AdamW); another optimizer
    gets it as its own `weight_decay`. The paper uses none."""

    optimizer: str = "torch.optim.Adam"
    """Class of the optimizer, by import path. It gets `lr` and `weight_decay`."""

    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's other arguments, such as `{momentum: 0.9}` for torch.optim.SGD."""

    schedule: Schedule = "constant"
    """Keep the learning rate (`constant`, as published), or let it rise over the first tenth of `epochs` and
    then fall to 0 at the last (`cosine`). `patience` may stop training earlier."""

    cxr_share: float = 1.0
    """Share of each training batch's radiographs to use. Less than 1 is faster; the stays whose radiograph
    is left out count as stays without one."""

    freeze_cxr: bool = False
    """Train everything except the CXR backbones, which should then be pretrained. Their output for each
    radiograph, unaugmented, is computed once and kept in the device's memory."""

    compile: bool = False
    """Compile the encoders with torch.compile. This takes minutes at the start and, on a CPU, a C++ compiler
    for little gain. Dropout then draws different numbers."""

    checkpoint_activations: bool = field(default=False, metadata=_COMPUTES)
    """Recompute activations in the backward pass instead of storing them: less memory, more time, the same
    results. Does not work with `compile`."""

    devices: int | None = field(default=None, metadata=_COMPUTES)
    """Train on this many devices of this machine (processes, with `cpu`), each with a part of every batch.
    The default is 1 or, under torchrun or srun, the number of processes that it started here."""

    nodes: int | None = field(default=None, metadata=_COMPUTES)
    """Train on this many machines, which all need to see the cohort and `out`. Start one process per device
    with torchrun or srun, which also sets the default."""

    def __post_init__(self) -> None:
        """Check the types and ranges of the options."""
        for one in fields(self):
            value = as_annotated(one.name, getattr(self, one.name), one.type)
            object.__setattr__(self, one.name, value)
        for name, least, most in (
            ("epochs", 1, math.inf),
            ("patience", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("accumulate", 1, math.inf),
            ("crop_size", 1, math.inf),
            ("num_workers", 0, math.inf),
            ("devices", 1, math.inf),
            ("nodes", 1, math.inf),
            ("seed", 0, 2**32 - 1),
            ("matched_cxr_dropout", 0, 1),
            ("cxr_share", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                upper = "" if most == math.inf else f" and at most {most}"
                raise InputError(f"{name} is {value}; expected at least {least}{upper}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr}; expected a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay}; expected a number of at least 0")
        if (n_devices := (self.devices or 1) * (self.nodes or 1)) > self.batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}, the stays of all {n_devices} devices together; choose at "
                f"least {n_devices}"
            )
        if self.compile and self.checkpoint_activations:
            raise InputError("--compile does not work with --checkpoint-activations; choose one of them")

    @classmethod
    def names(cls, *roles: Role) -> list[str]:
        """Return the names of the options with one of the roles; without roles, of all options."""
        return [one.name for one in fields(cls) if not roles or one.metadata.get("role", "decides") in roles]

    def changed(self, **changes: Any) -> Self:
        """Return the options with some of them changed.

        Raises:
            InputError: If a change is not an option, or its value is out of range.
        """
        if unknown := sorted(changes.keys() - set(self.names())):
            raise InputError(
                f"{unknown[0]!r} is not an option of a training; expected one of {', '.join(self.names())}"
            )
        return replace(self, **changes)

    @property
    def validated_on(self) -> Subset:
        """Which stays of the validation split choose the epoch; never None."""
        return self.validate_on or self.train_on

    def written(self) -> dict[str, Any]:
        """Return the options for `config.yaml`: numbers, text, lists and mappings.

        Paths are absolute, and `validate_on` has its actual value instead of None.
        """
        text = {
            name: None if path is None else str(path.resolve())
            for name, path in (("init_ehr", self.init_ehr), ("init_cxr", self.init_cxr))
        }
        return asdict(self) | text | {"validate_on": self.validated_on}

    def deciding(self) -> dict[str, Any]:
        """Return the options that identify a run and differ from the defaults.

        Leaving out defaults keeps older runs valid when a later version adds an option.
        """
        defaults = type(self)()
        given = {name: getattr(self, name) for name in self.names("decides", "starts")}
        if self.validated_on == self.train_on:
            given["validate_on"] = None
        return {name: value for name, value in given.items() if value != getattr(defaults, name)}


DEFAULTS = TrainOptions()
"""The paper's options."""


class Without:
    """Annotates a `TrainOptions` parameter with the names of options that the command sets itself."""

    def __init__(self, *names: str) -> None:
        self.names = names


def refuse_decided(options: TrainOptions, decided: Sequence[str], command: str) -> None:
    """Raise InputError if an option that a command sets itself differs from its default."""
    if given := [name for name in decided if getattr(options, name) != getattr(DEFAULTS, name)]:
        raise InputError(f"{command} sets {given[0]} for each run; leave it out")
