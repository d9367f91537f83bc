"""BatchNorm over the images of all processes that share a batch."""

from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from drfuse.models.losses import at_least_float32


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose training statistics cover the images of all processes.

    A process without images takes part with an empty tensor. State and evaluation are those of
    `nn.BatchNorm2d`. Unlike `nn.SyncBatchNorm`, it works on a CPU, and with empty tensors in half precision.

    Attributes:
        synced: False while each process has the whole batch; each then uses its own statistics.
    """

    synced = True

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """Return a synced BatchNorm that shares the parameters and buffers of `norm`."""
        synced = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        synced._parameters, synced._buffers, synced.training = norm._parameters, norm._buffers, norm.training
        return synced

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the normalised maps (M, C, H, W).

        Raises:
            ValueError: If all processes together have only one value per channel.
        """
        if not (self.training and self.synced and dist.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        normalized, mean, variance, count = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps
        )
        if self.running_mean is not None and self.running_var is not None:
            tracked = self.num_batches_tracked
            if tracked is not None:
                tracked.add_(1)
            momentum = 1.0 / float(tracked or 1) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)  # unbiased, as in torch
        return normalized  # type: ignore[no-any-return]


class _Normalize(Function):
    """(input - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over all processes."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised maps, mean and variance (C,), and the number of values per channel."""
        n, channels = len(maps) * maps.shape[2:].numel(), maps.shape[1]
        values = at_least_float32(maps)
        own = values.new_zeros(2, channels)  # sum of squared distances from the mean, and the mean
        if n:
            own = torch.stack(torch.var_mean(values, (0, 2, 3), correction=0)) * own.new_tensor([[n], [1]])
        parts = [values.new_empty(2 * channels + 1) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, torch.cat([own.flatten(), own.new_full((1,), n)]))
        squares, means, counts = torch.split(torch.stack(parts), [channels, channels, 1], dim=1)
        count = counts.sum()
        if n <= 1 and count <= 1:  # then every process raises
            raise ValueError(f"expected more than 1 value per channel, got {int(count)}")
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean) ** 2).sum(0) / count
        ctx.save_for_backward(maps, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(maps, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of the maps, and this process's part of those of weight and bias."""
        maps, weight, mean, scale, count = ctx.saved_tensors
        to_maps = (None, slice(None), None, None)
        normalized = (at_least_float32(maps) - mean[to_maps]) * scale[to_maps]
        grad32 = at_least_float32(grad)
        own = torch.stack([grad32.sum((0, 2, 3)), (grad32 * normalized).sum((0, 2, 3))])
        total = own.clone()
        dist.all_reduce(total)
        mean_grad, mean_product = (total / count)[:, None, :, None, None]
        of_maps = (grad32 - mean_grad - normalized * mean_product) * scale[to_maps]
        if weight is None:
            return of_maps.to(maps.dtype), None, None, None
        return (
            (of_maps * weight[to_maps]).to(maps.dtype),
            own[1].to(weight.dtype),
            own[0].to(weight.dtype),
            None,
        )
