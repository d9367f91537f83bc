"""Runs a benchmark from the command line, with options like those of `drfuse`."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Report
from drfuse.command_line import run_command


def command(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark, and print what it found if that is a report, a text or a path.

    Args:
        function: The benchmark; its parameters are the options of the command.
        arguments: What the user gave; None: `sys.argv`.
    """
    name = Path(inspect.getfile(function)).stem  # the function's own module is called `__main__`
    found, _ = run_command(function, f"python -m benchmarks.{name}", arguments)
    if isinstance(found, Report):
        found = found.markdown()
    if isinstance(found, str | Path):
        print(found)  # noqa: T201
