"""Late fusion is two models that share nothing but the stays."""

import math

import pytest
import torch

from drfuse.models import CxrResNet, EhrTransformer, LateFusion
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch

TRANSFORMER = {"dim": 8, "heads": 2, "dropout": 0.0, "feedforward": 16}


def tiny_late() -> LateFusion:
    torch.manual_seed(0)
    return LateFusion(N_FEATURES, N_LABELS, **TRANSFORMER, cxr_backbone=TINY_BACKBONE)


def alone(model: LateFusion) -> tuple[EhrTransformer, CxrResNet]:
    """Return models of one modality with the weights of the two inside."""
    ehr = EhrTransformer(N_FEATURES, N_LABELS, **TRANSFORMER)
    cxr = CxrResNet(N_FEATURES, N_LABELS, dim=8, cxr_backbone=TINY_BACKBONE)
    ehr.load_state_dict(model.ehr.state_dict())
    cxr.load_state_dict(model.cxr.state_dict())
    return ehr, cxr


@pytest.mark.parametrize("cxr_of", [(), (1, 3), (0, 1, 2, 3)])
def test_the_probability_is_the_mean_of_those_that_exist(cxr_of: tuple[int, ...]) -> None:
    model, batch = tiny_late().eval(), make_batch(cxr_of)
    ehr, cxr = (one.eval()(batch).logits.tolist() for one in alone(model))
    logits = model(batch).logits
    for row in range(4):
        for label in range(N_LABELS):
            probability = 1 / (1 + math.exp(-ehr[row][label]))
            if row in cxr_of:
                probability = (probability + 1 / (1 + math.exp(-cxr[row][label]))) / 2
            assert logits[row, label].sigmoid().item() == pytest.approx(probability, rel=1e-5)


def test_without_a_radiograph_the_logits_are_the_ehr_s_to_the_bit() -> None:
    model, batch = tiny_late().eval(), make_batch((1, 3))
    ehr = alone(model)[0].eval()(batch).logits
    assert torch.equal(model(batch).logits[[0, 2]], ehr[[0, 2]])


@pytest.mark.parametrize("cxr_of", [(), (1, 3), (0, 1, 2, 3)])
def test_each_model_trains_as_if_alone(cxr_of: tuple[int, ...]) -> None:
    model, batch = tiny_late(), make_batch(cxr_of)
    twins = alone(model)
    loss = model.loss(model(batch), batch)
    loss["total"].backward()
    assert set(loss) == {"total", "ehr", "cxr"}
    assert loss["total"].item() == pytest.approx(loss["ehr"].item() + loss["cxr"].item())
    for name, half, twin in zip(("ehr", "cxr"), (model.ehr, model.cxr), twins, strict=True):
        own = twin.loss(twin(batch), batch)["total"]
        own.backward()
        assert loss[name].item() == own.item()
        for parameter, expected in zip(half.parameters(), twin.parameters(), strict=True):
            assert (parameter.grad is None) == (expected.grad is None)
            if expected.grad is not None:
                torch.testing.assert_close(parameter.grad, expected.grad)


def test_the_models_sizes_are_those_of_the_models_of_one_modality() -> None:
    with torch.device("meta"):
        late, ehr, cxr = LateFusion(59, 25), EhrTransformer(59, 25), CxrResNet(59, 25)
    for half, whole in ((late.ehr, ehr), (late.cxr, cxr)):
        assert half.init_args == whole.init_args
