"""Sizes of the shared encoders, described once, and constructors that take them as their own options."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ClassVar, Literal, Protocol, get_args

from drfuse.arguments import as_annotated
from drfuse.errors import InputError, check_choice

BackboneSpec = str | Mapping[str, Any]
"""A new ResNet by name or by the fields of a `ResNetConfig`, or a pretrained one by folder or hub name."""

HourPooling = Literal["published", "mean-max-last"]
SizeNames = tuple[str, ...]


class _Sized(Protocol):
    """An encoder; `SIZES` lists the fields of `EncoderSizes` that it reads."""

    SIZES: ClassVar[SizeNames]


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a model's encoders.

    Attributes:
        dim: D, the width of each modality's representation, and of the hours within the EHR encoder.
        heads: Attention heads of the EHR Transformer; must divide `dim`.
        layers: Layers of the EHR Transformer after the first one.
        lstm_layers: Layers of the EHR LSTM.
        dropout: Dropout of the EHR encoder.
        feedforward: Width of the feed-forward layers of the EHR Transformer.
        max_hours: The longest time series that the EHR Transformer takes.
        pooling: How hours become one representation: `published` takes a Transformer's mean or an LSTM's last
            hour; `mean-max-last` projects mean, maximum and last hour to the width of one.
        cxr_backbone: Architecture of the CXR encoders: `resnet18`, `resnet34`, `resnet50` or `resnet101`; the
            fields of a `ResNetConfig`; or a pretrained backbone's folder or hub name.
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
        """Check all but the backbone.

        Raises:
            InputError: If a size is out of range.
        """
        for name in ("dim", "heads", "layers", "lstm_layers", "feedforward", "max_hours"):
            if as_annotated(name, getattr(self, name), int) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= as_annotated("dropout", self.dropout, float) < 1:
            raise InputError(f"dropout is {self.dropout}; expected 0 to below 1")
        check_choice("pooling", self.pooling, get_args(HourPooling))

    def of(self, *encoders: type[_Sized]) -> dict[str, Any]:
        """Return the sizes that some encoders read, by name."""
        return {name: getattr(self, name) for name in _names(encoders)}


def _names(encoders: Iterable[type[_Sized]]) -> list[str]:
    read = {name for encoder in encoders for name in encoder.SIZES}
    return [field.name for field in fields(EncoderSizes) if field.name in read]


def takes_sizes_of(
    *encoders: type[_Sized], **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a model's constructor: callers pass the sizes of its encoders one by one.

    The constructor's signature and docstring, and so the command line, then show the sizes that the encoders
    read (`dim`, `heads`, ...) in place of its parameter `sizes: EncoderSizes`.

    Args:
        encoders: The classes of the encoders.
        defaults: The model's defaults where they differ from those of `EncoderSizes`.
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
