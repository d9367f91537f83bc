"""Does the writing of a cohort stay within its memory when the cohort does not?

`python -m benchmarks.assembly --stays 100000 1000000` gives made-up answers of the queries, in no order, to
the code that sorts them and writes `stays.parquet` and `ehr.npy`, each size in a process of its own.
"""

import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import ibis.expr.types as ir

from benchmarks.command import command
from benchmarks.fresh import fresh
from benchmarks.results import Report, Table, Target
from drfuse.cohort import assembly, load_variables
from drfuse.cohort.store import Store, open_store, spill_folder

AT_MOST_GIB = 4
_HOW = """\
Made-up stays, {cells} observed values and 25 labels each, in no order, are sorted and written by the code
that `drfuse prepare` writes a cohort with, under its default memory limit of 2 GiB; what does not fit is
put on disk. `ehr.npy` goes to `/dev/null`, as ten million stays would fill 33 GB; `stays.parquet` is
written. A run of each size, in a process of its own."""


def measure(stays: Sequence[int] = (100_000, 1_000_000), cells: int = 30, save: Path | None = None) -> Report:
    """Measure time and memory of the writing of cohorts.

    Args:
        stays: Sizes of the cohorts, rising.
        cells: Observed values a stay.
        save: JSON file to write the report to.
    """
    rows = []
    for n in stays:
        run = fresh("benchmarks.assembly:assemble", n, cells)
        seconds = sum(run.result.values())
        rows.append(
            {
                "stays": n,
                "values": n * cells,
                "sorting, s": run.result["sorting"],
                "writing time series, s": run.result["series"],
                "writing stays, s": run.result["stays"],
                "microseconds a stay": 1e6 * seconds / n,
                "peak memory, GiB": run.peak_gib,
            }
        )
    peak = max(row["peak memory, GiB"] for row in rows)
    targets = [Target(f"peak memory, up to {stays[-1]:,} stays", peak, "GiB", at_most=AT_MOST_GIB)]
    if len(rows) > 1:
        growth = max(b["microseconds a stay"] / a["microseconds a stay"] for a, b in pairwise(rows))
        targets.append(Target("largest growth of the time per stay, from a size to the next", growth))
    report = Report("Assembly", _HOW.format(cells=cells), targets, [Table("Each size", rows)])
    if save is not None:
        report.write(save)
    return report


def assemble(n_stays: int, cells: int) -> dict[str, float]:
    """Write a cohort of made-up stays; return the seconds that each part took.

    Args:
        n_stays: Stays.
        cells: Observed values a stay.
    """
    n_variables = len(load_variables())
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(None, "2GiB") as store,
        spill_folder(store, Path(folder, "cohort"), None),
    ):
        start = perf_counter()
        labels = ", ".join(f"hash(i, {label}) % 5 = 0 AS label_{label}" for label in range(25))
        store.raw_sql(
            f"""
            CREATE TABLE stays AS
            SELECT i AS row, 30_000_000 + 7 * i AS stay_id, 10_000_000 + i // 2 AS subject_id,
                   (hash(i) % 60 + 18)::BIGINT AS age, 'WHITE' AS race, {labels}
            FROM range({n_stays}) t(i)
            """
        )
        hourly = make_up_hourly(store, n_stays, cells)
        sorted_at = perf_counter()
        stays = store.table("stays")
        for _ in assembly.write_ehr(Path(os.devnull), stays, hourly, (48, n_variables), store):
            pass
        series_at = perf_counter()
        columns = [name for name in stays.columns if name != "row"]
        assembly.write_rows(Path(folder, "stays.parquet"), stays, columns, store)
        return {
            "sorting": sorted_at - start,
            "series": series_at - sorted_at,
            "stays": perf_counter() - series_at,
        }


def make_up_hourly(store: Store, n_stays: int, cells: int) -> ir.Table:
    """Return a table of made-up values, `cells` a stay on average, as `last_of_each_hour` gives it."""
    store.raw_sql(
        f"""
        CREATE TABLE hourly AS
        SELECT 30_000_000 + 7 * (hash(i) % {n_stays})::BIGINT AS stay_id,
               (hash(i, 1) % {len(load_variables())})::SMALLINT AS variable,
               (hash(i, 2) % 48)::SMALLINT AS hour, (i % 1000)::DOUBLE AS value
        FROM range({n_stays * cells}) t(i) ORDER BY stay_id
        """
    )
    return store.table("hourly")


if __name__ == "__main__":
    command(measure)
