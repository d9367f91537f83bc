"""Trainings that a signal stops, wherever they are, end as if they had not been stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning import Callback
from lightning import Trainer as Lightning

from drfuse.data import Batch
from drfuse.models import DrFuse, FusionOutput
from drfuse.run import Run
from drfuse.training import train
from drfuse.training.checkpoints import complete_epochs, is_done, load_last
from tests.builders import TINY_BACKBONE
from tests.training.own_model import FirstHour, wait_until

TINY = partial(DrFuse, dim=16, heads=2, cxr_backbone=TINY_BACKBONE)

Fit = Callable[..., Path]


class Noisy(FirstHour):
    """A model that draws random numbers from every generator, in training and in validation alone."""

    def forward(self, batch: Batch) -> FusionOutput:
        output = super().forward(batch)
        if torch.is_inference_mode_enabled():  # for the predictions
            return output
        return FusionOutput(output.logits + random.random() + np.random.random() + torch.rand(1))  # noqa: NPY002


class Sends(Callback):
    """Sends a signal when a hook is called for the n-th time."""

    def __init__(self, hook: str, n: int = 1, *numbers: int) -> None:
        self.n, self.numbers = n, numbers or (signal.SIGINT,)
        setattr(self, hook, self._called)

    def _called(self, *_: Any) -> None:
        self.n -= 1
        if self.n == 0:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.fixture
def fit(small_cohort: Path, tmp_path: Path) -> Fit:
    """Return `train` on the small cohort: two epochs of four batches into `tmp_path / name`, its result."""

    def fit(name: str, *callbacks: Callback, **options: Any) -> Path:
        defaults: dict[str, Any] = {
            "model": Noisy,
            "epochs": 2,
            "lr": 1e-2,
            "crop_size": 32,
            "accelerator": "cpu",
        }
        train(small_cohort, tmp_path / name, callbacks=callbacks, progress=False, **(defaults | options))
        return tmp_path / name

    return fit


def stopped(fit: Fit, *callbacks: Callback, **options: Any) -> None:
    """Start the run, which a signal is to stop."""
    with pytest.raises(KeyboardInterrupt):
        fit("run", *callbacks, **options)


@pytest.fixture(autouse=True)
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM do what it does in a command."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGTERM, before)


def losses_of(run: Path) -> pl.DataFrame:
    """Return the rows of metrics.csv of all starts of a run."""
    logs = sorted((run / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    return pl.concat([pl.read_csv(path) for path in logs])


def assert_equal(run: Path, whole: Path) -> None:
    """Assert that two runs have the same weights, predictions, options and losses."""
    for name in ("model.safetensors", "predictions.parquet", "config.yaml"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert losses_of(run).equals(losses_of(whole))


def test_a_run_that_is_stopped_at_every_step_ends_as_if_it_had_not_been(fit: Fit, tmp_path: Path) -> None:
    whole, run = fit("whole"), Run(tmp_path / "run")
    for epoch, n_batches in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]:
        stopped(fit, Sends("on_train_batch_start"))
        checkpoint = load_last(run)
        assert checkpoint is not None
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        assert (checkpoint["epoch"], progress["processed"]) == (epoch, n_batches)
        assert complete_epochs(checkpoint) == epoch
        assert not is_done(checkpoint, epoch + 1, 10)
    assert_equal(fit("run"), whole)


def test_a_second_signal_ends_a_training_at_once(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drfuse.training.interruption._SECONDS_OF_ONE_SIGNAL", 0.0)
    stopped(fit, Sends("on_train_batch_start", 2, signal.SIGINT, signal.SIGINT))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "n", "n_complete"),
    [
        ("on_train_start", 1, None),  # before the first step there is nothing to save
        ("on_validation_start", 1, 0),
        ("on_validation_batch_end", 1, 0),
        ("on_validation_epoch_end", 1, 1),
        ("on_train_epoch_end", 1, 1),
        ("on_train_epoch_start", 2, 1),
        ("on_validation_epoch_end", 2, 2),
        ("on_train_end", 1, 2),
    ],
)
def test_a_run_may_be_stopped_outside_its_steps(
    fit: Fit, tmp_path: Path, hook: str, n: int, n_complete: int | None
) -> None:
    whole = fit("whole", batch_size=4)
    stopped(fit, Sends(hook, n), batch_size=4)
    checkpoint = load_last(Run(tmp_path / "run"))
    assert (None if checkpoint is None else complete_epochs(checkpoint)) == n_complete
    assert_equal(fit("run", batch_size=4), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"batch_size": 6, "accumulate": 3, "schedule": "cosine"},
        {"batch_size": 6, "accumulate": 2, "num_workers": 1, "epochs": 20, "patience": 1},
        {"model": TINY, "batch_size": 6, "train_on": "matched", "matched_cxr_dropout": 0.5},
        {"model": TINY, "augment": "shifts", "cxr_share": 0.5, "freeze_cxr": False},
        {"model": TINY, "precision": "bf16-mixed"},
    ],
    ids=" ".join,
)
def test_whatever_a_run_is_trained_with_it_ends_as_if_it_had_not_been_stopped(
    fit: Fit, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = fit("whole", **options)
    for n, number in [(2, signal.SIGTERM), (1, signal.SIGINT), (4, signal.SIGTERM)]:
        stopped(fit, Sends("on_train_batch_start", n, number), **options)
    assert (Run(tmp_path / "run").last_checkpoint).is_file()
    assert_equal(fit("run", **options), whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_a_step_falls_back_to_the_one_before_it(fit: Fit, tmp_path: Path) -> None:
    whole, run = fit("whole"), Run(tmp_path / "run")
    for n in (2, 3):  # in the first epoch, then in the second
        stopped(fit, Sends("on_train_batch_start", n))
    run.last_checkpoint.write_bytes(b"PK half")
    checkpoint = load_last(run)
    assert checkpoint is not None
    assert complete_epochs(checkpoint) == 1
    fit("run")
    for name in ("model.safetensors", "predictions.parquet"):  # metrics.csv has what was repeated
        assert (run.folder / name).read_bytes() == (whole / name).read_bytes()


class SendsInOne(Sends):
    """Sends a signal in the second of two processes."""

    def _called(self, trainer: Lightning, *_: Any) -> None:
        if trainer.global_rank == 1:
            super()._called()


@pytest.mark.slow
def test_processes_that_train_together_stop_after_the_same_step(fit: Fit, tmp_path: Path) -> None:
    whole = fit("whole", devices=2)
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        stopped(fit, SendsInOne(hook), devices=2)
        checkpoint = load_last(Run(tmp_path / "run"))
        assert checkpoint is not None
        assert checkpoint["mid_epoch"]
        assert len(checkpoint["random_states"]) == 2
    assert_equal(fit("run", devices=2), whole)


class Slow(Noisy):
    """A model that takes a tenth of a second for a step, and leaves a file in a folder at the first one."""

    def __init__(self, n_features: int, n_labels: int, folder: str) -> None:
        super().__init__(n_features, n_labels)
        self.folder = Path(folder)

    def forward(self, batch: Batch) -> FusionOutput:
        if self.training:
            (self.folder / "began").touch()
            time.sleep(0.1)
        return super().forward(batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word", "num_workers"),
    [(signal.SIGTERM, 143, "terminated", 2), (signal.SIGINT, 130, "interrupted", 0)],
)
def test_a_command_that_is_told_to_end_saves_its_step(
    fit: Fit, small_cohort: Path, tmp_path: Path, number: int, code: int, word: str, num_workers: int
) -> None:
    model = ["--model", "tests.training.test_interruption.Slow", "--model.folder", str(tmp_path)]
    options = [
        "--epochs",
        "2",
        "--lr",
        "0.01",
        "--crop-size",
        "32",
        "--batch-size",
        "2",
        "--accelerator",
        "cpu",
    ]
    command = ["drfuse", "train", str(small_cohort), "--out", str(tmp_path / "run"), *model, *options]
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--num-workers", str(num_workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as training:
        wait_until((tmp_path / "began").exists)
        os.killpg(training.pid, number)  # to all its processes, as terminals and clusters do
        said, _ = training.communicate(timeout=120)
    assert (training.returncode, f"drfuse train: {word}" in said) == (code, True), said
    checkpoint = load_last(Run(tmp_path / "run"))
    assert checkpoint is not None
    assert checkpoint["mid_epoch"]
    again = partial(fit, model=partial(Slow, folder=str(tmp_path)), batch_size=2)
    assert_equal(again("run"), again("whole"))
