"""The models of one modality see nothing of the other, and say nothing where theirs is absent."""

import pytest
import torch
from torch.nn import functional as F

from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.models import CxrResNet, EhrLstm, EhrTransformer, FusionModel, check_contract
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch


def tiny_ehr(kind: type[FusionModel]) -> FusionModel:
    torch.manual_seed(0)
    options = {"heads": 2, "feedforward": 16} if kind is EhrTransformer else {}
    return kind(N_FEATURES, N_LABELS, dim=8, dropout=0.0, **options)


def tiny_cxr() -> CxrResNet:
    torch.manual_seed(0)
    return CxrResNet(N_FEATURES, N_LABELS, dim=8, cxr_backbone=TINY_BACKBONE)


def parts_of(model: FusionModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(batch)
    return output.logits, model.loss(output, batch)["total"]


def test_the_image_model_tells_only_stays_with_a_radiograph() -> None:
    batch = make_batch((1, 3))
    output = tiny_cxr().eval()(batch)
    assert torch.equal(output.logits.isnan().any(1), ~batch.has_cxr)
    assert output.logits[batch.has_cxr].isfinite().all()
    assert output.representations["cxr"].shape == (2, 8)


def test_the_image_model_s_loss_is_over_the_stays_with_a_radiograph() -> None:
    model, batch = tiny_cxr().eval(), make_batch((1, 3))
    logits, loss = parts_of(model, batch)
    expected = F.binary_cross_entropy_with_logits(logits[[1, 3]], batch.labels[[1, 3]])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_any_radiograph_the_image_model_s_loss_is_zero_and_trains_nothing() -> None:
    model, batch = tiny_cxr(), make_batch(())
    _, loss = parts_of(model, batch)
    loss.backward()
    assert loss.item() == 0
    assert not any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_a_cohort_without_radiographs_is_nothing_for_the_image_model() -> None:
    with pytest.raises(InputError, match="CxrResNet returned only NaN: this cohort lacks the modality"):
        check_contract(tiny_cxr(), make_batch(()), N_LABELS)


def test_the_record_changes_nothing_for_the_image_model() -> None:
    model, batch = tiny_cxr().eval(), make_batch((1, 3))
    other = make_batch((1, 3), seed=1).with_cxr(batch.cxr)
    assert torch.equal(model(batch).logits[[1, 3]], model(other).logits[[1, 3]])


@pytest.mark.parametrize("kind", [EhrTransformer, EhrLstm])
def test_radiographs_change_nothing_for_the_record_s_model(kind: type[FusionModel]) -> None:
    model, batch = tiny_ehr(kind).eval(), make_batch((1, 3))
    without = batch.keep_cxr(torch.tensor([], dtype=torch.int64))
    brighter = batch.with_cxr(batch.cxr + 1)
    assert torch.equal(model(batch).logits, model(without).logits)
    assert torch.equal(model(batch).logits, model(brighter).logits)


@pytest.mark.parametrize("kind", [EhrTransformer, EhrLstm])
def test_the_record_model_s_loss_is_the_mean_cross_entropy(kind: type[FusionModel]) -> None:
    model, batch = tiny_ehr(kind).eval(), make_batch((1,))
    logits, loss = parts_of(model, batch)
    p = logits.sigmoid()
    expected = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        ehr, lstm, cxr = EhrTransformer(59, 25), EhrLstm(59, 25), CxrResNet(59, 25)
    assert [model.head.in_features for model in (ehr, lstm, cxr)] == [256] * 3
    assert lstm.init_args["lstm_layers"] == 2
    assert lstm.init_args["dropout"] == 0.3
    assert cxr.init_args["cxr_backbone"] == "resnet50"
    assert {name: ehr.init_args[name] for name in ("heads", "layers", "dropout", "feedforward")} == {
        "heads": 4,
        "layers": 1,
        "dropout": 0.3,
        "feedforward": 2048,
    }
