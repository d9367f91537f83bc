"""Layers that run in float32 even under mixed precision."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from drfuse.models.losses import at_least_float32

logger = logging.getLogger(__name__)

_Returned = TypeVar("_Returned")


def in_float32(forward: Callable[..., _Returned]) -> Callable[..., _Returned]:
    """Decorate a module's `forward`, or a function of tensors, to run without autocast and half precision.

    bfloat16 has 8 significant bits: logits near 3 are at least 1/64 apart, so stays tie in their ranks, and
    modality weights do not add up to 1.
    """

    @wraps(forward)
    def in_full(*arguments: Any) -> _Returned:
        tensors = [one for one in arguments if isinstance(one, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return forward(*(at_least_float32(one) if isinstance(one, Tensor) else one for one in arguments))

    return in_full


class Head(nn.Linear):
    """A linear layer for logits; it runs in float32 even under autocast."""

    @in_float32
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        """Return (..., out_features) from (..., in_features)."""
        return super().forward(input)


class Lstm(nn.LSTM):
    """An `nn.LSTM` that runs in float32 where the device has none for autocast's type."""

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # noqa: A002
        """Return what `nn.LSTM` returns, from a tensor or a `PackedSequence`."""
        device = (input.data if isinstance(input, PackedSequence) else input).device
        kind = device.type
        if torch.is_autocast_enabled(kind) and not has_lstm(torch.get_autocast_dtype(kind), device):
            with torch.autocast(kind, enabled=False):
                return super().forward(input.float(), hx)
        return super().forward(input, hx)


@cache
def has_lstm(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device trains and runs a tiny LSTM under autocast to `dtype`.

    CPUs without AVX-512, and some GPUs, have no LSTM in bfloat16, and no CPU trains one in float16. PyTorch
    emulates the models' other layers where it has no kernel for them.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        lstm, hours = nn.LSTM(8, 8, batch_first=True).to(device), torch.zeros(2, 3, 8, device=device)
        try:
            with torch.autocast(device.type, dtype):
                hidden, _ = lstm(hours)
                with torch.no_grad():
                    lstm(hours)
            hidden.float().sum().backward()
        except RuntimeError as error:
            reason = str(error).split(". ", 1)[0]
            logger.info("LSTMs run in float32: %s has none in %s (%s)", device, dtype, reason)
            return False
    return True
