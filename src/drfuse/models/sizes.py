"""Sizes of the shared encoders, described once, and constructors that take them as options of their own."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ClassVar, Literal, Protocol, get_args

from drfuse.errors import check_choice

BackboneSpec = str | Mapping[str, Any]
"""A new ResNet by name or by the fields of a `ResNetConfig`, or a folder or hub name of a pretrained one."""

HourPooling = Literal["published", "mean-max-last"]
"""What becomes of a stay's hours (see `EncoderSizes.pooling`)."""


class _Sized(Protocol):
    """An encoder that says which fields of `EncoderSizes` it reads."""

    SIZES: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of the encoders of a model.

    Attributes:
        dim: D, the width of each modality's representation, and of the hours within the EHR's encoder.
        heads: Attention heads of the EHR's Transformers; they divide `dim`.
        layers: Layers of the EHR's Transformers after the first one.
        lstm_layers: Layers of the EHR's LSTM.
        dropout: Dropout of the EHR's encoder.
        feedforward: Width of the feed-forward layers of the EHR's Transformers.
        max_hours: The longest time series that the EHR's Transformers take.
        pooling: What becomes of the hours: `published`, the mean of a Transformer's and the last of an
            LSTM's; or `mean-max-last`, all three of mean, maximum and last hour, projected to the width of
            one.
        cxr_backbone: Architecture of the radiographs' encoders: `resnet18`, `resnet34`, `resnet50` or
            `resnet101`; the fields of a `ResNetConfig`; or a pretrained one (see `build_backbone`).
    """

    dim: int = 256
    heads: int = 4
    layers: int = 1
    lstm_layers: int = 2
    dropout: float = 0.3
    feedforward: int = 2048
    max_hours: int = 48
    pooling: HourPooling = "published"
    cxr_backbone: BackboneSpec = "resnet50"

    def __post_init__(self) -> None:
        """Check what an encoder would not notice."""
        check_choice("pooling", self.pooling, get_args(HourPooling))

    def of(self, *encoders: type[_Sized]) -> dict[str, Any]:
        """Return the sizes that these encoders read, by name."""
        return {name: getattr(self, name) for name in _names(encoders)}


def _names(encoders: Iterable[type[_Sized]]) -> list[str]:
    read = {name for encoder in encoders for name in encoder.SIZES}
    return [field.name for field in fields(EncoderSizes) if field.name in read]


def takes_sizes_of(
    *encoders: type[_Sized], **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a model's constructor: callers give the sizes of its encoders one by one.

    In place of the constructor's parameter `sizes: EncoderSizes`, its signature and docstring, from which the
    command line is made, have the sizes that the encoders read: `dim`, `heads`, ...

    Args:
        encoders: The classes of the encoders.
        defaults: Defaults of the model that differ from those of `EncoderSizes`.
    """
    names, own = _names(encoders), inspect.signature(EncoderSizes).parameters

    def flatten(init: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(init, eval_str=True).parameters.values():
            if parameter.annotation is EncoderSizes:
                parameters += [
                    own[name].replace(default=defaults.get(name, own[name].default)) for name in names
                ]
            else:
                parameters.append(parameter)
        signature = inspect.Signature(parameters, return_annotation=None)

        @wraps(init)
        def construct(*args: Any, **kwargs: Any) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            sizes = EncoderSizes(**{name: given.pop(name) for name in names})
            init(**given, sizes=sizes)

        construct.__signature__ = signature  # type: ignore[attr-defined]
        construct.__annotations__ = {one.name: one.annotation for one in parameters[1:]}
        construct.__doc__ = EncoderSizes.__doc__
        return construct

    return flatten
