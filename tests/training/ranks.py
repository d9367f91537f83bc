"""What the tests of several processes run in each of them."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from drfuse.data import Batch
from drfuse.errors import InputError
from drfuse.failures import explained_failures
from drfuse.models import FusionOutput
from drfuse.models.batch_norm import SyncedBatchNorm2d
from drfuse.training import train
from drfuse.training.distributed import Ranks
from drfuse.training.split_model import SplitModel, collect
from tests.builders import make_batch, take_stays, tiny_drfuse
from tests.training.own_model import FirstHour


def everything(folder: Path, trainings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what each of the following functions returns, the results of trainings, and who wrote."""
    ranks = Ranks.of_environment(None, None)
    assert ranks is not None
    ranks.join()
    written = note_writing(folder)
    return {
        "ranks": of_all((ranks.rank, ranks.size, ranks.devices, torch.get_num_threads())),
        "collected": of_all(collected(ranks.rank)),
        "normalized": {
            lengths: of_all(normalized(ranks.rank, *lengths, dtype, channels_last))
            for lengths, dtype, channels_last in NORM_CASES
        },
        "gradients": {case: gradients(ranks.rank, *case) for case in GRADIENT_CASES},
        "trained": [train(**options) for options in trainings],
        "written": of_all(written),
    }


NORM_CASES = (
    ((3, 2), torch.float64, False),
    ((4, 0), torch.float64, True),
    ((0, 1), torch.float32, False),
    ((2, 3), torch.bfloat16, True),
    ((0, 5), torch.bfloat16, True),
)
GRADIENT_CASES = (((0, 2), (1, 3)), ((0, 1, 2), (3,)), ((2, 0, 3), (1,)), ((1,), (3,)))


def note_writing(folder: Path) -> list[str]:
    """Return a list to which each place in a folder is added where this process writes from now on."""
    places: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and str(arguments[0]).startswith(str(folder)):
            places.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    return places


def of_all(value: Any) -> list[Any]:
    """Return a value of all processes."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def collected(rank: int) -> tuple[list[Tensor], Tensor]:
    """Return what is collected of uneven parts, and the gradient of this process's first one."""
    own = torch.arange(6.0).view(3, 2)[rank:] + 10 * rank
    own.requires_grad_(rank == 0)
    padded = torch.ones(rank + 1, 1 + rank)
    numbers, wide, whole = *collect([torch.arange(rank), padded]), collect([own], differentiable=True)[0]
    (whole.square().sum() * (rank + 1)).backward()  # a loss of its own in each process
    return [numbers, wide, whole.detach()], torch.zeros(()) if own.grad is None else own.grad


def normalized(
    rank: int, n_first: int, n_second: int, dtype: torch.dtype, channels_last: bool
) -> dict[str, Tensor]:
    """Return what a BatchNorm makes of this process's images, its gradients and its state."""
    norm = SyncedBatchNorm2d.of(norm_to_test())
    images, weights = norm_input(n_first + n_second)
    own = (slice(n_first), slice(n_first, None))[rank]
    maps = images[own].to(
        dtype, memory_format=torch.channels_last if channels_last else torch.preserve_format
    )
    maps.requires_grad_()
    made = norm.to(torch.float64 if dtype == torch.float64 else torch.float32)(maps)
    (made * weights[own]).sum().backward()
    state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    gradients = {"maps": maps.grad, "weight.grad": norm.weight.grad, "bias.grad": norm.bias.grad}
    return {"made": made.detach(), **gradients, **state}


def norm_to_test() -> nn.BatchNorm2d:
    """Return a BatchNorm with weights and statistics of its own."""
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(4).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def norm_input(n: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 4, 3, 2) far from zero, and the weight of each value in a loss."""
    generator = torch.Generator().manual_seed(4)
    images = 5 + torch.randn(n, 4, 3, 2, generator=generator, dtype=torch.float64)
    return images, torch.randn(n, 4, 3, 2, generator=generator, dtype=torch.float64)


def gradients(rank: int, *parts: Sequence[int]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the loss of DrFuse on a batch in parts, its gradients and the model's buffers after it."""
    model = tiny_drfuse().double()
    batch = take_stays(double(make_batch()), parts[rank])
    split = SplitModel(model)
    wrapped = nn.parallel.DistributedDataParallel(_Loss(model, split), find_unused_parameters=True)
    loss = wrapped(batch)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), {**found, **dict(model.named_buffers())}


def double(batch: Batch) -> Batch:
    """Return a batch in float64."""
    return batch._each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, split: SplitModel) -> None:
        super().__init__()
        self.model, self.split = model, split

    def forward(self, batch: Batch) -> Tensor:
        return self.split.model.loss(*self.split(batch, True))["total"]


class FailsInOne(FirstHour):
    """A model that cannot be trained in the second process; the first waits for it."""

    def forward(self, batch: Batch) -> FusionOutput:
        if self.training and os.environ["RANK"] == "1":
            raise InputError("the second process fails")
        return super().forward(batch)


def sleep(folder: Path) -> None:
    """Leave the number of this process in a folder, and do nothing for long."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def train_as(
    rank: int, port: int, endings: Mapping[str, str], said: Path, seconds_to_meet: int, **options: Any
) -> None:
    """Train as one of the two processes of a SLURM step, and end as a command does.

    Args:
        rank: This process.
        port: Where the two meet.
        endings: By the import path of a function, how this process ends when it calls that: `kill`, `exit`,
            `raise` or `sleep`.
        said: File for what it says.
        seconds_to_meet: How long it waits for the other one.
        options: Arguments of `train`.
    """
    multiprocessing.set_start_method("fork", force=True)  # as in a command
    terminal = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(terminal, stream)
    step = {"STEP_NUM_TASKS": 2, "STEP_NUM_NODES": 1, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    os.environ |= {f"SLURM_{name}": str(value) for name, value in step.items()}
    os.environ |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as patches:
        for module in ("distributed", "peers"):
            patches.enter_context(patch(f"drfuse.training.{module}.SECONDS_TO_MEET", seconds_to_meet))
        patches.enter_context(patch("drfuse.training.peers._SECONDS_TO_LEAVE", 2))
        for place, how in endings.items():
            patches.enter_context(patch(place, partial(_end, how, said)))
        with explained_failures("train", Console(stderr=True)):
            train(**options)


def _end(how: str, said: Path, *_: Any, **__: Any) -> None:
    if how == "sleep":
        said.with_suffix(f".sleeps-{os.getpid()}").touch()
        time.sleep(600)
    if how == "raise":
        raise InputError("a reason of its own")
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
