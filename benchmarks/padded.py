"""A backbone on padded numbers of radiographs, each of which may be a CUDA graph; the results are the same.

A CUDA graph has fixed shapes, but batches differ in how many radiographs they have. Those of a training
differ by two at most (`EvenBatches`), so that a graph for each number needs no padding. Where numbers differ
more, images of zeros fill up the next size. BatchNorm then counts the real images alone, and the feature maps
of the others are cut off: even in training, padding changes neither maps, gradients nor running statistics.
It costs several kernels for each BatchNorm instead of one.
"""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from drfuse.models.losses import at_least_float32


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose training statistics are those of some images of the batch.

    Unlike `nn.BatchNorm2d`, it does not refuse a single value per channel: checking how many images are real
    would wait for the device.

    Attributes:
        real: Boolean (M,), the images that count; None: all.
    """

    real: Tensor | None = None

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """Return one that shares the parameters and buffers of `norm`."""
        masked = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        masked._parameters, masked._buffers, masked.training = norm._parameters, norm._buffers, norm.training
        return masked

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the normalised maps (M, C, H, W)."""
        if self.real is None or not self.training:
            return super().forward(input)
        maps = at_least_float32(input)
        real = self.real.to(maps.dtype)
        count = real.sum() * maps[0, 0].numel()
        share = (real / count)[:, None, None, None]  # of each value in the mean
        mean = (maps * share).sum((0, 2, 3), keepdim=True)
        variance = ((maps - mean).square() * share).sum((0, 2, 3), keepdim=True)
        normalized = (maps - mean) * (variance + self.eps).rsqrt()
        if self.affine:
            normalized = normalized * self.weight[:, None, None] + self.bias[:, None, None]
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_var.lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
        return normalized.to(input.dtype)


class PaddedBackbone:
    """Lets a backbone run, in training, on numbers of radiographs out of `sizes`, in place.

    Larger batches, and those of evaluation, run as they are.

    Args:
        backbone: The backbone; its BatchNorm2d are replaced.
        sizes: The numbers of radiographs.
    """

    def __init__(self, backbone: PreTrainedModel, sizes: Sequence[int]) -> None:
        for name, module in list(backbone.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                backbone.set_submodule(name, MaskedBatchNorm2d.of(module))
        self.backbone, self.sizes = backbone, sorted(sizes)
        self.passes = {(size, is_full): _Pass(backbone) for size in sizes for is_full in (True, False)}
        backbone.forward = self

    def __call__(self, cxr: Tensor) -> Any:
        """Return the feature maps of cxr (M, 1, H, W)."""
        n = len(cxr)
        size = next((size for size in self.sizes if size >= n), None)
        if size is None or not self.backbone.training:
            return type(self.backbone).forward(self.backbone, cxr)
        maps: Tensor = self.passes[size, n == size](*_padded(cxr, size))
        return SimpleNamespace(feature_maps=[maps[:n]])

    def capture(self, images: Tensor, padded: bool) -> None:
        """Capture passes, forward and backward, as CUDA graphs, in the numbers of the surrounding autocast.

        That autocast must have `cache_enabled=False`. Running statistics stay as they are. Each graph has
        memory of its own.

        Args:
            images: Images (m, 1, H, W) on a GPU, for their shape.
            padded: Capture the passes of batches that need padding; otherwise of those that need none.
        """
        before = copy.deepcopy(self.backbone.state_dict())
        for (size, is_full), one in self.passes.items():
            if is_full != padded:
                some = images.new_zeros(size - padded, *images.shape[1:])
                torch.cuda.make_graphed_callables(one, _padded(some, size))  # in place
        self.backbone.load_state_dict(before)


class _Pass(nn.Module):
    """What is captured: the forward pass on a fixed number of images, and which of them are real."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.norms = [module for module in backbone.modules() if isinstance(module, MaskedBatchNorm2d)]

    def forward(self, images: Tensor, real: Tensor | None = None) -> Tensor:
        for norm in self.norms:
            norm.real = real
        try:
            maps: Tensor = type(self.backbone).forward(self.backbone, images).feature_maps[-1]
            return maps
        finally:
            for norm in self.norms:
                norm.real = None


def _padded(cxr: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return `size` images and, where zeros had to be added, which are real."""
    n = len(cxr)
    if n == size:
        return (cxr,)
    return F.pad(cxr, (0, 0) * 3 + (0, size - n)), torch.arange(size, device=cxr.device) < n
