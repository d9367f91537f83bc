"""Encoders that are recomputed or compiled give what they gave before."""

from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from drfuse.models import DAFT, MMTM, DrFuse, EhrTransformer, FusionModel
from drfuse.models.execution import compile_encoders, recompute_activations
from tests.builders import N_FEATURES, N_LABELS, TINY_BACKBONE, make_batch

TRANSFORMER = {"dim": 8, "heads": 2, "feedforward": 16, "dropout": 0.3}
MODELS = [DrFuse, MMTM, DAFT, EhrTransformer]


def make(kind: type[FusionModel]) -> FusionModel:
    torch.manual_seed(0)
    options = TRANSFORMER if kind is EhrTransformer else TRANSFORMER | {"cxr_backbone": TINY_BACKBONE}
    return kind(N_FEATURES, N_LABELS, **options)


def trained(model: FusionModel, steps: int = 2) -> dict[str, Tensor]:
    """Return weights, buffers and gradients after some steps, the seed being the same each time."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(steps):
        batch = make_batch(seed=number)
        optimizer.zero_grad()
        model.loss(model(batch), batch)["total"].backward()
        optimizer.step()
    gradients = {
        f"grad {name}": weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return model.state_dict() | gradients


def kept_bytes(model: FusionModel) -> int:
    """Return how much a forward pass keeps for the gradients beside weights and input."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = make_batch(cxr_of=(0, 1, 2, 3), image_size=64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(batch)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.state_dict().values(), batch.cxr)}
    assert output.logits.requires_grad
    return sum(size for place, size in kept.items() if place not in known)


@pytest.mark.parametrize("kind", MODELS)
def test_recomputing_changes_neither_gradients_nor_running_statistics(kind: type[FusionModel]) -> None:
    expected = trained(make(kind))
    model = make(kind)
    recompute_activations(model)
    actual = trained(model)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    if kind is not EhrTransformer:
        tracked = [value for name, value in actual.items() if name.endswith("num_batches_tracked")]
        assert {int(value) for value in tracked} == {2}


@pytest.mark.parametrize("kind", [DrFuse, MMTM])
def test_recomputing_keeps_less(kind: type[FusionModel]) -> None:
    model = make(kind)
    everything = kept_bytes(model)
    recompute_activations(model)
    assert kept_bytes(model) < 0.6 * everything


def test_recomputing_is_for_training_alone() -> None:
    model, again = make(DrFuse), make(DrFuse)
    recompute_activations(again)
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).logits, again.eval()(batch).logits)
    assert model.state_dict().keys() == again.state_dict().keys()


@pytest.mark.slow
def test_compiled_encoders_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counted = CompileCounterWithBackend("eager")  # no C++ compiler, which is slow
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counted))
    expected, model = make(DrFuse).eval(), make(DrFuse).eval()
    compile_encoders(model)
    assert model.state_dict().keys() == expected.state_dict().keys()
    with torch.no_grad():
        for cxr_of in ((0, 2), (0, 1, 3), ()):  # the number of radiographs changes
            batch = make_batch(cxr_of=cxr_of)
            torch.testing.assert_close(model(batch).logits, expected(batch).logits)
    assert counted.frame_count > 0
    torch.compiler.reset()
