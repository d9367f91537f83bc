"""The contract of every model: a batch in, logits and named losses out."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

import torch
from torch import Tensor, nn

from drfuse.data.batch import Batch, Modality
from drfuse.errors import InputError, check_choice
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.hub import HubModel
from drfuse.models.losses import at_least_float32

MODALITIES = ("ehr_distinct", "shared", "cxr_distinct")
"""The last axis of `FusionOutput.modality_weights`."""


@dataclass(frozen=True)
class FusionOutput:
    """What a model returns for B stays and C labels; half precision is converted to float32.

    Attributes:
        logits: (B, C).
        modality_weights: (B, C, 3), summing to 1 over `MODALITIES`; the last is exactly 0 for a stay without
            a radiograph. None if the model has no such weights.
        representations: By name, (B, D) for stays or (M, D) for radiographs.
    """

    logits: Tensor
    modality_weights: Tensor | None = None
    representations: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert half precision to float32."""
        converted = {name: at_least_float32(tensor) for name, tensor in self.representations.items()}
        object.__setattr__(self, "logits", at_least_float32(self.logits))
        object.__setattr__(self, "representations", converted)
        if self.modality_weights is not None:
            object.__setattr__(self, "modality_weights", at_least_float32(self.modality_weights))


@dataclass(frozen=True)
class SharedEncoders:
    """The shared encoders in a model, for the options that act on them.

    `--init-ehr` and `--init-cxr` copy weights from a trained single-modality model; each model must have
    exactly one encoder of that modality. `--freeze-cxr` freezes the backbones of all `cxr` encoders.

    Attributes:
        ehr: EHR encoders.
        cxr: CXR encoders; empty if anything else in the model reads radiographs.
    """

    ehr: Sequence[nn.Module] = ()
    cxr: Sequence[CxrEncoder] = ()


class FusionModel(HubModel, ABC):
    """A model of EHR time series and the radiographs that exist.

    A subclass takes F, the number of features per hour, and C, the number of labels, as its first two
    arguments, and defines `forward` and `loss`. It may also set `reads`, return its `shared_encoders` and
    take their sizes as arguments (`takes_sizes_of`).

    In evaluation mode a stay's output must not depend on the other stays of its batch. Use `Head` for logits,
    which stays in float32 under autocast, and `Lstm`, which runs on every device (`drfuse.models.precision`).

    `from_pretrained`, `save_pretrained` and `push_to_hub` are those of the Hugging Face hub (see `HubModel`).

    Attributes:
        reads: The modalities that the model reads. Without "cxr", its training loads no radiographs; without
            "ehr", matched training never drops them. Not inherited; each subclass sets its own.
    """

    reads: ClassVar[Sequence[Modality]] = ("ehr", "cxr")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reset `reads` to both modalities unless the subclass sets it."""
        super().__init_subclass__(**kwargs)
        cls.reads = cls.__dict__.get("reads", FusionModel.reads)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the constructor's arguments.

        Raises:
            InputError: If one is not among the choices of its `Literal`, or is not a finite number.
        """
        model = object.__new__(cls)  # the hub's mixin would record the arguments a second time
        if args or kwargs:  # there are none when a model is copied
            signature = inspect.signature(cls)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            model.init_args = dict(bound.arguments)
            for name, value in model.init_args.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise InputError(f"{name} is {value}; expected a finite number")
                if get_origin(kind := signature.parameters[name].annotation) is Literal:
                    check_choice(name, value, get_args(kind))
        return model

    @abstractmethod
    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and, optionally, modality weights and representations."""

    @abstractmethod
    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return scalars: `total`, which training minimises, and its named parts."""

    def shared_encoders(self) -> SharedEncoders:
        """Return the drfuse encoders in the model; none unless a subclass overrides this."""
        return SharedEncoders()

    def logits_without_ehr(self, batch: Batch, mean_hour: Tensor) -> Tensor:
        """Return the logits (M, C) of the stays with a radiograph when their EHR is taken away.

        The model then reads a record that says nothing about its patient. Override this in a model that can
        predict from the radiograph alone.

        Args:
            batch: The stays.
            mean_hour: The features (F,) of an hour of that record (see `EhrFeatures.mean_record`).
        """
        if "cxr" not in self.reads:
            return mean_hour.new_full((len(batch.cxr_of), batch.labels.shape[-1]), math.nan)
        output: FusionOutput = self(batch.matched_without_ehr(mean_hour))
        return output.logits


@dataclass(frozen=True)
class FittingData:
    """What a `FittedModel` is fitted to.

    Attributes:
        training: Batches of the training stays as evaluation sees them; can be iterated repeatedly.
        validation: Batches of the validation stays, likewise.
        values_of: Float32 (F, V): features times this matrix are the values of the V variables (see
            `EhrFeatures.values_of`). The last V features say which variables were observed.
    """

    training: Iterable[Batch]
    validation: Iterable[Batch]
    values_of: Tensor


class FittedModel(FusionModel):
    """A model that a solver fits in one call, instead of gradient steps over epochs.

    `drfuse train` calls `fit` once and saves the result like any other run. The options of gradient steps
    have no effect (epochs, patience, lr, accumulate, precision, augment, matched_cxr_dropout, cxr_share,
    seed).
    """

    @abstractmethod
    def fit(self, data: FittingData) -> None:
        """Set the model's weights in place, on the CPU. The same data give the same weights."""


@torch.no_grad()
def check_contract(model: FusionModel, batch: Batch, n_labels: int) -> None:
    """Check a model's declarations, and its output and losses on one batch in evaluation mode.

    Raises:
        InputError: If the model breaks the contract; the message says how.
    """
    name = type(model).__name__
    _check_declarations(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    output = model(batch)
    if not isinstance(output, FusionOutput):
        raise InputError(f"{name}.forward returned {type(output).__name__}; expected a FusionOutput")
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {"logits": (output.logits, (len(batch), n_labels))}
    if output.modality_weights is not None:
        expected["modality_weights"] = (output.modality_weights, (len(batch), n_labels, len(MODALITIES)))
    for what, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} returned {what} of shape {tuple(tensor.shape)}; expected {shape}")
    if output.logits.isnan().all():
        raise InputError(
            f"{name} returned only NaN: this cohort lacks the modality that the model needs; choose another "
            "model or cohort"
        )
    losses: Any = model.loss(output, batch)
    for module, training in modes.items():
        module.training = training
    scalars = isinstance(losses, dict) and all(
        isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses.values()
    )
    if not scalars or "total" not in losses:
        raise InputError(f'{name}.loss must return a dict of scalar tensors, one of them "total"')


def _check_declarations(model: FusionModel) -> None:
    """Raise InputError unless `reads` and `shared_encoders` are valid."""
    name, known = type(model).__name__, get_args(Modality)
    if not model.reads or not set(model.reads) <= set(known):
        raise InputError(f"{name}.reads is {model.reads!r}; expected some of {', '.join(map(repr, known))}")
    shared = model.shared_encoders()
    parts = set(model.modules())
    if not (
        isinstance(shared, SharedEncoders)
        and {*shared.ehr, *shared.cxr} <= parts
        and all(isinstance(encoder, CxrEncoder) for encoder in shared.cxr)
    ):
        raise InputError(
            f"{name}.shared_encoders must return SharedEncoders of the model's own modules, with only "
            "CxrEncoders in cxr"
        )
