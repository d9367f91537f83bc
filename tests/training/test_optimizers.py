"""The optimizer is what the options say; Adam with decoupled weight decay by default."""

from typing import Any

import pytest
import torch
from torch import nn

from drfuse.errors import InputError
from drfuse.training import TrainOptions
from drfuse.training.optimizers import make_optimizer, try_optimizer


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def test_adam_is_the_default_and_its_weights_decay_apart() -> None:
    optimizer = make_optimizer(TrainOptions(lr=0.1, weight_decay=0.2), parameters())
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["decoupled_weight_decay"]) == (0.1, 0.2, True)


def test_another_optimizer_gets_its_own_arguments() -> None:
    options = TrainOptions(optimizer="torch.optim.SGD", optimizer_args={"momentum": 0.9}, lr=0.5)
    weights = parameters()
    optimizer = make_optimizer(options, weights)
    for expected in (0.5, 0.5 - 0.5 * 1.9):  # two steps of a gradient of 1: the second has momentum
        weights[0].grad = torch.ones(2)
        optimizer.step()
        torch.testing.assert_close(weights[0].detach(), torch.full((2,), expected))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimizer": "torch.optim.Nothing"}, "torch.optim.Nothing cannot be imported"),
        ({"optimizer": "torch.nn.Linear"}, "torch.nn.Linear is not a subclass of Optimizer"),
        ({"optimizer_args": {"momentum": 0.9}}, "torch.optim.Adam does not take lr, weight_decay, momentum"),
        ({"optimizer_args": {"lr": 0.9}}, "torch.optim.Adam does not take"),
        ({"optimizer": "torch.optim.LBFGS"}, "torch.optim.LBFGS does not take lr, weight_decay"),
        ({"optimizer": "SGD"}, r"optimizer is 'SGD'; write torch\.optim\.SGD"),
        ({"optimizer": "torch.optim.Optimizer"}, "does not take lr, weight_decay as given"),
        ({"optimizer_args": {"foreach": True}}, r"foreach as given \(RuntimeError: `fused` and `foreach`"),
        ({"optimizer_args": {"betas": [0.9]}}, r"betas as given \(IndexError: list index out of range\)"),
        ({"optimizer_args": {"differentiable": True}}, r"differentiable as given \(RuntimeError"),
        ({"optimizer": "torch.optim.AdamW", "optimizer_args": {"capturable": True}}, "capturable as given"),
        ({"optimizer": "torch.optim.SGD", "optimizer_args": {"momentum": "0.9"}}, "momentum as given"),
        ({"optimizer": "torch.optim.SparseAdam"}, "SparseAdam does not take"),
        ({"optimizer": "torch.optim.Muon"}, "Muon (cannot be imported|does not take)"),
    ],
)
def test_what_is_no_optimizer_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        try_optimizer(TrainOptions(**options), nn.Linear(2, 2), torch.device("cpu"))
