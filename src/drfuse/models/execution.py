"""How a model's encoders run, with the same results: compiled, or with less memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.resnet.modeling_resnet import (
    ResNetBasicLayer,
    ResNetBottleNeckLayer,
    ResNetEmbeddings,
)

from drfuse.models.base import FusionModel
from drfuse.models.cxr_encoders import CxrStages

_LAYERS = (
    nn.TransformerEncoderLayer,
    ResNetEmbeddings,
    ResNetBasicLayer,
    ResNetBottleNeckLayer,
    GradientCheckpointingLayer,  # of pretrained backbones other than ResNets
)


def compile_encoders(model: FusionModel, mode: str = "default") -> None:
    """Compile the backbones and Transformers of a model, in place; its weights keep their names.

    The rest of a model is small, and depends on which stays have a radiograph. The number of radiographs may
    change from batch to batch.

    Args:
        model: The model.
        mode: Of torch.compile.
    """
    for module in model.modules():
        if isinstance(module, CxrStages):
            for part in (module.embedder, *module.stages):
                part.compile(mode=mode)
        elif isinstance(module, PreTrainedModel | nn.TransformerEncoder):
            module.compile(mode=mode)


def recompute_activations(model: FusionModel) -> None:
    """Keep only the inputs of a model's residual blocks and Transformer layers, in place.

    What happens within them is computed again when gradients need it, with the same dropout; running
    statistics are updated once. Results are the same, bit by bit on a CPU.
    """
    for module in model.modules():
        if isinstance(module, _LAYERS):
            module.forward = partial(_checkpointed, module.forward, module)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unchanged_statistics(module)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers afterwards: its BatchNorms have already counted this batch."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
