"""MedFuse against its fusion written out, stay by stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drfuse.errors import InputError
from drfuse.models import CxrResNet, EhrLstm, EhrTransformer, FusionModel, MedFuse
from drfuse.models.ehr_encoders import EhrEncoder, EhrLstmEncoder
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch
from tests.models import reference
from tests.models.reference import array

TRANSFORMER = {"heads": 2, "feedforward": 16}


def tiny_medfuse(**options: Any) -> MedFuse:
    torch.manual_seed(0)
    sizes = {"dim": 8, "fusion_dim": 12, "dropout": 0.0, "cxr_backbone": TINY_BACKBONE}
    model = MedFuse(N_FEATURES, N_LABELS, **sizes, **options)
    if model.absent_cxr is not None:
        torch.nn.init.uniform_(model.absent_cxr, -1, 1)  # as if trained: it starts at zero
    return model


@pytest.mark.parametrize("ehr_encoder", ["lstm", "transformer"])
@pytest.mark.parametrize("absent_cxr", ["learned", "skip"])
@pytest.mark.parametrize("cxr_of", [(), (3,), (0, 2), (0, 1, 2, 3)])
def test_the_fusion_reads_the_ehr_and_then_the_radiograph_of_each_stay(
    cxr_of: Sequence[int], absent_cxr: str, ehr_encoder: str
) -> None:
    options = TRANSFORMER if ehr_encoder == "transformer" else {}
    model = tiny_medfuse(absent_cxr=absent_cxr, ehr_encoder=ehr_encoder, **options).eval()
    batch = make_batch(cxr_of)
    output = model(batch)
    (ehr,), cxr = model.ehr_encoder(batch.ehr, batch.n_hours), model.cxr_encoder(batch)
    weights = [array(weight) for weight in model.fusion.all_weights[0]]
    for row in range(4):
        sequence = [array(ehr[row])]
        if row in cxr_of:
            sequence.append(array(cxr[cxr_of.index(row)]))
        elif model.absent_cxr is not None:
            sequence.append(array(model.absent_cxr))
        last = reference.lstm(np.stack(sequence), *weights)[-1]
        expected = array(model.head.weight) @ last + array(model.head.bias)
        np.testing.assert_allclose(array(output.logits[row]), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.representations, {"ehr": ehr, "cxr": cxr})


def test_absence_is_learned_or_left_out() -> None:
    learned, skipping = tiny_medfuse(), tiny_medfuse(absent_cxr="skip")
    more = set(learned.state_dict()) - set(skipping.state_dict())
    assert more == {"absent_cxr"}
    assert not MedFuse(N_FEATURES, N_LABELS, dim=8, cxr_backbone=TINY_BACKBONE).absent_cxr.any()
    learned.load_state_dict(skipping.state_dict(), strict=False)
    batch = make_batch((0, 2))
    one, other = learned.eval()(batch).logits, skipping.eval()(batch).logits
    torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
    assert ((one - other)[[1, 3]].abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(("cxr_of", "moved"), [((), True), ((1,), True), ((0, 1, 2, 3), False)])
def test_stays_without_radiograph_train_the_representation_of_absence(
    cxr_of: Sequence[int], moved: bool
) -> None:
    model, batch = tiny_medfuse(), make_batch(cxr_of)
    model.loss(model(batch), batch)["total"].backward()
    assert model.absent_cxr is not None
    assert (model.absent_cxr.grad is not None and bool(model.absent_cxr.grad.any())) == moved


@pytest.mark.parametrize(
    ("ehr_encoder", "first_stage"),
    [
        ("lstm", EhrLstm(N_FEATURES, N_LABELS, dim=8)),
        ("transformer", EhrTransformer(N_FEATURES, N_LABELS, dim=8, **TRANSFORMER)),
    ],
)
def test_the_encoders_of_the_first_stage_fit_exactly(ehr_encoder: str, first_stage: FusionModel) -> None:
    options = TRANSFORMER if ehr_encoder == "transformer" else {}
    model, batch = tiny_medfuse(ehr_encoder=ehr_encoder, **options), make_batch()
    image = CxrResNet(N_FEATURES, N_LABELS, dim=8, cxr_backbone=TINY_BACKBONE)
    image(batch)  # moves its BatchNorm
    model.ehr_encoder.load_state_dict(first_stage.encoder.state_dict())
    model.cxr_encoder.load_state_dict(image.encoder.state_dict())
    h = model.eval()(batch).representations
    assert torch.equal(h["ehr"], first_stage.eval()(batch).representations["ehr"])
    assert torch.equal(h["cxr"], image.eval()(batch).representations["cxr"])


def test_the_loss_is_the_mean_cross_entropy() -> None:
    model, batch = tiny_medfuse(), make_batch()
    output = model(batch)
    p = output.logits.sigmoid()
    expected = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()
    loss = model.loss(output, batch)
    assert set(loss) == {"total"}
    assert loss["total"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        first, second = MedFuse(59, 25), MedFuse(59, 25, ehr_encoder="transformer", cxr_backbone="resnet50")
        lstm, transformer = EhrLstm(59, 25), EhrTransformer(59, 25)
        images = [CxrResNet(59, 25, cxr_backbone=name) for name in ("resnet34", "resnet50")]
    for model, ehr, cxr in zip((first, second), (lstm, transformer), images, strict=True):
        for encoder, unimodal in ((model.ehr_encoder, ehr), (model.cxr_encoder, cxr)):
            sizes = {name: weight.shape for name, weight in unimodal.encoder.state_dict().items()}
            assert {name: weight.shape for name, weight in encoder.state_dict().items()} == sizes
        assert (model.fusion.input_size, model.fusion.hidden_size, model.fusion.num_layers) == (256, 512, 1)
        assert model.init_args["dropout"] == ehr.init_args["dropout"] == 0.3
    assert first.cxr_encoder.project.in_features == 512
    assert isinstance(first.ehr_encoder, EhrLstmEncoder)
    assert isinstance(second.ehr_encoder, EhrEncoder)


@pytest.mark.parametrize("option", ["ehr_encoder", "absent_cxr"])
def test_an_unknown_choice_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} is 'gru'"):
        tiny_medfuse(**{option: "gru"})


def test_dropout_reaches_the_ehr_encoder() -> None:
    model = MedFuse(N_FEATURES, N_LABELS, dim=8, cxr_backbone=TINY_BACKBONE, dropout=0.9)
    batch = make_batch(())
    assert (model(batch).representations["ehr"] == 0).any()
    assert F.l1_loss(model(batch).logits, model(batch).logits) > 0
