"""What text may leave a command: names that are no commands, no password, and no cell of a table."""

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

_WITH_AT = (
    # user and password of an address, whose password may have blanks; `user` alone is our own example
    (
        r"(://)(?!user(?::password)?@)"
        r"(?:[^\s'\"@/:]{0,99}:(?:(?![;:,] |['\"](?:[\s,;:.)\]}]|$))[^\n]){0,99}|[^\s'\"]{0,199})@",
        r"\1***@",
    ),
    (r"\b([a-z][\w+.-]{0,29}:/?)(?!/)[^\s'\":@]{0,99}:[^\s'\"]{0,199}@", r"\1***@"),  # of a malformed one
    # of one without a scheme
    (r"(?<![\w/:.%+-])[\w.%+-]{1,99}:[^\s'\"/][^\s'\"]{0,199}@(?=[a-z\[]|\d+\.\d)", "***@"),
)
_NAMED = (
    (  # password=..., fs.s3a.secret.key: ..., ?sig=...; a sentence after a colon is not a password
        r"(?P<name>(?<![\w.-])[\w.-]{0,59}(?:passw(?:or)?d|passphrase"
        r"|(?<![a-z])(?:pwd|secret|token|sig|signature|sas|credentials?)(?![a-z])"
        r"|(?:access|account|api|private|secret|shared|storage)[._-]?key|accesssignature|accesskeyid)"
        r"[\w.-]{0,59}['\"]?(?:\s{0,9}=\s{0,9}|\s{0,9}:\s{0,9}(?=['\"])|:(?=\S)"
        r"|:\s{1,9}(?=[^\s&;,'\")\]}]{1,199}(?:\s*$|[,;&)\]}\n]))))"
        r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&;,'\")\]}]+)",
        r"\g<name>***",
    ),
    (r"((?-i:Bearer) )\S+", r"\1***"),
    (r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,})\b", "***"),  # keys of Amazon, tokens of the hub
)
_ADDRESSES, _SECRETS = (
    [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in some]
    for some in (_WITH_AT, _NAMED)
)
# every quantifier has a limit or cannot give back: a long word of a stranger's must not take for ever
_IMAGE = re.compile(r"\b(p\d\d[/\\])p\d+(?:[/\\][^\s'\":]*)?|\b[0-9a-f]{8}(?:-[0-9a-f]{8}){4}\b")
"""The path of an image of MIMIC-CXR below its patient's folder, or the name of one."""

_QUOTED = re.compile(r"(?<!\w)(['\"`])(?:.*\1(?!\w)|.*$)")
_VALUE = re.compile(
    r"(?<=\bvalue: ).+|(?<=\bvalue )\S+|\b(?<!\.)\d(?:\d{4,}|\d*+[.:/-])[\d.:/e+-]*+(?! ?[KMGT]?i?B\b)",
    re.IGNORECASE,
)
"""What stands for a value without quotes: what is called one, and long numbers, fractions and times."""


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


def without_secrets(text: str) -> str:
    """Return text without passwords, keys and tokens, and without the names of patients' images.

    >>> without_secrets("postgresql://jane:pw@db/mimic, s3a://KEY:SE/CRET@bucket and ?sig=abc%3D&x=1")
    'postgresql://***@db/mimic, s3a://***@bucket and ?sig=***&x=1'
    >>> without_secrets("postgresql:/jane:pw@db and host=db password='it is' user=jane")
    'postgresql:/***@db and host=db password=*** user=jane'
    >>> without_secrets("/data/files/p10/p10000032/s50414267/a.jpg: Permission denied")
    '/data/files/p10/...: Permission denied'
    """
    for pattern, instead in [*(_ADDRESSES if "@" in text else ()), *_SECRETS]:
        text = pattern.sub(instead, text)
    return _IMAGE.sub(lambda found: f"{found[1] or ''}...", text)


def without_values(text: str) -> str:
    """Return a library's message without what it quotes or gives as a value: that may be a cell of a table.

    >>> without_values("Could not convert string 'F 1950' to INT64")
    'Could not convert string ... to INT64'
    """
    return _VALUE.sub("...", _QUOTED.sub("...", text))


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
