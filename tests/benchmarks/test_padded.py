"""Padding changes nothing: feature maps, gradients and running statistics are those of the images alone."""

import copy

import pytest
import torch

from benchmarks.padded import MaskedBatchNorm2d, PaddedBackbone
from benchmarks.paired import paired
from benchmarks.training import make_batch, make_task, training_step
from drfuse.models.cxr_encoders import build_backbone
from tests.benchmarks.test_paired import BACKBONES, assert_equal_state, two_backbones
from tests.benchmarks.test_training import tiny
from tests.builders import TINY_BACKBONE


@BACKBONES
@pytest.mark.parametrize("n_images", [1, 2, 3, 4, 5])
def test_training_on_padded_images_is_training_on_the_images(spec: dict[str, object], n_images: int) -> None:
    plain = paired(*two_backbones(spec)).train()
    padded = copy.deepcopy(plain)
    run = PaddedBackbone(padded, [2, 4])
    seen = []
    for one in run.passes.values():
        one.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    for seed in range(2):
        torch.manual_seed(seed)
        cxr = torch.randn(n_images, 1, 32, 32, dtype=torch.float64)
        expected, actual = (backbone(cxr).feature_maps[-1] for backbone in (plain, padded))
        torch.testing.assert_close(actual, expected)
        weight = torch.randn_like(expected)
        (weight * expected).sum().backward()
        (weight * actual).sum().backward()
    assert seen == {1: [2, 2], 2: [2, 2], 3: [4, 4], 4: [4, 4], 5: []}[n_images]
    assert_equal_state(padded, plain)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(padded.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-8)


def test_padding_holds_whatever_it_likes() -> None:
    """Not only zeros: garbage in the images that do not count leaves the others' maps as they are."""
    norm, plain = MaskedBatchNorm2d(3).double(), torch.nn.BatchNorm2d(3).double()
    maps = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    norm.real = torch.tensor([True, True, False, True, False])
    garbage = maps.masked_fill(~norm.real[:, None, None, None], 1e4)
    torch.testing.assert_close(norm(garbage)[norm.real], plain(maps[norm.real]))
    assert_equal_state(norm, plain)


def test_evaluation_does_not_pad() -> None:
    plain = build_backbone(TINY_BACKBONE).eval()
    padded = copy.deepcopy(plain)
    PaddedBackbone(padded, [4])
    cxr = torch.randn(3, 1, 16, 16)
    assert torch.equal(padded(cxr).feature_maps[-1], plain(cxr).feature_maps[-1])


def test_half_precision_is_normalised_in_single() -> None:
    norm = MaskedBatchNorm2d(2)
    norm.real = torch.tensor([True, True, False])
    assert norm(torch.randn(3, 2, 4, 4).bfloat16()).dtype == torch.bfloat16
    assert norm.running_mean is not None
    assert norm.running_mean.dtype == torch.float32


def test_graphs_of_every_size_are_captured_and_leave_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    def capture(one: torch.nn.Module, images: tuple[torch.Tensor, ...]) -> None:
        one(*images)  # as the warm-up does
        captured.append((len(images[0]), None if len(images) == 1 else int(images[1].sum())))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    backbone = build_backbone(TINY_BACKBONE)
    run = PaddedBackbone(backbone, [1, 4])
    before = copy.deepcopy(backbone)
    run.capture(torch.randn(2, 1, 16, 16), padded=False)
    run.capture(torch.randn(2, 1, 16, 16), padded=True)
    assert captured == [(1, None), (4, None), (1, 0), (4, 3)]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in backbone.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n_images", [3, 4])
def test_graphs_train_as_the_plain_backbone_does(n_images: int) -> None:
    losses = []
    for graphs in (False, True):
        task = make_task(tiny, device="cuda")
        batch = make_batch(16, n_images, 32, device="cuda")
        if graphs:
            for encoder in task.model.shared_encoders().cxr:
                PaddedBackbone(encoder.backbone, [4]).capture(batch.cxr, padded=n_images < 4)
        task.model.ehr_encoder.eval()  # no dropout
        step = training_step(task, [batch])
        for _ in range(5):
            step()
        losses.append(task.model.loss(task.model(batch), batch)["total"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
