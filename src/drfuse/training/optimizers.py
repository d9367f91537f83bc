"""The optimizer of a training and the schedule of its learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import nn, optim

from drfuse.errors import InputError
from drfuse.imports import describe_error, import_class
from drfuse.training.options import TrainOptions

_WARM_UP = 0.1


def make_optimizer(options: TrainOptions, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Return the optimizer; Adam's weight decay is decoupled from the gradient (AdamW).

    Raises:
        InputError: If the optimizer is unknown, or refuses its arguments.
    """
    if "." not in options.optimizer:
        raise InputError(
            f"optimizer is {options.optimizer!r}; write torch.optim.{options.optimizer or 'SGD'}"
        )
    kind = import_class(options.optimizer, optim.Optimizer)
    defaults = {"decoupled_weight_decay": True, "fused": True} if kind is optim.Adam else {}
    arguments = {**defaults, **options.optimizer_args}
    try:
        optimizer: optim.Optimizer = kind(
            parameters, lr=options.lr, weight_decay=options.weight_decay, **arguments
        )
    except Exception as error:  # an optimizer may raise anything
        raise _refused(options, error) from error
    return optimizer


def try_optimizer(options: TrainOptions, model: nn.Module, device: torch.device) -> None:
    """Make a step with the optimizer on small parameters: some arguments only fail there.

    Raises:
        InputError: If the optimizer is unknown, or does not work with its arguments.
    """
    n_dims = {parameter.ndim for parameter in model.parameters()}
    parameters = [nn.Parameter(torch.ones([2] * n, device=device)) for n in sorted(n_dims)]
    optimizer = make_optimizer(options, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        raise _refused(options, error) from error


def _refused(options: TrainOptions, error: Exception) -> InputError:
    given = ", ".join(("lr", "weight_decay", *options.optimizer_args))
    return InputError(
        f"optimizer: {options.optimizer} does not take {given} as given ({describe_error(error)}); check "
        "optimizer_args"
    )


def cosine(n_steps: int, step: int) -> float:
    """Return the share of the learning rate at a step (from 0) of a training of `n_steps`.

    It rises linearly over the first tenth of the steps, then falls to 0 along a cosine.

    >>> [round(cosine(20, step), 3) for step in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    >>> cosine(1, 0)
    1.0
    """
    warm_up = _WARM_UP * n_steps
    if step < warm_up:
        return (step + 1) / math.ceil(warm_up)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (n_steps - warm_up)))
