"""Faster or leaner execution of a model's encoders, with the same results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from drfuse.models.base import FusionModel
from drfuse.models.cxr_encoders import CxrStages


def compile_encoders(model: FusionModel, mode: str = "default") -> None:
    """Compile a model's backbones and Transformers in place; its weights keep their names.

    The rest of the model is small and depends on which stays have a radiograph. The number of radiographs may
    change from batch to batch. `mode` is that of torch.compile.
    """
    for module in model.modules():
        if isinstance(module, CxrStages):
            for part in (module.embedder, *module.stages):
                part.compile(mode=mode)
        elif isinstance(module, transformers.PreTrainedModel | nn.TransformerEncoder):
            module.compile(mode=mode)


def recompute_activations(model: FusionModel) -> None:
    """Save memory in place: a model's residual blocks and Transformer layers keep only their inputs.

    The backward pass computes the rest again, with the same dropout; running statistics are updated once.
    Results are the same, bit by bit on a CPU.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # of pretrained backbones
    from transformers.models.resnet import modeling_resnet as resnet

    blocks = resnet.ResNetEmbeddings, resnet.ResNetBasicLayer, resnet.ResNetBottleNeckLayer
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, GradientCheckpointingLayer, *blocks)):
            module.forward = partial(_recompute, module.forward, module)  # type: ignore[method-assign]


def _recompute(forward: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _unchanged_statistics(module)),
        **kwargs,
    )


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
