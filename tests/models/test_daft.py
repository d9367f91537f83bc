"""DAFT against its equations written out, stay by stay."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.models import DAFT
from drfuse.models.daft import AffineParameters
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch
from tests.models.reference import cross_entropy

FOUR_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 2]}
BACKBONES = [
    FOUR_STAGES | {"layer_type": "basic"},
    FOUR_STAGES | {"layer_type": "bottleneck"},
    TINY_BACKBONE,  # whose last block has a shortcut of its own
]
MODALITIES = ["cxr", "ehr"]


def tiny_daft(seed: int = 0, **options: Any) -> DAFT:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "dim": 8,
        "heads": 2,
        "dropout": 0.0,
        "feedforward": 16,
        "cxr_backbone": BACKBONES[0],
    }
    return DAFT(N_FEATURES, N_LABELS, **(defaults | options)).eval()


def images_of(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 48, 48, generator=torch.Generator().manual_seed(5))


class Constant(nn.Module):
    """The same scale and shift for all."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, cxr: Tensor, ehr: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        ones = torch.ones(len(cxr), 1)
        return self.scale * ones, self.shift * ones


def naive_affine(affine: AffineParameters, x: list[float]) -> tuple[list[float], list[float]]:
    def linear(layer: nn.Linear, x: list[float]) -> list[float]:
        return [sum(w * v for w, v in zip(row, x, strict=True)) for row in layer.weight.tolist()]

    out = linear(affine.parameters_of, [max(0.0, z) for z in linear(affine.bottleneck, x)])
    return out[: len(out) // 2], out[len(out) // 2 :]


def naive_fused(model: DAFT, batch: Batch, row: int) -> Tensor:
    """Return what one stay alone is predicted from."""
    encoder, n_hours = model.ehr_encoder, int(batch.n_hours[row])
    hours = encoder.first(encoder.project(batch.ehr[row : row + 1, :n_hours]) + encoder.positions[:n_hours])[
        0
    ]
    place = {int(at): image for image, at in enumerate(batch.cxr_of)}
    image = batch.cxr[place[row]] if row in place else torch.zeros(batch.cxr.shape[1:])
    blocks = model.cxr_stages.blocks
    maps = model.cxr_stages.embedder(image[None])
    for block in blocks if model.modulate == "ehr" else blocks[:-1]:
        maps = block(maps)
    pooled = [sum(channel.flatten().tolist()) / channel.numel() for channel in maps[0]]
    if model.modulate == "ehr":
        scale, shift = naive_affine(model.affine, pooled + hours.mean(0).tolist())
        pairs = zip(hours.T, scale, shift, strict=True)
        modulated = torch.stack([feature * a + b for feature, a, b in pairs]).T
        return encoder.branches[0](modulated[None])[0].mean(0)
    ehr = encoder.branches[0](hours[None])[0].mean(0)
    scale, shift = naive_affine(model.affine, pooled + ehr.tolist())
    pairs = zip(maps[0], scale, shift, strict=True)
    modulated = torch.stack([channel * a + b for channel, a, b in pairs])[None]
    last = blocks[-1]
    maps = (last.layer(modulated) + last.shortcut(maps)).relu()
    return model.project(maps.mean(dim=(2, 3)))[0]


# --- the affine transform -----------------------------------------------------------------------------------


def test_scale_and_shift_come_from_both_modalities_through_a_bottleneck() -> None:
    torch.manual_seed(0)
    affine = AffineParameters(5 + 3, 4)
    cxr, ehr = torch.randn(6, 5), torch.randn(6, 3)
    scale, shift = affine(cxr, ehr)
    for row in range(6):
        expected = naive_affine(affine, cxr[row].tolist() + ehr[row].tolist())
        torch.testing.assert_close([*scale[row]], [torch.tensor(x) for x in expected[0]])
        torch.testing.assert_close([*shift[row]], [torch.tensor(x) for x in expected[1]])


def test_the_scale_is_linear_and_may_be_negative_or_more_than_one() -> None:
    affine = AffineParameters(2, 1)
    with torch.no_grad():
        affine.bottleneck.weight.fill_(1.0)  # 8 units
        affine.parameters_of.weight.copy_(torch.tensor([[-1.0], [0.5]]).expand(2, 8))
    scale, shift = affine(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert (scale.item(), shift.item()) == (-24.0, 12.0)
    scale, shift = affine(torch.tensor([[1.0]]), torch.tensor([[-2.0]]))
    assert (scale.item(), shift.item()) == (0.0, 0.0)


@pytest.mark.parametrize(("n_conditions", "width"), [(2048 + 256, 329), (80, 11), (20, 8)])
def test_the_bottleneck_is_a_seventh_of_its_input(n_conditions: int, width: int) -> None:
    assert AffineParameters(n_conditions, 4).bottleneck.out_features == width


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulate", MODALITIES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("cxr_of", [(), (0, 2), (0, 1, 2, 3)])
def test_a_stay_is_what_its_parts_run_by_hand_say(
    modulate: str, backbone: dict[str, Any], cxr_of: tuple[int, ...]
) -> None:
    model, batch = tiny_daft(modulate=modulate, cxr_backbone=backbone), make_batch(cxr_of, image_size=48)
    output = model(batch)
    for row in range(4):
        fused = naive_fused(model, batch, row)
        torch.testing.assert_close(output.representations["fused"][row], fused, rtol=1e-4, atol=1e-5)
        logits = model.head.weight @ fused + model.head.bias
        torch.testing.assert_close(output.logits[row], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_modulated_by_the_identity_the_last_block_is_as_transformers_runs_it(
    backbone: dict[str, Any], training: bool
) -> None:
    model = tiny_daft(cxr_backbone=backbone).train(training)
    model.set_submodule("affine", Constant(1.0, 0.0))
    batch = make_batch(range(4), image_size=48).with_cxr(images_of())
    maps = model.cxr_stages.embedder(batch.cxr)
    for stage in model.cxr_stages.stages:
        maps = stage(maps)
    expected = model.project(maps.mean(dim=(2, 3)))
    torch.testing.assert_close(model(batch).representations["fused"], expected, rtol=1e-4, atol=1e-5)


def test_modulated_by_the_identity_the_hours_are_as_the_encoder_has_them() -> None:
    model, batch = tiny_daft(modulate="ehr"), make_batch(image_size=48)
    model.set_submodule("affine", Constant(1.0, 0.0))
    (expected,) = model.ehr_encoder(batch.ehr, batch.n_hours)
    torch.testing.assert_close(model(batch).representations["fused"], expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shortcut_of_the_last_block_is_not_modulated(backbone: dict[str, Any]) -> None:
    model, batch = tiny_daft(cxr_backbone=backbone), make_batch(range(4)).with_cxr(images_of())
    model.set_submodule("affine", Constant(0.0, 0.7))  # nothing of the image passes but by the shortcut
    maps = model.cxr_stages.embedder(batch.cxr)
    *blocks, last = model.cxr_stages.blocks
    for block in blocks:
        maps = block(maps)
    out = (last.layer(torch.full_like(maps, 0.7)) + last.shortcut(maps)).relu()
    expected = model.project(out.mean(dim=(2, 3)))
    torch.testing.assert_close(model(batch).representations["fused"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulate", MODALITIES)
def test_both_modalities_reach_scale_and_shift(modulate: str) -> None:
    model, batch = tiny_daft(modulate=modulate), make_batch(image_size=48)
    other = make_batch(image_size=48, seed=1)
    seen: list[tuple[Tensor, Tensor]] = []
    model.affine.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for one in (batch, batch.with_cxr(2 * other.cxr), other.with_cxr(batch.cxr)):
        model(one)
    before, other_images, other_series = seen
    for parameter in range(2):  # scale, shift
        by_image = (other_images[parameter] - before[parameter]).abs().amax(1)
        assert (by_image > 1e-5).tolist() == batch.has_cxr.tolist()
        assert ((other_series[parameter] - before[parameter]).abs().amax(1) > 1e-5).all()


def test_without_a_radiograph_the_modulated_zero_image_still_tells_the_series_apart() -> None:
    model = tiny_daft()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)  # a new ResNet keeps a zero image at zero
    one, other = make_batch((), image_size=48), make_batch((), image_size=48, seed=1)
    assert ((model(one).logits - model(other).logits).abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize("modulate", MODALITIES)
def test_an_absent_radiograph_is_an_all_zero_image(modulate: str) -> None:
    model, batch = tiny_daft(modulate=modulate), make_batch((0, 2), image_size=48)
    images = torch.zeros(4, 1, 48, 48)
    images[0], images[2] = batch.cxr
    explicit = make_batch((0, 1, 2, 3), image_size=48).with_cxr(images)
    torch.testing.assert_close(model(batch).logits, model(explicit).logits)


@pytest.mark.parametrize(("n_stages", "kept"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3)])
def test_the_ehr_is_modulated_by_the_third_stage_or_the_one_before_the_last(n_stages: int, kept: int) -> None:
    widths = [8, 16, 24, 32, 40][:n_stages]
    fields = {"embedding_size": 8, "hidden_sizes": widths, "depths": [1] * n_stages, "layer_type": "basic"}
    model = tiny_daft(modulate="ehr", cxr_backbone=fields)
    assert model.cxr_stages.channels == widths[:kept]
    assert len(model.cxr_stages.stages) == kept
    assert model.affine.bottleneck.in_features == widths[kept - 1] + 8


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        cxr, ehr = DAFT(59, 25), DAFT(59, 25, modulate="ehr")
    assert cxr.modulate == "cxr"
    assert cxr.affine.bottleneck.in_features == 2048 + 256
    assert cxr.affine.parameters_of.out_features == 2 * 2048
    assert ehr.affine.bottleneck.in_features == 1024 + 256
    assert ehr.affine.bottleneck.out_features == (1024 + 256) // 7
    assert ehr.affine.parameters_of.out_features == 2 * 256
    assert all(layer.bias is None for layer in cxr.affine.children())


def test_an_unknown_modality_is_refused() -> None:
    with pytest.raises(InputError, match="modulate is 'both'; expected one of 'cxr', 'ehr'"):
        tiny_daft(modulate="both")


@pytest.mark.parametrize("modulate", MODALITIES)
def test_the_loss_is_the_mean_cross_entropy(modulate: str) -> None:
    model, batch = tiny_daft(modulate=modulate), make_batch(image_size=48)
    output = model(batch)
    labels = batch.labels.double().numpy()
    expected = sum(cross_entropy(output.logits[row].tolist(), labels[row]).mean() for row in range(4)) / 4
    loss = model.loss(output, batch)
    assert loss.keys() == {"total"}
    assert loss["total"].item() == pytest.approx(expected, rel=1e-5)
