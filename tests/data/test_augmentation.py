"""From stored to readable radiographs."""

import pytest
import torch
from torch import Tensor

from drfuse.data.augmentation import CxrTransform

MEAN = (0.485 + 0.456 + 0.406) / 3
STD = (0.229 + 0.224 + 0.225) / 3


def images(n: int = 4, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8)


def pixels(transformed: Tensor) -> Tensor:
    """Return the grey values 0 to 1 behind a scaled radiograph."""
    return transformed * STD + MEAN


@pytest.mark.parametrize(("size", "crop", "margin"), [(24, 16, 4), (24, 24, 0), (25, 16, 4), (256, 224, 16)])
def test_evaluation_crops_the_centre_and_scales(size: int, crop: int, margin: int) -> None:
    stored = images(2, size)
    got = CxrTransform(crop).eval()(stored)
    assert got.dtype == torch.float32
    assert got.shape == (2, 1, crop, crop)
    for y, x in ((0, 0), (crop - 1, 0), (crop // 2, crop - 1)):
        expected = (float(stored[1, 0, margin + y, margin + x]) / 255 - MEAN) / STD
        assert got[1, 0, y, x].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.allclose(
        pixels(got)[0, 0] * 255, stored[0, 0, margin:, margin:][:crop, :crop].float(), atol=1e-3
    )


def test_evaluation_is_deterministic_and_uses_no_randomness() -> None:
    transform, stored = CxrTransform(16).eval(), images()
    state = torch.get_rng_state()
    assert torch.equal(transform(stored), transform(stored))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stored_radiographs_are_not_changed() -> None:
    stored = images()
    before = stored.clone()
    CxrTransform(16).train()(stored)
    assert torch.equal(stored, before)


def test_training_augments_each_radiograph_in_its_own_way() -> None:
    torch.manual_seed(0)
    transform, stored = CxrTransform(16), images(1).expand(6, -1, -1, -1)
    got = transform.train()(stored)
    plain = transform.eval()(stored)
    assert got.shape == plain.shape == (6, 1, 16, 16)
    assert len({tuple(one.flatten().tolist()) for one in got}) == 6
    assert all(not torch.allclose(one, other) for one, other in zip(got, plain, strict=True))
    again = transform.train()(stored)
    assert not torch.equal(got, again)


def test_augmentation_repeats_under_one_seed() -> None:
    transform, stored = CxrTransform(16).train(), images()
    torch.manual_seed(5)
    first = transform(stored)
    torch.manual_seed(5)
    assert torch.equal(transform(stored), first)


def test_augmented_grey_values_stay_between_black_and_white() -> None:
    torch.manual_seed(0)
    grey = pixels(CxrTransform(24).train()(images(32)))
    assert grey.min() >= -1e-5
    assert grey.max() <= 1 + 1e-5


def test_black_fills_what_comes_in_from_outside() -> None:
    torch.manual_seed(0)
    white = torch.full((64, 1, 24, 24), 255, dtype=torch.uint8)
    grey = pixels(CxrTransform(24).train()(white))
    assert (grey.amin(dim=(1, 2, 3)) < 0.01).float().mean() > 0.9
    torch.testing.assert_close(
        grey[:, 0, 12, 12], torch.ones(64), atol=0.02, rtol=0
    )  # within 0.15 of the centre


def test_half_of_the_radiographs_are_flipped() -> None:
    """A bright left half stays on its side under rotation within 45 degrees, unless it is flipped."""
    torch.manual_seed(0)
    stored = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    stored[..., :16] = 255
    grey = pixels(CxrTransform(32).train()(stored))
    side = torch.linspace(-1, 1, 32)
    centre = (grey.clamp(min=0).sum((1, 2)) * side).sum(-1) / grey.clamp(min=0).sum((1, 2, 3))
    left = (grey[:, 0, 12:20, :16].mean((1, 2)) > grey[:, 0, 12:20, 16:].mean((1, 2))).float().mean()
    assert 0.4 < left < 0.6
    assert centre.min() < -0.2
    assert centre.max() > 0.2


def test_rotation_scale_and_translation_stay_within_the_published_bounds() -> None:
    """Two bright dots tell the similarity that moved them: x' = s R x + t."""
    torch.manual_seed(0)
    size, half = 65, 32
    stored = torch.zeros(2, 200, 1, size, size, dtype=torch.uint8)
    stored[0, :, 0, half - 1 : half + 2, half - 1 : half + 2] = 255  # centre
    stored[1, :, 0, half - 1 : half + 2, half + 14 : half + 17] = 255  # 15 pixels to the right
    moved = []
    for dots in stored:
        torch.manual_seed(1)
        moved.append(pixels(CxrTransform(size).train()(dots))[:, 0].clamp(min=0))
    y, x = torch.meshgrid(torch.arange(size) - half, torch.arange(size) - half, indexing="ij")
    weight = [one / one.sum((1, 2), keepdim=True) for one in moved]
    at = [torch.stack([(one * x).sum((1, 2)), (one * y).sum((1, 2))], -1) for one in weight]
    shift, arm = at[0], at[1] - at[0]
    scale = arm.norm(dim=-1) / 15
    angle = torch.rad2deg(torch.atan2(arm[:, 1], arm[:, 0].abs()))  # |x|: a flip mirrors the arm
    assert shift.abs().max() <= 0.15 * size + 0.5
    assert shift.abs().max() > 0.10 * size
    assert 0.85 - 0.04 <= scale.min() < 0.90
    assert 1.10 < scale.max() <= 1.15 + 0.04
    assert 35 < angle.abs().max() <= 45 + 2


@pytest.mark.parametrize("training", [True, False])
def test_no_radiograph_gives_none(training: bool) -> None:
    got = CxrTransform(16).train(training)(images(0))
    assert got.shape == (0, 1, 16, 16)
    assert got.dtype == torch.float32


def test_a_single_radiograph_is_augmented() -> None:
    assert CxrTransform(16).train()(images(1)).shape == (1, 1, 16, 16)


def test_shifts_keep_a_radiograph_upright_and_move_it_by_a_sixteenth_of_the_side_at_most() -> None:
    size, n = 64, 300
    stored = torch.full((n, 1, size, size), 40, dtype=torch.uint8)
    stored[:, :, 20:24, 10:14] = 240  # a spot up on the left, far from the edges
    torch.manual_seed(0)
    got = pixels(CxrTransform(size, shifts=True).train()(stored))[:, 0] - 40 / 255
    mass = got.sum(dim=(1, 2))
    torch.testing.assert_close(mass, torch.full((n,), 16 * 200 / 255), rtol=0.02, atol=0)
    along = torch.arange(size).float()
    for dim, place in ((2, 21.5), (1, 11.5)):
        moved = (got.sum(dim=dim) * along).sum(dim=1) / mass - place
        assert 3.5 < moved.abs().max() <= 4 + 0.1
        assert abs(moved.mean()) < 0.5


def test_what_a_shift_brings_in_is_the_edge_and_not_black() -> None:
    stored = torch.full((20, 1, 32, 32), 200, dtype=torch.uint8)
    got = pixels(CxrTransform(32, shifts=True).train()(stored))
    torch.testing.assert_close(got, torch.full_like(got, 200 / 255), rtol=1e-3, atol=1e-3)
