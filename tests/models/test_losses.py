"""Eq. 1, 4 and 10 against the formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drfuse.models.losses import at_least_float32, attention_ranking, jensen_shannon, orthogonality
from tests.models import reference


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


# --- Eq. 1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_divergence_is_equation_1_summed_over_the_features(scale: float) -> None:
    p, q = random(3, 7, seed=1, scale=scale), random(3, 7, seed=2, scale=scale)
    expected = [reference.jensen_shannon(a, b) for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "q"),
    [(100.0, -100.0), (100.0, 99.0), (-100.0, -90.0), (50.0, 0.0), (1e4, -1e4), (1e4, 0.0), (-20.0, 20.0)],
)
def test_the_divergence_is_equation_1_at_extreme_logits(p: float, q: float) -> None:
    expected = reference.jensen_shannon(np.array([p]), np.array([q]))
    got = jensen_shannon(torch.tensor([[p]]), torch.tensor([[q]])).item()
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 25, 64, 100, 255, 256, 512, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [17.0, 30.0, 100.0, 1e4, 1e30])
def test_the_divergence_never_passes_dim_ln_2(dim: int, dtype: torch.dtype, size: float) -> None:
    logits = torch.full((1, dim), size, dtype=dtype)
    divergence = jensen_shannon(logits, -logits).item()
    assert divergence <= dim * math.log(2)
    assert divergence == pytest.approx(dim * math.log(2), rel=1e-5)


def test_the_divergence_is_symmetric_and_zero_for_equals() -> None:
    p, q = random(5, 9, seed=3, scale=4), random(5, 9, seed=4, scale=4)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    torch.testing.assert_close(jensen_shannon(p, p), torch.zeros(5), rtol=0, atol=1e-6)


def test_rounding_makes_no_divergence_negative() -> None:
    p = random(2000, 4, seed=5, scale=5)
    nearly = p * (1 + 1e-7)
    assert (jensen_shannon(p, nearly) >= 0).all()


def test_the_divergence_counts_only_outcome_one_when_told() -> None:
    p, q = random(3, 7, seed=1, scale=3), random(3, 7, seed=2, scale=3)
    pairs = zip(p.numpy(), q.numpy(), strict=True)
    expected = [reference.jensen_shannon(a, b, both_outcomes=False) for a, b in pairs]
    torch.testing.assert_close(jensen_shannon(p, q, "one"), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outcomes", ["both", "one"])
def test_the_gradient_of_the_divergence_is_that_of_its_values(outcomes: str) -> None:
    p = random(2, 5, seed=6, scale=3).double().requires_grad_()
    q = random(2, 5, seed=7, scale=3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: jensen_shannon(a, b, outcomes), (p, q))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e4, 1e30])
def test_the_gradient_of_the_divergence_is_finite(size: float) -> None:
    for sign in (1.0, -1.0):
        p = torch.full((2, 3), size, requires_grad=True)
        q = torch.full((2, 3), sign * size, requires_grad=True)
        jensen_shannon(p, q).sum().backward()
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.isfinite().all()
        assert q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_divergence_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    p, q = random(3, 256, seed=1, scale=5).to(dtype), random(3, 256, seed=2, scale=5).to(dtype)
    assert torch.equal(jensen_shannon(p, q), jensen_shannon(p.float(), q.float()))


def test_only_half_precision_is_raised() -> None:
    assert at_least_float32(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


# --- Eq. 4 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e12])
def test_orthogonality_is_equation_4(scale: float) -> None:
    a, b = random(6, 11, seed=1), random(6, 11, seed=2)
    expected = [reference.orthogonality(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    got = orthogonality(scale * a, scale * b)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-6)


def test_opposite_vectors_are_as_far_from_orthogonal_as_equal_ones() -> None:
    a = random(4, 8, seed=3)
    torch.testing.assert_close(orthogonality(a, -2 * a), torch.ones(4))
    torch.testing.assert_close(orthogonality(a, a), torch.ones(4))


def test_a_zero_vector_is_orthogonal_to_all_and_has_finite_gradients() -> None:
    a = torch.zeros(3, 5, requires_grad=True)
    b = torch.cat([torch.zeros(1, 5), random(2, 5)]).requires_grad_()
    values = orthogonality(a, b)
    values.sum().backward()
    assert torch.equal(values, torch.zeros(3))
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_the_gradient_of_orthogonality_is_that_of_its_values() -> None:
    a = random(3, 5, seed=1).double().requires_grad_()
    b = random(3, 5, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(orthogonality, (a, b))


def test_orthogonality_of_half_precision_is_computed_in_float32() -> None:
    a, b = random(3, 256, seed=1).bfloat16(), random(3, 256, seed=2).bfloat16()
    assert torch.equal(orthogonality(a, b), orthogonality(a.float(), b.float()))


# --- Eq. 10 -------------------------------------------------------------------------------------------------


def attention(n_stays: int, n_labels: int, seed: int = 0) -> Tensor:
    return random(n_stays, n_labels, 3, seed=seed, scale=2).softmax(-1)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.7])
def test_ranking_is_equation_10(margin: float) -> None:
    weights, losses = attention(5, 4), random(5, 4, 3, seed=9).abs()
    losses[0, 1] = 0.5  # three ties
    losses[1, 2, :2] = 0.3  # one tie
    weights[2, 0] = 1 / 3
    expected = [
        reference.attention_ranking(w, loss, margin)
        for w, loss in zip(weights.double().numpy(), losses.double().numpy(), strict=True)
    ]
    got = attention_ranking(weights, losses, margin)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def test_weights_in_the_order_of_the_losses_cost_nothing() -> None:
    weights = torch.tensor([[[0.6, 0.3, 0.1]]])
    assert attention_ranking(weights, torch.tensor([[[0.1, 0.2, 0.3]]])).item() == 0.0
    reversed_losses = torch.tensor([[[0.3, 0.2, 0.1]]])
    assert attention_ranking(weights, reversed_losses).item() == pytest.approx((0.3 + 0.2 + 0.5) / 2)


def test_a_margin_is_due_for_every_ranked_pair_that_is_too_close() -> None:
    weights = torch.tensor([[[0.6, 0.3, 0.1]]])
    losses = torch.tensor([[[0.1, 0.2, 0.3]]])
    # differences 0.3, 0.5 and 0.2; the margin of 0.25 is missed by the last alone
    assert attention_ranking(weights, losses, margin=0.25).item() == pytest.approx(0.05 / 2)


def test_tied_losses_rank_nothing_whatever_the_margin() -> None:
    assert attention_ranking(attention(2, 3), torch.full((2, 3, 3), 0.4), margin=0.5).tolist() == [0.0, 0.0]


def test_no_gradient_flows_into_the_losses() -> None:
    weights = attention(2, 3).requires_grad_()
    losses = random(2, 3, 3, seed=4).requires_grad_()
    attention_ranking(weights, losses, margin=0.1).sum().backward()
    assert losses.grad is None
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


def test_the_gradient_moves_weight_to_the_representation_with_the_lower_loss() -> None:
    weights = torch.tensor([[[0.2, 0.7, 0.1]] * 2], requires_grad=True)
    attention_ranking(weights, torch.tensor([[[0.1, 0.2, 0.9]] * 2])).sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [[-0.25, 0.25, 0.0]] * 2  # 1 / (2 C) with C = 2


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_ranking_over_non_zero_terms_is_a_mean_for_each_pair_of_modalities(margin: float) -> None:
    weights, losses = attention(4, 3, seed=1), random(4, 3, 3, seed=2).abs()
    losses[0, 0] = 0.5
    w, loss = weights.double().numpy(), losses.double().numpy()
    means = []
    for first, second in ((0, 1), (0, 2), (1, 2)):
        terms = []
        for b in range(4):
            for c in range(3):
                if loss[b, c, first] == loss[b, c, second]:
                    continue
                better, worse = sorted((first, second), key=lambda r: loss[b, c, r])
                terms.append(max(0.0, w[b, c, worse] - w[b, c, better] + margin))
        n_nonzero = sum(term > 0 for term in terms)
        means.append(sum(terms) / n_nonzero if n_nonzero else 0.0)
    got = attention_ranking(weights, losses, margin, "nonzero")
    assert got.shape == (4,)
    assert got.mean().item() == pytest.approx(sum(means) / 3, rel=1e-5)


@pytest.mark.parametrize("normalization", ["pairs", "nonzero"])
def test_ranking_without_a_non_zero_term_is_zero_with_finite_gradients(normalization: str) -> None:
    weights = torch.full((2, 3, 3), 1 / 3, requires_grad=True)
    cost = attention_ranking(weights, random(2, 3, 3), 0.0, normalization)  # type: ignore[arg-type]
    cost.sum().backward()
    assert cost.tolist() == [0.0, 0.0]
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("normalization", ["pairs", "nonzero"])
def test_ranking_of_no_stay_is_empty(normalization: str) -> None:
    nothing = torch.zeros(0, 4, 3)
    assert attention_ranking(nothing, nothing, 0.1, normalization).shape == (0,)  # type: ignore[arg-type]
