"""What every shipped model keeps; a new one is found in the package, and tested here without a change."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drfuse import models
from drfuse.cli import main
from drfuse.data import Batch
from drfuse.models import (
    FittedModel,
    FittingData,
    FusionModel,
    FusionOutput,
    check_contract,
    shipped_models,
)
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.models.ehr_encoders import EhrEncoder, EhrLstmEncoder, MeanMaxLastHour
from tests.builders import N_FEATURES, N_LABELS, make_batch, take_stays, tiny_model


def fit(model: FittedModel) -> FittedModel:
    values_of = torch.zeros(N_FEATURES, 2)
    values_of[(0, 1, 2), (0, 1, 1)] = torch.tensor([1.0, 2.0, 3.0])
    training = [make_batch(ALL, seed=seed) for seed in range(8)]
    model.fit(FittingData(training, training, values_of))
    return model


def small(kind: type[FusionModel], **options: Any) -> FusionModel:
    """Return a tiny model of fixed weights in training mode, or fitted to random stays."""
    model = tiny_model(kind, **options)
    return fit(model) if isinstance(model, FittedModel) else model


def variants(kind: type[FusionModel]) -> dict[str, dict[str, Any]]:
    """Return a model's options by title: the defaults, and each other choice of a `Literal` or bool alone."""
    found: dict[str, dict[str, Any]] = {kind.__name__: {}}
    for name, parameter in signature(kind, eval_str=True).parameters.items():
        is_choice = get_origin(parameter.annotation) is Literal
        choices = get_args(parameter.annotation) if is_choice else (True, False)
        if is_choice or parameter.annotation is bool:
            others = [choice for choice in choices if choice != parameter.default]
            found |= {f"{kind.__name__} {name}={choice}": {name: choice} for choice in others}
    return found


MODELS: dict[str, Callable[[], FusionModel]] = {
    title: partial(small, kind, **options)
    for kind in shipped_models().values()
    for title, options in variants(kind).items()
}

SOME, ALL = (0, 2), (0, 1, 2, 3)
MIXES = [(), (3,), SOME, ALL]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> FusionModel:
    return MODELS[request.param]()


def sees_zero_images(model: FusionModel) -> bool:
    """Return whether all-zero images stand for absent radiographs, and so enter the batch statistics."""
    with pytest.MonkeyPatch.context() as patch:
        calls: list[Batch] = []
        fill = Batch.cxr_or_zeros
        patch.setattr(Batch, "cxr_or_zeros", lambda batch: (calls.append(batch), fill(batch))[1])
        deepcopy(model)(make_batch(SOME))
    return bool(calls)


def told(model: FusionModel, batch: Batch) -> Tensor:
    """Return the stays (B,) for which a model predicts something: one of radiographs alone needs one."""
    return batch.has_cxr if "ehr" not in model.reads else torch.ones_like(batch.has_cxr)


def trained(model: FusionModel, batch: Batch) -> tuple[FusionOutput, dict[str, Tensor]]:
    """Return output and loss of a forward and backward pass."""
    output = model(batch)
    loss = model.loss(output, batch)
    loss["total"].backward()
    return output, loss


POOLING = [name for name, kind in shipped_models().items() if "pooling" in signature(kind).parameters]


@pytest.mark.parametrize("name", POOLING)
def test_every_network_of_the_record_can_pool_its_hours(name: str) -> None:
    model = small(shipped_models()[name], pooling="mean-max-last")
    pools = [module for module in model.modules() if isinstance(module, MeanMaxLastHour)]
    branches = [len(getattr(encoder, "branches", [encoder])) for encoder in model.shared_encoders().ehr]
    assert len(pools) == sum(branches) > 0
    trained(model.train(), make_batch(ALL))
    for pool in pools:
        assert pool.project.weight.grad is not None
        assert pool.project.weight.grad.any()


def made_again(model: FusionModel, seed: int) -> FusionModel:
    torch.manual_seed(seed)
    again = type(model)(**model.init_args)
    return fit(again) if isinstance(again, FittedModel) else again


def assert_same(
    one: FusionOutput, other: FusionOutput, rows: Any = slice(None), at: Any = slice(None)
) -> None:
    """Compare the stays `rows` of one output with the stays `at` of the other."""
    for name in ("logits", "modality_weights"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a[rows], b[at], rtol=1e-4, atol=1e-5, equal_nan=True)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def parameters_of(model: nn.Module, *kinds: type[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of the modules of some kinds."""
    found = [module for module in model.modules() if isinstance(module, kinds)]
    return [parameter for module in found for parameter in module.parameters()]


def has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


# --- finding the models -------------------------------------------------------------------------------------


def test_the_published_models_are_found_in_the_package() -> None:
    public = [getattr(models, name) for name in models.__all__]
    exported = {one for one in public if isinstance(one, type) and issubclass(one, FusionModel)}
    assert set(shipped_models().values()) >= exported - {FusionModel, FittedModel}
    assert len(shipped_models()) >= 11
    assert all(name == kind.__name__ for name, kind in shipped_models().items())


def test_models_with_an_ehr_network_and_no_others_take_its_pooling() -> None:
    networks = {name for name, kind in shipped_models().items() if small(kind).shared_encoders().ehr}
    assert set(POOLING) == networks != set()


NEW_MODEL = """
from torch import nn
from drfuse.models.base import FusionModel, FusionOutput
from drfuse.models.ehr_encoders import EhrEncoder
from drfuse.models.sizes import EncoderSizes, takes_sizes_of

class Gated(FusionModel):
    @takes_sizes_of(EhrEncoder)
    def __init__(self, n_features: int, n_labels: int, sizes: EncoderSizes, gates: int = 4) -> None:
        super().__init__()
        self.encoder = EhrEncoder(n_features, sizes)
        self.head = nn.Linear(sizes.dim, n_labels)

    def forward(self, batch):
        return FusionOutput(self.head(self.encoder(batch.ehr, batch.n_hours)[0]))

    def loss(self, output, batch):
        return {"total": (output.logits - batch.labels).square().mean()}
"""


def test_a_new_file_in_the_package_is_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = shipped_models()
    (tmp_path / "gated.py").write_text(NEW_MODEL)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    found = shipped_models()
    assert found["Gated"].__module__ == "drfuse.models.gated"
    assert found.keys() == {*shipped, "Gated"}
    check_contract(small(found["Gated"]), make_batch(SOME), N_LABELS)
    with pytest.raises(SystemExit):
        main(["train", "--model.help", "Gated"])
    assert "--model.dim DIM" in capsys.readouterr().out


# --- shapes, losses, gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("cxr_of", MIXES)
def test_output_and_loss_have_the_promised_shapes(model: FusionModel, cxr_of: Sequence[int]) -> None:
    batch = make_batch(cxr_of)
    if told(model, batch).any():  # else the contract is refused
        check_contract(model, batch, N_LABELS)
    for name, h in model(batch).representations.items():
        n = len(batch.cxr) if name.startswith("cxr") else len(batch)
        assert h.shape == (n, 8)


@pytest.mark.parametrize(
    ("cxr_of", "n_hours"), [*((mix, (6, 3, 1, 5)) for mix in MIXES), ((0,), (1,)), ((), (4,))]
)
def test_any_mix_of_stays_trains(model: FusionModel, cxr_of: Sequence[int], n_hours: Sequence[int]) -> None:
    batch = make_batch(cxr_of, n_hours)
    output, loss = trained(model, batch)
    assert output.logits.dtype == torch.float32
    assert torch.equal(output.logits.isfinite().all(1), told(model, batch))
    assert all(part.isfinite() for part in loss.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_stays_with_and_without_radiograph_together_train_every_parameter(model: FusionModel) -> None:
    # no exception: what a batch of one kind leaves out is the image encoder, or MedFuse's `absent_cxr`
    trained(model, make_batch(SOME))
    assert [name for name, p in model.named_parameters() if not has_gradient(p)] == []


def test_stays_without_radiograph_train_the_ehr_encoder_and_no_image_encoder(model: FusionModel) -> None:
    trained(model, make_batch(()))
    assert all(has_gradient(p) for p in parameters_of(model, EhrEncoder, EhrLstmEncoder))
    assert not any(has_gradient(p) for p in parameters_of(model, CxrEncoder))


@pytest.mark.parametrize("cxr_of", MIXES)
def test_radiographs_and_nothing_else_move_the_batch_norms(model: FusionModel, cxr_of: Sequence[int]) -> None:
    if not cxr_of and sees_zero_images(model):
        pytest.skip("all-zero images move them too")
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        pytest.skip("it has no BatchNorm")
    before = buffers_of(model)
    model(make_batch(cxr_of))
    moved = [not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()]
    assert all(moved) if cxr_of else not any(moved)


# --- who sees what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(4))
def test_a_stay_s_output_ignores_the_others_of_its_batch(model: FusionModel, row: int) -> None:
    batch = make_batch(SOME)
    assert_same(model.eval()(take_stays(batch, [row])), model(batch), 0, row)


def test_the_order_of_the_stays_is_the_order_of_the_outputs(model: FusionModel) -> None:
    batch, order = make_batch(SOME), [2, 0, 3, 1]
    assert_same(model.eval()(take_stays(batch, order)), model(batch), at=order)


def test_what_stands_in_padded_hours_changes_nothing(model: FusionModel) -> None:
    batch = make_batch(SOME)
    padded = F.pad(batch.ehr, (0, 0, 0, 3))
    padded[torch.arange(9) >= batch.n_hours[:, None]] = 1e3
    assert_same(model.eval()(replace(batch, ehr=padded)), model(batch))


def test_other_stays_series_and_images_change_nothing(model: FusionModel) -> None:
    batch, stranger = make_batch(ALL), make_batch(ALL, seed=9)
    ehr, cxr = 50 * stranger.ehr, 50 * stranger.cxr
    ehr[1], cxr[1] = batch.ehr[1], batch.cxr[1]
    before, after = model.eval()(batch), model(replace(batch, ehr=ehr, cxr=cxr))
    assert_same(after, before, 1, 1)
    assert ((after.logits - before.logits).abs().amax(1) > 1e-3).tolist() == [True, False, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_a_stay_without_radiograph_ignores_its_neighbours_images(model: FusionModel, training: bool) -> None:
    if training and sees_zero_images(model):
        pytest.skip("all-zero images are normalised with the others")
    batch = make_batch(SOME)
    brighter = batch.with_cxr(3 * batch.cxr + torch.linspace(0, 5, 16))
    before, after = model.train(training)(batch), model(brighter)
    assert_same(after, before, ~batch.has_cxr, ~batch.has_cxr)


# --- precision, learning, keeping ---------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_gives_nearly_the_same_in_float32(model: FusionModel, training: bool) -> None:
    batch = make_batch(SOME)
    full = model.train(training)(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, half_loss = trained(model, batch)
    for name, tolerance in (("logits", 0.05), ("modality_weights", 0.02)):
        exact, rough = getattr(full, name), getattr(half, name)
        if exact is not None:
            assert rough.dtype == torch.float32
            torch.testing.assert_close(rough, exact, rtol=0, atol=tolerance, equal_nan=True)
    assert half_loss["total"].item() == pytest.approx(model.loss(full, batch)["total"].item(), rel=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def assert_full_precision(values: Tensor) -> None:
    """Check that numbers are float32, and were not computed in half precision and then raised."""
    assert values.dtype == torch.float32
    for half in (torch.bfloat16, torch.float16):
        assert not torch.equal(values, values.to(half).float())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_logits_and_weights_keep_all_their_digits_in_half_precision(
    model: FusionModel, training: bool, half: torch.dtype
) -> None:
    batch = make_batch(SOME)
    made: dict[str, Tensor] = {}
    for name, module in model.named_modules():  # heads for the loss alone, too
        if getattr(module, "out_features", None) == N_LABELS:
            module.register_forward_hook(lambda _, __, out, name=name: made.update({name: out}))
    with torch.autocast("cpu", dtype=half):
        output = model.train(training)(batch)
        loss = model.loss(output, batch)
    assert_full_precision(output.logits[told(model, batch)])
    for logits in made.values():
        assert_full_precision(logits)
    if output.modality_weights is not None:
        assert_full_precision(output.modality_weights)
        sums = output.modality_weights.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
    assert all(part.dtype == torch.float32 for part in loss.values())


def test_a_model_says_what_it_reads(model: FusionModel) -> None:
    batch = make_batch(ALL)
    for modality in ("ehr", "cxr"):
        other = replace(batch, **{modality: getattr(batch, modality) + 1})
        changes = not torch.equal(model.eval()(batch).logits, model(other).logits)
        assert changes == (modality in model.reads)


def test_a_model_says_which_shared_encoders_it_is_made_of(model: FusionModel) -> None:
    shared = model.shared_encoders()
    modules = list(model.modules())
    assert list(shared.ehr) == [one for one in modules if isinstance(one, EhrEncoder | EhrLstmEncoder)]
    assert list(shared.cxr) == [one for one in modules if isinstance(one, CxrEncoder)]


def test_it_learns_a_few_stays_by_heart(model: FusionModel) -> None:
    if isinstance(model, FittedModel):
        pytest.skip("a solver fits it, not gradient steps")
    batch = make_batch((0, 1, 4, 6), n_hours=(6, 3, 1, 5, 2, 6, 4, 3))
    rows = told(model, batch)
    labels = batch.labels[rows]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first, learnt = None, False
    for _ in range(200):
        optimizer.zero_grad()
        logits = trained(model, batch)[0].logits[rows]
        error = F.binary_cross_entropy_with_logits(logits, labels).item()
        first = first or error
        learnt = error < 0.05 * first and torch.equal(logits > 0, labels.bool())
        if learnt:
            break
        optimizer.step()
    assert learnt


def test_equal_seeds_make_equal_models(model: FusionModel) -> None:
    again = made_again(model, seed=0).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_saved_weights_restore_the_output(model: FusionModel) -> None:
    batch = make_batch(SOME)
    model(batch)
    restored = made_again(model, seed=1)
    restored.load_state_dict(model.state_dict())
    expected, got = model.eval()(batch).logits, restored.eval()(batch).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
