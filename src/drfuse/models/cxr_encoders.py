"""CXR encoders that all models share, and their backbones."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import transformers  # its models are imported when they are used, which takes seconds
from safetensors import SafetensorError
from torch import Tensor, nn

from drfuse.data.batch import Batch
from drfuse.errors import InputError, MissingInputError
from drfuse.models.sizes import BackboneSpec, EncoderSizes, SizeNames

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

_BASIC: dict[str, Any] = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
_BOTTLENECK: dict[str, Any] = {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]}
_RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {**_BASIC, "depths": [2, 2, 2, 2]},
    "resnet34": {**_BASIC, "depths": [3, 4, 6, 3]},
    "resnet50": {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    "resnet101": {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
}

_only_new = ContextVar("_only_new", default=False)


class CxrEncoder(nn.Module):
    """Radiographs -> one representation each: a backbone, averaged over space, projected to `dim`.

    It runs on the M radiographs that exist; without any, neither the backbone nor its BatchNorms run.

    Args:
        sizes: Reads `dim`, the width of the representation, and `cxr_backbone` (see `build_backbone`).

    Attributes:
        kept: A frozen backbone's features of every radiograph of the cohort (images, channels), looked up by
            `cxr_row` instead of running on pixels; otherwise None.
        runs_on_none: True while another process has radiographs of the same training batch. The backbone then
            runs even without one, because its BatchNorms average over all processes.
        config: The backbone's configuration.
    """

    SIZES: ClassVar[SizeNames] = ("dim", "cxr_backbone")

    kept: Tensor | None
    runs_on_none = False
    _last: tuple[Tensor, Tensor] | None = None  # radiographs and their features, while `remembering`

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.backbone = build_backbone(sizes.cxr_backbone)
        self.config = self.backbone.config
        self.project = nn.Linear(cast(list[int], self.backbone.channels)[-1], sizes.dim)
        self.register_buffer("kept", None, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return the representations (M, D) of a batch's radiographs."""
        if len(batch.cxr) == 0 and not (self.training and self.runs_on_none):
            return self.project.weight.new_zeros(0, self.project.out_features)
        if self.kept is not None:
            pooled = self.kept[batch.cxr_row]
        elif self._last is not None and self._last[0] is batch.cxr:
            pooled = self._last[1]
        else:
            pooled = self.pool(batch.cxr)
        if self._last is not None:
            self._last = (batch.cxr, pooled)
        projected: Tensor = self.project(pooled)
        return projected

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Run the backbone only once on the same radiographs, for several passes without gradients."""
        nothing = self.project.weight.new_zeros(0)
        self._last = (nothing, nothing)
        try:
            yield
        finally:
            self._last = None

    def pool(self, cxr: Tensor) -> Tensor:
        """Return the backbone's features (M, channels) of cxr (M, 1, H, W), averaged over space."""
        with enough_for_batch_norm(cxr):
            features: Tensor = self.backbone(cxr).feature_maps[-1]
        return features.mean(dim=(2, 3))

    def freeze(self, cxr: Iterable[Tensor]) -> None:
        """Freeze the backbone, and keep its evaluation-mode features of the cohort's radiographs.

        Args:
            cxr: All radiographs in the order of the cohort, in parts (m, 1, H, W).
        """
        self.backbone.requires_grad_(False)
        device, training = self.project.weight.device, self.backbone.training
        self.backbone.train(False)
        with torch.no_grad():
            self.kept = torch.cat([self.pool(part.to(device)) for part in cxr])
        self.backbone.train(training)


class CxrStages(nn.Module):
    """The parts of a ResNet, for models that change what flows between them.

    The whole ResNet is `embedder`, then all `stages` or all `blocks`.

    Args:
        sizes: Reads `cxr_backbone`, a ResNet (see `build_backbone`).

    Attributes:
        embedder: (M, 1, H, W) -> the first stage's input.
        stages: Feature maps -> smaller ones with more channels.
        channels: The output channels of each stage.
        config: The backbone's configuration.

    Raises:
        InputError: If the backbone is not a ResNet.
    """

    SIZES: ClassVar[SizeNames] = ("cxr_backbone",)

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        resnet = build_backbone(sizes.cxr_backbone)
        if not isinstance(resnet, transformers.ResNetBackbone):
            raise InputError(
                f"{sizes.cxr_backbone} holds a {type(resnet).__name__}, but this model needs the stages of a "
                "ResNet; choose a ResNet as cxr_backbone"
            )
        self.embedder = resnet.embedder
        self.stages = resnet.encoder.stages
        self.channels = list(resnet.config.hidden_sizes or ())
        self.config = resnet.config

    @property
    def blocks(self) -> "list[ResNetBasicLayer | ResNetBottleNeckLayer]":
        """The residual blocks of all stages, in order."""
        return [block for stage in self.stages for block in cast(Any, stage).layers]

    def keep(self, n_stages: int) -> None:
        """Drop all but the first `n_stages` stages."""
        self.stages, self.channels = self.stages[:n_stages], self.channels[:n_stages]


@contextmanager
def enough_for_batch_norm(cxr: Tensor) -> Iterator[None]:
    """Raise InputError if cxr (M, 1, H, W) leaves BatchNorm only one value per channel to train on."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"a batch has only one radiograph of {cxr.shape[-1]} pixels, too small for this backbone's "
            "BatchNorm; choose a larger crop_size"
        ) from error


def build_backbone(spec: BackboneSpec) -> "PreTrainedModel":
    """Return a `transformers` backbone that reads single-channel (grey) images.

    Args:
        spec: For a new network, `resnet18`, `resnet34`, `resnet50`, `resnet101`, the fields of a
            `ResNetConfig`, or what `pretrained_configs` returns. For a pretrained one, a folder or a name on
            the Hugging Face hub ("owner/name"); its first convolution is summed over the input channels.

    Raises:
        MissingInputError: If `spec` is neither one of these names nor a folder.
        InputError: If it is of another type, has no weights that fit a `transformers` backbone, or reading
            them is forbidden.
    """
    if not isinstance(spec, str | Mapping):
        raise InputError(
            f"cxr_backbone is {spec!r}; expected one of {', '.join(_RESNETS)}, a folder, a name on the hub, "
            "or the fields of a ResNetConfig"
        )
    if not isinstance(spec, str) or spec in _RESNETS:
        fields = _RESNETS[spec] if isinstance(spec, str) else spec
        if "model_type" in fields:
            return _without_weights(fields)
        _check_fields(fields)
        return transformers.ResNetBackbone(transformers.ResNetConfig(num_channels=1, **fields))
    if _only_new.get():
        raise InputError(f"it has no configuration of its pretrained backbone, and {spec} is not read")
    if not Path(spec).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        names = ", ".join(_RESNETS)
        raise MissingInputError(f"the backbone {spec!r} is not a folder here, nor one of {names}")
    backbone = _load_pretrained(spec)
    _sum_channels(backbone)
    return backbone


@contextmanager
def only_new_backbones() -> Iterator[None]:
    """Raise InputError wherever a pretrained backbone would be read from a folder or the hub."""
    token = _only_new.set(True)
    try:
        yield
    finally:
        _only_new.reset(token)


def pretrained_configs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what `build_backbone` needs to build each pretrained backbone of a model without its weights.

    The keys are the folders or hub names that they were read from.
    """
    configs = [module.config for module in model.modules() if isinstance(module, CxrEncoder | CxrStages)]
    return {
        config.name_or_path: {
            name: value for name, value in config.to_diff_dict().items() if name in _fields(type(config))
        }
        for config in configs
        if config.name_or_path
    }


def _fields(kind: "type[PreTrainedConfig]") -> set[str]:
    """Return the fields of a configuration that describe a backbone, and neither names nor loads anything."""
    own = (
        inspect.signature(kind).parameters.keys()
        - inspect.signature(transformers.PreTrainedConfig).parameters.keys()
    )
    return (own | {"model_type", "dtype", "out_features"}) - {"num_channels"}


def _without_weights(fields: Mapping[str, Any]) -> "PreTrainedModel":
    """Return a backbone of one of the types of `transformers`, with new weights."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    kinds: Mapping[str, type[PreTrainedConfig]] = transformers.CONFIG_MAPPING
    name = fields["model_type"]
    if name == "timm_backbone" or name not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise InputError(
            f"model_type is {name!r}, which is not a backbone that transformers can build itself"
        )
    if unknown := sorted(fields.keys() - _fields(kinds[name])):
        raise InputError(f"{unknown[0]!r} is not a field of a {kinds[name].__name__}")
    config = transformers.AutoConfig.for_model(**fields, num_channels=1)
    backbone: PreTrainedModel = cast(Any, transformers.AutoBackbone).from_config(config)
    return backbone


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Raise InputError for an unknown field, which `ResNetConfig` would ignore, or unequal stages."""
    known = set(inspect.signature(transformers.ResNetConfig).parameters) - {"num_channels"}
    if unknown := sorted(fields.keys() - known):
        raise InputError(
            f"{unknown[0]!r} is not a field of a ResNetConfig; expected hidden_sizes, depths, ..."
        )
    missing = {"hidden_sizes", "depths"} - fields.keys()
    if missing or len(fields["hidden_sizes"]) != len(fields["depths"]):
        raise InputError("a backbone needs hidden_sizes and depths, one of each for every stage")


def _load_pretrained(spec: str) -> "PreTrainedModel":
    """Return a pretrained backbone from a folder or the hub, without a classifier."""
    try:
        config = transformers.AutoConfig.from_pretrained(spec)
        with torch.device("meta"):  # AutoBackbone.from_pretrained contacts the hub even for a folder
            kind: Any = type(cast(Any, transformers.AutoBackbone).from_config(config))
        backbone, loading = kind.from_pretrained(spec, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{spec} holds no backbone that transformers can load: {reason}") from error
    if missing := loading["missing_keys"]:
        raise InputError(
            f"{spec} lacks {len(missing)} weights of a {kind.__name__}, the first {min(missing)}; choose a "
            "complete cxr_backbone"
        )
    return cast("PreTrainedModel", backbone.train())  # transformers returns it in evaluation mode


def _sum_channels(backbone: "PreTrainedModel") -> None:
    """Sum the first convolution over its input channels, so that one channel acts as several equal ones."""
    convolution = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(backbone).__name__} has no convolution that reads an image's channels")
    convolution.weight = nn.Parameter(convolution.weight.detach().sum(dim=1, keepdim=True))
    convolution.in_channels = 1
    backbone.config.num_channels = 1
    for module in backbone.modules():
        if hasattr(module, "num_channels"):  # transformers checks its input against this
            vars(module)["num_channels"] = 1
