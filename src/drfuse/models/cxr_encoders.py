"""Encoders of radiographs that all models share, and the backbones that they are made of."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel, ResNetBackbone, ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from drfuse.data.batch import Batch
from drfuse.errors import InputError, MissingInputError
from drfuse.models.sizes import BackboneSpec, EncoderSizes

_RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet34": {"layer_type": "basic", "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
    "resnet101": {
        "layer_type": "bottleneck",
        "depths": [3, 4, 23, 3],
        "hidden_sizes": [256, 512, 1024, 2048],
    },
}


class CxrEncoder(nn.Module):
    """Radiographs -> one representation each: a backbone, averaged over space, projected to `dim`.

    It runs on the M radiographs that exist; with none, neither the backbone nor its BatchNorm is touched.

    Args:
        sizes: `dim`, the width of the representation, and `cxr_backbone` (see `build_backbone`).

    Attributes:
        kept: None, or what a frozen backbone returns for every radiograph of a cohort, (images, channels).
            Then `forward` looks radiographs up by their `cxr_row`, and needs no pixels.
        runs_on_none: True while another process has radiographs of the same training batch: the backbone
            then runs here even without one, because its BatchNorms work over all processes together.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("dim", "cxr_backbone")

    kept: Tensor | None
    runs_on_none = False

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.backbone = build_backbone(sizes.cxr_backbone)
        self.project = nn.Linear(cast(list[int], self.backbone.channels)[-1], sizes.dim)
        self.register_buffer("kept", None, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return the representations (M, D) of a batch's radiographs."""
        if len(batch.cxr) == 0 and not (self.training and self.runs_on_none):
            return self.project.weight.new_zeros(0, self.project.out_features)
        pooled = self.pool(batch.cxr) if self.kept is None else self.kept[batch.cxr_row]
        projected: Tensor = self.project(pooled)
        return projected

    def pool(self, cxr: Tensor) -> Tensor:
        """Return the backbone's features (M, channels) of cxr (M, 1, H, W), averaged over space."""
        with enough_for_batch_norm(cxr):
            features: Tensor = self.backbone(cxr).feature_maps[-1]
        return features.mean(dim=(2, 3))

    def freeze(self, cxr: Iterable[Tensor]) -> None:
        """Stop training the backbone, and keep its features of all of a cohort's radiographs.

        Args:
            cxr: All radiographs in the order of the cohort, in parts (m, 1, H, W). The features are those of
                evaluation mode.
        """
        self.backbone.requires_grad_(False)
        device = self.project.weight.device
        training = self.backbone.training
        self.backbone.train(False)
        with torch.no_grad():
            self.kept = torch.cat([self.pool(part.to(device)) for part in cxr])
        self.backbone.train(training)


class CxrStages(nn.Module):
    """A ResNet in its parts, for models that change what flows between them.

    `embedder` and then all `stages`, or `embedder` and then all `blocks`, are the whole ResNet.

    Args:
        sizes: `cxr_backbone`, a ResNet (see `build_backbone`).

    Attributes:
        embedder: (M, 1, H, W) -> the first stage's input.
        stages: Feature maps -> smaller ones with more channels.
        channels: Of the output of each stage.

    Raises:
        InputError: If the backbone is not a ResNet.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("cxr_backbone",)

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        resnet = build_backbone(sizes.cxr_backbone)
        if not isinstance(resnet, ResNetBackbone):
            raise InputError(
                f"{sizes.cxr_backbone} holds a {type(resnet).__name__}, but this model works between the "
                "stages of a ResNet; choose the folder of a ResNet"
            )
        self.embedder = resnet.embedder
        self.stages = resnet.encoder.stages
        self.channels = list(resnet.config.hidden_sizes or ())

    @property
    def blocks(self) -> list[ResNetBasicLayer | ResNetBottleNeckLayer]:
        """The residual blocks of all stages, in order."""
        return [block for stage in self.stages for block in cast(Any, stage).layers]

    def keep(self, n_stages: int) -> None:
        """Leave out the stages after the first `n_stages`."""
        self.stages, self.channels = self.stages[:n_stages], self.channels[:n_stages]


@contextmanager
def enough_for_batch_norm(cxr: Tensor) -> Iterator[None]:
    """Explain BatchNorm's error if it cannot train on cxr (M, 1, H, W).

    Raises:
        InputError: If the only radiograph is so small that BatchNorm gets a single value per channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"a batch holds one radiograph of {cxr.shape[-1]} pixels, too few for the BatchNorm of this "
            "backbone; choose a larger crop_size"
        ) from error


def build_backbone(spec: BackboneSpec) -> PreTrainedModel:
    """Return a `transformers` backbone that reads grey images in one channel.

    Args:
        spec: `resnet18`, `resnet34`, `resnet50` or `resnet101`, made new; or the fields of a `ResNetConfig`,
            made new; or a folder or a name on the Hugging Face hub ("owner/name") with pretrained weights,
            whose first convolution is summed over its three input channels.

    Raises:
        MissingInputError: If `spec` is neither one of these names nor a folder.
        InputError: If it has no weights that fit a backbone of `transformers`.
    """
    if not isinstance(spec, str):
        _check_fields(spec)
        return ResNetBackbone(ResNetConfig(num_channels=1, **spec))
    if spec in _RESNETS:
        return ResNetBackbone(ResNetConfig(num_channels=1, **_RESNETS[spec]))
    if not Path(spec).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        names = ", ".join(_RESNETS)
        raise MissingInputError(f"the backbone {spec!r} is not a folder here, nor one of {names}")
    backbone = _load_pretrained(spec)
    _sum_channels(backbone)
    return backbone


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Check that every field is one of a `ResNetConfig`, which ignores others.

    Raises:
        InputError: If a field is unknown, or not every stage has a width and a depth.
    """
    known = set(inspect.signature(ResNetConfig).parameters) - {"num_channels"}
    if unknown := sorted(fields.keys() - known):
        raise InputError(
            f"{unknown[0]!r} is not a field of a ResNetConfig; expected hidden_sizes, depths, ..."
        )
    missing = {"hidden_sizes", "depths"} - fields.keys()
    if missing or len(fields["hidden_sizes"]) != len(fields["depths"]):
        raise InputError("a backbone needs hidden_sizes and depths, one of each for every stage")


def _load_pretrained(spec: str) -> PreTrainedModel:
    """Return the backbone of a pretrained model in a folder or on the hub, without its classifier."""
    try:
        config = AutoConfig.from_pretrained(spec)
        with torch.device("meta"):  # AutoBackbone.from_pretrained asks the hub even for a folder
            kind: Any = type(cast(Any, AutoBackbone).from_config(config))
        backbone, loading = kind.from_pretrained(spec, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{spec} holds no backbone that transformers can load: {reason}") from error
    if missing := loading["missing_keys"]:
        raise InputError(
            f"{spec} lacks {len(missing)} of the weights of {kind.__name__}, {min(missing)} first"
        )
    return cast(PreTrainedModel, backbone.train())  # transformers returns it in evaluation mode


def _sum_channels(backbone: PreTrainedModel) -> None:
    """Sum the first convolution over its input channels: one channel then acts as several equal ones did.

    Raises:
        InputError: If the backbone has no convolution.
    """
    convolution = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(backbone).__name__} has no convolution that reads an image's channels")
    convolution.weight = nn.Parameter(convolution.weight.detach().sum(dim=1, keepdim=True))
    convolution.in_channels = 1
    backbone.config.num_channels = 1
    for module in backbone.modules():
        if hasattr(module, "num_channels"):  # transformers checks its input against this
            vars(module)["num_channels"] = 1
