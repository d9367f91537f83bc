"""What a benchmark measured, as data, and how it is shown; `benchmarks.run` gathers all in one document."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Target:
    """A figure that was measured, and what it should be.

    Attributes:
        what: What was measured, with its conditions.
        value: The measurement; NaN where it could not be made.
        unit: Its unit: `times` for ratios, `GiB`, `images/s`.
        at_most: The target, where lower is better.
        at_least: The target, where higher is better.
    """

    what: str
    value: float
    unit: str = "times"
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none.

        >>> Target("time of prepare beside the floor", 1.2, at_most=1.5).met
        True
        """
        if self.at_most is None and self.at_least is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high

    @property
    def judged(self) -> str:
        """The measurement, and whether it meets its target.

        >>> Target("share of the floor", 0.93, at_least=0.9).judged
        '0.930 (at least 0.900: yes)'
        """
        if self.met is None:
            return number(self.value)
        wanted = self.wanted.replace(f" {self.unit}", "")
        return f"{number(self.value)} ({wanted}: {'yes' if self.met else '**no**'})"

    @property
    def wanted(self) -> str:
        """The target in words; a dash where there is none."""
        bounds = {"at least": self.at_least, "at most": self.at_most}
        said = [f"{word} {number(bound)} {self.unit}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(said) or "–"


@dataclass(frozen=True)
class Table:
    """Rows of one table, each with the same columns, and a sentence on how to read them."""

    title: str
    rows: Sequence[Mapping[str, str | float | None]]
    note: str = ""

    def markdown(self) -> str:
        """Return the title, the table and the note."""
        return "\n\n".join(filter(None, (f"**{self.title}**", markdown_table(self.rows), self.note)))


@dataclass(frozen=True)
class Report:
    """Everything that one benchmark found.

    Attributes:
        title: What the benchmark is about.
        how: What was compared, on which data, how often: what a reader must know to believe the figures.
        targets: The figures that have a target, and others that sum the benchmark up.
        tables: All that was measured.
        figure: File name of a figure, which lies beside the document.
    """

    title: str
    how: str
    targets: Sequence[Target] = ()
    tables: Sequence[Table] = ()
    figure: str | None = None

    def markdown(self) -> str:
        """Return the report as a section of a document."""
        parts = [f"## {self.title}", self.how, markdown_table(target_rows(self.targets))]
        parts += [table.markdown() for table in self.tables]
        parts.append(f"![{self.title}]({self.figure})" if self.figure else "")
        return "\n\n".join(filter(None, parts))

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report that `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        found["targets"] = [Target(**target) for target in found["targets"]]
        found["tables"] = [Table(**table) for table in found["tables"]]
        return cls(**found)


def target_rows(targets: Sequence[Target]) -> list[dict[str, str]]:
    """Return a row for each figure: what was measured, what it should be, what it is, whether that is met."""
    words = {True: "yes", False: "**no**", None: "–"}
    return [
        {
            "what": target.what,
            "target": target.wanted,
            "measured": f"{number(target.value)} {target.unit}",
            "met": words[target.met],
        }
        for target in targets
    ]


def markdown_table(rows: Sequence[Mapping[str, str | float | None]]) -> str:
    """Return a Markdown table of rows that have the same columns; numbers are rounded and stand to the right.

    >>> print(markdown_table([{"threads": 2, "images a second": 81.23}]))
    | threads | images a second |
    |---:|---:|
    | 2 | 81.2 |
    """
    if not rows:
        return ""
    columns = list(rows[0])
    numeric = [all(not isinstance(row[name], str) for row in rows) for name in columns]
    rule = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([head, rule, *body])


def number(value: float) -> str:
    """Return a number with three digits that count; larger whole ones in groups of three.

    >>> number(1.2345), number(0.00456), number(15536000), number(39.96)
    ('1.23', '0.00456', '15,536,000', '40.0')
    """
    if not math.isfinite(value):
        return "not measured" if math.isnan(value) else str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else number(value)
