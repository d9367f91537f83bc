"""How fast is training on a GPU, beside the same step with all images, its bare networks, and the device?

`python -m benchmarks.gpu` needs a GPU with CUDA. The steps are those of benchmarks/training.py, on the
device: in turns in one process, each waited for, medians of several. The device's own rate is that of a large
product of bf16 matrices, measured in the same run; the operations of a step are counted by PyTorch. Steps in
fp32 are as PyTorch does them unless told otherwise: convolutions in TF32, matrix products not.
"""

import platform
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import command
from benchmarks.results import Target
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
from drfuse.data import Batch
from drfuse.models import DrFuse
from drfuse.models.execution import compile_encoders
from drfuse.models.sizes import BackboneSpec


def gpu(
    batch_sizes: Sequence[int] = (16, 64, 256),
    crop_size: int = 224,
    backbone: BackboneSpec = "resnet50",
    repeats: int = 20,
    compiled: bool = True,
    seed: int = 0,
) -> str:
    """Measure training steps on a GPU, and return Markdown tables; a sentence where there is no GPU.

    Args:
        batch_sizes: Stays a batch; 18 % of them have a radiograph.
        crop_size: Side of the radiographs, in pixels.
        backbone: Of the radiographs' encoders.
        repeats: Turns of each comparison; medians count.
        compiled: Whether to measure `--compile` and CUDA graphs too, which takes minutes.
        seed: Seed of weights and data.
    """
    if not torch.cuda.is_available():
        return "There is no GPU with CUDA here, so nothing was measured."
    device, wait = torch.device("cuda"), torch.cuda.synchronize
    model = partial(DrFuse, cxr_backbone=backbone)
    rate = matrix_rate(device, 8192, repeats, wait)
    tables = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {platform.machine()}",
        steps(model, batch_sizes, crop_size, repeats, rate, device, wait, seed),
        ways(model, batch_sizes[0], crop_size, repeats, compiled, device, wait, seed),
        copies(batch_sizes[-1], crop_size, repeats, device, wait),
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
                    Target("", seconds[f"{precision} floor"] / ours, at_least=0.9).judged,
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


if __name__ == "__main__":
    command(gpu)
