"""Attributions against models whose gradients are known by hand, and on every shipped model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drfuse.data import Batch
from drfuse.inference.attributions import (
    Completeness,
    CxrMethod,
    EhrMethod,
    NoGradientError,
    RecordAttribution,
    attribute_image,
    attribute_record,
    logits_with,
)
from drfuse.models import DrFuse, FusionModel, FusionOutput, MedFuse, shipped_models
from tests.builders import N_LABELS, make_batch, take_stays, tiny_model

VARIABLE_OF = torch.tensor([0, 1, 1, 0, 1])
"""Five features of two variables."""


class Linear(FusionModel):
    """A weight for each hour, feature and label, and one for each pixel."""

    def __init__(self, n_features: int, n_labels: int, hours: int = 6, image_size: int = 16) -> None:
        super().__init__()
        self.of_hours = nn.Parameter(torch.randn(hours, n_features, n_labels))
        self.of_pixels = nn.Parameter(torch.randn(image_size, image_size, n_labels))

    def forward(self, batch: Batch) -> FusionOutput:
        weights = self.of_hours[: batch.ehr.shape[1]]
        logits = torch.einsum("btf,tfc->bc", batch.ehr, weights)
        of_cxr = torch.einsum("mhw,hwc->mc", batch.cxr[:, 0], self.of_pixels)
        return FusionOutput(logits.index_add(0, batch.cxr_of, of_cxr))

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        return {"total": output.logits.sum()}


class Product(Linear):
    """The square of the first hour's first feature times its second: no straight line."""

    def forward(self, batch: Batch) -> FusionOutput:
        first = batch.ehr[:, 0]
        return FusionOutput((first[:, 0] ** 2 * first[:, 1])[:, None].expand(-1, N_LABELS))


class Constant(Linear):
    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(torch.zeros(len(batch), N_LABELS))


def one_stay(cxr: bool = True) -> Batch:
    return take_stays(make_batch(), [0 if cxr else 1])


def baseline_of(stay: Batch) -> Tensor:
    return torch.linspace(-0.5, 0.5, stay.ehr[0].numel()).reshape(stay.ehr[0].shape)


def explained(
    model: FusionModel, method: EhrMethod = "integrated-gradients", label: int = 1
) -> RecordAttribution:
    stay = one_stay()
    return attribute_record(model.eval(), stay, baseline_of(stay), VARIABLE_OF, label, method)


@pytest.mark.parametrize("method", ["integrated-gradients", "gradient-x-input", "occlusion"])
def test_all_methods_are_exact_for_a_linear_model(method: EhrMethod) -> None:
    model, stay = tiny_model(Linear), one_stay()
    found = explained(model, method)
    parts = ((stay.ehr[0] - baseline_of(stay)) * model.of_hours[..., 1]).detach().numpy()
    expected = np.stack([parts[:, [0, 3]].sum(1), parts[:, [1, 2, 4]].sum(1)], axis=1)
    np.testing.assert_allclose(found.hours, expected, atol=1e-4)
    np.testing.assert_allclose(found.variables, expected.sum(0), atol=1e-4)
    assert found.method == method
    assert found.completeness.share < 1e-4
    assert found.completeness.difference == pytest.approx(parts.sum(), abs=1e-4)


def test_a_product_is_shared_by_its_factors_as_the_integral_says() -> None:
    stay = one_stay()
    stay = replace(stay, ehr=stay.ehr.index_fill(1, torch.tensor([0]), 1.5))
    found = attribute_record(
        tiny_model(Product).eval(), stay, torch.zeros_like(stay.ehr[0]), torch.arange(5), 0
    )
    # x^2 y from 0 to (1.5, 1.5): the integrals are 2/3 and 1/3 of the value
    np.testing.assert_allclose(found.hours[0, :2], [2 / 3 * 1.5**3, 1 / 3 * 1.5**3], rtol=1e-5)
    assert not found.hours[1:].any()


def test_occlusion_of_a_variable_replaces_all_of_its_hours_at_once() -> None:
    class Any(Linear):
        def forward(self, batch: Batch) -> FusionOutput:
            seen = (batch.ehr[..., 0] > 0.4).any(dim=1).float()
            return FusionOutput(seen[:, None].expand(-1, N_LABELS))

    stay = one_stay()
    stay = replace(stay, ehr=torch.ones_like(stay.ehr))
    nothing = torch.zeros_like(stay.ehr[0])
    found = attribute_record(tiny_model(Any), stay, nothing, VARIABLE_OF, 0, "occlusion")
    assert not found.hours.any()  # the other hours still show it
    assert found.variables.tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("grey", ["integrated-gradients-black", "integrated-gradients-grey"])
def test_integrated_gradients_of_a_linear_image_are_its_weights_times_pixels(grey: CxrMethod) -> None:
    model, stay, black = tiny_model(Linear).eval(), one_stay(), -2.0
    found = attribute_image(model, stay, black, 1, grey)
    baseline = black if grey.endswith("black") else float(stay.cxr.mean())
    parts = ((stay.cxr[0, 0] - baseline) * model.of_pixels[..., 1]).detach()
    assert found.completeness.total == pytest.approx(float(parts.sum()), abs=1e-3)
    assert found.completeness.share < 1e-3
    assert found.pixels.shape == stay.cxr.shape[-2:]
    # a blur hardly moves the centre of what is strong
    half = found.pixels[:8].sum() - found.pixels[8:].sum()
    assert half == pytest.approx(float(parts[:8].sum() - parts[8:].sum()), abs=0.1 * float(parts.abs().sum()))


@pytest.mark.parametrize(("name", "kind"), shipped_models().items())
@pytest.mark.parametrize("cxr", [True, False])
def test_attributions_of_every_shipped_model_add_up_or_say_why_not(
    name: str, kind: type[FusionModel], cxr: bool
) -> None:
    model, stay = tiny_model(kind).eval(), one_stay(cxr)
    if "ehr" in kind.reads:
        arguments = (model, stay, baseline_of(stay), VARIABLE_OF, 1)
        if name in ("LogisticEhr", "LogisticLate"):  # a fitted model that nothing has been fitted to
            assert attribute_record(*arguments, "occlusion").completeness.difference == 0
        else:
            found = attribute_record(*arguments)
            assert found.hours.shape == (int(stay.n_hours), 2)
            assert np.abs(found.hours).max() > 0
            assert found.completeness.is_met
            assert found.completeness.steps >= 32
    if "cxr" in kind.reads and cxr:
        image = attribute_image(model, stay, -2.0, 1, "integrated-gradients-black")
        assert image.completeness.is_met
        if any(hasattr(module, "stages") for module in model.modules()):
            assert np.isfinite(attribute_image(model, stay, -2.0, 1, "grad-cam").pixels).all()
        else:
            with pytest.raises(NoGradientError, match="no backbone"):
                attribute_image(model, stay, -2.0, 1, "grad-cam")


@pytest.mark.parametrize("kind", [DrFuse, MedFuse])
def test_a_backbone_runs_once_for_many_records(
    kind: type[FusionModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stay = tiny_model(kind).eval(), one_stay()
    ran: list[int] = []
    stage = next(module for module in model.modules() if hasattr(module, "stages"))
    stage.register_forward_hook(lambda *_: ran.append(1))
    attribute_record(model, stay, baseline_of(stay), VARIABLE_OF, 1)
    assert len(ran) == 1
    assert all(module.kept is None for module in model.modules() if hasattr(module, "kept"))


def test_a_model_with_frozen_backbones_looks_its_radiograph_up() -> None:
    model, batch = tiny_model(MedFuse).eval(), make_batch()
    model.shared_encoders().cxr[0].freeze([batch.cxr])
    stay = take_stays(batch, [2])  # the second radiograph
    found = attribute_record(model, stay, baseline_of(stay), VARIABLE_OF, 1)
    with torch.no_grad():
        logits = [model(replace(stay, ehr=ehr)).logits[0, 1] for ehr in (stay.ehr, baseline_of(stay)[None])]
    assert found.completeness.difference == pytest.approx(float(logits[0] - logits[1]), abs=1e-5)
    without_pixels = replace(stay, cxr=stay.cxr[:, :, :0, :0])
    with pytest.raises(NoGradientError, match="reads no pixels"):
        attribute_image(model, without_pixels, -2.0, 1)


def test_a_model_is_left_as_it_was() -> None:
    model, stay = tiny_model(DrFuse).eval(), one_stay()
    next(model.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attribute_record(model, stay, baseline_of(stay), VARIABLE_OF, 1)
    attribute_image(model, stay, -2.0, 1, "grad-cam")
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_are_doubled_until_the_sum_is_right_or_the_limit_is_reached() -> None:
    class Step(Linear):
        def forward(self, batch: Batch) -> FusionOutput:
            steep = torch.sigmoid(1000 * (batch.ehr[:, 0, 0] - 0.501))
            return FusionOutput(steep[:, None].expand(-1, N_LABELS))

    stay = one_stay()
    stay = replace(stay, ehr=torch.ones_like(stay.ehr))
    arguments = (tiny_model(Step).eval(), stay, torch.zeros_like(stay.ehr[0]), VARIABLE_OF, 0)
    few = attribute_record(*arguments, most_steps=48)
    assert few.completeness.steps == 48
    assert not few.completeness.is_met
    enough = attribute_record(*arguments, most_steps=4096)
    assert 48 < enough.completeness.steps < 4096
    assert enough.completeness.is_met


@pytest.mark.parametrize("method", ["integrated-gradients", "gradient-x-input"])
def test_a_model_without_a_gradient_says_so(method: EhrMethod) -> None:
    with pytest.raises(NoGradientError, match="has no gradient there"):
        explained(tiny_model(Constant), method)


def test_grad_cam_weighs_maps_of_the_last_stage_that_is_fine_enough() -> None:
    model, stay = tiny_model(DrFuse).eval(), one_stay()

    def map_of(least_side: int) -> np.ndarray:
        return attribute_image(model, stay, -2.0, 1, "grad-cam", least_side=least_side).pixels

    assert np.array_equal(map_of(1), map_of(2))  # the last stage has maps of 2 x 2
    assert not np.array_equal(map_of(1), map_of(3))
    assert np.array_equal(map_of(3), map_of(100))  # none is finer than the first


def test_a_stay_is_the_same_with_its_own_inputs() -> None:
    for stay in (one_stay(), one_stay(cxr=False)):
        model = tiny_model(DrFuse).eval()
        with torch.no_grad():
            copies = logits_with(
                model, stay, stay.ehr.expand(3, -1, -1), stay.cxr.expand(3 * len(stay.cxr), -1, -1, -1)
            )
            assert torch.allclose(copies, model(stay).logits.expand(3, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("total", "difference", "share", "is_met"),
    [(1.92, 2.0, 0.04, True), (1.8, 2.0, 0.1, False), (0.004, 0.0, 0.04, True), (-2.0, 2.0, 2.0, False)],
)
def test_completeness_is_a_share_of_the_difference(
    total: float, difference: float, share: float, is_met: bool
) -> None:
    found = Completeness(total, difference)
    assert found.share == pytest.approx(share)
    assert found.is_met == is_met
    assert found.gap == pytest.approx(total - difference)
