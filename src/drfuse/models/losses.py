"""Loss terms: those of DrFuse (Yao et al., AAAI 2024, Eq. 1, 4 and 10), and cross entropy."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LN_2 = math.log(2)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half-precision tensors in float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross entropy, averaged over stays and labels (B, C); 0 without stays."""
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.sum() / max(1, losses.numel())


def jensen_shannon(p_logits: Tensor, q_logits: Tensor, outcomes: Literal["both", "one"] = "both") -> Tensor:
    """Return the Jensen-Shannon divergence (B,) of two vectors of Bernoulli variables, in nats (Eq. 1).

    The sum over the D features lies between 0 and D ln 2. Computed from log-probabilities, values are
    accurate and gradients finite for logits of any size.

    Args:
        p_logits: (B, D).
        q_logits: (B, D).
        outcomes: `both` outcomes of each variable, as the divergence is defined, or only the terms of outcome
            `one`, as in the published code; those alone are not a divergence.

    >>> jensen_shannon(torch.zeros(1, 4), torch.zeros(1, 4))
    tensor([0.])
    """
    p, q = at_least_float32(p_logits), at_least_float32(q_logits)
    divergence = _half_divergence(p, q)
    if outcomes == "both":
        divergence = (divergence + _half_divergence(-p, -q)).sum(-1)
        largest = torch.nextafter(divergence.new_tensor(p.shape[-1] * LN_2), divergence.new_zeros(()))
        return torch.minimum(divergence.clamp(min=0.0), largest)  # despite rounding errors
    return divergence.sum(-1)


def _half_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence's terms of outcome 1, element by element."""
    log_p, log_q = F.logsigmoid(p), F.logsigmoid(q)
    log_m = torch.logaddexp(log_p, log_q) - LN_2
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))


def orthogonality(a: Tensor, b: Tensor) -> Tensor:
    """Return the absolute cosine similarity (B,) of a and b (B, D); 0 where either is zero (Eq. 4).

    >>> orthogonality(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([0.])
    """
    return F.cosine_similarity(at_least_float32(a), at_least_float32(b), dim=-1).abs()


def attention_ranking(
    weights: Tensor,
    losses: Tensor,
    margin: float = 0.0,
    normalization: Literal["pairs", "nonzero"] = "pairs",
) -> Tensor:
    """Return the ranking loss (B,), the cost of weighing a representation with a lower loss less (Eq. 10).

    The sum of max(0, weight_j - weight_i + margin) over all pairs with loss_i < loss_j, divided by 2C. Other
    pairs add 0; Eq. 10 as printed adds the constant margin for them, which changes no gradient. No gradient
    flows into the losses.

    Args:
        weights: (B, C, 3), the attention over the three representations.
        losses: (B, C, 3), the auxiliary losses of the three representations.
        margin: The epsilon of Eq. 10.
        normalization: `pairs` divides by 2C. `nonzero`, as in the published code, averages each of the three
            pairs of modalities over its non-zero terms in the batch, then over the pairs; the mean over the
            stays is that value.

    >>> weights = torch.tensor([[[0.6, 0.3, 0.1]]])
    >>> attention_ranking(weights, torch.tensor([[[0.5, 0.2, 0.9]]]))  # (0.6 - 0.3) / 2
    tensor([0.1500])
    """
    weights, losses = at_least_float32(weights), losses.detach()
    better = losses[..., :, None] < losses[..., None, :]  # (B, C, 3, 3): loss_i < loss_j
    excess = (weights[..., None, :] - weights[..., :, None] + margin).clamp(min=0.0)  # weight_j - weight_i
    terms = torch.where(better, excess, 0.0)
    first, second = (0, 0, 1), (1, 2, 2)
    terms = (terms + terms.transpose(-1, -2))[..., first, second]  # (B, C, 3): a pair has one order at most
    if normalization == "pairs":
        return terms.sum(dim=(1, 2)) / (2 * weights.shape[1])
    n_nonzero = (terms > 0).sum(dim=(0, 1)).clamp(min=1)
    return (terms.sum(dim=1) / n_nonzero).mean(-1) * len(terms)
