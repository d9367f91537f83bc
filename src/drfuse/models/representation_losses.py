"""Losses of pairs of representations: to align them, or to keep their information apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse.models.precision import in_float32


@in_float32
def vicreg(a: Tensor, b: Tensor) -> Tensor:
    """Return the alignment loss of M pairs (M, D), which keeps variance; 0 with fewer than two.

    The mean squared difference, plus max(0, 1 - standard deviation), averaged over the dimensions and both
    sides, plus 1/25 of the squared covariances of different dimensions, divided by D (VICReg, Bardes et al.,
    ICLR 2022, Eq. 6, whose weights are 25, 25 and 1; as in the published code, the differences are averaged
    over the dimensions, too, and the two sides' variance terms are averaged).
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    return F.mse_loss(a, b) + _spread_and_decorrelate(a) + _spread_and_decorrelate(b)


def _spread_and_decorrelate(values: Tensor) -> Tensor:
    deviation = (values.var(dim=0) + 1e-4).sqrt()
    centred = values - values.mean(dim=0)
    covariance = centred.T @ centred / (len(values) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - deviation).clamp(min=0.0).mean() / 2 + off_diagonal / (25 * values.shape[1])


@in_float32
def info_nce(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the loss of finding the partner of each of M pairs (M, D) by cosine; 0 with fewer than two.

    Averaged over both directions (InfoNCE, van den Oord et al., 2018, Eq. 4, as in CLIP).
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    partner = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, partner) + F.cross_entropy(similarity.T, partner)) / 2


@in_float32
def cross_covariance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared correlation of the dimensions of a and b (M, D); 0 with fewer than two.

    >>> a = torch.tensor([[1.0], [-1.0]])
    >>> cross_covariance(a, 3 * a)
    tensor(0.9999)
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    standardised = [(one - one.mean(0)) / (one.var(0, correction=0) + 1e-4).sqrt() for one in (a, b)]
    return (standardised[0].T @ standardised[1] / len(a)).square().mean()


class ClubBound(nn.Module):
    """An upper bound of the mutual information of two representations (CLUB, Cheng et al., ICML 2020).

    A network predicts b from a as a Gaussian; the bound is how much likelier it makes the b of the same stay
    than that of another (Eq. 17, sampled).

    Args:
        dim: D, the width of both.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2 * dim))

    @in_float32
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bound, with gradients for a and b alone, and the loss that fits the network alone.

        Both are averaged over M stays and D dimensions of a and b (M, D), and 0 with fewer than two stays.
        """
        if len(a) < 2:
            nothing = (a.sum() + b.sum()) * 0.0
            return nothing, nothing
        fit = -self._log_likelihood(dict(self.network.named_parameters()), a.detach(), b.detach()).mean()
        fixed = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        own = self._log_likelihood(fixed, a, b)
        others = self._log_likelihood(fixed, a, b.roll(1, dims=0))
        # information is never negative, and a bound below 0 would be lowered for ever
        return (own - others).mean().clamp(min=0.0), fit

    def _log_likelihood(self, parameters: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        mean, log_variance = torch.func.functional_call(self.network, parameters, (a,)).chunk(2, dim=-1)
        log_variance = log_variance.tanh()  # as in the published code: bounded
        likelihood: Tensor = -((b - mean).square() / log_variance.exp() + log_variance) / 2
        return likelihood
