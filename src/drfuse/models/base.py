"""The contract of every model: a batch in, logits and named losses out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from drfuse.data.batch import Batch
from drfuse.errors import InputError
from drfuse.models.losses import at_least_float32

MODALITIES = ("ehr_distinct", "shared", "cxr_distinct")
"""What the last axis of `FusionOutput.modality_weights` stands for."""


@dataclass(frozen=True)
class FusionOutput:
    """What a model says of B stays and C phenotypes; what is in half precision becomes float32.

    Attributes:
        logits: (B, C).
        modality_weights: (B, C, 3) over EHR-distinct, shared and CXR-distinct, each row summing to 1; the
            last one is exactly 0 for a stay without a radiograph. None where the model has no such weights.
        representations: Named representations, (B, D) for stays or (M, D) for radiographs.
    """

    logits: Tensor
    modality_weights: Tensor | None = None
    representations: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise half precision to float32, in which losses and metrics are computed."""
        raised = {name: at_least_float32(tensor) for name, tensor in self.representations.items()}
        object.__setattr__(self, "logits", at_least_float32(self.logits))
        object.__setattr__(self, "representations", raised)
        if self.modality_weights is not None:
            object.__setattr__(self, "modality_weights", at_least_float32(self.modality_weights))


class FusionModel(nn.Module, ABC):
    """A model of EHR time series and the radiographs that exist.

    A subclass takes the number of features F and the number of labels C as its first two arguments. It never
    sees what an absent radiograph would have shown, and in evaluation mode a stay's output does not depend on
    the other stays of its batch. Under autocast its encoders may run in half precision; the layers that make
    logits are `Head`s, which do not, and its LSTMs are `Lstm`s, which run wherever it is trained (both in
    `drfuse.models.precision`).

    Attributes:
        reads_cxr: Whether the class looks at radiographs; where it says that it does not, none is read for
            it. Not inherited: each subclass sets its own.
        reads_ehr: Whether it looks at the EHR. Training takes no radiograph away from a model that does not:
            nothing would be left. Not inherited.
        init_args: The arguments of the constructor, defaults included, from which it can be made again.
    """

    reads_cxr: ClassVar[bool] = True
    reads_ehr: ClassVar[bool] = True
    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have a subclass read both modalities unless it says otherwise, whatever it is made of."""
        super().__init_subclass__(**kwargs)
        cls.reads_cxr = cls.__dict__.get("reads_cxr", True)
        cls.reads_ehr = cls.__dict__.get("reads_ehr", True)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the constructor's arguments."""
        model = super().__new__(cls)
        if args or kwargs:  # copying makes an empty object
            bound = inspect.signature(cls).bind(*args, **kwargs)
            bound.apply_defaults()
            model.init_args = dict(bound.arguments)
        return model

    @abstractmethod
    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C), and what else the model knows of each stay."""

    @abstractmethod
    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return scalars: `total`, which is to be minimised, and its named parts."""


@dataclass(frozen=True)
class FittingData:
    """What a `FittedModel` is fitted to.

    Attributes:
        training: Batches of the training stays, as evaluation sees them. They can be iterated again.
        validation: Batches of the validation stays, likewise.
        values_of: Float32 (F, V): the F features of an hour times this matrix are the values of its V
            variables (see `EhrFeatures.values_of`). The last V features say which variables were observed.
    """

    training: Iterable[Batch]
    validation: Iterable[Batch]
    values_of: Tensor


class FittedModel(FusionModel):
    """A model that a solver fits in one call, instead of gradient steps over epochs.

    `drfuse train` calls `fit` once and saves the result like any other run. Options of the gradient steps
    (epochs, patience, lr, accumulate, precision, augment, matched_cxr_dropout, cxr_share, seed) have no
    effect on it: it is fitted to the stays as they are.
    """

    @abstractmethod
    def fit(self, data: FittingData) -> None:
        """Set the model's weights, in place, on the CPU. The same data give the same weights."""


@torch.no_grad()
def check_contract(model: FusionModel, batch: Batch, n_labels: int) -> None:
    """Run a model once, in evaluation mode, and check that it keeps the contract; its mode stays as it was.

    Raises:
        InputError: If it does not; the message says in what.
    """
    name = type(model).__name__
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
        raise InputError(f"{name} predicts no stay of this cohort, which has not what the model reads")
    losses: Any = model.loss(output, batch)
    for module, training in modes.items():
        module.training = training
    scalars = isinstance(losses, dict) and all(
        isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses.values()
    )
    if not scalars or "total" not in losses:
        raise InputError(f'{name}.loss must return a dict of scalar tensors, one of them "total"')
