"""What moved one logit of one stay: attributions over its record and its radiograph, computed with Captum.

They are signed: a positive one raised the logit above that of the baseline. Captum is imported when it is
used, because it loads matplotlib.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.data import Batch
from drfuse.models import FusionModel
from drfuse.models.cxr_encoders import CxrEncoder, CxrStages

EhrMethod = Literal["integrated-gradients", "gradient-x-input", "occlusion"]
CxrMethod = Literal["integrated-gradients-grey", "integrated-gradients-black", "grad-cam"]

MOST_MISSING = 0.05
"""Attributions are incomplete if their sum misses the difference by more than this share of it."""
MOST_STEPS = 512
"""The most steps of a path of integrated gradients."""

_FIRST_STEPS = 32
_SMALL_DIFFERENCE = 0.1  # of logits; a share of a smaller one would say little
_ROWS_AT_A_TIME, _IMAGES_AT_A_TIME = 64, 16
_LEAST_SIDE = 7  # cells; a ResNet's last maps have as many if its images have 224 pixels
_BLUR = 1 / 32  # standard deviation, as a share of the radiograph's side


class NoGradientError(Exception):
    """A model has no gradient, or not a finite one, where an attribution needs it."""


@dataclass(frozen=True)
class Completeness:
    """Whether attributions add up to the difference between a logit and that of the baseline.

    Attributes:
        total: Their sum.
        difference: The logit minus that of the baseline.
        steps: Steps of the path of integrated gradients; 0 for other methods.
    """

    total: float
    difference: float
    steps: int = 0

    @property
    def gap(self) -> float:
        """By how much the sum exceeds the difference."""
        return self.total - self.difference

    @property
    def share(self) -> float:
        """The gap's size as a share of the difference's; a difference below 0.1 counts as 0.1.

        >>> round(Completeness(1.9, 2.0).share, 3)
        0.05
        """
        return abs(self.gap) / max(abs(self.difference), _SMALL_DIFFERENCE)

    @property
    def is_met(self) -> bool:
        """Whether the share is at most `MOST_MISSING`."""
        return self.share <= MOST_MISSING


@dataclass(frozen=True)
class RecordAttribution:
    """What the parts of a record contributed to a logit.

    Attributes:
        method: How it was computed.
        hours: Float64 (T, V), of each hour and variable, with the variable's categories and mask.
        variables: Float64 (V,), of each variable: the sum over the hours or, for occlusion, what changes when
            all of its hours are replaced at once.
        completeness: Of the sum of `hours`.
    """

    method: EhrMethod
    hours: NDArray[np.float64]
    variables: NDArray[np.float64]
    completeness: Completeness


@dataclass(frozen=True)
class ImageAttribution:
    """What the parts of a radiograph contributed to a logit.

    Attributes:
        method: How it was computed.
        pixels: Float64 (H, W), smooth.
        completeness: Of the pixels' sum before smoothing; None for Grad-CAM, which adds up to nothing.
    """

    method: CxrMethod
    pixels: NDArray[np.float64]
    completeness: Completeness | None


def logits_with(model: FusionModel, stay: Batch, ehr: Tensor, cxr: Tensor) -> Tensor:
    """Return logits (n, C) of a stay with n other records and radiographs.

    Args:
        model: A model in evaluation mode.
        stay: A batch of one stay.
        ehr: Records (n, T, F) of as many hours as the stay's.
        cxr: Radiographs (n, 1, H, W); (0, 1, H, W) for none at all.
    """
    first = torch.zeros(len(ehr), dtype=torch.int64, device=ehr.device)
    batch = replace(
        stay,
        stay_id=stay.stay_id[first],
        ehr=ehr,
        n_hours=stay.n_hours[first],
        cxr=cxr,
        cxr_of=torch.arange(len(cxr), device=cxr.device),
        cxr_row=stay.cxr_row[first[: len(cxr)]],
        labels=stay.labels[first],
    )
    output: Any = model(batch)
    logits: Tensor = output.logits
    return logits


def attribute_record(
    model: FusionModel,
    stay: Batch,
    baseline: Tensor,
    variable_of: Tensor,
    label: int,
    method: EhrMethod = "integrated-gradients",
    most_steps: int = MOST_STEPS,
) -> RecordAttribution:
    """Return what a stay's record contributed to a logit, given its radiograph, if it has one.

    Integrated gradients (Sundararajan et al., ICML 2017) follow the straight line from the baseline; their
    steps are doubled until the attributions are complete. `gradient-x-input` is the gradient times the
    difference from the baseline. `occlusion` is what changes when a part alone is replaced by its baseline.

    Args:
        model: A model in evaluation mode.
        stay: A batch of one stay.
        baseline: Features (T, F) that stand for no record.
        variable_of: The number of the variable of each feature (F,).
        label: The logit's number.
        method: How to compute it.
        most_steps: The most steps of integrated gradients.

    Raises:
        NoGradientError: If the method needs a gradient that the model does not have.
    """
    record, nothing = stay.ehr, baseline[None]
    variable_of = variable_of.to(record.device)
    with _kept_radiograph(model, stay) as kept:
        logit = _logit_of_record(model, kept, label)
        difference = _difference(logit, record, nothing)
        if method == "occlusion":
            hour = torch.arange(record.shape[1], device=record.device)[:, None]
            parts = hour * (int(variable_of.max()) + 1) + variable_of
            hours = _by_variable(_occlude(logit, record, nothing, parts), variable_of)
            variables = occlude_variables(model, stay, baseline, variable_of, label)
            return RecordAttribution(method, hours, variables, Completeness(float(hours.sum()), difference))
        with _gradients_of_inputs(model):
            if method == "gradient-x-input":
                steps, found = 0, _gradient(logit, record) * (record - nothing)
            else:
                steps, found = _integrate(logit, record, nothing, difference, most_steps, _ROWS_AT_A_TIME)
    hours = _by_variable(_finite(found)[0].double(), variable_of)
    completeness = Completeness(float(hours.sum()), difference, steps)
    return RecordAttribution(method, hours, hours.sum(axis=0), completeness)


def occlude_variables(
    model: FusionModel, stay: Batch, baseline: Tensor, variable_of: Tensor, label: int
) -> NDArray[np.float64]:
    """Return how much a logit falls (V,) if all hours of one variable are replaced by their baseline.

    The arguments are those of `attribute_record`.
    """
    parts = variable_of.to(stay.ehr.device).expand(stay.ehr.shape[1], -1)
    with _kept_radiograph(model, stay) as kept:
        found = _occlude(_logit_of_record(model, kept, label), stay.ehr, baseline[None], parts)
    of_variable: NDArray[np.float64] = _by_variable(found, parts[0]).sum(axis=0)
    return of_variable


def attribute_image(
    model: FusionModel,
    stay: Batch,
    black: float,
    label: int,
    method: CxrMethod = "integrated-gradients-grey",
    most_steps: int = MOST_STEPS,
    least_side: int = _LEAST_SIDE,
) -> ImageAttribution:
    """Return what a stay's radiograph contributed to a logit, given its record.

    Grad-CAM (Selvaraju et al., ICCV 2017) weighs the feature maps of every backbone's last stage whose maps
    have at least `least_side` cells a side; the maps of several backbones are added, and stay signed.
    Integrated gradients start from a black image, or from one that is everywhere as grey as the radiograph is
    on average; they are blurred with a standard deviation of a 32nd of the side.

    Args:
        model: A model in evaluation mode.
        stay: A batch of one stay with a radiograph.
        black: The value of a black pixel.
        label: The logit's number.
        method: How to compute it.
        most_steps: The most steps of integrated gradients.
        least_side: The fewest cells to a side of a feature map.

    Raises:
        NoGradientError: If the method needs a gradient or feature maps that the model does not have.
    """
    image = stay.cxr
    if not image.numel():
        raise NoGradientError("looks frozen features up and reads no pixels")

    def logit(cxr: Tensor) -> Tensor:
        return logits_with(model, stay, stay.ehr.expand(len(cxr), -1, -1), cxr)[:, label]

    with _gradients_of_inputs(model):
        if method == "grad-cam":
            maps = _grad_cam(model, logit, image, least_side)
            return ImageAttribution(method, _finite(maps)[0, 0].double().cpu().numpy(), None)
        grey = black if method == "integrated-gradients-black" else float(image.mean())
        baseline = torch.full_like(image, grey)
        difference = _difference(logit, image, baseline)
        steps, found = _integrate(logit, image, baseline, difference, most_steps, _IMAGES_AT_A_TIME)
    found = _finite(found).double()
    completeness = Completeness(float(found.sum()), difference, steps)
    return ImageAttribution(method, _blurred(found)[0, 0].cpu().numpy(), completeness)


def _logit_of_record(model: FusionModel, stay: Batch, label: int) -> Callable[[Tensor], Tensor]:
    """Return the function from records (n, T, F) to logits (n,), given the stay's radiograph."""

    def logit(ehr: Tensor) -> Tensor:
        cxr = stay.cxr.expand(len(ehr) if len(stay.cxr) else 0, -1, -1, -1)
        return logits_with(model, stay, ehr, cxr)[:, label]

    return logit


def _occlude(logit: Callable[[Tensor], Tensor], record: Tensor, nothing: Tensor, part_of: Tensor) -> Tensor:
    """Return (T, F): by how much a logit falls without each part, spread over the part's features.

    Args:
        logit: From records (n, T, F) to logits (n,).
        record: (1, T, F).
        nothing: What replaces a part, (1, T, F).
        part_of: The number of each feature's part (T, F).
    """
    from captum.attr import FeatureAblation

    with torch.no_grad():
        found: Tensor = FeatureAblation(logit).attribute(
            record, nothing, feature_mask=part_of[None], perturbations_per_eval=_ROWS_AT_A_TIME
        )
    return found[0].double() / torch.bincount(part_of.flatten())[part_of]


def _integrate(
    logit: Callable[[Tensor], Tensor],
    given: Tensor,
    baseline: Tensor,
    difference: float,
    most_steps: int,
    rows_at_a_time: int,
) -> tuple[int, Tensor]:
    """Return integrated gradients, and their steps: as many as completeness needs, at most `most_steps`."""
    from captum.attr import IntegratedGradients

    integrated = IntegratedGradients(logit)
    steps = min(_FIRST_STEPS, most_steps)
    while True:
        with _explain_missing_gradients():
            found: Tensor = integrated.attribute(
                given, baseline, n_steps=steps, internal_batch_size=rows_at_a_time
            ).detach()
        completeness = Completeness(float(_finite(found).double().sum()), difference, steps)
        if completeness.is_met or steps >= most_steps:
            return steps, found
        steps = min(2 * steps, most_steps)


def _gradient(logit: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    from captum.attr import Saliency

    with _explain_missing_gradients():
        gradient: Tensor = Saliency(logit).attribute(given.clone().requires_grad_(), abs=False)
    return gradient.detach()


def _grad_cam(
    model: FusionModel, logit: Callable[[Tensor], Tensor], image: Tensor, least_side: int
) -> Tensor:
    """Return the sum of the maps of all backbones, as large as the image (1, 1, H, W)."""
    from captum.attr import LayerGradCam

    layers = [_maps_of(stages, logit, image, least_side) for stages in _stages(model)]
    if not layers:
        raise NoGradientError("has no backbone whose stages give feature maps")
    maps = []
    for layer in layers:
        with _explain_missing_gradients():
            found = LayerGradCam(logit, layer).attribute(image)
        size: Any = image.shape[-2:]
        maps.append(F.interpolate(found.detach(), size, mode="bilinear", align_corners=False))
    return torch.stack(maps).sum(dim=0)


def _stages(model: FusionModel) -> list[nn.ModuleList]:
    """Return the stages of every backbone of radiographs."""
    return [
        stages
        for encoder in model.modules()
        if isinstance(encoder, CxrEncoder | CxrStages)
        for name, stages in encoder.named_modules()
        if name.split(".")[-1] == "stages" and isinstance(stages, nn.ModuleList)
    ]


def _maps_of(
    stages: nn.ModuleList, logit: Callable[[Tensor], Tensor], image: Tensor, least_side: int
) -> nn.Module:
    """Return the layer that gives the maps of the last stage with at least `least_side` cells a side.

    It is the stage itself or, in a model that runs its layers one by one, the last of them. Without such a
    stage, it is that of the first one.
    """
    found: dict[int, tuple[nn.Module, int]] = {}

    def note(number: int) -> Callable[..., None]:
        def hook(layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found[number] = layer, min(output.shape[-2:])

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for number, stage in enumerate(stages):
            for layer in stage.modules():
                hooks.callback(layer.register_forward_hook(note(number)).remove)
        logit(image)
    if not found:
        raise NoGradientError("has a backbone whose stages give no feature maps")
    layers = [found[number] for number in sorted(found)]
    return next((layer for layer, side in reversed(layers) if side >= least_side), layers[0][0])


def _difference(logit: Callable[[Tensor], Tensor], given: Tensor, baseline: Tensor) -> float:
    with torch.no_grad():
        own, other = (float(logit(one.detach())[0]) for one in (given, baseline))
    return own - other


def _by_variable(features: Tensor, variable_of: Tensor) -> NDArray[np.float64]:
    """Return the sums (T, V) of features (T, F) by their variable."""
    sums = features.new_zeros(len(features), int(variable_of.max()) + 1)
    summed: NDArray[np.float64] = sums.index_add(1, variable_of, features).cpu().numpy()
    return summed


def _blurred(pixels: Tensor) -> Tensor:
    """Return smooth pixels (1, 1, H, W)."""
    deviation = _BLUR * max(pixels.shape[-2:])
    reach = min(math.ceil(3 * deviation), min(pixels.shape[-2:]) - 1)
    smooth: Tensor = gaussian_blur2d(pixels, (2 * reach + 1,) * 2, (deviation,) * 2)
    return smooth


def _finite(found: Tensor) -> Tensor:
    if not found.isfinite().all():
        raise NoGradientError("has no finite gradient there")
    return found


@contextmanager
def _explain_missing_gradients() -> Iterator[None]:
    """Turn PyTorch's errors about a logit that does not depend on the input into a NoGradientError."""
    try:
        yield
    except RuntimeError as error:
        if not any(said in str(error) for said in ("does not require grad", "to not have been used")):
            raise
        raise NoGradientError("has no gradient there") from error


@contextmanager
def _gradients_of_inputs(model: nn.Module) -> Iterator[None]:
    """Compute gradients of inputs, but not of weights; cuDNN has none of LSTMs in evaluation mode."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if recurrent and torch.cuda.is_available():
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def _kept_radiograph(model: FusionModel, stay: Batch) -> Iterator[Batch]:
    """Run each `CxrEncoder`'s backbone once on the stay's radiograph, not once for each of many records.

    Yields:
        The stay, whose radiograph the encoders look up.
    """
    encoders = [
        module for module in model.modules() if isinstance(module, CxrEncoder) and module.kept is None
    ]
    try:
        if encoders and len(stay.cxr):
            with torch.no_grad():
                for encoder in encoders:
                    encoder.kept = encoder.pool(stay.cxr)
            stay = replace(stay, cxr_row=torch.zeros_like(stay.cxr_row))
        yield stay
    finally:
        for encoder in encoders:
            encoder.kept = None
