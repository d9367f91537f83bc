"""Tables of numbers beside the paper's, as Markdown, LaTeX and tidy CSV."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from drfuse.errors import InputError, check_choice
from drfuse.escapes import for_spreadsheet, printable
from drfuse.evaluation import Estimate
from drfuse.files import write_whole

UNDEFINED = "–"
ARROWS = {"": "", "best": "", "better": "↑", "worse": "↓"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row, a bracket or a star would be read as an argument
    "*": "{*}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "—": "---",
    "“": "``",
    "”": "''",
} | {sign: "\\" + sign for sign in "&%$#_{}"}
MOST_ROWS_ON_A_PAGE = 18  # rows of a few lines each


@dataclass(frozen=True)
class Shown:
    """The parts of a number as text; empty where there is nothing to show."""

    value: str
    interval: str
    spread: str
    paper: str
    paper_interval: str


@dataclass(frozen=True)
class Number:
    """A measured number, and the paper's.

    Attributes:
        value: The measured value; NaN where undefined, shown as an en dash.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        spread: Standard deviation over seeds.
        paper: The paper's value.
        paper_low: Lower end of the paper's interval.
        paper_high: Upper end of the paper's interval.
        note: A few words shown with the number, such as `+8.2 %` or `p = 0.012`.
        mark: `best` of its kind, or more than 5 % `better` or `worse` than what the caption names.
        digits: Decimals shown.
    """

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    paper: float | None = None
    paper_low: float | None = None
    paper_high: float | None = None
    note: str = ""
    mark: Literal["", "best", "better", "worse"] = ""
    digits: int = 3

    def __post_init__(self) -> None:
        check_choice("mark", self.mark, ARROWS)

    @classmethod
    def of(cls, estimate: Estimate, **more: Any) -> "Number":
        """Return an estimate with its interval; `more` sets the other attributes."""
        return cls(estimate.value, estimate.low, estimate.high, **more)

    @property
    def shown(self) -> Shown:
        """The parts as text.

        >>> Number(11914, digits=0).shown.value, Number(0.45, 0.426, 0.498).shown.interval
        ('11,914', '(0.426, 0.498)')
        """
        spread = self._text(self.spread)
        return Shown(
            value=self._text(self.value) or UNDEFINED,
            interval=self._interval(self.low, self.high),
            spread=f"± {spread}" if spread else "",
            paper=self._text(self.paper),
            paper_interval=self._interval(self.paper_low, self.paper_high),
        )

    def _text(self, value: float | None) -> str:
        if value is None or math.isnan(value):
            return ""
        return f"{value:z,.{self.digits}f}".replace("-", "−")

    def _interval(self, low: float | None, high: float | None) -> str:
        ends = self._text(low), self._text(high)
        return f"({', '.join(ends)})" if all(ends) else ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        header: The cell of the first column.
        cells: Numbers or text, one for each column after the first.
        rule_above: Whether a rule separates it from the row above, in formats that have rules.
    """

    header: str
    cells: Sequence[Number | str]
    rule_above: bool = False


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        key: File stem, of letters, digits, `-` and `_`.
        title: A few words.
        caption: What is measured, on what, and what `best`, `better` and `worse` compare with.
        columns: Column heads; the first is that of the row headers.
        rows: The rows.
        groups: Heads that span columns, as (text, number of columns). They cover all columns, the first
            included; an empty text is no head.
        beside_paper: Why the paper's numbers are not comparable; shown if the table has any.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    beside_paper: str = ""

    def __post_init__(self) -> None:
        check_key(self.key)
        width = len(self.columns)
        spanned = sum(count for _, count in self.groups)
        if self.groups and spanned != width:
            raise InputError(f"the groups of {self.key} span {spanned} of {width} columns; expected all")
        for row in self.rows:
            if 1 + len(row.cells) != width:
                raise InputError(
                    f"row {row.header!r} of {self.key} has {len(row.cells)} cells; expected {width - 1}, "
                    "one for each column after the first"
                )

    @property
    def numbers(self) -> list[Number]:
        """All numbers, row by row."""
        return [cell for row in self.rows for cell in row.cells if isinstance(cell, Number)]

    @property
    def has_paper(self) -> bool:
        """Whether it has any of the paper's numbers."""
        return any(number.paper is not None for number in self.numbers)

    @property
    def full_caption(self) -> str:
        """The caption and, if the table has any of the paper's numbers, `beside_paper`."""
        return f"{self.caption} {self.beside_paper}".strip() if self.has_paper else self.caption

    @property
    def full_columns(self) -> list[str]:
        """Column heads, each after the head that spans it."""
        heads = [text for text, count in self.groups for _ in range(count)] or [""] * len(self.columns)
        return [f"{head}: {name}" if head else name for head, name in zip(heads, self.columns, strict=True)]


def check_key(key: str) -> None:
    """Check that a key can be a file stem and an HTML id.

    Raises:
        InputError: If it has characters other than letters, digits, `-` and `_`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise InputError(f"the key is {key!r}; expected only letters, digits, - and _")


def to_markdown(table: Table) -> str:
    """Return a table as GitHub-flavoured Markdown, with the paper's values in square brackets."""
    rows = [[row.header, *row.cells] for row in table.rows]
    lines = [
        _markdown_row(table.full_columns),
        "| :--- |" + " ---: |" * (len(table.columns) - 1),
        *(_markdown_row([_markdown_cell(cell) for cell in row], escape=False) for row in rows),
    ]
    below = " ".join([escape_markdown(table.full_caption), *_legend(table, "**Bold**: the best.")]).strip()
    return "\n".join([f"### {escape_markdown(table.title)}", "", *lines, "", below]).rstrip() + "\n"


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX fragment, for a document that uses `booktabs` and `longtable`.

    The interval, the note and the paper's value are below the measured value, in smaller type. A long table
    continues on further pages; one of more than seven columns needs a landscape page.
    """
    width = len(table.columns)
    long_headers = max((len(row.header) for row in table.rows), default=0) > 40
    first = r"p{0.24\linewidth}" if long_headers else "l"
    columns = rf"{{@{{}}{first}{'r' * (width - 1)}@{{}}}}"
    title = re.sub(r"^Table \w+[:.] *", "", table.title)  # LaTeX numbers its tables itself
    legend = map(_escape_latex, _legend(table, "Bold: the best."))
    text = " ".join(filter(None, [_escape_latex(f"{title}. {table.full_caption}"), *legend]))
    caption, label = rf"\caption{{{text.strip()}}}", rf"\label{{tab:{table.key}}}"
    size = [r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
    head = [
        r"\toprule",
        *_latex_groups(table),
        " & ".join([_escape_latex(table.columns[0]), *map(_latex_head, table.columns[1:])]) + r" \\",
        r"\midrule",
    ]
    body = []
    for number, row in enumerate(table.rows):
        if row.rule_above and number:
            body.append(r"\midrule")
        header = (r"\raggedright " if long_headers else "") + _escape_latex(row.header)
        body.append(" & ".join([header, *map(_latex_cell, row.cells)]) + r" \\")
    if len(table.rows) > MOST_ROWS_ON_A_PAGE:
        lines = [r"\begingroup", *size, r"\begin{longtable}" + columns, caption + label + r" \\"]
        lines += [*head, r"\endfirsthead", *head, r"\endhead", *body]
        lines += [r"\bottomrule", r"\end{longtable}", r"\endgroup"]
    else:
        lines = [r"\begin{table}[htbp]", r"\centering", caption, label, *size, r"\begin{tabular}" + columns]
        lines += [*head, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return a table as tidy CSV (RFC 4180), one line for each cell.

    Numbers are not rounded; undefined ones are empty. The text of a text cell is in the column `note`. No
    spreadsheet runs a text as a formula.
    """
    parts = ("value", "low", "high", "spread", "paper", "paper_low", "paper_high")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["row", "column", *parts, "note", "mark"])
    for row in table.rows:
        for column, cell in zip(table.full_columns[1:], row.cells, strict=True):
            if isinstance(cell, Number):
                numbers = [_exact(getattr(cell, part)) for part in parts]
                note, mark = cell.note, cell.mark
            else:
                numbers, note, mark = [""] * len(parts), cell, ""
            writer.writerow(
                [*map(for_spreadsheet, (row.header, column)), *numbers, for_spreadsheet(note), mark]
            )
    return text.getvalue()


def write_table(table: Table, folder: Path) -> None:
    """Write a table to `<key>.md`, `<key>.tex` and `<key>.csv` in a folder."""
    forms: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
    for ending, form in forms.items():
        write_whole(folder / f"{table.key}.{ending}", form(table))


def _legend(table: Table, best: str) -> list[str]:
    """Return a sentence for each symbol in a table."""
    numbers = table.numbers
    shown = [number.shown for number in numbers]
    marks = {number.mark for number in numbers}
    signs = {
        "In parentheses: the 95 % interval.": any(one.interval or one.paper_interval for one in shown),
        "±: the standard deviation over seeds.": any(one.spread for one in shown),
        "After the word “paper”: the paper's numbers; all others were measured.": any(
            one.paper for one in shown
        ),
        best: "best" in marks,
        "↑ ↓: more than 5 % better or worse.": bool(marks & {"better", "worse"}),
    }
    return [sign for sign, occurs in signs.items() if occurs]


def _markdown_row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(escape_markdown(cell) if escape else cell for cell in cells) + " |"


def _markdown_cell(cell: Number | str) -> str:
    if isinstance(cell, str):
        return escape_markdown(cell)
    shown = cell.shown
    value = f"**{shown.value}**" if cell.mark == "best" else shown.value
    measured = " ".join(filter(None, [value, ARROWS[cell.mark], shown.interval, shown.spread]))
    if cell.note:
        measured += f"; {escape_markdown(cell.note)}"
    paper = " ".join(filter(None, [shown.paper, shown.paper_interval]))
    return f"{measured} [paper {paper}]" if shown.paper else measured


def escape_markdown(text: str) -> str:
    r"""Return text on one line that Markdown shows as it is.

    >>> print(escape_markdown("a|b_c <d>"))
    a\|b\_c &lt;d&gt;
    """
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    r"""Return text on one line that LaTeX shows as it is.

    >>> print(_escape_latex("50 % & a_b"))
    50 \% \& a\_b
    """
    return "".join(_LATEX.get(sign, sign) for sign in printable(" ".join(text.split())))


def _latex_groups(table: Table) -> list[str]:
    """Return the line of spanning heads, and that of the rules below them."""
    if not table.groups:
        return []
    heads, rules, start = [], [], 1
    for text, count in table.groups:
        heads.append(rf"\multicolumn{{{count}}}{{c}}{{{_escape_latex(text)}}}")
        if text:
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return [" & ".join(heads) + r" \\", *([" ".join(rules)] if rules else [])]


def _latex_cell(cell: Number | str) -> str:
    if isinstance(cell, str):
        return _escape_latex(cell)
    shown = cell.shown
    value, arrow, spread = map(_escape_latex, (shown.value, ARROWS[cell.mark], shown.spread))
    if cell.mark == "best":
        value = rf"\textbf{{{value}}}"
    small = [rf"{{\scriptsize {_escape_latex(text)}}}" for text in (shown.interval, cell.note) if text]
    if shown.paper:
        paper = filter(None, [f"paper {shown.paper}", shown.paper_interval])
        small += [rf"{{\scriptsize\itshape {_escape_latex(text)}}}" for text in paper]
    first = " ".join(filter(None, [value, arrow, rf"{{\scriptsize {spread}}}" if spread else ""]))
    return _stacked([first, *small], "t")


def _latex_head(text: str) -> str:
    return _stacked([_escape_latex(line) for line in textwrap.wrap(text, 12) or [""]], "b")


def _stacked(lines: Sequence[str], level_with: Literal["t", "b"]) -> str:
    """Return lines stacked in a cell, with the top or the bottom one level with the row."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{level_with}]{{@{{}}r@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"


def _exact(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.15g}"
