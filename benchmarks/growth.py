"""Does `drfuse prepare` stay as fast and as small when the release grows?

`python -m benchmarks.growth --mimic-iv DIR --figure FILE.svg` runs it on more and more copies of that
release, each run in a process of its own, and draws time and memory.
"""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from benchmarks.command import command
from benchmarks.extraction import run_prepare
from benchmarks.replicate import COPIES, Form, copied, count_events
from benchmarks.results import Report, Table, Target
from drfuse.report.figures import ACCENT, FAINT, HUES, INK, QUIET

AT_MOST_GIB = 4
_HOW = """\
`drfuse prepare`, without radiographs, on the release and on copies of it with fresh ids, a run each in a
process of its own (the smallest three times, of which the median counts). Time is that within the
process, without the start of Python and its imports; memory is the largest resident set. The targets:
time per row falls or stays from each size to the next, and memory stays below {most} GiB."""


def growth(
    mimic_iv: Path,
    csv_copies: Sequence[int] = (1, 5, 20),
    parquet_copies: Sequence[int] = (1, 5, 20, 80),
    folder: Path = COPIES,
    figure: Path | None = None,
    save: Path | None = None,
) -> Report:
    """Measure time and memory of `drfuse prepare` at several sizes.

    Args:
        mimic_iv: Folder of a release with tables as csv.gz.
        csv_copies: How many times the release is copied as csv.gz, rising.
        parquet_copies: How many times it is copied as Parquet, rising.
        folder: Where the copies are kept.
        figure: SVG file to draw to; a PNG of the same name is written beside it.
        save: JSON file to write the report to.
    """
    rows_of_one = count_events(mimic_iv)
    table, targets = [], []
    sizes: dict[Form, Sequence[int]] = {"csv.gz": csv_copies, "parquet": parquet_copies}
    for form, copies in sizes.items():
        measured = [_measure(mimic_iv, n, n * rows_of_one, form, folder) for n in copies]
        table += measured
        per_row = [row["microseconds a row"] for row in measured]
        steps = [after / before for before, after in pairwise(per_row)]
        what = f"{copies[0]} to {copies[-1]} copies, {form}"
        if steps:
            targets.append(Target(f"largest growth of the time per row, {what}", max(steps), at_most=1))
        peak = max(row["peak memory, GiB"] for row in measured)
        targets.append(Target(f"peak memory, {what}", peak, "GiB", at_most=AT_MOST_GIB))
    if figure is not None:
        draw(table).savefig(figure)
        draw(table).savefig(figure.with_suffix(".png"))
    how = _HOW.format(most=AT_MOST_GIB)
    name = None if figure is None else figure.name
    report = Report("Growth", how, targets, [Table("Each size", table)], name)
    if save is not None:
        report.write(save)
    return report


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw time per row and peak memory over the event rows, a line for each format.

    Args:
        rows: The table that `growth` measures.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "drfuse",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": QUIET,
        "savefig.dpi": 150,
    }
    with rc_context(style):
        figure = Figure(figsize=(7.2, 3), layout="constrained")
        time, memory = figure.subplots(1, 2)
        for axes, column, label in (
            (time, "microseconds a row", "microseconds per event row"),
            (memory, "peak memory, GiB", "peak memory, GiB"),
        ):
            for i, form in enumerate(dict.fromkeys(row["form"] for row in rows)):
                mine = [row for row in rows if row["form"] == form]
                x, y = ([row[name] for row in mine] for name in ("event rows", column))
                axes.plot(x, y, color=HUES[i], marker="os"[i], markersize=4, label=form)
            axes.set_xscale("log")
            axes.set_ylim(0, 1.1 * max(row[column] for row in rows))
            axes.set_xticks(sorted({row["event rows"] for row in rows}))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(EngFormatter(places=1, sep=" "))
            axes.set_xlabel("event rows")
            axes.set_title(label, loc="left", fontweight="bold", fontsize=10)
            axes.grid(color=FAINT, linewidth=0.6)
        memory.set_ylim(0, 1.1 * max(AT_MOST_GIB, *(row["peak memory, GiB"] for row in rows)))
        memory.axhline(AT_MOST_GIB, color=ACCENT, linewidth=1, linestyle="--", label="target")
        memory.legend(frameon=False, loc="center right")
    return figure


def _measure(mimic_iv: Path, copies: int, rows: int, form: Form, folder: Path) -> dict[str, Any]:
    release = copied(mimic_iv, copies, form, folder)
    runs = []
    for _ in range(3 if copies == 1 else 1):
        with tempfile.TemporaryDirectory() as scratch:
            runs.append(run_prepare(release, Path(scratch, "cohort")))
    run = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    return {
        "form": form,
        "copies": copies,
        "event rows": rows,
        "seconds": run.seconds,
        "microseconds a row": 1e6 * run.seconds / rows,
        "of the processor": 1e6 * run.cpu_seconds / rows,
        "peak memory, GiB": max(run.peak_gib for run in runs),
    }


if __name__ == "__main__":
    command(growth)
