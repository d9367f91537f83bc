"""Evidence adds up, an absent modality adds nothing, and every subset is trained."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drfuse.errors import InputError
from drfuse.models import AdditiveEvidence
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch

SIZES: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "dropout": 0.0,
    "feedforward": 16,
    "cxr_backbone": TINY_BACKBONE,
}
NO_HOUR = torch.zeros(N_FEATURES)


def tiny(**options: Any) -> AdditiveEvidence:
    torch.manual_seed(0)
    return AdditiveEvidence(N_FEATURES, N_LABELS, **SIZES, **options).eval()


def naive_logits(
    model: AdditiveEvidence, h: dict[str, Tensor], rows: Sequence[tuple[int | None, int | None]]
) -> Tensor:
    """Return l_S for stays given as the rows of their EHR and radiograph in h, None where S lacks it."""
    found = []
    for stay in rows:
        logits: Tensor = model.bias
        weighted, precisions = torch.zeros(8), torch.ones(8)
        for modality, row in zip(("ehr", "cxr"), stay, strict=True):
            if row is not None:
                precision = h[f"{modality}_precision"][row]
                weighted = weighted + precision * h[f"{modality}_shared"][row]
                precisions = precisions + precision
                logits = logits + h[f"{modality}_distinct"][row] @ model.distinct_heads[modality].weight.T
        found.append(logits + (weighted / precisions) @ model.shared_head.weight.T)
    return torch.stack(found)


def test_logits_are_the_sum_of_the_evidence_that_is_there() -> None:
    model, batch = tiny(), make_batch(cxr_of=(1, 3))
    output = model(batch)
    expected = naive_logits(model, output.representations, [(0, None), (1, 0), (2, None), (3, 1)])
    torch.testing.assert_close(output.logits, expected)
    alone = naive_logits(model, output.representations, [(None, 0), (None, 1)])
    torch.testing.assert_close(model.logits_without_ehr(batch, NO_HOUR), alone)
    without = naive_logits(model, output.representations, [(1, None), (3, None)])
    torch.testing.assert_close(model(batch.matched_without_cxr()).logits, without)


def test_the_loss_trains_what_is_there_and_every_smaller_subset() -> None:
    model, batch = tiny(alignment="none"), make_batch(cxr_of=(1, 3))
    output = model(batch)
    h, labels = output.representations, batch.labels
    loss = model.loss(output, batch)
    ehr = naive_logits(model, h, [(row, None) for row in range(4)])
    cxr = naive_logits(model, h, [(None, 0), (None, 1)])
    parts = {
        "prediction": F.binary_cross_entropy_with_logits(output.logits, labels),
        "only_ehr": F.binary_cross_entropy_with_logits(ehr, labels),
        "only_cxr": F.binary_cross_entropy_with_logits(cxr, labels[[1, 3]]),
    }
    assert {*loss} == {"total", *parts}
    for name, expected in parts.items():
        torch.testing.assert_close(loss[name], expected)
    torch.testing.assert_close(loss["total"], sum(parts.values()))
    assert {*tiny(alignment="none", subsets="present").loss(output, batch)} == {"total", "prediction"}


def test_means_can_be_pooled_without_precision() -> None:
    model, batch = tiny(shared_pooling="mean"), make_batch(cxr_of=(1,))
    h = model(batch).representations
    torch.testing.assert_close(
        h["shared"][1], (h["ehr_shared"][1] + h["cxr_shared"][0]) / 2, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(h["shared"][0], h["ehr_shared"][0], rtol=1e-5, atol=1e-6)


def parts_of(model: AdditiveEvidence, h: dict[str, Tensor]) -> Tensor:
    """Return the three terms of the logits (B, C, 3) when every stay has a radiograph."""
    ehr, cxr = (h[f"{name}_distinct"] @ model.distinct_heads[name].weight.T for name in ("ehr", "cxr"))
    return torch.stack([ehr, h["shared"] @ model.shared_head.weight.T, cxr], dim=-1)


def test_weights_are_the_posterior_advantage() -> None:
    model, batch = tiny(), make_batch(cxr_of=(0, 1, 2, 3))
    output = model(batch)
    assert output.modality_weights is not None
    alone = (model.bias[:, None] + parts_of(model, output.representations)).sigmoid()  # p_k
    p = output.logits.sigmoid()
    for i, j in ((0, 2), (1, 2)):
        first, second = alone[..., i], alone[..., j]
        advantage = p * (first / second).log() + (1 - p) * ((1 - first) / (1 - second)).log()
        ratio = output.modality_weights[..., i] / output.modality_weights[..., j]
        torch.testing.assert_close(ratio.log(), advantage, rtol=1e-4, atol=1e-5)


def test_weights_can_be_what_leaving_a_part_out_changes() -> None:
    model, batch = tiny(weights="leave-one-out"), make_batch(cxr_of=(0, 1, 2, 3))
    output = model(batch)
    assert output.modality_weights is not None
    p = output.logits.sigmoid()[..., None].double()
    q = (output.logits[..., None] - parts_of(model, output.representations)).sigmoid().double()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = (divergence / divergence.sum(-1, keepdim=True)).float()
    torch.testing.assert_close(output.modality_weights, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("alignment", ["vicreg", "infonce"])
@pytest.mark.parametrize("disentanglement", ["cross-covariance", "club"])
def test_every_part_of_the_loss_counts_with_its_weight(alignment: Any, disentanglement: Any) -> None:
    options = {"alignment": alignment, "disentanglement": disentanglement}
    model = tiny(**options, alignment_weight=3.0, disentanglement_weight=5.0)
    batch = make_batch(cxr_of=(0, 1, 3))
    loss = model.loss(model(batch), batch)
    weights = {"alignment": 3.0, "disentanglement_ehr": 5.0, "disentanglement_cxr": 5.0}
    total = sum(weights.get(name, 1.0) * part for name, part in loss.items() if name != "total")
    torch.testing.assert_close(loss["total"], total)
    assert loss["alignment"] > 0


@pytest.mark.parametrize(("weight", "said"), [(-1.0, "at least 0"), (float("nan"), "a finite number")])
@pytest.mark.parametrize("name", ["alignment_weight", "disentanglement_weight"])
def test_a_weight_out_of_range_is_refused(name: str, weight: float, said: str) -> None:
    with pytest.raises(InputError, match=f"{name} is {weight}; expected {said}"):
        tiny(**{name: weight})
