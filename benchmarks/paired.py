"""Two backbones as one network of twice the channels, with the same results: half as many kernels to launch.

Every convolution has two groups of channels, one of each network. BatchNorm, activations and pooling never
mix channels. So feature maps, gradients and running statistics are those of the two networks, and so are the
steps of Adam, which treats each weight by itself. `torch.func.vmap` over stacked weights and statistics gives
the same, but this is an ordinary network, which can be compiled and captured as a CUDA graph.
"""

import copy
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drfuse.models import DrFuse


def paired(first: PreTrainedModel, second: PreTrainedModel) -> PreTrainedModel:
    """Return one network that computes both: the channels of the first, then those of the second.

    Args:
        first: A backbone of convolutions and BatchNorms, such as a ResNet.
        second: Another one of the same architecture.

    Raises:
        ValueError: If another kind of layer has weights.
    """
    both = copy.deepcopy(first)
    reads_images = True  # the first convolution: both networks read the same channels
    for one, other in zip(both.modules(), second.modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            one.out_channels *= 2
            if not reads_images:
                one.in_channels *= 2
                one.groups *= 2
            reads_images = False
        elif isinstance(one, nn.BatchNorm2d):
            one.num_features *= 2
        elif _own(one):
            raise ValueError(f"a {type(one).__name__} cannot be paired; expected convolutions and BatchNorms")
        for name, value in _own(one).items():
            joined = torch.cat([value.detach(), getattr(other, name).detach()])
            setattr(one, name, nn.Parameter(joined) if isinstance(value, nn.Parameter) else joined)
    return both


def separate(both: PreTrainedModel, first: PreTrainedModel, second: PreTrainedModel) -> None:
    """Copy weights and running statistics of what `paired` returned into the two networks."""
    state = both.state_dict()
    for number, backbone in enumerate((first, second)):
        backbone.load_state_dict(
            {name: value.chunk(2)[number] if value.ndim else value for name, value in state.items()}
        )


def pair_encoders(model: DrFuse) -> PreTrainedModel:
    """Let a DrFuse's two image encoders run as one network, in place, and return that network."""
    encoders = (model.cxr_shared_encoder, model.cxr_distinct_encoder)
    both = paired(*(encoder.backbone for encoder in encoders))
    waiting: list[Tensor] = []
    for encoder, is_first in zip(encoders, (True, False), strict=True):
        encoder.backbone = cast(Any, _Half(both, waiting, is_first))
    return both


class _Half(nn.Module):
    """Stands for one of two backbones: the first runs both, the second takes what is waiting."""

    def __init__(self, both: PreTrainedModel, waiting: list[Tensor], is_first: bool) -> None:
        super().__init__()
        self.both, self.waiting, self.is_first = both, waiting, is_first

    def forward(self, cxr: Tensor) -> SimpleNamespace:
        if self.is_first:
            self.waiting[:] = self.both(cxr).feature_maps[-1].chunk(2, dim=1)
        return SimpleNamespace(feature_maps=[self.waiting.pop(0)])


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and running statistics of a layer itself, by name."""
    values = {**module._parameters, **module._buffers}
    return {name: value for name, value in values.items() if value is not None and value.ndim}
