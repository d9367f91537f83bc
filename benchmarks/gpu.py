"""How fast is training on a GPU, beside the same step with all images, its bare networks, and the device?

`python -m benchmarks.gpu` needs a GPU with CUDA. The steps are those of benchmarks/training.py, on the
device: in turns in one process, each waited for, medians of several. The device's own rate is that of a large
product of bf16 matrices, measured in the same run; the operations of a step are counted by PyTorch. Steps in
fp32 are as PyTorch does them unless told otherwise: convolutions in TF32, matrix products not.

Then come ways to keep a GPU busy although a batch has few images: larger batches at equal numbers of stays,
both backbones as one network (`benchmarks.paired`), CUDA graphs (`benchmarks.padded`), radiographs in the
device's memory, and several trainings at once (`benchmarks.several_runs`). All but the batch size compute
what plain training does, to float tolerance.
"""

import gc
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks.command import command
from benchmarks.padded import PaddedBackbone
from benchmarks.paired import pair_encoders
from benchmarks.results import Target
from benchmarks.several_runs import several_runs
from benchmarks.training import (
    PRECISIONS,
    Precision,
    Step,
    floor_step,
    in_turns,
    make_batch,
    make_task,
    n_images_of,
    table,
    training_step,
)
from drfuse.data import Batch, StoredBatch
from drfuse.data.augmentation import CxrTransform
from drfuse.models import DrFuse
from drfuse.models.execution import compile_encoders
from drfuse.models.sizes import BackboneSpec

EPOCH_STAYS = 45_000
"""About as many as the training split of MIMIC-IV has."""

N_CXR = 12_000
"""About as many radiographs as the paper's cohort has."""


def gpu(
    batch_sizes: Sequence[int] = (16, 64, 256),
    crop_size: int = 224,
    backbone: BackboneSpec = "resnet50",
    repeats: int = 20,
    compiled: bool = True,
    epoch_batch_sizes: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024),
    runs: Sequence[int] = (1, 2, 4),
    seed: int = 0,
) -> str:
    """Measure training steps on a GPU, and return Markdown tables; a sentence where there is no GPU.

    Args:
        batch_sizes: Stays a batch; 18 % of them have a radiograph.
        crop_size: Side of the radiographs, in pixels.
        backbone: Of the radiographs' encoders.
        repeats: Turns of each comparison; medians count.
        compiled: Whether to measure `--compile` and CUDA graphs too, which takes minutes.
        epoch_batch_sizes: Stays a batch, compared over equal numbers of stays.
        runs: Numbers of trainings at once.
        seed: Seed of weights and data.
    """
    if not torch.cuda.is_available():
        return "There is no GPU with CUDA here, so nothing was measured."
    device, wait = torch.device("cuda"), torch.cuda.synchronize
    model = partial(DrFuse, cxr_backbone=backbone)
    rate = matrix_rate(device, 8192, repeats, wait)
    epoch_ways = WAYS + (GRAPHED_WAYS if compiled else ())
    tables = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {platform.machine()}",
        steps(model, batch_sizes, crop_size, repeats, rate, device, wait, seed),
        ways(model, batch_sizes[0], crop_size, repeats, compiled, device, wait, seed),
        copies(batch_sizes[-1], crop_size, repeats, device, wait),
        stored_images(batch_sizes[-1], crop_size, N_CXR, repeats, device, wait),
        epochs(model, epoch_batch_sizes, crop_size, repeats, epoch_ways, device, wait, seed),
        several_runs(model, batch_sizes[0], crop_size, repeats, device, seed, runs),
    ]
    return "\n\n".join(tables)


def matrix_rate(device: torch.device, side: int, repeats: int, wait: Callable[[], object]) -> float:
    """Return how many operations a second the device does in a product of square bf16 matrices."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / in_turns({"": lambda: left @ right}, repeats, wait)[""]


def operations(step: Step) -> int:
    """Return the operations of a step's matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def steps(
    model: Callable[[int, int], DrFuse],
    batch_sizes: Sequence[int],
    crop_size: int,
    repeats: int,
    rate: float,
    device: torch.device,
    wait: Callable[[], object],
    seed: int,
) -> str:
    """Return the table of a step beside the one with all images, its bare networks, and the device's rate."""
    rows = []
    for batch_size in batch_sizes:
        n_images = n_images_of(batch_size)
        batch = make_batch(batch_size, n_images, crop_size, seed, device)
        dense = make_batch(batch_size, batch_size, crop_size, seed, device)
        tasks = {precision: make_task(model, precision, seed, device) for precision in PRECISIONS}
        variants: dict[str, Step] = {"dense": training_step(tasks["32-true"], [dense])}
        for precision, task in tasks.items():
            variants[precision] = training_step(task, [batch], precision)
            variants[f"{precision} floor"] = floor_step(task, batch, precision)
        seconds = in_turns(variants, repeats, wait)
        for (precision, name), target in zip(PRECISIONS.items(), (4, 8), strict=True):
            ours = seconds[precision]
            rows.append(
                [
                    f"{n_images} of {batch_size}",
                    name,
                    f"{1000 * ours:.1f}",
                    f"{batch_size / ours:.0f}",
                    f"{n_images / ours:.0f}",
                    Target("", seconds["dense"] / ours, at_least=target).judged,
                    Target("", seconds[f"{precision} floor"] / ours, at_least=0.95).judged,
                    f"{operations(variants[precision]) / ours / rate:.1%}",
                ]
            )
    columns = ("radiographs", "numbers", "ms a step", "stays a second", "images a second")
    ratios = ("times the fp32 step with all images", "share of the bare networks' throughput")
    return table(
        f"A training step of DrFuse; bf16 matrices: {rate / 1e12:.0f} TFLOP/s",
        (*columns, *ratios, "share of the bf16 matrix rate"),
        rows,
    ).markdown()


def ways(
    model: Callable[[int, int], DrFuse],
    batch_size: int,
    crop_size: int,
    repeats: int,
    compiled: bool,
    device: torch.device,
    wait: Callable[[], object],
    seed: int,
) -> str:
    """Return the table of a step in other numbers, with another Adam, compiled, and as CUDA graphs."""
    batch = make_batch(batch_size, n_images_of(batch_size), crop_size, seed, device)

    def tf32() -> None:
        torch.set_float32_matmul_precision("high")
        single()
        torch.set_float32_matmul_precision("highest")

    def unfused(precision: Precision) -> Step:
        task = make_task(model, precision, seed, device)
        adam = torch.optim.Adam(task.parameters(), lr=task.options.lr)
        task.configure_optimizers = lambda: adam  # type: ignore[method-assign]
        return training_step(task, [batch], precision)

    single = training_step(make_task(model, "32-true", seed, device), [batch])
    half: Precision = "bf16-mixed"
    variants = {
        "fp32": single,
        "TF32 in matrix products too": tf32,
        "bf16, channels_last": training_step(make_task(model, half, seed, device), [batch], half),
        "bf16, Adam not fused": unfused(half),
    }
    if compiled:
        task = make_task(model, half, seed, device)
        compile_encoders(task.model)
        variants["bf16, --compile"] = training_step(task, [batch], half)
        task = make_task(model, half, seed, device)
        compile_encoders(task.model, "reduce-overhead")
        graphs = training_step(task, [batch], half)
        variants["bf16, compiled with CUDA graphs (reduce-overhead)"] = graphs
    seconds = in_turns(variants, repeats, wait)
    rows = [[name, f"{1000 * s:.1f}", f"{seconds['fp32'] / s:.2f}"] for name, s in seconds.items()]
    title = f"Ways to do a step of {batch_size} stays, {len(batch.cxr)} radiographs"
    return table(title, ("how", "ms a step", "times as fast as fp32"), rows).markdown()


def copies(
    batch_size: int, crop_size: int, repeats: int, device: torch.device, wait: Callable[[], object]
) -> str:
    """Return the table of a batch's copy to the device, from pageable and from pinned memory."""
    batch = make_batch(batch_size, n_images_of(batch_size), crop_size)
    pinned = batch.pin_memory() if torch.cuda.is_available() else batch

    def copy(some: Batch) -> Step:
        return partial(some.to, device, non_blocking=some is pinned)

    seconds = in_turns({"pageable": copy(batch), "pinned": copy(pinned)}, repeats, wait)
    returned = in_turns({"pageable": copy(batch), "pinned": copy(pinned)}, repeats)  # when the call is over
    rows = [[name, f"{1000 * s:.2f}", f"{1000 * returned[name]:.2f}"] for name, s in seconds.items()]
    columns = ("memory", "ms until it is there", "ms until the processor goes on")
    return table(f"Copying a batch of {batch_size} stays to the device", columns, rows).markdown()


def with_stored_images(batch: StoredBatch, stored: Tensor) -> StoredBatch:
    """Return a batch without pixels (a dataset's `rows`) with its radiographs out of the cohort's.

    Args:
        batch: The batch, on the device.
        stored: All radiographs of the cohort, uint8 (N, 1, size, size), on the device.
    """
    return replace(batch, pixels=stored[batch.cxr_row])


def stored_images(
    batch_size: int,
    crop_size: int,
    n_stored: int,
    repeats: int,
    device: torch.device,
    wait: Callable[[], object],
) -> str:
    """Return the table of how long a batch's augmented radiographs take, by where they are stored."""
    n, size = n_images_of(batch_size), crop_size * 8 // 7
    stored = torch.randint(256, (n_stored, 1, size, size), dtype=torch.uint8, device=device)
    rows = torch.randint(n_stored, (n,), device=device)
    pageable = stored[rows].cpu()
    pinned = pageable.pin_memory() if torch.cuda.is_available() else pageable
    transform = CxrTransform(crop_size).train()  # its random draws do not depend on the device
    seconds = in_turns(
        {
            "pageable memory": lambda: transform(pageable.to(device)),
            "pinned memory": lambda: transform(pinned.to(device, non_blocking=True)),
            f"the device's memory, {stored.nbytes / 1e9:.1f} GB": lambda: transform(stored[rows]),
        },
        repeats,
        wait,
    )
    lines = [[name, f"{1000 * s:.2f}"] for name, s in seconds.items()]
    return table(f"{n} augmented radiographs", ("from", "ms"), lines).markdown()


@dataclass(frozen=True)
class Way:
    """How the two backbones run: as one network or two, as CUDA graphs or not, on padded numbers or not."""

    as_one: bool = False
    graphs: bool = False
    padded: bool = False

    @property
    def name(self) -> str:
        """The way in words."""
        network = "one network" if self.as_one else "two networks"
        return network + ", CUDA graphs" * self.graphs + ", padded" * self.padded

    def prepare(self, model: DrFuse, batch: Batch, precision: Precision) -> None:
        """Let a model's backbones run this way, in place, on as many radiographs as the batch has."""
        if self.as_one:
            pair_encoders(model)
        n_images = len(batch.cxr)
        size = next_power_of_two(n_images) if self.padded else n_images
        backbones = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
        for backbone in backbones if self.graphs or self.padded else ():
            passes = PaddedBackbone(backbone, [size])
            if self.graphs:
                half = precision == "bf16-mixed"
                with torch.autocast(batch.cxr.device.type, torch.bfloat16, half, cache_enabled=False):
                    passes.capture(batch.cxr, self.padded)


WAYS = (Way(), Way(as_one=True))
GRAPHED_WAYS = (
    Way(graphs=True),
    Way(as_one=True, graphs=True),
    Way(as_one=True, graphs=True, padded=True),
)


def epochs(
    model: Callable[[int, int], DrFuse],
    batch_sizes: Sequence[int],
    crop_size: int,
    repeats: int,
    ways: Sequence[Way],
    device: torch.device,
    wait: Callable[[], object],
    seed: int,
) -> str:
    """Return the table of the seconds for an epoch's stays, by batch size and way.

    Each way is measured on its own: together, large batches would not fit.
    """

    def measured(batch_size: int, way: Way) -> str:
        half: Precision = "bf16-mixed"
        task = make_task(model, half, seed, device)
        batch = make_batch(batch_size, n_images_of(batch_size), crop_size, seed, device)
        try:
            way.prepare(cast(DrFuse, task.model), batch, half)
            seconds = in_turns({"": training_step(task, [batch], half)}, repeats, wait)[""]
        except torch.OutOfMemoryError:
            return "out of memory"
        return f"{seconds * EPOCH_STAYS / batch_size:.1f}"

    rows = []
    for batch_size in batch_sizes:
        cells = []
        for way in ways:
            cells.append(measured(batch_size, way))
            gc.collect()  # a backbone and its graphs refer to each other
            torch.cuda.empty_cache()
        rows.append([f"{n_images_of(batch_size)} of {batch_size}", *cells])
    title = f"Seconds for {EPOCH_STAYS:,} stays, bf16, channels_last"
    return table(title, ("radiographs", *(way.name for way in ways)), rows).markdown()


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two above n, so that there is always something to pad.

    >>> next_power_of_two(3), next_power_of_two(4)
    (4, 8)
    """
    return 1 << n.bit_length()


if __name__ == "__main__":
    command(gpu)
