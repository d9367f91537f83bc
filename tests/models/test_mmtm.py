"""MMTM against its equations written out, stay by stay."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.models import MMTM
from drfuse.models.mmtm import Exchange
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch
from tests.models.reference import array, cross_entropy, sigmoid

DEEP = {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "layer_type": "bottleneck"}


def tiny_mmtm(seed: int = 0, **options: Any) -> MMTM:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"dim": 8, "heads": 2, "dropout": 0.0, "feedforward": 16, "cxr_backbone": DEEP}
    return MMTM(N_FEATURES, N_LABELS, **(defaults | options)).eval()


def exchanges_of(model: MMTM) -> list[Exchange]:
    return [exchange for exchange in model.exchanges if isinstance(exchange, Exchange)]


def naive_gates(exchange: Exchange, squeezed: list[float]) -> tuple[list[float], list[float]]:
    """Return the gates of the radiograph's and of the EHR's channels from the means of both."""

    def linear(layer: nn.Linear, x: list[float]) -> list[float]:
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [sum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in rows]

    joint = [max(0.0, z) for z in linear(exchange.joint, squeezed)]
    cxr, ehr = linear(exchange.excite_cxr, joint), linear(exchange.excite_ehr, joint)
    return [2 * sigmoid(e) for e in cxr], [2 * sigmoid(e) for e in ehr]


def naive_exchange(exchange: Exchange, maps: Tensor, hours: Tensor) -> tuple[Tensor, Tensor]:
    """Gate the maps (C, H, W) and the hours (T, D) of one stay that has no padding."""
    height, width = maps.shape[1:]
    means = [sum(channel.flatten().tolist()) / (height * width) for channel in maps]
    means += [sum(feature.tolist()) / len(hours) for feature in hours.T]
    cxr_gates, ehr_gates = naive_gates(exchange, means)
    gated_maps = torch.stack([gate * channel for gate, channel in zip(cxr_gates, maps, strict=True)])
    gated_hours = torch.stack([gate * feature for gate, feature in zip(ehr_gates, hours.T, strict=True)]).T
    return gated_maps, gated_hours


def naive_representations(
    model: MMTM, batch: Batch, row: int, exchanges: dict[int, Exchange]
) -> list[Tensor]:
    """Return the EHR's and the radiograph's representation of one stay alone, exchanges given by stage."""
    encoder, n_hours = model.ehr_encoder, int(batch.n_hours[row])
    hours = encoder.first(encoder.project(batch.ehr[row : row + 1, :n_hours]) + encoder.positions[:n_hours])[
        0
    ]
    place = {int(at): image for image, at in enumerate(batch.cxr_of)}
    image = batch.cxr[place[row]] if row in place else torch.zeros(batch.cxr.shape[1:])
    maps = model.cxr_stages.embedder(image[None])[0]
    for number, stage in enumerate(model.cxr_stages.stages):
        maps = stage(maps[None])[0]
        if number in exchanges:
            maps, hours = naive_exchange(exchanges[number], maps, hours)
    by_hour = encoder.branches[0](hours[None])[0]
    return [by_hour.mean(0), model.project(maps.mean(dim=(1, 2)))]


# --- the exchange -------------------------------------------------------------------------------------------


def test_an_exchange_gates_each_channel_by_the_means_of_both_modalities() -> None:
    torch.manual_seed(0)
    exchange = Exchange(6, 4)
    maps, hidden = 3 * torch.randn(3, 6, 2, 5), 3 * torch.randn(3, 7, 4)
    n_hours = torch.tensor([7, 3, 1])
    gated_maps, gated_hidden = exchange(maps, hidden, torch.arange(7) >= n_hours[:, None])
    for row, hours in enumerate(n_hours.tolist()):
        expected_maps, expected_hours = naive_exchange(exchange, maps[row], hidden[row, :hours])
        torch.testing.assert_close(gated_maps[row], expected_maps)
        torch.testing.assert_close(gated_hidden[row, :hours], expected_hours)


def test_gates_by_hand() -> None:
    exchange = Exchange(1, 1, ratio=4)  # a joint layer of one unit
    with torch.no_grad():
        exchange.joint.weight.copy_(torch.tensor([[1.0, 2.0]]))
        exchange.joint.bias.fill_(-1.0)
        exchange.excite_cxr.weight.fill_(1.0)
        exchange.excite_cxr.bias.fill_(0.0)
        exchange.excite_ehr.weight.fill_(-1.0)
        exchange.excite_ehr.bias.fill_(0.5)
    maps, hidden = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.0], [1.0]]])  # means 2 and 0.5
    gated_maps, gated_hidden = exchange(maps, hidden, torch.zeros(1, 2, dtype=torch.bool))
    gate = 2 / (1 + math.exp(-2.0))  # joint unit 2 + 1 - 1 = 2
    assert gated_maps.flatten().tolist() == pytest.approx([gate, 3 * gate])
    assert gated_hidden.flatten().tolist() == pytest.approx([0.0, 2 / (1 + math.exp(1.5))])


@pytest.mark.parametrize(("ratio", "width"), [(1, 20), (3, 6), (4, 5), (20, 1)])
def test_the_joint_layer_has_twice_its_input_over_the_ratio(ratio: int, width: int) -> None:
    assert Exchange(6, 4, ratio).joint.out_features == width


@pytest.mark.parametrize("ratio", [0, -1, 21])
def test_a_ratio_that_leaves_no_unit_is_refused(ratio: int) -> None:
    with pytest.raises(InputError, match=f"ratio is {ratio}; expected 1 to 20"):
        Exchange(6, 4, ratio)


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange_after", ["every", "last"])
@pytest.mark.parametrize("cxr_of", [(), (0, 2), (0, 1, 2, 3)])
def test_a_stay_is_what_its_parts_run_by_hand_say(exchange_after: str, cxr_of: tuple[int, ...]) -> None:
    model, batch = tiny_mmtm(exchange_after=exchange_after), make_batch(cxr_of, image_size=48)
    stages = range(3) if exchange_after == "every" else [2]
    exchanges = dict(zip(stages, exchanges_of(model), strict=True))
    output = model(batch)
    for row in range(4):
        ehr, cxr = naive_representations(model, batch, row, exchanges)
        logits = model.joint_head.weight @ torch.cat([ehr, cxr]) + model.joint_head.bias
        torch.testing.assert_close(output.logits[row], logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.representations["ehr"][row], ehr, rtol=1e-4, atol=1e-5)
        if row in cxr_of:
            image = cxr_of.index(row)
            torch.testing.assert_close(output.representations["cxr"][image], cxr, rtol=1e-4, atol=1e-5)


def test_where_nothing_is_excited_each_modality_is_as_if_alone() -> None:
    model, batch = tiny_mmtm(), make_batch(image_size=48)
    for exchange in exchanges_of(model):
        for layer in (exchange.excite_cxr, exchange.excite_ehr):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    h = model(batch).representations
    torch.testing.assert_close(h["ehr"], model.ehr_encoder(batch.ehr, batch.n_hours)[0])
    maps = model.cxr_stages.embedder(batch.cxr)
    for stage in model.cxr_stages.stages:
        maps = stage(maps)
    torch.testing.assert_close(h["cxr"], model.project(maps.mean(dim=(2, 3))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exchange_after", ["every", "last"])
def test_each_modality_s_representation_depends_on_the_other(exchange_after: str) -> None:
    model = tiny_mmtm(exchange_after=exchange_after)
    batch, other = make_batch(image_size=48), make_batch(image_size=48, seed=1)
    before = model(batch).representations
    other_images = model(batch.with_cxr(2 * other.cxr)).representations
    moved = (other_images["ehr"] - before["ehr"]).abs().amax(1)
    assert (moved > 1e-5).tolist() == batch.has_cxr.tolist()
    other_series = model(other.with_cxr(batch.cxr)).representations
    assert ((other_series["cxr"] - before["cxr"]).abs().amax(1) > 1e-5).all()


def test_an_absent_radiograph_is_an_all_zero_image() -> None:
    model, batch = tiny_mmtm(), make_batch((0, 2), image_size=48)
    images = torch.zeros(4, 1, 48, 48)
    images[0], images[2] = batch.cxr
    explicit = make_batch((0, 1, 2, 3), image_size=48).with_cxr(images)
    torch.testing.assert_close(model(batch).logits, model(explicit).logits)


def test_exchanges_stand_after_every_stage_or_the_last() -> None:
    with torch.device("meta"):
        every, last = MMTM(59, 25), MMTM(59, 25, exchange_after="last")
    assert [exchange.excite_cxr.out_features for exchange in every.exchanges] == [256, 512, 1024, 2048]
    assert [exchange.excite_cxr.out_features for exchange in last.exchanges] == [2048]
    assert last.exchanges[0].joint.out_features == (2048 + 256) / 2
    assert last.exchanges[0].excite_ehr.out_features == 256


def test_an_unknown_place_of_exchange_is_refused() -> None:
    with pytest.raises(InputError, match="exchange_after is 'first'; expected one of 'every', 'last'"):
        tiny_mmtm(exchange_after="first")


def test_one_image_too_small_for_the_batch_norm_is_explained() -> None:
    model = tiny_mmtm(cxr_backbone=TINY_BACKBONE).train()
    with pytest.raises(InputError, match="one radiograph of 4 pixels"):
        model(make_batch((), n_hours=(3,), image_size=4))


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cxr_of", [(), (3,), (0, 2), (0, 1, 2, 3)])
def test_the_loss_is_that_of_three_heads_and_the_image_s_counts_where_there_is_one(
    cxr_of: tuple[int, ...],
) -> None:
    model, batch = tiny_mmtm(), make_batch(cxr_of, image_size=48)
    output = model(batch)
    parts = model.loss(output, batch)
    labels = batch.labels.double().numpy()

    def mean_over(logits: Tensor, rows: tuple[int, ...]) -> float:
        by_stay = [cross_entropy(array(logits[i]), labels[row]).mean() for i, row in enumerate(rows)]
        return sum(by_stay) / len(rows) if rows else 0.0

    everyone = (0, 1, 2, 3)
    expected = {
        "joint": mean_over(output.logits, everyone),
        "ehr": mean_over(model.ehr_head(output.representations["ehr"]), everyone),
        "cxr": mean_over(model.cxr_head(output.representations["cxr"]), cxr_of),
    }
    assert {name: parts[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)
    assert parts["total"].item() == pytest.approx(sum(expected.values()), rel=1e-5)
    assert parts.keys() == {"total", *expected}
