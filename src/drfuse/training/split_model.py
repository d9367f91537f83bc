"""A model that several processes run, each on its part of a batch, with the loss of the whole batch.

Every process runs the model on its part, collects the outputs for the other parts, and computes the loss of
the whole batch, so every loss is exact, whatever it averages over. In the backward pass each part gets the
sum of its gradients in all processes, and DDP takes the mean over the processes: the result is the gradient
of that one loss.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from drfuse.data.batch import Batch
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.models.batch_norm import SyncedBatchNorm2d
from drfuse.models.cxr_encoders import CxrEncoder, CxrStages


class SplitModel:
    """A model that several processes run, each on its part of a batch.

    BatchNorm in its CXR encoders is computed over all parts. BatchNorm elsewhere, in a user's own model, sees
    only its part.

    Args:
        model: The model, changed in place; the names in its state dict do not change.
    """

    def __init__(self, model: FusionModel) -> None:
        self.model = model
        encoders = [one for one in model.modules() if isinstance(one, CxrEncoder | CxrStages)]
        for parent in [module for encoder in encoders for module in encoder.modules()]:
            for name, child in parent.named_children():
                if type(child) is nn.BatchNorm2d:
                    setattr(parent, name, SyncedBatchNorm2d.of(child))
        self.encoders = [encoder for encoder in encoders if isinstance(encoder, CxrEncoder)]
        self.norms = [one for one in model.modules() if isinstance(one, SyncedBatchNorm2d)]

    def __call__(self, batch: Batch, is_part: bool) -> tuple[FusionOutput, Batch]:
        """Return the model's output for the whole batch, and the whole batch.

        Args:
            batch: This process's part, or the whole batch in every process.
            is_part: Which of the two.
        """
        for norm in self.norms:
            norm.synced = is_part
        any_cxr = is_part and bool(_exchange([len(batch.cxr)]).any())
        for encoder in self.encoders:
            encoder.runs_on_none = any_cxr
        output = self.model(batch)
        return (_collect_output(output), _collect_batch(batch)) if is_part else (output, batch)


def _collect_output(output: FusionOutput) -> FusionOutput:
    """Return the outputs of all processes, concatenated; gradients flow back."""
    optional = [] if output.modality_weights is None else [output.modality_weights]
    names = list(output.representations)
    logits, *others = collect(
        [output.logits, *optional, *(output.representations[name] for name in names)],
        differentiable=torch.is_grad_enabled(),
    )
    return FusionOutput(logits, others.pop(0) if optional else None, dict(zip(names, others, strict=True)))


def _collect_batch(batch: Batch) -> Batch:
    """Return the parts of all processes, concatenated."""
    first_row = int(_exchange([len(batch)])[: dist.get_rank()].sum())
    numbered = replace(batch, cxr_of=batch.cxr_of + first_row)
    names = [field.name for field in fields(Batch)]
    return Batch(**dict(zip(names, collect([getattr(numbered, name) for name in names]), strict=True)))


def _exchange(numbers: Sequence[int]) -> Tensor:
    """Return the K numbers of each of R processes (R, K)."""
    parts = [torch.empty(len(numbers), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, torch.tensor(numbers, dtype=torch.int64))
    return torch.stack(parts)


def collect(tensors: Sequence[Tensor], differentiable: bool = False) -> list[Tensor]:
    """Return each tensor concatenated over all processes, along the first axis.

    First axes may differ in length; along the others, shorter parts are padded with zeros.

    Args:
        tensors: The same number in every process, of the same types and numbers of axes.
        differentiable: Whether gradients flow back to the process that each part came from, even if that
            process's own tensors need none.
    """
    sizes = _exchange([size for tensor in tensors for size in tensor.shape])  # (R, axes of all tensors)
    shapes = torch.split(sizes, [tensor.ndim for tensor in tensors], dim=1)  # for each tensor (R, its axes)
    trailing = [shape[:, 1:].amax(0).tolist() for shape in shapes]
    padded = [_pad(tensor, longest) for tensor, longest in zip(tensors, trailing, strict=True)]
    lengths = torch.stack(
        [shape[:, 0] * math.prod(longest) for shape, longest in zip(shapes, trailing, strict=True)]
    )
    if differentiable:  # sent as one float type
        flat = torch.cat([tensor.flatten() for tensor in padded])
        whole: Tensor = _Collect.apply(flat, torch.zeros((), requires_grad=True), lengths.sum(0).tolist())  # type: ignore[no-untyped-call]
    else:  # sent as bytes
        flat = torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in padded])
        lengths = lengths * torch.tensor([[tensor.element_size()] for tensor in padded])
        whole = _all_gather(flat, lengths.sum(0).tolist())
    parts = torch.split(whole, lengths.T.flatten().tolist())  # all of the first process, then the second, ...
    return [
        torch.cat(
            [
                (part.to(like.dtype) if differentiable else part.clone().view(like.dtype)).view(-1, *longest)
                for part in parts[number :: len(tensors)]
            ]
        )
        for number, (like, longest) in enumerate(zip(padded, trailing, strict=True))
    ]


def _pad(tensor: Tensor, trailing: Sequence[int]) -> Tensor:
    """Return a tensor whose axes after the first are padded with zeros to the given lengths."""
    lacking = [(0, longest - size) for size, longest in zip(tensor.shape[1:], trailing, strict=True)]
    return F.pad(tensor, [n for pair in reversed(lacking) for n in pair]) if any(sum(lacking, ())) else tensor


def _all_gather(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the vectors of all processes, of the given lengths, concatenated."""
    parts = [flat.new_empty(max(lengths)) for _ in lengths]
    dist.all_gather(parts, F.pad(flat, (0, max(lengths) - len(flat))))
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


class _Collect(Function):
    """Concatenates the vectors of all processes; each gets back the sum of its gradients in all of them."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, anchor: Tensor, lengths: Sequence[int]) -> Tensor:  # noqa: ARG004
        """Return the vectors; `anchor` needs a gradient, so that every process runs `backward`."""
        start = sum(lengths[: dist.get_rank()])
        ctx.own = slice(start, start + len(flat))
        return _all_gather(flat, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of this process's vector."""
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None, None
