"""Two backbones as one network compute what they compute apart."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.paired import pair_encoders, paired, separate
from drfuse.models.cxr_encoders import build_backbone
from drfuse.training.optimizers import make_optimizer
from drfuse.training.options import TrainOptions
from tests.builders import TINY_BACKBONE, make_batch, tiny_drfuse

SMALL_BOTTLENECK = {
    "embedding_size": 4,
    "hidden_sizes": [8, 16],
    "depths": [2, 1],
    "layer_type": "bottleneck",
}
BACKBONES = pytest.mark.parametrize("spec", [TINY_BACKBONE, SMALL_BOTTLENECK], ids=["basic", "bottleneck"])


def two_backbones(spec: dict[str, object]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return two backbones in float64 whose weights and running statistics are all different."""
    torch.manual_seed(0)
    first, second = (build_backbone(spec).double() for _ in range(2))
    with torch.no_grad():
        for tensor in (*first.parameters(), *second.parameters(), *first.buffers(), *second.buffers()):
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    return first, second


def assert_equal_state(one: nn.Module, other: nn.Module) -> None:
    """Assert equal weights and running statistics, to float64's tolerance."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-11)


@BACKBONES
@pytest.mark.parametrize("training", [True, False])
def test_maps_gradients_and_running_statistics_are_those_of_two_passes(
    spec: dict[str, object], training: bool
) -> None:
    first, second = (backbone.train(training) for backbone in two_backbones(spec))
    both = paired(first, second)
    cxr = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    one, other = (backbone(cxr).feature_maps[-1] for backbone in (first, second))
    maps = both(cxr).feature_maps[-1]
    torch.testing.assert_close(maps, torch.cat([one, other], dim=1))
    weight = torch.randn_like(maps)
    (weight * maps).sum().backward()
    (weight * torch.cat([one, other], dim=1)).sum().backward()
    gradients = dict(both.named_parameters())
    for name, parameter in first.named_parameters():
        alone = [parameter.grad, second.get_parameter(name).grad]
        torch.testing.assert_close(gradients[name].grad, torch.cat(alone))
    again = two_backbones(spec)
    separate(both, *again)
    for expected, actual in zip((first, second), again, strict=True):
        assert_equal_state(actual, expected)


def test_training_a_paired_drfuse_gives_the_same_weights() -> None:
    plain = tiny_drfuse().double()
    model = copy.deepcopy(plain)
    both = pair_encoders(model)
    losses = []
    for trained in (plain, model):
        optimizer = make_optimizer(TrainOptions(lr=1e-3), trained.parameters())
        for number in range(3):
            batch = make_batch(seed=number)
            double = {name: getattr(batch, name).double() for name in ("ehr", "cxr", "labels")}
            batch = replace(batch, **double)
            optimizer.zero_grad()
            loss = trained.loss(trained(batch), batch)["total"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-9)
    apart = copy.deepcopy(plain)
    separate(both, apart.cxr_shared_encoder.backbone, apart.cxr_distinct_encoder.backbone)
    torch.testing.assert_close(apart.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-9)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_batch_without_radiographs_runs() -> None:
    model = tiny_drfuse()
    pair_encoders(model)
    batch = make_batch(cxr_of=())
    assert model.loss(model(batch), batch)["total"].isfinite()


def test_a_layer_that_mixes_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear cannot be paired"):
        paired(nn.Linear(2, 2), nn.Linear(2, 2))  # type: ignore[arg-type]
