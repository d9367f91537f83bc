"""Runs a function in a process of its own, so that memory, threads and caches of measurements do not mix."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run of a function.

    Attributes:
        seconds: Time of the function alone, without the start of Python and the import of its module.
        process_seconds: Time from the start of the process to its end.
        cpu_seconds: Processor time of the function, summed over the cores.
        peak_gib: The most memory that the process held (resident set).
        result: What the function returned, as JSON can hold it.
    """

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_gib: float
    result: Any


def fresh(function: str, *arguments: Any, imports: Sequence[str] = (), threads: int | None = None) -> Run:
    """Call `module:function` in a new process.

    Args:
        function: What to call; what it returns must fit into JSON.
        arguments: Its arguments, of any kind that can be pickled.
        imports: Modules that are imported before the clock starts, besides that of the function.
        threads: On how many of the cores the process may run; None: on all.

    Raises:
        RuntimeError: If the process fails, with what it said.
    """
    called_with = pickle.dumps((function, arguments, imports, threads))
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fresh"],
        check=False,
        input=called_with,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    seconds = perf_counter() - start
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise RuntimeError(f"{function}{arguments} failed:\n{said}")
    return Run(process_seconds=seconds, **json.loads(done.stdout.splitlines()[-1]))


def _measure(function: str, arguments: Sequence[Any], imports: Sequence[str], threads: int | None) -> None:
    if threads is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    module, name = function.split(":")
    called = getattr(import_module(module), name)
    for imported in imports:
        import_module(imported)
    start, cpu_start = perf_counter(), process_time()
    result = called(*arguments)
    measured = {
        "seconds": perf_counter() - start,
        "cpu_seconds": process_time() - cpu_start,
        "peak_gib": _peak_gib(),
        "result": result,
    }
    print(json.dumps(measured))  # noqa: T201


def _peak_gib() -> float:
    """Return the largest resident set of this process (getrusage would count its parent's at the start)."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    _measure(*pickle.load(sys.stdin.buffer))
