"""Does a GPU train more when several runs share it?

Runs are processes, as those of `drfuse reproduce --workers`. Without NVIDIA's MPS daemon they take turns on
the GPU, and one fills the gaps that another leaves.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from threading import Barrier
from time import perf_counter

import torch

from benchmarks.training import Precision, make_batch, make_task, n_images_of, table, training_step
from drfuse.models import DrFuse

_PATIENCE_SECONDS = 600
"""How long a run waits for the others to be ready, before it fails."""

_ready: Barrier


def several_runs(
    model: Callable[[int, int], DrFuse],
    batch_size: int,
    crop_size: int,
    steps: int,
    device: torch.device,
    seed: int,
    numbers: Sequence[int] = (1, 2, 4),
) -> str:
    """Return the table of the throughput of several trainings at once on one device.

    Args:
        model: What is trained; it must be picklable.
        batch_size: Stays a batch.
        crop_size: Side of the radiographs, in pixels.
        steps: Of each run, after some that do not count.
        device: Where they all train.
        seed: Seed of weights and data.
        numbers: Numbers of runs side by side.
    """
    train = partial(_train, model, batch_size, crop_size, steps, device, seed)
    rates = {n: n * steps * batch_size / _seconds(train, n) for n in numbers}
    one = rates[numbers[0]] / numbers[0]
    rows = [[f"{n}", f"{rate:.0f}", f"{rate / one:.2f}"] for n, rate in rates.items()]
    title = f"Several trainings at once, each of batches of {batch_size} stays, bf16"
    return table(title, ("runs", "stays a second, all together", "times those of one"), rows).markdown()


def _seconds(train: Callable[[], tuple[float, float]], n: int) -> float:
    """Return the seconds from the first run's start to the last one's end."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    threads = max(1, torch.get_num_threads() // n)
    with ProcessPoolExecutor(n, context, _prepare, (context.Barrier(n), threads)) as pool:
        spans = [run.result() for run in [pool.submit(train) for _ in range(n)]]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _prepare(ready: Barrier, threads: int) -> None:
    global _ready  # noqa: PLW0603 - a barrier can only be given to a process when it starts
    _ready = ready
    torch.set_num_threads(threads)


def _train(
    model: Callable[[int, int], DrFuse],
    batch_size: int,
    crop_size: int,
    steps: int,
    device: torch.device,
    seed: int,
) -> tuple[float, float]:
    """Train, and return when the steps began and ended, on a clock that all processes share."""
    half: Precision = "bf16-mixed"
    batch = make_batch(batch_size, n_images_of(batch_size), crop_size, seed, device)
    step = training_step(make_task(model, half, seed, device), [batch], half)
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        step()
    wait()
    _ready.wait(_PATIENCE_SECONDS)
    start = perf_counter()
    for _ in range(steps):
        step()
    wait()
    return start, perf_counter()
