"""How soon does a command say something?

`python -m benchmarks.start` starts `drfuse --help`, and each command on input that does not exist. It takes
the time until the first word appears, and until the command ends.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.command import command
from benchmarks.results import Report, Table, Target

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
does not exist, so that the end is the sentence that says so."""


def start(repeats: int = 5, save: Path | None = None) -> Report:
    """Measure how long commands take to say something.

    Args:
        repeats: Starts of each command.
        save: JSON file to write the report to.
    """
    general = _timed(["--help"], repeats)[1]
    times = {name: _timed([name, *arguments], repeats) for name, arguments in _COMMANDS.items()}
    helps = {name: _timed([name, "--help"], repeats)[1] for name in _COMMANDS}
    rows: list[dict[str, str | float | None]] = [
        {
            "command": f"drfuse {name}",
            "first word, s": first,
            "the sentence that refuses, s": whole,
            "help, s": helps[name],
        }
        for name, (first, whole) in times.items()
    ]
    targets = [
        Target("drfuse --help", general, "s", at_most=0.3),
        Target("first word of any command", max(first for first, _ in times.values()), "s", at_most=1),
        Target("help of any command", max(helps.values()), "s"),
    ]
    report = Report("Start", _HOW.format(repeats=repeats), targets, [Table("Each command", rows)])
    if save is not None:
        report.write(save)
    return report


def _timed(arguments: Sequence[str], repeats: int) -> tuple[float, float]:
    """Return the median seconds until a command's first output and until its end."""
    times = [_run(arguments) for _ in range(repeats + 1)][1:]
    return median(first for first, _ in times), median(whole for _, whole in times)


def _run(arguments: Sequence[str]) -> tuple[float, float]:
    began = perf_counter()
    called = [sys.executable, "-m", "drfuse", *arguments]
    with subprocess.Popen(called, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = perf_counter() - began
        process.stdout.read()
        process.wait()
        return first, perf_counter() - began


if __name__ == "__main__":
    command(start)
