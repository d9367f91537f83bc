"""Runs every benchmark in turn, each in a process of its own, and writes what they found to one document.

`python -m benchmarks.run --mimic-iv DIR --out docs/performance.md`; `make bench` does that. What a person
wrote between the two marks of the document stays: there it is explained why a target is missed.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

from rich.console import Console

from benchmarks.command import command
from benchmarks.replicate import COPIES
from benchmarks.results import Report, markdown_table, target_rows

_LIBRARIES = (
    "duckdb",
    "ibis-framework",
    "polars",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "torch",
    "lightning",
)
_BEGIN, _END = "<!-- written by hand: begin -->", "<!-- written by hand: end -->"
_NOTHING_SAID = "Nothing is explained yet."
_HEAD = """\
# How fast, and how near to what is possible

Measured by `make bench` on {day}; nothing here is typed in but the section *Notes*. Figures of one table were
measured one after the other in one run, so that their ratios hold elsewhere better than their seconds do.

{machine}

## Targets

{targets}

## Notes

{begin}
{notes}
{end}

{sections}
"""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its module, what is added to its command, and how long it takes on two cores.

    Attributes:
        name: Module in `benchmarks`.
        title: Title of its section, if it prints tables alone.
        arguments: Options of its command.
        minutes: About how long it takes.
        reports: Whether it writes a `Report`; else its output is the section.
    """

    name: str
    title: str
    arguments: Sequence[str] = ()
    minutes: float = 1
    reports: bool = True

    @property
    def command(self) -> str:
        """The command that repeats it, with DIR in place of the release."""
        return f"python -m benchmarks.{self.name}" + (" --mimic-iv DIR" if self.arguments else "")


def run(mimic_iv: Path, out: Path, folder: Path = COPIES) -> None:
    """Run all benchmarks and write the document.

    Args:
        mimic_iv: Folder of a MIMIC-IV release with tables as csv.gz; its copies are measured on.
        out: Markdown file to write; figures lie beside it.
        folder: Where the copies are kept.
    """
    data = [f"--mimic-iv={mimic_iv.resolve()}", f"--folder={folder.resolve()}"]
    figure = out.resolve().with_name(f"{out.stem}-growth.svg")
    benchmarks = [
        Benchmark("bootstrap", "Bootstrap", minutes=0.5, reports=False),
        Benchmark("start", "Start", minutes=1),
        Benchmark("extraction", "Extraction", data, 3),
        Benchmark("again", "A second prepare", data, 1),
        Benchmark("growth", "Growth", [*data, f"--figure={figure}"], 2),
        Benchmark("assembly", "Assembly"),
        Benchmark("million", "A million stays, end to end", minutes=3),
        Benchmark("radiographs", "Radiographs"),
        Benchmark("training", "Training", minutes=5),
        Benchmark("latency", "Predicting one patient"),
    ]
    benchmarks = [one for one in benchmarks if Path(__file__).with_name(f"{one.name}.py").exists()]
    said = Console(stderr=True, highlight=False)
    sections, targets, failed = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for i, one in enumerate(benchmarks, 1):
            said.print(f"{i}/{len(benchmarks)} {one.name}, about {one.minutes:g} minutes on two cores")
            start = perf_counter()
            report = Path(scratch, f"{one.name}.json") if one.reports else None
            output = _output_of(one, report)
            said.print(f"    {perf_counter() - start:.0f} s")
            if output is None:
                failed.append(one.name)
                sections.append(f"## {one.title}\n\n`{one.command}` failed.")
            elif report is None:
                sections.append(f"## {one.title}\n\n{output.strip()}\n\n`{one.command}`")
            else:
                found = Report.read(report)
                sections.append(f"{found.markdown()}\n\n`{one.command}`")
                targets += [row | {"command": f"`{one.command}`"} for row in target_rows(found.targets)]
    document(out, sections, targets)
    said.print(f"wrote {out}")
    if failed:
        raise SystemExit(f"these benchmarks failed: {', '.join(failed)}")


def document(out: Path, sections: Sequence[str], targets: Sequence[dict[str, str]]) -> None:
    """Write the document; the notes of the one that lies at `out` are kept.

    Args:
        out: Markdown file.
        sections: What each benchmark found, in Markdown.
        targets: A row for each target.

    Raises:
        ValueError: If the marks around the notes are not both there, once.
    """
    notes = _NOTHING_SAID
    if out.exists():
        before, begin, rest = out.read_text(encoding="utf-8").partition(_BEGIN)
        notes, end, after = rest.partition(_END)
        if not (begin and end) or _BEGIN in rest or _END in before + after:
            raise ValueError(f"{out} has lost the marks {_BEGIN} and {_END} around its notes; put them back")
    text = _HEAD.format(
        day=date.today().isoformat(),
        machine=markdown_table(machine()),
        targets=markdown_table(targets),
        begin=_BEGIN,
        notes=notes.strip("\n"),
        end=_END,
        sections="\n\n".join(sections),
    )
    out.write_text(text, encoding="utf-8")


def machine() -> list[dict[str, str]]:
    """Return rows that describe this machine and its software."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }
    return [{"machine": name, "": value} for name, value in facts.items()]


def _output_of(one: Benchmark, report: Path | None) -> str | None:
    """Run a benchmark; return what it printed, or None if it failed."""
    saved = [] if report is None else [f"--save={report}"]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{one.name}", *one.arguments, *saved],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    return done.stdout if done.returncode == 0 else None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


if __name__ == "__main__":
    command(run)
