"""DrFuse against Eq. 1 to 13 written out, stay by stay."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig

from drfuse.data import Batch
from drfuse.models import DrFuse, FusionOutput, logit_pool
from drfuse.models.drfuse import DiseaseWiseAttention
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch, take_stays, tiny_drfuse
from tests.models import reference
from tests.models.reference import array

NONE, SOME, ALL = (), (0, 2), (0, 1, 2, 3)
FROM_RADIOGRAPHS = ("alignment", "orthogonality_cxr", "auxiliary", "ranking")


def parts_of(model: DrFuse, batch: Batch) -> dict[str, float]:
    """Return the loss of a forward pass in training mode, in numbers."""
    return {name: part.item() for name, part in model.loss(model(batch), batch).items()}


def auxiliary_logits(head: nn.Module, h: reference.Array) -> reference.Array:
    """Apply an auxiliary head to one representation (D,)."""
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    for layer in linear[:-1]:
        h = np.maximum(array(layer.weight) @ h + array(layer.bias), 0)
    return array(linear[-1].weight) @ h + array(linear[-1].bias)


def naive_parts(model: DrFuse, output: FusionOutput, batch: Batch, margin: float = 0.0) -> dict[str, float]:
    """Eq. 9 to 13 from the output's representations, stay by stay: the terms before their weights."""
    h = {name: array(tensor) for name, tensor in output.representations.items()}
    labels, logits = array(batch.labels), array(output.logits)
    assert output.modality_weights is not None
    weights = array(output.modality_weights)
    image_of = {int(row): image for image, row in enumerate(batch.cxr_of)}
    sums = dict.fromkeys(("prediction", "orthogonality_ehr", *FROM_RADIOGRAPHS), 0.0)
    for i in range(len(batch)):
        sums["prediction"] += reference.cross_entropy(logits[i], labels[i]).sum()
        sums["orthogonality_ehr"] += reference.orthogonality(h["ehr_shared"][i], h["ehr_distinct"][i])
        if i not in image_of:
            continue
        cxr_shared, cxr_distinct = h["cxr_shared"][image_of[i]], h["cxr_distinct"][image_of[i]]
        sums["alignment"] += reference.jensen_shannon(h["ehr_shared"][i], cxr_shared)
        sums["orthogonality_cxr"] += reference.orthogonality(cxr_shared, cxr_distinct)
        three = (h["ehr_distinct"][i], h["shared"][i], cxr_distinct)
        losses = np.stack(
            [
                reference.cross_entropy(auxiliary_logits(head, one), labels[i])
                for head, one in zip(model.auxiliary_heads, three, strict=True)
            ],
            axis=-1,
        )
        sums["auxiliary"] += losses.sum()
        sums["ranking"] += reference.attention_ranking(weights[i], losses, margin)
    return {name: value / len(batch) for name, value in sums.items()}


# --- Eq. 2 --------------------------------------------------------------------------------------------------

PAIRS = [
    (0.0, 0.0),
    (1.5, -0.3),
    (100.0, 100.0),
    (-100.0, -100.0),
    (100.0, -100.0),
    (100.0, -99.0),
    (100.0, 0.0),
    (-100.0, 0.0),
    (100.0, 30.0),
    (-60.0, -100.0),
    (17.0, 16.0),
    (-17.0, -16.5),
    (88.8, -88.8),
    (1e-6, -1e-6),
]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_logit_pooling_is_equation_2_up_to_the_largest_logits(a: float, b: float) -> None:
    one, other = torch.tensor(a), torch.tensor(b)
    expected = reference.logit_pool(one.item(), other.item())
    assert logit_pool(one, other).item() == pytest.approx(expected, rel=1e-6, abs=5e-7)
    double = logit_pool(one.double(), other.double())
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(expected, rel=1e-13, abs=1e-15)


def test_logit_pooling_is_equation_2_over_a_grid() -> None:
    side = torch.linspace(-100, 100, 41)
    a, b = torch.meshgrid(side, side, indexing="ij")
    expected = [
        reference.logit_pool(x, y) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    ]
    pooled = logit_pool(a, b).flatten()
    torch.testing.assert_close(pooled, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_logit_pooling_is_the_logit_of_the_mean_probability() -> None:
    a, b = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3, torch.linspace(-4, 4, 50)
    mean = (a.double().sigmoid() + b.double().sigmoid()) / 2
    torch.testing.assert_close(logit_pool(a, b), mean.logit().float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logit_pooling_under_autocast_is_as_exact_as_without(dtype: torch.dtype) -> None:
    side = torch.linspace(-100, 100, 31)
    a, b = (one.to(dtype) for one in torch.meshgrid(side, side, indexing="ij"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        from_half, from_full = logit_pool(a, b), logit_pool(a.float(), b.float())
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, logit_pool(a.float(), b.float()))
    assert torch.equal(from_full, from_half)


@pytest.mark.parametrize(("a", "b"), [*PAIRS, (1e4, -1e4), (1e30, 1e30)])
def test_the_gradient_of_logit_pooling_is_finite_and_splits_one(a: float, b: float) -> None:
    one, other = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    logit_pool(one, other).backward()
    assert one.grad is not None
    assert other.grad is not None
    for gradient in (one.grad, other.grad):
        assert gradient.isfinite()
        assert -1e-6 <= gradient <= 1 + 1e-6
    if a == b:
        assert one.grad == pytest.approx(0.5)


def test_the_gradient_of_logit_pooling_is_that_of_its_values() -> None:
    generator = torch.Generator().manual_seed(0)
    a = (4 * torch.randn(8, generator=generator, dtype=torch.float64)).requires_grad_()
    b = (4 * torch.randn(8, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(logit_pool, (a, b))


# --- Eq. 3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cxr_of", [NONE, SOME, ALL])
def test_the_shared_representation_is_pooled_where_there_is_a_radiograph(cxr_of: Sequence[int]) -> None:
    batch = make_batch(cxr_of)
    h = tiny_drfuse().eval()(batch).representations
    for row in range(len(batch)):
        expected = array(h["ehr_shared"][row])
        if row in cxr_of:
            cxr = array(h["cxr_shared"][cxr_of.index(row)])
            expected = np.array([reference.logit_pool(a, b) for a, b in zip(expected, cxr, strict=True)])
        np.testing.assert_allclose(array(h["shared"][row]), expected, rtol=1e-5, atol=1e-6)


def test_the_output_has_the_promised_shapes() -> None:
    output = tiny_drfuse()(make_batch())
    assert output.logits.shape == (4, N_LABELS)
    assert output.modality_weights is not None
    assert output.modality_weights.shape == (4, N_LABELS, 3)
    assert {name: tuple(h.shape) for name, h in output.representations.items()} == {
        "ehr_shared": (4, 8),
        "ehr_distinct": (4, 8),
        "shared": (4, 8),
        "cxr_shared": (2, 8),
        "cxr_distinct": (2, 8),
    }


# --- Eq. 5 to 8 ---------------------------------------------------------------------------------------------


def test_attention_is_equations_5_to_8_with_the_keys_written_out() -> None:
    torch.manual_seed(0)
    dim, n_labels, n_stays = 6, 4, 5
    attention = DiseaseWiseAttention(dim, n_labels)
    with torch.no_grad():
        attention.key.mul_(5)  # so that the weights are far from equal
    stacked = 2 * torch.randn(n_stays, 3, dim)
    present = torch.ones(n_stays, 3, dtype=torch.bool)
    present[1, 2] = present[3, 2] = False
    stacked[~present] = 0.0
    logits, weights = attention(stacked, present)
    query, value = array(attention.query.weight).T, array(attention.value.weight).T
    for i in range(n_stays):
        ehr, shared, cxr = array(stacked[i])
        final, expected = reference.attend(
            ehr, shared, cxr if present[i, 2] else None, query, array(attention.key), value
        )
        np.testing.assert_allclose(array(weights[i]), expected, rtol=1e-4, atol=1e-6)
        assert np.ptp(expected) > 0.1
        for c in range(n_labels):
            own_head = array(attention.head[c]) @ final[c] + array(attention.head_bias[c])
            assert logits[i, c].item() == pytest.approx(own_head, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("cxr_of", [NONE, SOME, ALL])
def test_the_model_attends_to_its_own_representations(cxr_of: Sequence[int]) -> None:
    model, batch = tiny_drfuse().eval(), make_batch(cxr_of)
    output = model(batch)
    h = {name: array(tensor) for name, tensor in output.representations.items()}
    attention = model.attention
    for i in range(len(batch)):
        cxr = h["cxr_distinct"][cxr_of.index(i)] if i in cxr_of else None
        final, weights = reference.attend(
            h["ehr_distinct"][i],
            h["shared"][i],
            cxr,
            array(attention.query.weight).T,
            array(attention.key),
            array(attention.value.weight).T,
        )
        np.testing.assert_allclose(array(output.modality_weights[i]), weights, rtol=1e-4, atol=1e-6)
        expected = (final * array(attention.head)).sum(1) + array(attention.head_bias)
        np.testing.assert_allclose(array(output.logits[i]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("cxr_of", [NONE, SOME, ALL])
def test_the_weights_sum_to_one_and_that_of_an_absent_radiograph_is_exactly_zero(
    cxr_of: Sequence[int], autocast: bool
) -> None:
    model, batch = tiny_drfuse(), make_batch(cxr_of)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        weights = model(batch).modality_weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, N_LABELS))
    absent = ~batch.has_cxr
    assert (weights[absent][..., 2] == 0).all()
    assert (weights[~absent] > 0).all()
    assert (weights[absent][..., :2] > 0).all()


def test_what_stands_at_an_absent_radiograph_changes_nothing() -> None:
    torch.manual_seed(0)
    attention = DiseaseWiseAttention(6, 4)
    stacked, present = torch.randn(2, 3, 6), torch.tensor([[True, True, False], [True, True, True]])
    other = stacked.clone()
    other[0, 2] = 1e3
    for before, after in zip(attention(stacked, present), attention(other, present), strict=True):
        torch.testing.assert_close(before, after)


# --- Eq. 9 to 13 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cxr_of", [NONE, (3,), SOME, ALL])
def test_the_parts_of_the_loss_are_equations_9_to_13(cxr_of: Sequence[int]) -> None:
    model, batch = tiny_drfuse(), make_batch(cxr_of)
    output = model(batch)
    loss = model.loss(output, batch)
    expected = naive_parts(model, output, batch)
    assert set(loss) == {"total", *expected}
    for name, value in expected.items():
        assert loss[name].shape == ()
        assert loss[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    if cxr_of:
        assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize("cxr_of", [NONE, SOME, ALL])
def test_the_total_weighs_the_parts_by_lambda_1_to_3(cxr_of: Sequence[int]) -> None:
    model = tiny_drfuse(alignment_weight=0.7, orthogonality_weight=0.3, auxiliary_weight=0.2)
    batch = make_batch(cxr_of)
    output = model(batch)
    part = naive_parts(model, output, batch)
    expected = (
        part["prediction"]
        + 0.7 * part["alignment"]
        + 0.3 * (part["orthogonality_ehr"] + part["orthogonality_cxr"])
        + 0.2 * (part["ranking"] + part["auxiliary"])
    )
    assert model.loss(output, batch)["total"].item() == pytest.approx(expected, rel=1e-5)


def test_the_paper_s_weights_are_the_defaults() -> None:
    batch = make_batch()
    part = parts_of(tiny_drfuse(), batch)
    expected = part["prediction"] + part["alignment"] + part["orthogonality_ehr"] + part["orthogonality_cxr"]
    expected += 0.5 * (part["auxiliary"] + part["ranking"])
    assert part["total"] == pytest.approx(expected, rel=1e-6)


def test_the_margin_reaches_the_ranking() -> None:
    model, batch = tiny_drfuse(ranking_margin=0.3), make_batch(ALL)
    output = model(batch)
    expected = naive_parts(model, output, batch, margin=0.3)["ranking"]
    assert model.loss(output, batch)["ranking"].item() == pytest.approx(expected, rel=1e-4)
    assert expected > parts_of(tiny_drfuse(), batch)["ranking"]


def test_stays_without_a_radiograph_add_prediction_and_ehr_orthogonality_only() -> None:
    model = tiny_drfuse().eval()  # so that a stay alone is encoded as in company
    batch = make_batch(SOME)
    together = parts_of(model, batch)
    alone = [parts_of(model, take_stays(batch, [row])) for row in range(4)]
    for row in (1, 3):
        assert [alone[row][name] for name in FROM_RADIOGRAPHS] == [0.0] * 4
        expected = alone[row]["prediction"] + alone[row]["orthogonality_ehr"]
        assert alone[row]["total"] == pytest.approx(expected, rel=1e-6)
    for name, value in together.items():  # the mean is over all stays
        assert value == pytest.approx(sum(one[name] for one in alone) / 4, rel=1e-4, abs=1e-6)


def test_the_auxiliary_losses_are_what_ranks_the_weights_and_get_no_gradient_for_it() -> None:
    model, batch = tiny_drfuse(ranking_margin=1.0), make_batch(ALL)
    model.loss(model(batch), batch)["ranking"].backward()
    assert all(parameter.grad is None for parameter in model.auxiliary_heads.parameters())
    assert model.attention.key.grad is not None
    assert model.attention.key.grad.abs().sum() > 0


# --- where published code differs ---------------------------------------------------------------------------


def changed_parts(batch: Batch, **options: Any) -> dict[str, tuple[float, float]]:
    """Return the parts that options change, before and after, in models of equal weights."""
    before, after = parts_of(tiny_drfuse(), batch), parts_of(tiny_drfuse(**options), batch)
    assert set(before) == set(after)
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != pytest.approx(after[name], rel=1e-6, abs=1e-8)
    }


def test_mean_class_reduction_divides_prediction_and_auxiliary_by_the_classes() -> None:
    changed = changed_parts(make_batch(), class_reduction="mean")
    assert set(changed) == {"total", "prediction", "auxiliary"}
    for name in ("prediction", "auxiliary"):
        assert changed[name][1] == pytest.approx(changed[name][0] / N_LABELS, rel=1e-5)


def test_auxiliary_losses_of_all_stays_add_those_without_a_radiograph() -> None:
    batch = make_batch(SOME)
    model = tiny_drfuse()
    h = model(batch).representations
    more = sum(
        reference.cross_entropy(
            auxiliary_logits(model.auxiliary_heads[head], array(h[name][row])), array(batch.labels[row])
        ).sum()
        for row in (1, 3)
        for head, name in enumerate(("ehr_distinct", "shared"))
    )
    changed = changed_parts(batch, auxiliary_stays="all")
    assert set(changed) == {"total", "auxiliary"}
    assert changed["auxiliary"][1] == pytest.approx(changed["auxiliary"][0] + more / 4, rel=1e-5)
    assert changed_parts(make_batch(ALL), auxiliary_stays="all") == {}


def test_one_outcome_leaves_half_of_the_divergence_s_terms_out() -> None:
    batch = make_batch(SOME)
    h = tiny_drfuse()(batch).representations
    expected = [
        reference.jensen_shannon(array(h["ehr_shared"][row]), array(h["cxr_shared"][image]), False)
        for image, row in enumerate(SOME)
    ]
    changed = changed_parts(batch, jsd_outcomes="one")
    assert set(changed) == {"total", "alignment"}
    assert changed["alignment"][1] == pytest.approx(sum(expected) / 4, rel=1e-4, abs=1e-6)


def test_own_stay_reduction_divides_by_the_stays_that_have_the_loss() -> None:
    changed = changed_parts(make_batch(SOME), stay_reduction="own")
    assert set(changed) == {"total", *FROM_RADIOGRAPHS}
    for name in FROM_RADIOGRAPHS:
        assert changed[name][1] == pytest.approx(changed[name][0] * 4 / 2, rel=1e-5)
    assert changed_parts(make_batch(ALL), stay_reduction="own") == {}


def test_own_stay_reduction_of_all_stays_auxiliary_losses_divides_each_by_its_own() -> None:
    batch = make_batch((1,))
    matched = parts_of(tiny_drfuse(), batch)["auxiliary"]  # ehr, shared and cxr of stay 1, over 4
    everyone = parts_of(tiny_drfuse(auxiliary_stays="all"), batch)["auxiliary"]
    own = parts_of(tiny_drfuse(auxiliary_stays="all", stay_reduction="own"), batch)["auxiliary"]
    model = tiny_drfuse()
    logits = auxiliary_logits(
        model.auxiliary_heads[2], array(model(batch).representations["cxr_distinct"][0])
    )
    cxr = reference.cross_entropy(logits, array(batch.labels[1])).sum()
    assert own == pytest.approx(everyone - cxr / 4 + cxr, rel=1e-5)
    assert matched < everyone < own


def test_auxiliary_heads_of_one_layer_are_linear() -> None:
    batch = make_batch(SOME)
    model = tiny_drfuse(auxiliary_layers=1)
    assert all(isinstance(head, nn.Linear) for head in model.auxiliary_heads)
    output = model(batch)
    expected = naive_parts(model, output, batch)
    loss = model.loss(output, batch)
    assert loss["auxiliary"].item() == pytest.approx(expected["auxiliary"], rel=1e-4)
    assert set(changed_parts(batch, auxiliary_layers=1)) <= {"total", "auxiliary", "ranking"}


def test_auxiliary_heads_have_two_layers_unless_told() -> None:
    for head in tiny_drfuse().auxiliary_heads:
        shapes = [tuple(m.weight.shape) for m in head.modules() if isinstance(m, nn.Linear)]
        assert shapes == [(8, 8), (N_LABELS, 8)]
        assert sum(isinstance(module, nn.ReLU) for module in head.modules()) == 1


def test_ranking_by_non_zero_terms_changes_the_ranking_alone() -> None:
    batch = make_batch(ALL)
    changed = changed_parts(batch, ranking_normalization="nonzero")
    assert set(changed) == {"total", "ranking"}
    own = parts_of(tiny_drfuse(ranking_normalization="nonzero", stay_reduction="own"), batch)
    assert changed["ranking"][1] == pytest.approx(own["ranking"], rel=1e-6)
    # a mean over fewer terms is larger: 1/(2C) of all pairs, against a third of a mean over non-zero ones
    terms = changed["ranking"][0] * 2 * N_LABELS * len(batch)
    assert changed["ranking"][1] >= terms / (3 * N_LABELS * len(batch)) * (1 - 1e-6)


def test_both_shared_representations_pass_one_three_layer_projection() -> None:
    model = tiny_drfuse()
    layers = list(model.common_projection.children())
    shapes = [tuple(one.weight.shape) for one in layers if isinstance(one, nn.Linear)]
    assert shapes == [(16, 8), (8, 16), (8, 8)]
    assert sum(isinstance(one, nn.ReLU) for one in layers) == 2
    with torch.no_grad():
        model.common_projection[-1].weight.zero_()
        model.common_projection[-1].bias.copy_(torch.arange(8.0))
    h = model(make_batch(ALL)).representations
    for name in ("ehr_shared", "cxr_shared", "shared"):
        torch.testing.assert_close(h[name], torch.arange(8.0).expand(4, 8))
    for name in ("ehr_distinct", "cxr_distinct"):
        assert (h[name] - torch.arange(8.0)).abs().max() > 0.1


def test_without_the_common_projection_the_encoders_outputs_are_the_shared_representations() -> None:
    model, batch = tiny_drfuse(common_projection=False).eval(), make_batch()
    assert not list(model.common_projection.parameters())
    h = model(batch).representations
    torch.testing.assert_close(h["ehr_shared"], model.ehr_encoder(batch.ehr, batch.n_hours)[0])
    torch.testing.assert_close(h["cxr_shared"], model.cxr_shared_encoder(batch))
    torch.testing.assert_close(h["ehr_distinct"], model.ehr_encoder(batch.ehr, batch.n_hours)[1])
    torch.testing.assert_close(h["cxr_distinct"], model.cxr_distinct_encoder(batch))


# --- the paper's ablation -----------------------------------------------------------------------------------


def without(parts: dict[str, float], *names: str) -> dict[str, float]:
    return {name: value for name, value in parts.items() if name not in {"total", *names}}


def test_without_disentanglement_alignment_and_orthogonality_leave_the_loss() -> None:
    batch = make_batch()
    full, ablated = parts_of(tiny_drfuse(), batch), parts_of(tiny_drfuse(disentangle=False), batch)
    left_out = ("alignment", "orthogonality_ehr", "orthogonality_cxr")
    assert without(ablated) == pytest.approx(without(full, *left_out))
    assert ablated["total"] == pytest.approx(full["total"] - sum(full[name] for name in left_out), rel=1e-5)


def test_without_attention_ranking_only_the_ranking_leaves_the_loss() -> None:
    batch = make_batch()
    full, ablated = parts_of(tiny_drfuse(), batch), parts_of(tiny_drfuse(attention_ranking=False), batch)
    assert without(ablated) == pytest.approx(without(full, "ranking"))
    assert ablated["total"] == pytest.approx(full["total"] - 0.5 * full["ranking"], rel=1e-5)


def test_mse_alignment_pools_by_averaging_and_aligns_by_squared_error() -> None:
    model, batch = tiny_drfuse(alignment="mse"), make_batch(SOME)
    output = model(batch)
    h = {name: array(tensor) for name, tensor in output.representations.items()}
    squares = 0.0
    for row in range(4):
        expected = h["ehr_shared"][row]
        if row in SOME:
            cxr = h["cxr_shared"][SOME.index(row)]
            squares += sum((a - b) ** 2 for a, b in zip(expected, cxr, strict=True)) / 8
            expected = (expected + cxr) / 2
        np.testing.assert_allclose(h["shared"][row], expected, rtol=1e-5, atol=1e-6)
    assert model.loss(output, batch)["alignment"].item() == pytest.approx(squares / 4, rel=1e-5)
    kept = {"orthogonality_ehr", "orthogonality_cxr"}
    full = parts_of(tiny_drfuse(), batch)
    ablated = parts_of(model, batch)
    assert {name: ablated[name] for name in kept} == pytest.approx({name: full[name] for name in kept})


# --- who sees what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cxr_of", [(1,), SOME, ALL])
def test_the_cxr_encoders_see_the_radiographs_that_exist_and_nothing_else(cxr_of: Sequence[int]) -> None:
    model, batch = tiny_drfuse(), make_batch(cxr_of)
    seen: list[Tensor] = []
    for encoder in (model.cxr_shared_encoder, model.cxr_distinct_encoder):
        encoder.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    assert len(seen) == 2
    for images in seen:
        assert torch.equal(images, batch.cxr)


@pytest.mark.parametrize("options", [{}, {"stay_reduction": "own", "ranking_normalization": "nonzero"}])
@pytest.mark.parametrize("alignment", ["jsd", "mse"])
@pytest.mark.parametrize("cxr_of", [NONE, (2,)])
def test_no_radiograph_or_a_single_one_trains_under_every_reduction(
    cxr_of: Sequence[int], alignment: str, options: dict[str, str]
) -> None:
    model = tiny_drfuse(0, alignment=alignment, auxiliary_stays="all", **options)
    batch = make_batch(cxr_of)
    loss = model.loss(model(batch), batch)
    loss["total"].backward()
    assert all(part.isfinite() for part in loss.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_two_cxr_encoders_have_one_architecture_and_their_own_weights() -> None:
    model = tiny_drfuse()
    shared = dict(model.cxr_shared_encoder.named_parameters())
    distinct = dict(model.cxr_distinct_encoder.named_parameters())
    assert {name: p.shape for name, p in shared.items()} == {name: p.shape for name, p in distinct.items()}
    assert not {id(p) for p in shared.values()} & {id(p) for p in distinct.values()}


def test_a_pretrained_folder_serves_both_encoders(tmp_path: Path) -> None:
    config = ResNetConfig.from_dict({"num_channels": 3} | TINY_BACKBONE)
    ResNetBackbone(config).save_pretrained(tmp_path)
    model = tiny_drfuse(cxr_backbone=str(tmp_path)).eval()
    images = torch.randn(2, 1, 16, 16)
    one, other = (e.backbone(images) for e in (model.cxr_shared_encoder, model.cxr_distinct_encoder))
    assert torch.equal(one.feature_maps[-1], other.feature_maps[-1])
    assert model(make_batch()).logits.isfinite().all()


def test_the_paper_s_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        model = DrFuse(59, 25)
    assert model.attention.key.shape == (25, 256, 256)
    assert model.ehr_encoder.project.in_features == 59
    assert model.ehr_encoder.positions.shape == (48, 256)
    assert model.cxr_shared_encoder.project.in_features == 2048


# --- extremes and refusals ----------------------------------------------------------------------------------


def scaled(factor: float) -> Batch:
    batch = make_batch(SOME)
    return replace(batch, ehr=factor * batch.ehr, cxr=factor * batch.cxr)


def saturate(model: DrFuse) -> None:
    with torch.no_grad():
        model.common_projection[-1].weight.mul_(1e4)
        model.attention.key.mul_(1e3)


@pytest.mark.parametrize("prepare", [lambda _: None, saturate])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("factor", [0.0, 1.0, 1e3, 1e4])
def test_loss_and_gradients_are_finite_at_extremes(
    factor: float, training: bool, autocast: bool, prepare: Callable[[DrFuse], None]
) -> None:
    model, batch = tiny_drfuse().train(training), scaled(factor)
    prepare(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(batch)
        loss = model.loss(output, batch)
    loss["total"].backward()
    assert output.logits.isfinite().all()
    assert all(part.isfinite() for part in loss.values())
    assert loss["alignment"] <= 8 * np.log(2)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_loss_without_modality_weights_says_what_to_pass() -> None:
    model, batch = tiny_drfuse(), make_batch()
    output = model(batch)
    with pytest.raises(ValueError, match="pass the output of this model"):
        model.loss(FusionOutput(output.logits, None, output.representations), batch)


def test_a_series_with_other_features_is_refused() -> None:
    model, batch = DrFuse(N_FEATURES + 1, N_LABELS, dim=8, heads=2, cxr_backbone=TINY_BACKBONE), make_batch()
    with pytest.raises((ValueError, RuntimeError)):
        model(batch)
