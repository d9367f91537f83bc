"""Shows names from files as they are: no terminal or spreadsheet takes a part of them for a command."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tabs and line feeds, marks that reorder text, what has no width, half characters."""

_RUN_BY_SPREADSHEETS = re.compile(r"[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(?:e[+-]?\d+)?(?: ?%)?", re.IGNORECASE)


def printable(text: str) -> str:
    r"""Return text with its control characters escaped, such as those that move a terminal's cursor.

    Line feeds and tabs stay.

    >>> print(printable("a\x1b[2Jb\u202ec\n"), end="")
    a\x1b[2Jb\u202ec
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def on_one_line(text: str) -> str:
    r"""Return printable text with its line feeds and tabs escaped as well.

    >>> print(on_one_line("a\n\tb"))
    a\n\tb
    """
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def for_spreadsheet(text: str) -> str:
    """Return the text of a CSV cell, after an apostrophe if a spreadsheet would run it as a formula.

    Control characters are escaped.

    >>> for_spreadsheet("=HYPERLINK(A1)"), for_spreadsheet("-0.5"), for_spreadsheet("+8.2 %")
    ("'=HYPERLINK(A1)", '-0.5', '+8.2 %')
    """
    is_run = _RUN_BY_SPREADSHEETS.match(text) and not _NUMBER.fullmatch(text)
    return f"'{printable(text)}" if is_run else printable(text)


def csv_of(table: "pl.DataFrame", **options: Any) -> str:
    """Return a table as CSV, whose text `for_spreadsheet` makes safe.

    Args:
        table: The table.
        options: Options of `polars.DataFrame.write_csv`.
    """
    import polars as pl  # not sooner: it takes a third of the time that `drfuse --help` needs

    texts = {
        name: {text: for_spreadsheet(text) for text in column.unique().drop_nulls()}
        for name, column in table.to_dict().items()
        if column.dtype == pl.String
    }
    safe = table.with_columns(pl.col(name).replace(changes) for name, changes in texts.items() if changes)
    written: str = safe.write_csv(**options)
    return written
