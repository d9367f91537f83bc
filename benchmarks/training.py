"""How fast is a training step, how near to its bare networks, and what does an epoch add to its steps?

`python -m benchmarks.training` measures in the paper's setting: radiographs of 224 pixels for 3 of 16 and 12
of 64 stays, two ResNet-50, 48 hours of 59 features, 25 phenotypes. What is compared runs in turns in one
process, and medians count; peak memory is that of a process of its own for each row. `--quick false` adds
what takes long: all images and peak memory at the larger batch, and torch.compile.
"""

import copy
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, Literal, cast, get_args
from unittest.mock import patch

import lightning as L
import torch
from torch import Tensor
from torch.optim import adam

from benchmarks.command import command
from benchmarks.results import Report, Table, Target
from drfuse.cohort import prepare
from drfuse.data import Batch, CohortDataModule
from drfuse.data.augmentation import CxrTransform
from drfuse.inference.predictor import predict_batch
from drfuse.models import DrFuse, FusionModel
from drfuse.models.execution import compile_encoders, recompute_activations
from drfuse.models.sizes import BackboneSpec
from drfuse.simulate import simulate
from drfuse.training import FusionTraining, TrainOptions, train

Section = Literal["steps", "options", "compile", "memory", "epoch", "prediction"]
Precision = Literal["32-true", "bf16-mixed"]
Step = Callable[[], object]

N_FEATURES, N_LABELS, HOURS = 59, 25, 48
IMAGES = {16: 3, 64: 12}  # of a batch: 18 % of its stays
_HOW = """\
Random stays of 48 hours, 59 features and 25 labels, radiographs of {size} pixels, DrFuse with two ResNets,
{threads} threads. A step is that of `drfuse train` without its loop: forward, loss, backward, Adam. *Bare
networks*: the two backbones and the Transformers on the same tensors, forward, backward, Adam, and nothing
else. What is compared takes turns {repeats} times after a first one that does not count; medians count."""

PRECISIONS: dict[Precision, str] = {"32-true": "fp32", "bf16-mixed": "bf16, channels_last"}


def training(
    sections: Sequence[Section] = get_args(Section),
    quick: bool = True,
    batch_sizes: Sequence[int] = (16, 64),
    crop_size: int = 224,
    backbone: BackboneSpec = "resnet50",
    repeats: int = 3,
    stays: int = 200,
    seed: int = 0,
    save: Path | None = None,
) -> Report:
    """Measure training and prediction.

    Args:
        sections: Which tables.
        quick: Leave out what takes long.
        batch_sizes: Stays a batch; 18 % of them have a radiograph.
        crop_size: Side of the radiographs, in pixels.
        backbone: Of the radiographs' encoders.
        repeats: Turns of each comparison; medians count.
        stays: Of the simulated cohort whose epochs are measured.
        seed: Seed of weights and data.
        save: JSON file to write the report to.
    """
    model = partial(DrFuse, cxr_backbone=backbone)
    first = batch_sizes[:1]
    targets: list[Target] = []
    tables: dict[Section, Callable[[], Table]] = {
        "steps": lambda: _steps(model, batch_sizes, crop_size, repeats, quick, seed, targets),
        "options": lambda: _options(model, batch_sizes[0], crop_size, repeats, seed),
        "compile": lambda: _compile(model, batch_sizes[0], crop_size, repeats, quick, seed),
        "memory": lambda: _memory(model, first if quick else batch_sizes, crop_size, seed),
        "epoch": lambda: _epoch(model, stays, batch_sizes[0], crop_size, repeats, seed, targets),
        "prediction": lambda: _prediction(model, batch_sizes[-1], crop_size, repeats, seed),
    }
    measured = [tables[name]() for name in sections]
    how = _HOW.format(size=crop_size, threads=torch.get_num_threads(), repeats=repeats)
    report = Report("Training", how, targets, measured)
    if save is not None:
        report.write(save)
    return report


def make_batch(
    batch_size: int, n_images: int, crop_size: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Batch:
    """Return random stays of 48 hours, of which `n_images`, evenly spread, have a radiograph."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        stay_id=torch.arange(batch_size),
        ehr=torch.randn(batch_size, HOURS, N_FEATURES, generator=generator),
        n_hours=torch.full((batch_size,), HOURS),
        cxr=torch.randn(n_images, 1, crop_size, crop_size, generator=generator),
        cxr_of=torch.arange(n_images) * batch_size // max(1, n_images),
        cxr_row=torch.arange(n_images),
        labels=torch.randint(2, (batch_size, N_LABELS), generator=generator).float(),
    ).to(device)


def n_images_of(batch_size: int) -> int:
    """Return how many of a batch's stays have a radiograph."""
    return IMAGES.get(batch_size, max(1, round(0.18 * batch_size)))


def make_task(
    model: Callable[[int, int], FusionModel],
    precision: Precision = "32-true",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FusionTraining:
    """Return what trains a new model, laid out in memory as `train` does for the precision."""
    torch.manual_seed(seed)
    network = model(N_FEATURES, N_LABELS)
    if precision != "32-true":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FusionTraining(network, TrainOptions(seed=seed)).to(device)


def training_step(task: FusionTraining, batches: Sequence[Batch], precision: Precision = "32-true") -> Step:
    """Return what trains one step of Adam on the batches: that of `drfuse train` without its loop."""

    def losses() -> Iterator[Tensor]:
        for batch in batches:
            with torch.autocast(batch.ehr.device.type, torch.bfloat16, precision == "bf16-mixed"):
                yield task.training_step(batch, 0) / len(batches)

    return _optimised(task.configure_optimizers(), losses)


def floor_step(task: FusionTraining, batch: Batch, precision: Precision = "32-true") -> Step:
    """Return the same step of the bare networks: two backbones and the Transformers, and nothing else."""
    network = cast(DrFuse, task.model)
    backbones = (network.cxr_shared_encoder.backbone, network.cxr_distinct_encoder.backbone)

    def losses() -> Iterator[Tensor]:
        with torch.autocast(batch.ehr.device.type, torch.bfloat16, precision == "bf16-mixed"):
            outputs = [*network.ehr_encoder(batch.ehr, batch.n_hours)]
            outputs += [backbone(batch.cxr).feature_maps[-1] for backbone in backbones]
            yield torch.stack([output.float().mean() for output in outputs]).sum()

    modules = (network.ehr_encoder, *backbones)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return _optimised(torch.optim.Adam(parameters, lr=1e-4, fused=True), losses)


def _optimised(optimizer: torch.optim.Optimizer, losses: Callable[[], Iterable[Tensor]]) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        for loss in losses():
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def in_turns(
    variants: Mapping[str, Step], repeats: int, wait: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Return each variant's median time in seconds; they run in turns, the first of which does not count.

    Args:
        variants: What to run.
        repeats: Turns that count.
        wait: What waits for the device.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            wait()
            start = perf_counter()
            run()
            wait()
            if turn:
                times[name].append(perf_counter() - start)
    return {name: median(some) for name, some in times.items()}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of these columns."""
    return Table(title, [dict(zip(columns, row, strict=True)) for row in rows])


def _total_loss(network: FusionModel, batch: Batch) -> list[Tensor]:
    return [network.loss(network(batch), batch)["total"]]


def _steps(
    model: Callable[[int, int], DrFuse],
    batch_sizes: Sequence[int],
    crop_size: int,
    repeats: int,
    quick: bool,
    seed: int,
    targets: list[Target],
) -> Table:
    rows = []
    tasks = {precision: make_task(model, precision, seed) for precision in PRECISIONS}
    for batch_size in batch_sizes:
        n_images = n_images_of(batch_size)
        batch = make_batch(batch_size, n_images, crop_size, seed)
        variants: dict[str, Step] = {}
        for precision, task in tasks.items():
            variants[precision] = training_step(task, [batch], precision)
            variants[f"{precision} floor"] = floor_step(task, batch, precision)
        with_dense = not quick or batch_size == batch_sizes[0]
        if with_dense:
            dense = make_batch(batch_size, batch_size, crop_size, seed)
            variants["dense"] = training_step(tasks["32-true"], [dense])
        seconds = in_turns(variants, repeats)
        for (precision, name), target in zip(PRECISIONS.items(), (4, 8), strict=True):
            ours, floor = seconds[precision], seconds[f"{precision} floor"]
            of = f"{n_images} of {batch_size}"
            bare = Target(
                f"share of the bare networks' throughput, {name}, radiographs {of}",
                floor / ours,
                at_least=0.95,
            )
            targets.append(bare)
            against = "not quick"
            if with_dense:
                faster = Target(
                    f"throughput over the fp32 step with all images, {name}, radiographs {of}",
                    seconds["dense"] / ours,
                    at_least=target,
                )
                targets.append(faster)
                against = faster.judged
            rows.append([of, name, f"{ours:.2f}", f"{batch_size / ours:.1f}", against, bare.judged])
    columns = ("radiographs", "numbers", "s a step", "stays a second", "times the fp32 step with all images")
    return table("A training step of DrFuse", (*columns, "share of the bare networks' throughput"), rows)


def _options(
    model: Callable[[int, int], DrFuse], batch_size: int, crop_size: int, repeats: int, seed: int
) -> Table:
    n_images = n_images_of(batch_size)
    batch = make_batch(batch_size, n_images, crop_size, seed)
    plain = make_task(model, seed=seed)
    recomputing, frozen = copy.deepcopy(plain), copy.deepcopy(plain)
    recompute_activations(recomputing.model)
    for encoder in frozen.model.shared_encoders().cxr:
        encoder.freeze([batch.cxr])
    quarter = batch_size // 4
    quarters = [
        make_batch(quarter, n, crop_size, seed)
        for n in (n_images - 3 * (n_images // 4), *[n_images // 4] * 3)
    ]
    without_pixels = replace(batch, cxr=torch.empty(n_images, 1, 0, 0))
    half = batch.keep_cxr(torch.arange(n_images - round(n_images / 2)))
    transform = CxrTransform(crop_size).train()
    stored = torch.randint(256, (n_images, 1, crop_size, crop_size), dtype=torch.uint8)
    seconds = in_turns(
        {
            "none": training_step(plain, [batch]),
            f"augmentation of {n_images} radiographs alone": partial(transform, stored),
            f"--accumulate 4, of {quarter} stays each": training_step(plain, quarters),
            "--checkpoint-activations": training_step(recomputing, [batch]),
            f"--cxr-share 0.5: {len(half.cxr)} of {n_images} radiographs": training_step(plain, [half]),
            "--freeze-cxr": training_step(frozen, [without_pixels]),
        },
        repeats,
    )
    rows = [[name, f"{s:.3f}", f"{s / seconds['none']:.2f}"] for name, s in seconds.items()]
    return table(
        f"Options: a step of {batch_size} stays, {n_images} radiographs, fp32",
        ("option", "s a step", "times the step without"),
        rows,
    )


def _compile(
    model: Callable[[int, int], DrFuse],
    batch_size: int,
    crop_size: int,
    repeats: int,
    quick: bool,
    seed: int,
) -> Table:
    title = f"--compile: a step of {batch_size} stays"
    if quick:
        return Table(title, [], "Not quick: `--quick false` measures it.")
    batch = make_batch(batch_size, n_images_of(batch_size), crop_size, seed)
    rows = []
    for precision, name in PRECISIONS.items():
        plain = make_task(model, precision, seed)
        compiled = make_task(model, precision, seed)
        compile_encoders(compiled.model)
        step = training_step(compiled, [batch], precision)
        start = perf_counter()
        step()
        compiling = perf_counter() - start
        seconds = in_turns({"off": training_step(plain, [batch], precision), "on": step}, repeats)
        ratio = f"{seconds['off'] / seconds['on']:.2f}"
        rows.append([name, f"{seconds['off']:.2f}", f"{seconds['on']:.2f}", ratio, f"{compiling:.0f}"])
    return table(title, ("numbers", "s off", "s on", "times as fast", "s of the first step"), rows)


def _memory(
    model: Callable[[int, int], DrFuse], batch_sizes: Sequence[int], crop_size: int, seed: int
) -> Table:
    rows = []
    for batch_size in batch_sizes:
        n_images = n_images_of(batch_size)
        variants: dict[str, tuple[int, int, Precision, bool]] = {
            "fp32": (batch_size, n_images, "32-true", False),
            "bf16, channels_last": (batch_size, n_images, "bf16-mixed", False),
            "fp32, --checkpoint-activations": (batch_size, n_images, "32-true", True),
            "fp32, a quarter of the batch (--accumulate 4)": (
                batch_size // 4,
                max(1, n_images // 4),
                "32-true",
                False,
            ),
            "fp32, a radiograph for every stay": (batch_size, batch_size, "32-true", False),
        }
        for name, options in variants.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # each has a peak of its own
                before, peak = pool.apply(_peak_mib, (model, *options, crop_size, seed))
            images = f"{n_images} of {batch_size}"
            rows.append([images, name, f"{peak:.0f}", f"{peak - before:.0f}"])
    columns = ("radiographs", "step", "peak MiB resident", "of these by training")
    return table("Memory of three training steps", columns, rows)


def _peak_mib(
    model: Callable[[int, int], DrFuse],
    batch_size: int,
    n_images: int,
    precision: Precision,
    recomputing: bool,
    crop_size: int,
    seed: int,
) -> tuple[float, float]:
    """Return the most memory that this process has held, before and after three steps."""
    before = _resident_peak_mib()
    task = make_task(model, precision, seed)
    if recomputing:
        recompute_activations(task.model)
    step = training_step(task, [make_batch(batch_size, n_images, crop_size, seed)], precision)
    for _ in range(3):
        step()
    return before, _resident_peak_mib()


def _resident_peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


class _Replay(L.Callback):
    """Times each epoch of `train` but the first, and beside it the same batches through the bare steps.

    Args:
        model: What is trained.
        seconds: What clocks count while it goes on.
        seed: Seed of the bare steps' weights.
    """

    def __init__(self, model: Callable[[int, int], DrFuse], seconds: Mapping[str, float], seed: int) -> None:
        self.task = make_task(model, seed=seed)
        self.seconds = seconds
        self.epochs: list[float] = []
        self.bare: list[float] = []
        self.parts: defaultdict[str, list[float]] = defaultdict(list)
        self.started: float | None = None
        self.at_start: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Note how long the epoch before took, and run the bare steps."""
        now, bare = perf_counter(), self._bare_epoch(trainer)
        if self.started is not None:
            self.epochs.append(now - self.started)
            self.bare.append(bare)
            for name, total in self.before.items():
                self.parts[name].append(total - self.at_start.get(name, 0.0))
        self.at_start, self.started = dict(self.seconds), perf_counter()

    def _bare_epoch(self, trainer: L.Trainer) -> float:
        self.before = dict(self.seconds)
        if self.started is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self.trained, self.validated = (
                [data.as_evaluated(batch) for batch in loader]
                for loader in (data.train_dataloader(), data.val_dataloader())
            )
            optimizer, network = self.task.configure_optimizers(), self.task.model
            self.steps = [
                _optimised(optimizer, partial(_total_loss, network, batch)) for batch in self.trained
            ]
        state, start = torch.get_rng_state(), perf_counter()
        for step in self.steps:
            step()
        self.task.eval()
        with torch.inference_mode():
            for batch in self.validated:
                self.task.model.loss(self.task.model(batch), batch)
        took = perf_counter() - start
        self.task.train()
        torch.set_rng_state(state)
        return took


@contextmanager
def _clock(owner: Any, name: str, what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time spent in a function to `seconds[what]`."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[what] += perf_counter() - start

    with patch.object(owner, name, timed):
        yield


def make_cohort(folder: Path, stays: int, crop_size: int, seed: int) -> Path:
    """Return a prepared cohort of a simulated hospital, with radiographs an eighth larger than the crop."""
    image_size, hospital = crop_size * 8 // 7, folder / "hospital"
    simulate(hospital, stays, image_size=image_size, seed=seed)
    prepare(hospital / "mimic-iv", folder / "cohort", hospital / "mimic-cxr", image_size=image_size)
    return folder / "cohort"


def _epoch(
    model: Callable[[int, int], DrFuse],
    stays: int,
    batch_size: int,
    crop_size: int,
    repeats: int,
    seed: int,
    targets: list[Target],
) -> Table:
    seconds: defaultdict[str, float] = defaultdict(float)
    replay = _Replay(model, seconds, seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as clocks:
        cohort = make_cohort(Path(folder), stays, crop_size, seed)
        for owner, name, what in (
            (FusionTraining, "training_step", "forward passes and losses"),
            (FusionTraining, "backward", "backward passes"),
            (adam, "adam", "Adam"),
            (FusionTraining, "validation_step", "validation's forward passes"),
            (CohortDataModule, "on_after_batch_transfer", "augmentation and scaling"),
            (Future, "result", "waiting for the loader"),
            (L.Trainer, "save_checkpoint", "writing checkpoints"),
        ):
            clocks.enter_context(_clock(owner, name, what, seconds))
        train(
            cohort,
            Path(folder) / "run",
            model,
            epochs=repeats + 1,
            patience=repeats + 1,
            batch_size=batch_size,
            crop_size=crop_size,
            accelerator="cpu",
            progress=False,
            callbacks=[replay],
        )
    ratio = median(epoch / bare for epoch, bare in zip(replay.epochs, replay.bare, strict=True))
    over = Target("time of an epoch of `train` over its bare steps, fp32", ratio, at_most=1.05)
    targets.append(over)
    epoch = fmean(replay.epochs)
    parts = {name: fmean(some) for name, some in replay.parts.items()}
    parts["the rest: Lightning's loop, logs, the metric"] = epoch - sum(parts.values())
    rows = [
        ["an epoch of `train`", f"{epoch:.2f}", "1"],
        *([name, f"{s:.3f}", f"{s / epoch:.3f}"] for name, s in parts.items()),
        ["its bare steps: forward, loss, backward, Adam", f"{fmean(replay.bare):.2f}", ""],
        ["epoch / bare steps", over.judged, ""],
    ]
    title = (
        f"An epoch: {len(replay.trained)} steps and {len(replay.validated)} of validation, batches of "
        f"{batch_size}, {sum(len(batch.cxr) for batch in replay.trained)} radiographs in training, fp32"
    )
    return table(title, ("", "s", "share"), rows)


def _prediction(
    model: Callable[[int, int], DrFuse], batch_size: int, crop_size: int, repeats: int, seed: int
) -> Table:
    n_images = n_images_of(batch_size)
    batch = make_batch(batch_size, n_images, crop_size, seed)
    rows = []
    for precision, name in PRECISIONS.items():
        task = make_task(model, precision, seed).eval()
        encoded: list[int] = []

        def count(_: object, inputs: tuple[Tensor], encoded: list[int] = encoded) -> None:
            encoded.append(len(inputs[0]))

        backbones = [encoder.backbone for encoder in task.model.shared_encoders().cxr]
        for backbone in backbones:
            backbone.register_forward_pre_hook(count)

        def predict(task: FusionTraining = task, precision: Precision = precision) -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, precision == "bf16-mixed"):
                predict_batch(task.model, batch, batch.ehr.new_zeros(batch.ehr.shape[-1]))

        seconds = in_turns({"": predict}, repeats)[""]
        times = sum(encoded) / (n_images * len(backbones) * (repeats + 1))
        rows.append([name, f"{batch_size / seconds:.1f}", f"{times:g}"])
    title = f"Prediction, with and without the radiographs: {n_images} of {batch_size} stays have one"
    return table(title, ("numbers", "stays a second", "times that a backbone encodes an image"), rows)


if __name__ == "__main__":
    command(training)
