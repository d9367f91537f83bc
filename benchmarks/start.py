"""How soon does a command say something?

`python -m benchmarks.start` starts `drfuse --help`, and each command on input that does not exist. It takes
the time until the first word appears, and until the command ends. Then it trains on a cohort that was made
before, until the first training step.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.command import command
from benchmarks.results import Report, Table, Target
from drfuse.cohort import prepare
from drfuse.simulate import simulate

_NOWHERE = "/nowhere"
_COMMANDS = {
    "prepare": ["--mimic-iv", _NOWHERE, "--out", f"{_NOWHERE}/cohort"],
    "train": [_NOWHERE, "--out", f"{_NOWHERE}/run"],
    "evaluate": [_NOWHERE],
    "reproduce": ["all", _NOWHERE, "--out", f"{_NOWHERE}/results"],
    "tune": [_NOWHERE, "--out", f"{_NOWHERE}/search"],
}
_HOW = """\
Each command is started {repeats} times, after once that does not count; medians. *First word*: when the first
byte of its output appears. *Help*: the whole of `drfuse COMMAND --help`. The commands are given a folder that
does not exist, so that the end is the sentence that says so. *Of the processor*: its seconds, of all cores,
which depend less on what else the machine does. *First step*: from the start of a process that calls `train`
on a cohort of {stays} simulated stays, radiographs of 32 pixels, DrFuse as published, to the first training
batch."""
_STAYS = 100
_FIRST_STEP = """
import os, sys
from pathlib import Path
from drfuse.training import train
from lightning.pytorch import Callback

class FirstStep(Callback):
    def on_train_batch_start(self, *_):
        print("step", flush=True)
        os._exit(0)

cohort, out = map(Path, sys.argv[1:])
train(cohort, out, crop_size=32, accelerator="cpu", progress=False, callbacks=[FirstStep()])
"""


@dataclass(frozen=True)
class _Times:
    """Seconds until the first output of a process, until its end, and of the processor."""

    first: float
    whole: float
    processor: float


def start(repeats: int = 5, save: Path | None = None) -> Report:
    """Measure how long commands take to say something.

    Args:
        repeats: Starts of each command.
        save: JSON file to write the report to.
    """
    general = _command(["--help"], repeats).whole
    times = {name: _command([name, *arguments], repeats) for name, arguments in _COMMANDS.items()}
    helps = {name: _command([name, "--help"], repeats).whole for name in _COMMANDS}
    step = _first_step(repeats)
    rows: list[dict[str, str | float | None]] = [
        {
            "command": f"drfuse {name}",
            "first word, s": taken.first,
            "the sentence that refuses, s": taken.whole,
            "of the processor, s": taken.processor,
            "help, s": helps[name],
        }
        for name, taken in times.items()
    ]
    targets = [
        Target("drfuse --help", general, "s", at_most=0.3),
        Target("first word of any command", max(one.first for one in times.values()), "s", at_most=1),
        Target("help of any command", max(helps.values()), "s"),
        Target("first step of a training", step.whole, "s", at_most=3),
        Target("first step of a training, of the processor", step.processor, "s"),
    ]
    how = _HOW.format(repeats=repeats, stays=_STAYS)
    report = Report("Start", how, targets, [Table("Each command", rows)])
    if save is not None:
        report.write(save)
    return report


def _command(arguments: Sequence[str], repeats: int) -> _Times:
    """Return the medians of a command."""
    return _medians([_run(["-m", "drfuse", *arguments]) for _ in range(repeats + 1)])


def _first_step(repeats: int) -> _Times:
    """Return the medians of a training that ends before its first step."""
    with TemporaryDirectory() as folder:
        hospital, cohort = Path(folder) / "hospital", Path(folder) / "cohort"
        simulate(hospital, _STAYS, cxr_rate=0.5, image_size=32)
        prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=32)
        runs = [str(Path(folder) / f"run-{number}") for number in range(repeats + 1)]
        return _medians([_run(["-c", _FIRST_STEP, str(cohort), run]) for run in runs])


def _medians(times: Sequence[_Times]) -> _Times:
    """Return the medians of all but the first."""
    return _Times(*map(median, zip(*map(astuple, times[1:]), strict=True)))


def _run(arguments: Sequence[str]) -> _Times:
    """Run Python with arguments."""
    began, before = perf_counter(), getrusage(RUSAGE_CHILDREN)
    called = [sys.executable, *arguments]
    with subprocess.Popen(called, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = perf_counter() - began
        process.stdout.read()
        process.wait()
    whole, after = perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Times(first, whole, processor)


if __name__ == "__main__":
    command(start)
