"""Encoders that all models share, so that a comparison changes the fusion and nothing else."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoBackbone, AutoConfig, PreTrainedModel, ResNetBackbone, ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from drfuse.errors import InputError, MissingInputError, check_choice
from drfuse.models.precision import Lstm

BackboneSpec = str | Mapping[str, Any]
"""A new ResNet by name or by the fields of a `ResNetConfig`, or a folder or hub name of a pretrained one."""

HourPooling = Literal["published", "mean-max-last"]
"""What becomes of a stay's hours. `published`: of a Transformer their mean, of an LSTM the last one.
`mean-max-last`: all three of mean, maximum and last hour, projected to the width of one."""

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


class EhrEncoder(nn.Module):
    """Hourly features -> several representations: a shared first Transformer, then one for each of them.

    f(X) = Transformer([phi(x_1) + delta_1, ..., phi(x_T) + delta_T]) (DrFuse, section 3.3), pooled over the
    hours of the stay. Padded hours are masked out of attention and pooling.

    Args:
        n_features: F, the features of an hour.
        dim: D, the width of the representations.
        heads: Attention heads; they divide `dim`.
        layers: Transformer layers of each representation's own branch, after the shared first layer.
        dropout: Dropout of the Transformer layers.
        branches: How many representations.
        max_hours: The longest series that has positions.
        feedforward: Width of the Transformers' feed-forward layers.
        pooling: What becomes of the hours after the last layer (see `HourPooling`).
    """

    def __init__(
        self,
        n_features: int,
        dim: int = 256,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.3,
        branches: int = 2,
        max_hours: int = 48,
        feedforward: int = 2048,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(HourPooling))
        if min(dim, heads, layers, max_hours) < 1 or not 0 <= dropout < 1:
            raise InputError(
                "expected dim, heads, layers and max_hours of at least 1, dropout from 0 to below 1"
            )
        if dim % heads:
            raise InputError(f"dim is {dim}, which {heads} heads do not divide; choose a multiple")

        def transformer(n_layers: int) -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, batch_first=True)
            for name in ("dropout", "dropout1", "dropout2"):
                setattr(layer, name, Dropout(dropout))
            return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

        self.project = nn.Linear(n_features, dim)
        self.positions = nn.Parameter(torch.empty(max_hours, dim).uniform_(-0.1, 0.1))
        self.first = transformer(1)
        self.branches = nn.ModuleList(transformer(layers) for _ in range(branches))
        pool = MeanOverHours if pooling == "published" else partial(MeanMaxLastHour, dim)
        self.pools = nn.ModuleList(pool() for _ in range(branches))

    def forward(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor, ...]:
        """Return a representation (B, D) for each branch, from ehr (B, T, F) and n_hours (B,).

        Raises:
            InputError: If T is more than `max_hours`.
        """
        return self.finish(*self.embed(ehr, n_hours))

    def embed(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hours (B, T, D) after the first layer, and a mask (B, T), True where they are padding.

        Raises:
            InputError: If T is more than `max_hours`.
        """
        hours = ehr.shape[1]
        if hours > len(self.positions):
            raise InputError(
                f"a stay has {hours} hours, and the model positions for {len(self.positions)}; make it with "
                f"--model.max_hours {hours}"
            )
        padded = torch.arange(hours, device=ehr.device) >= n_hours[:, None]  # (B, T)
        return self.first(self.project(ehr) + self.positions[:hours], src_key_padding_mask=padded), padded

    def finish(self, hidden: Tensor, padded: Tensor) -> tuple[Tensor, ...]:
        """Return a representation (B, D) for each branch, from what `embed` returned, changed or not."""
        return tuple(
            pool(branch(hidden, src_key_padding_mask=padded), padded)
            for branch, pool in zip(self.branches, self.pools, strict=True)
        )


class MeanOverHours(nn.Module):
    """Hours -> their mean."""

    def forward(self, hidden: Tensor, padded: Tensor) -> Tensor:
        """Return (B, D) of hours (B, T, D) that are not `padded` (B, T)."""
        return mean_over_hours(hidden, padded)


class MeanMaxLastHour(nn.Module):
    """Hours -> their mean, their maximum and the last one side by side, projected to their width.

    A mean forgets when something was seen and how far it went; these three keep some of both.

    Args:
        dim: D, the width of an hour.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * dim, dim)

    def forward(self, hidden: Tensor, padded: Tensor) -> Tensor:
        """Return (B, D) of hours (B, T, D) that are not `padded` (B, T)."""
        highest = hidden.masked_fill(padded[..., None], -math.inf).amax(dim=1)
        last = hidden[torch.arange(len(hidden), device=hidden.device), (~padded).sum(dim=1) - 1]
        projected: Tensor = self.project(torch.cat([mean_over_hours(hidden, padded), highest, last], dim=-1))
        return projected


class Dropout(nn.Dropout):
    """`nn.Dropout` whose masks, on a CPU, are whole random words: less than half the time.

    There PyTorch draws each element of a mask by itself, which is most of the step of a small Transformer.
    An element is zero with probability `p`, to the nearest 2^-32, and divided by 1 - p otherwise.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout calls it so
        """Return the input, in training mode with random elements set to zero."""
        drawn_here = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and 0 < self.p < 1 and drawn_here):
            return super().forward(input)
        words = torch.empty((input.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
        words = words.view(torch.int32)[: input.numel()].view(input.shape)
        keep = words >= min(round(self.p * 2**32), 2**32 - 1) - 2**31
        return input * keep.to(input.dtype).mul_(1 / (1 - self.p))


def mean_over_hours(hidden: Tensor, padded: Tensor) -> Tensor:
    """Return the mean (B, D) of hours (B, T, D) that are not `padded` (B, T).

    >>> mean_over_hours(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[False, False, True]]))
    tensor([[2.]])
    """
    return hidden.masked_fill(padded[..., None], 0.0).sum(1) / (~padded).sum(1, keepdim=True)


class EhrLstmEncoder(nn.Module):
    """Hourly features -> one representation: the last hidden state of stacked LSTM layers, or all pooled.

    As in MedFuse (Hayat et al., MLHC 2022): recurrent weights start orthogonal, input weights by Xavier's
    rule, biases at zero. Padded hours are never read.

    Args:
        n_features: F, the features of an hour.
        dim: D, the width of the representation and of every layer.
        layers: LSTM layers, each reading the hidden states of the one below.
        dropout: Dropout of the representation.
        pooling: What becomes of the last layer's hidden states (see `HourPooling`).
    """

    def __init__(
        self,
        n_features: int,
        dim: int = 256,
        layers: int = 2,
        dropout: float = 0.3,
        pooling: HourPooling = "published",
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(HourPooling))
        if min(dim, layers) < 1 or not 0 <= dropout < 1:
            raise InputError("expected dim and layers of at least 1, dropout from 0 to below 1")
        self.lstm = Lstm(n_features, dim, layers, batch_first=True)
        self.pool = None if pooling == "published" else MeanMaxLastHour(dim)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor]:
        """Return the representation (B, D), alone in a tuple, from ehr (B, T, F) and n_hours (B,)."""
        hours = pack_padded_sequence(ehr, n_hours.cpu(), batch_first=True, enforce_sorted=False)
        states, (hidden, _) = self.lstm(hours)  # hidden (layers, B, D)
        if self.pool is None:
            return (self.dropout(hidden[-1]),)
        states, _ = pad_packed_sequence(states, batch_first=True)  # (B, T, D)
        padded = torch.arange(states.shape[1], device=states.device) >= n_hours[:, None]
        return (self.dropout(self.pool(states, padded)),)


class CxrEncoder(nn.Module):
    """Radiographs -> one representation each: a backbone, averaged over space, projected to `dim`.

    It runs on the M radiographs that exist; with none, neither the backbone nor its BatchNorm is touched.

    Args:
        dim: D, the width of the representation.
        backbone: See `build_backbone`.

    Attributes:
        kept: None, or what a frozen backbone gives of every radiograph of a cohort, (images, channels). Then
            `forward` takes the rows of radiographs (M,) in place of their pixels, and looks them up.
        runs_on_none: True while another process has radiographs of the same training batch: the backbone then
            runs on none here, so that its BatchNorms over all processes find this one, too.
    """

    kept: Tensor | None
    runs_on_none = False

    def __init__(self, dim: int = 256, backbone: BackboneSpec = "resnet50") -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.project = nn.Linear(cast(list[int], self.backbone.channels)[-1], dim)
        self.register_buffer("kept", None, persistent=False)

    def forward(self, cxr: Tensor) -> Tensor:
        """Return (M, D) from cxr (M, 1, H, W), or from the rows (M,) of what is kept."""
        if len(cxr) == 0 and not (self.training and self.runs_on_none):
            return self.project.weight.new_zeros(0, self.project.out_features)
        projected: Tensor = self.project(self.pool(cxr) if self.kept is None else self.kept[cxr])
        return projected

    def pool(self, cxr: Tensor) -> Tensor:
        """Return the backbone's features (M, channels) of cxr (M, 1, H, W), averaged over space."""
        with enough_for_batch_norm(cxr):
            features: Tensor = self.backbone(cxr).feature_maps[-1]
        return features.mean(dim=(2, 3))

    def freeze(self, cxr: Iterable[Tensor]) -> None:
        """Train the backbone no more, and keep its features of all radiographs, in parts (m, 1, H, W).

        They are those of evaluation mode.
        """
        self.backbone.requires_grad_(False)
        device = self.project.weight.device
        training = self.backbone.training
        self.backbone.train(False)
        with torch.no_grad():
            self.kept = torch.cat([self.pool(part.to(device)) for part in cxr])
        self.backbone.train(training)


class CxrStages(nn.Module):
    """A ResNet in its parts, for models that reach into it on the way.

    Run one after the other, `embedder` and `stages`, or `embedder` and `blocks`, are the ResNet.

    Args:
        backbone: See `build_backbone`; a ResNet.

    Attributes:
        embedder: (M, 1, H, W) -> the first stage's input.
        stages: Feature maps -> smaller ones with more channels.
        channels: Of the output of each stage.

    Raises:
        InputError: If the backbone is no ResNet.
    """

    def __init__(self, backbone: BackboneSpec = "resnet50") -> None:
        super().__init__()
        resnet = build_backbone(backbone)
        if not isinstance(resnet, ResNetBackbone):
            raise InputError(
                f"{backbone} holds a {type(resnet).__name__}, but this model reaches between the stages of a "
                "ResNet; choose the folder of a ResNet"
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
    """Explain why BatchNorm cannot train on cxr (M, 1, H, W).

    Raises:
        InputError: If it is a single radiograph, of which a single position is left.
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
        MissingInputError: If `spec` is none of these names and no folder.
        InputError: If there are no weights that fit a backbone of `transformers`.
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
        raise InputError("a backbone needs hidden_sizes and depths, one of each a stage")


def _load_pretrained(spec: str) -> PreTrainedModel:
    """Return the backbone of a pretrained model in a folder or on the hub, without a classifier's head."""
    try:
        config = AutoConfig.from_pretrained(spec)
        with torch.device("meta"):  # AutoBackbone itself asks the hub even for a folder
            kind: Any = type(cast(Any, AutoBackbone).from_config(config))
        backbone, loading = kind.from_pretrained(spec, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{spec} holds no backbone that transformers can load: {reason}") from error
    if missing := loading["missing_keys"]:
        raise InputError(
            f"{spec} lacks {len(missing)} of the weights of {kind.__name__}, {min(missing)} first"
        )
    return cast(PreTrainedModel, backbone.train())  # transformers hands it over in evaluation mode


def _sum_channels(backbone: PreTrainedModel) -> None:
    """Sum the first convolution over its input channels, so that one acts as that many equal ones would.

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
