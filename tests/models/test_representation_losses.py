"""Losses of pairs of representations against the formulas, written out."""

import pytest
import torch
from torch import Tensor

from drfuse.models.representation_losses import ClubBound, cross_covariance, info_nce, vicreg


def pairs(n: int = 6, dim: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, dim, generator=generator)
    return a, a + 0.5 * torch.randn(n, dim, generator=generator)


def test_vicreg_is_invariance_variance_and_covariance() -> None:
    a, b = pairs()
    expected = (a - b).square().mean()
    for one in (a, b):
        covariance = torch.cov(one.T)
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        expected = expected + (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp(min=0).mean() / 2
        expected = expected + off_diagonal.square().sum() / 3 / 25
    torch.testing.assert_close(vicreg(a, b), expected)


def test_collapse_is_not_free() -> None:
    a, b = pairs()
    assert vicreg(a * 1e-3, b * 1e-3) > vicreg(a, b)


def test_info_nce_finds_the_partner() -> None:
    a, b = pairs()
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1) / 0.1
    rows = -cosine.log_softmax(dim=1).diagonal().mean()
    columns = -cosine.log_softmax(dim=0).diagonal().mean()
    torch.testing.assert_close(info_nce(a, b), (rows + columns) / 2)
    assert info_nce(a, a) < info_nce(a, b) < info_nce(a, b.roll(1, dims=0))


def test_cross_covariance_is_the_mean_squared_correlation() -> None:
    a, b = pairs(100)
    correlation = torch.corrcoef(torch.cat([a, b], dim=1).T)[:3, 3:]
    torch.testing.assert_close(cross_covariance(a, b), correlation.square().mean(), rtol=1e-3, atol=0)


def test_club_tells_dependent_from_independent_representations() -> None:
    torch.manual_seed(1)
    a, b = pairs(512)
    independent = torch.randn(512, 3)
    bounds = []
    for other in (b, independent):
        club = ClubBound(3)
        optimizer = torch.optim.Adam(club.parameters(), lr=0.01)
        for _ in range(200):
            optimizer.zero_grad()
            club(a, other)[1].backward()
            optimizer.step()
        bounds.append(club(a, other)[0].item())
    assert bounds[0] > 0.3 > abs(bounds[1])


def test_club_s_bound_moves_representations_and_its_fit_the_network() -> None:
    a, b = pairs()
    club, a = ClubBound(3), a.requires_grad_()
    bound, fit = club(a, b)
    bound.backward()
    assert a.grad is not None
    assert all(parameter.grad is None for parameter in club.parameters())
    a.grad = None
    fit.backward()
    assert a.grad is None
    assert all(parameter.grad is not None for parameter in club.parameters())


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_cost_nothing(n: int) -> None:
    a, b = (one[:n].requires_grad_() for one in pairs())
    losses = [vicreg(a, b), info_nce(a, b), cross_covariance(a, b), *ClubBound(3)(a, b)]
    for loss in losses:
        assert loss.item() == 0
        loss.backward(retain_graph=True)
