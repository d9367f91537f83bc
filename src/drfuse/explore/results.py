"""The tables and figures of a report, or of a run's metrics, with links to the stays behind a number."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drfuse.errors import InputError
from drfuse.explore.opened import Opened, Predicted
from drfuse.explore.stays import View

_FIGURE = re.compile(r"[\w-]+\.svg")
_REPORT = re.compile(r"report(-[\w-]+)?\.html")
_METRICS = {"prauc": "PRAUC", "auroc": "AUROC"}
_MOST_WRONG = {"sort": "error", "down": "yes"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, smaller text below it, and where it leads."""

    text: str
    below: str = ""
    link: str = ""


@dataclass(frozen=True)
class Shown:
    """A table: its title, the names of its columns, and its rows, whose first cell is a header."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]


class Results:
    """What `reproduce` or `evaluate` measured of the runs that are shown."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def tables(self, run: str) -> Iterator[Shown]:
        """Yield the tables of the reproduction; without one, the metrics of the run."""
        predicted = self._opened.predicted(run)
        folder = self._opened.reproduction
        files = _files(folder / "tables", ".csv") if folder else []
        systems = _systems(folder, self._opened) if folder else {}
        for file in files:
            yield _of_report(file, predicted, systems)
        metrics = self._opened.runs[predicted.name].metrics_table if predicted.name else None
        if not files and metrics is not None and metrics.is_file():
            yield from _of_run(metrics, predicted)

    def figures(self) -> list[str]:
        """Return the file names of the reproduction's figures."""
        folder = self._opened.reproduction
        return [file.name for file in _files(folder / "figures", ".svg")] if folder else []

    def reports(self) -> list[str]:
        """Return the file names of the reproduction's pages."""
        folder = self._opened.reproduction
        return [one.name for one in _files(folder, ".html") if _REPORT.fullmatch(one.name)] if folder else []

    def file(self, name: str) -> Path | None:
        """Return the path of a figure or a page with this name; None if there is none."""
        folder = self._opened.reproduction
        if folder and name in self.figures() and _FIGURE.fullmatch(name):
            return folder / "figures" / name
        return folder / name if folder and name in self.reports() else None


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files of a folder, in order of their names; no link is followed."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(
        one for one in folder.iterdir() if one.suffix == ending and one.is_file() and not one.is_symlink()
    )


def _systems(folder: Path, opened: Opened) -> dict[str, dict[str, str]]:
    """Return the first run of each system, by the name that tables have for it and what it was trained on."""
    from drfuse.reproduce.systems import paper_systems

    shipped = {system.name: system.title for system in paper_systems().values()}
    found: dict[str, dict[str, str]] = {}
    for file in _files(folder, ".csv"):
        if file.name.startswith("runs"):
            with _rows(file, "reproduce") as rows:
                for row in (row for row in rows if row["folder"] in opened.runs):
                    of_system = found.setdefault(
                        row.get("title") or shipped.get(row["system"], row["system"]), {}
                    )
                    of_system.setdefault(row["train_on"], row["folder"])
    return found


def _of_report(file: Path, predicted: Predicted, systems: dict[str, dict[str, str]]) -> Shown:
    """Return a table of a report from its CSV file, which has a line a cell."""
    rows: dict[str, dict[str, Cell]] = {}
    with _rows(file, "reproduce") as lines:
        columns = list(dict.fromkeys(line["column"] for line in lines))
        for line in lines:
            words = (line["row"], line["column"], *re.split("[:,] ", line["column"]))
            run = next((_run(systems[word], words) for word in words if word in systems), None)
            view = View(
                run=run or predicted.name,
                split="test",
                cxr="yes" if "tested on matched" in words or "matched" in file.stem else "",
                label=next((word for word in words if word in predicted.labels), ""),
            )
            # a number of a system whose runs are not here has no stays to show
            link = f"/stays?{view.query(**_MOST_WRONG)}" if line["value"] and run else ""
            paper = f"paper {_number(line['paper'])}" if line["paper"] else ""
            below = " ".join(filter(None, (_interval(line["low"], line["high"]), paper)))
            cell = Cell(_number(line["value"]) or line["note"], below, link)
            rows.setdefault(line["row"], {})[line["column"]] = cell
    return Shown(
        file.stem.replace("-", " ").replace("_", " "),
        ["", *columns],
        [[Cell(name), *(of.get(column, Cell("")) for column in columns)] for name, of in rows.items()],
    )


def _of_run(file: Path, predicted: Predicted) -> Iterator[Shown]:
    """Yield a table for each test set of `metrics.csv`."""
    with _rows(file, "evaluate") as lines:
        for test_on in dict.fromkeys(line["test_on"] for line in lines):
            rows = []
            for line in (line for line in lines if line["test_on"] == test_on):
                label = line["phenotype"] if line["phenotype"] in predicted.labels else ""
                cxr = "yes" if test_on == "matched" else ""
                view = View(predicted.name, "test", cxr, label)
                numbers = [
                    Cell(_number(line[name]), _interval(line[f"{name}_low"], line[f"{name}_high"]))
                    for name in _METRICS
                ]
                rows.append([Cell(line["phenotype"], link=f"/stays?{view.query(**_MOST_WRONG)}"), *numbers])
            yield Shown(f"{test_on} test set", ["label", *_METRICS.values()], rows)


@contextmanager
def _rows(file: Path, command: str) -> Iterator[list[dict[str, str]]]:
    """Yield the rows of a CSV file that a command wrote.

    Raises:
        InputError: If what uses the rows finds that a column is missing or a value is not a number.
    """
    try:
        yield list(csv.DictReader(file.read_text("utf-8").splitlines(), restval=""))
    except (KeyError, ValueError, csv.Error) as error:
        problem = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{file} is damaged: {problem}; run `drfuse {command}` again") from error


def _run(runs: dict[str, str], words: Sequence[str]) -> str:
    """Return the run that was trained on what a column names, or the first."""
    return next((run for on, run in runs.items() if f"trained on {on}" in words), next(iter(runs.values())))


def _number(text: str) -> str:
    return "" if not text else f"{int(text):,}" if text.isdecimal() else f"{float(text):.3f}"


def _interval(low: str, high: str) -> str:
    return f"({_number(low)}, {_number(high)})" if low and high else ""
