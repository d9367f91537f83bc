"""How long do the pages of `drfuse explore` take, with many stays?

`python -m benchmarks.explorer` starts the command as a user does, on cohorts of 10,000 and 100,000 stays, and
measures in headless Chromium (Debian's package) when a page shows what it should. Needs the extra `explore`
and Playwright.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl

from benchmarks.command import command
from benchmarks.results import Report, Table, Target
from drfuse.data import Cohort
from drfuse.demo import demo
from drfuse.run import Run
from drfuse.sums import sha256

_HOW = """\
A simulated cohort of {small} stays, repeated under other ids, with the predictions of the demo's DrFuse.
Seconds until headless Chromium shows the page: *first* of the first time, which counts what was observed,
or sorts; *seconds*: the median of {repeats} more."""
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
_PAGES = {
    "cohort": ("/", ".heat rect"),
    "table": ("/stays", "#grid .rows a"),
    "table, filtered and sorted": ("/stays?split=test&cxr=yes&sort=error&down=yes", "#grid .rows a"),
    "one stay": ("/stays/{stay}", "#window:not(:empty)"),
}


def explorer(
    sizes: Sequence[int] = (10_000, 100_000), repeats: int = 5, stays: int = 400, save: Path | None = None
) -> Report:
    """Time the pages.

    Args:
        sizes: Stays of the cohorts.
        repeats: Times that each page is opened after the first.
        stays: Size of the simulated hospital that they are made from.
        save: JSON file to write the report to.
    """
    rows: list[dict[str, str | float | None]] = []
    with tempfile.TemporaryDirectory() as scratch:
        made = demo(Path(scratch) / "demo", stays=stays, fast=True).folder
        for size in sizes:
            folder = Path(scratch) / str(size)
            with_cxr = _repeat(made, folder, size)
            with _served(folder) as (page, started):
                rows.append({"stays": f"{size:,}", "what": "start of the command", "seconds": started})
                for what, (address, ready) in _PAGES.items():
                    shown = partial(_open, page, address.format(stay=with_cxr), ready)
                    first, later = _times(shown, repeats)
                    rows.append({"stays": f"{size:,}", "what": what, "first": first, "seconds": later})
                _, later = _times(lambda: _scroll(page), repeats)
                rows.append({"stays": f"{size:,}", "what": "scroll to any place", "seconds": later})
    wanted = {"cohort": ("first", 2.0), "table": ("first", 2.0), "one stay": ("seconds", 0.3)}
    targets = [
        Target(f"{row['what']} of {row['stays']} stays", float(row[column] or 0), "s", at_most=most)
        for row in rows
        if str(row["what"]) in wanted
        for column, most in [wanted[str(row["what"])]]
    ]
    table = [{"first": None} | row for row in rows]
    report = Report(
        "Exploring a cohort in the browser",
        _HOW.format(small=stays, repeats=repeats),
        targets,
        [Table("Each page", table)],
    )
    if save is not None:
        report.write(save)
    return report


def _repeat(demo: Path, folder: Path, size: int) -> int:
    """Write a cohort and a run whose stays are those of a demo, again and again.

    Returns:
        A stay with a radiograph.
    """
    small, run = Cohort.open(demo / "cohort"), Run(demo / "runs" / "fused")
    rows = np.arange(size) % len(small)
    cohort = folder / "cohort"
    cohort.mkdir(parents=True)
    has_cxr = small.has_cxr[rows]
    cxr_row = pl.Series("cxr_row", np.where(has_cxr, np.cumsum(has_cxr) - 1, -1), dtype=pl.Int32).replace(
        -1, None
    )
    ids = np.arange(size)
    table = small.stays[rows].with_columns(cxr_row, stay_id=ids, subject_id=ids)
    table.write_parquet(cohort / "stays.parquet")
    np.save(cohort / "ehr.npy", small.ehr[rows])
    np.save(cohort / "cxr.npy", small.cxr[small.cxr_row[rows][has_cxr]])
    shutil.copy(demo / "cohort/normalization.json", cohort)
    names = [name for name in small.manifest.files if name != "inputs.parquet"]
    replace(small.manifest, files={name: sha256(cohort / name) for name in names}).write(cohort)
    copied = Run(folder / "runs" / "fused")
    copied.folder.mkdir(parents=True)
    shutil.copy(run.model, copied.model)
    replace(run.read_facts(), cohort=Cohort.open(cohort).fingerprint).write(copied.facts)
    found = run.read_predictions()
    at = np.searchsorted(found.stays["stay_id"].to_numpy(), small.stay_id)[rows]
    stays = found.stays[at].with_columns(stay_id=ids, subject_id=ids)
    logits = ("logits", "labels", "logits_without_cxr", "logits_without_ehr", "modality_weights")
    arrays = {name: array[at] for name in logits if (array := getattr(found, name)) is not None}
    replace(found, stays=stays, **arrays).write(copied.predictions)
    return int(np.flatnonzero(has_cxr)[-1])


@contextmanager
def _served(folder: Path) -> Iterator[tuple[Any, float]]:
    """Yield a page of a browser that may see what `drfuse explore` serves, and the seconds of its start."""
    from playwright.sync_api import sync_playwright

    called = [sys.executable, "-u", "-m", "drfuse", "explore", str(folder)]
    start = perf_counter()
    with subprocess.Popen(called, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("open ").strip()
        started = perf_counter() - start
        try:
            with sync_playwright() as tool:
                browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=list(_FLAGS))
                context = browser.new_context(base_url=address.split("/?")[0])
                context.request.get(address)  # the cookie, without the page that it leads to
                page = context.new_page()
                yield page, started
                browser.close()
        finally:
            server.send_signal(signal.SIGINT)


def _open(page: Any, address: str, ready: str) -> None:
    page.goto(address)
    page.wait_for_selector(ready, state="attached")


def _scroll(page: Any) -> None:
    """Scroll the table to a random place, and wait for its rows."""
    if not page.url.endswith("/stays"):
        _open(page, "/stays", "#grid .rows a")
    before = page.locator("#grid .rows a").first.inner_text()
    page.locator("#grid").evaluate("grid => { grid.scrollTop = Math.random() * grid.scrollHeight; }")
    while page.locator("#grid .rows a").first.inner_text() == before:
        pass


def _times(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the seconds of the first call, and the median of the others."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return times[0], median(times[1:])


if __name__ == "__main__":
    command(explorer)
