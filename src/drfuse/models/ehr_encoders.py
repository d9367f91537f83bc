"""EHR encoders that all models share, so that a comparison of models changes only the fusion."""

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from drfuse.errors import InputError
from drfuse.models.precision import Lstm
from drfuse.models.sizes import EncoderSizes, SizeNames


class EhrEncoder(nn.Module):
    """Hourly features -> one or more representations: a shared first layer, then a Transformer for each.

    f(X) = Transformer([phi(x_1) + delta_1, ..., phi(x_T) + delta_T]) (DrFuse, section 3.3), pooled over the
    hours of the stay. Padded hours are masked out of attention and pooling.

    Args:
        n_features: F, the number of features per hour.
        sizes: Reads those in `SIZES`; `layers` counts each branch after the shared first layer.
        branches: Number of representations.

    Raises:
        InputError: If the heads do not divide the width.
    """

    SIZES: ClassVar[SizeNames] = ("dim", "heads", "layers", "dropout", "feedforward", "max_hours", "pooling")

    def __init__(self, n_features: int, sizes: EncoderSizes, branches: int = 1) -> None:
        super().__init__()
        dim, heads, dropout, max_hours = sizes.dim, sizes.heads, sizes.dropout, sizes.max_hours
        if dim % heads:
            raise InputError(f"dim is {dim}, which {heads} heads do not divide; choose a multiple of {heads}")

        def transformer(n_layers: int) -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(dim, heads, sizes.feedforward, dropout, batch_first=True)
            for name in ("dropout", "dropout1", "dropout2"):
                setattr(layer, name, Dropout(dropout))
            return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

        self.project = nn.Linear(n_features, dim)
        self.positions = nn.Parameter(torch.empty(max_hours, dim).uniform_(-0.1, 0.1))
        self.first = transformer(1)
        self.branches = nn.ModuleList(transformer(sizes.layers) for _ in range(branches))
        n_pools = 0 if sizes.pooling == "published" else branches  # a mean has no weights
        self.pools = nn.ModuleList(MeanMaxLastHour(dim) for _ in range(n_pools))

    def forward(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor, ...]:
        """Return a representation (B, D) of each branch, from ehr (B, T, F) and n_hours (B,).

        Raises:
            InputError: If T is more than `max_hours`.
        """
        return self.finish(*self.embed(ehr, n_hours))

    def embed(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hours (B, T, D) after the first layer, and a mask (B, T), True for padding.

        Raises:
            InputError: If T is more than `max_hours`.
        """
        hours = ehr.shape[1]
        if hours > len(self.positions):
            raise InputError(
                f"a stay has {hours} hours, but the model takes at most {len(self.positions)}; set "
                f"--model.max_hours {hours}"
            )
        padded = torch.arange(hours, device=ehr.device) >= n_hours[:, None]  # (B, T)
        return self.first(self.project(ehr) + self.positions[:hours], src_key_padding_mask=padded), padded

    def finish(self, hidden: Tensor, padded: Tensor) -> tuple[Tensor, ...]:
        """Return a representation (B, D) of each branch, from the output of `embed`, changed or not."""
        pools: Iterable[Callable[..., Tensor]] = self.pools or [mean_over_hours] * len(self.branches)
        return tuple(
            pool(branch(hidden, src_key_padding_mask=padded), padded)
            for branch, pool in zip(self.branches, pools, strict=True)
        )


class MeanMaxLastHour(nn.Module):
    """Hours -> their mean, maximum and last one side by side, projected to width `dim` (D).

    A mean forgets when something happened and how extreme it was; together they keep some of both.
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
    """An `nn.Dropout` that takes less than half the time on a CPU: it draws masks as whole random words.

    PyTorch draws each element of a mask separately, which takes most of a small Transformer's step. An
    element is zero with probability `p`, to the nearest 2^-32, and divided by 1 - p otherwise.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's name
        """Return the input; in training mode, random elements are zero."""
        draws_words = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and 0 < self.p < 1 and draws_words):
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
    """Hourly features -> one representation: the last hidden state of a stacked LSTM, or all pooled.

    As in MedFuse (Hayat et al., MLHC 2022): recurrent weights start orthogonal, input weights by Xavier's
    rule, biases at zero. Padded hours are never read.

    Args:
        n_features: F, the number of features per hour.
        sizes: Reads `dim`, the width of every layer, `lstm_layers`, `dropout` of the representation, and
            `pooling` of the last layer's hidden states.
    """

    SIZES: ClassVar[SizeNames] = ("dim", "lstm_layers", "dropout", "pooling")

    def __init__(self, n_features: int, sizes: EncoderSizes) -> None:
        super().__init__()
        dim, layers, dropout = sizes.dim, sizes.lstm_layers, sizes.dropout
        self.lstm = Lstm(n_features, dim, layers, batch_first=True)
        self.pool = None if sizes.pooling == "published" else MeanMaxLastHour(dim)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, ehr: Tensor, n_hours: Tensor) -> tuple[Tensor]:
        """Return a tuple of one representation (B, D), from ehr (B, T, F) and n_hours (B,)."""
        hours = pack_padded_sequence(ehr, n_hours.cpu(), batch_first=True, enforce_sorted=False)
        states, (hidden, _) = self.lstm(hours)  # hidden (layers, B, D)
        if self.pool is None:
            return (self.dropout(hidden[-1]),)
        states, _ = pad_packed_sequence(states, batch_first=True)  # (B, T, D)
        padded = torch.arange(states.shape[1], device=states.device) >= n_hours[:, None]
        return (self.dropout(self.pool(states, padded)),)
