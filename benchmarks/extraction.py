"""How near does `drfuse prepare` come to a bare query, and how far is it from walking the rows in Python?

`python -m benchmarks.extraction --mimic-iv DIR` measures it on copies of that release: the commands take
turns on the same files, each run in a process of its own.
"""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import command
from benchmarks.fresh import Run, fresh
from benchmarks.replicate import COPIES, Form, copied, count_events
from benchmarks.results import Report, Table, Target

AT_MOST_OVER_FLOOR: dict[Form, float] = {"csv.gz": 0.8, "parquet": 2.5}
AT_LEAST_OVER_WALK = 30
PUBLISHED_ROWS_A_SECOND = 66_000

_HOW = """\
The release is copied {copies} times with fresh ids: {rows:,} event rows (chart and laboratory events), in
the same tables and columns. *Floor*: one bare DuckDB query over the same files (`benchmarks/floor.py`):
the items of the 17 variables, joined to the included stays, the last number of each stay, hour and
variable; nothing is cleaned, labelled or written. *Prepare*: `drfuse prepare` without radiographs, with
all that it writes. Both use all cores. *Walk*: our own pandas code in the way of the published benchmarks
(`benchmarks/walk.py`) on the release itself, {walked:,} event rows, compared by rows a second. They take
turns {repeats} times; medians count. The ratio that counts is that of whole processes, as a user starts
them; the time without the start of Python and its imports, which do not grow with the data, stands beside it.
The floor unpacks a gzip file in one thread, because DuckDB does."""


def extraction(
    mimic_iv: Path, copies: int = 20, repeats: int = 3, folder: Path = COPIES, save: Path | None = None
) -> Report:
    """Compare `drfuse prepare` with the floor, and with a row-by-row walk.

    Args:
        mimic_iv: Folder of a release with tables as csv.gz.
        copies: How many times the release is copied for the floor and `prepare`.
        repeats: Runs of each.
        folder: Where the copies are kept.
        save: JSON file to write the report to.
    """
    walked = count_events(mimic_iv)
    rows = copies * walked
    runs: dict[str, list[Run]] = defaultdict(list)
    for form in AT_MOST_OVER_FLOOR:
        release = copied(mimic_iv, copies, form, folder)
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as scratch:
                runs[f"floor, {form}"].append(fresh("benchmarks.floor:floor", release))
                runs[f"prepare, {form}"].append(run_prepare(release, Path(scratch, "cohort")))
                if form == "csv.gz":
                    runs["walk, csv.gz"].append(
                        fresh("benchmarks.walk:walk", mimic_iv, Path(scratch, "walk"))
                    )
    table = [_row(what, walked if "walk" in what else rows, some) for what, some in runs.items()]
    seconds, whole, per_second = (
        {row[""]: row[column] for row in table}
        for column in ("seconds", "of the whole process", "rows a second")
    )
    targets = []
    for form, most in AT_MOST_OVER_FLOOR.items():
        ours, floor = f"prepare, {form}", f"floor, {form}"
        over, over_whole = (times[ours] / times[floor] for times in (seconds, whole))
        targets.append(Target(f"whole process of prepare over the floor, {form}", over_whole, at_most=most))
        targets.append(Target(f"the same, without start and imports, {form}", over))
    ours = per_second["prepare, csv.gz"]
    targets += [
        Target(
            "rows a second of prepare over the walk, csv.gz",
            ours / per_second["walk, csv.gz"],
            at_least=AT_LEAST_OVER_WALK,
        ),
        Target(
            f"the same over {PUBLISHED_ROWS_A_SECOND:,}, measured elsewhere with the published code",
            ours / PUBLISHED_ROWS_A_SECOND,
            at_least=AT_LEAST_OVER_WALK,
        ),
    ]
    how = _HOW.format(copies=copies, rows=rows, repeats=repeats, walked=walked)
    report = Report("Extraction", how, targets, [Table("Each command, medians of its runs", table)])
    if save is not None:
        report.write(save)
    return report


def run_prepare(release: Path, out: Path, *options: str) -> Run:
    """Run `drfuse prepare` in a process of its own; its imports come before the clock starts."""
    command = ["prepare", "--mimic-iv", str(release), "--out", str(out), *options]
    return fresh("drfuse.cli:main", command, imports=["drfuse.cohort"])


def _row(what: str, rows: int, runs: Sequence[Run]) -> dict[str, Any]:
    seconds = [run.seconds for run in runs]
    return {
        "": what,
        "event rows": rows,
        "seconds": median(seconds),
        "fastest and slowest": f"{min(seconds):.2f} – {max(seconds):.2f}",
        "of the whole process": median(run.process_seconds for run in runs),
        "of the processor": median(run.cpu_seconds for run in runs),
        "rows a second": rows / median(seconds),
        "peak memory, GiB": max(run.peak_gib for run in runs),
    }


if __name__ == "__main__":
    command(extraction)
