"""Tables as files: CSV, compressed CSV and Parquet, whose columns are read with stated types."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from drfuse.cohort.sources.csv_files import CsvFiles, place_of
from drfuse.cohort.sources.mimic_iv import Read, Schema, typed
from drfuse.cohort.sources.source import SourceFile, Table, TypedTable, no_rows
from drfuse.cohort.store import Store
from drfuse.errors import InputError, MissingInputError

_FORMATS = (".parquet", ".csv.gz", ".csv")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LONGEST_HEADER = 100_000  # bytes; a binary file may have no line break at all
_MAX_DEPTH = 4  # physionet.org/files/mimiciv/2.2, as wget lays a mirror out


def find_release(folder: Path, stems: Sequence[str], what: str) -> Path:
    """Return `folder`, or the one folder below it, that holds a file of one of `stems`.

    Raises:
        MissingInputError: If there is none.
        InputError: If there are several.
    """
    if not folder.is_dir():
        raise MissingInputError(f"there is no folder {folder}; expected {what}")
    level = [folder]
    for _ in range(_MAX_DEPTH + 1):
        found = [path for path in level if any(existing_files(path / stem) for stem in stems)]
        if len(found) > 1:
            names = ", ".join(str(path) for path in found)
            raise InputError(f"{folder} holds more than one release ({names}); choose one of them")
        if found:
            return found[0]
        level = [child for path in level for child in _subfolders(path)]
    raise MissingInputError(f"{folder} does not hold {what}; choose the folder that does")


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, but not the 65,000 image folders of patients (pXX, pXXXXXXXX)."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not re.fullmatch(r"p\d+", path.name)
        )
    except PermissionError:  # lost+found, say
        return []


def find_table(stem: Path, feeds: Table, kind: str | None = None) -> tuple[SourceFile, ...]:
    """Return the files of a table, given its path without the suffix; see `existing_files`."""
    return tuple(
        SourceFile(kind or stem.name, feeds, path, columns_of(path), is_part=path.parent == stem)
        for path in existing_files(stem)
    )


def existing_files(stem: Path) -> list[Path]:
    """Return the file of a table, given its path without the suffix, or the parts in a folder of that name.

    Raises:
        InputError: If there are several files, or parts of several formats.
    """
    single = [path for suffix in _FORMATS if (path := stem.with_name(stem.name + suffix)).is_file()]
    inside = sorted(stem.iterdir()) if stem.is_dir() else []
    parts = [
        path
        for path in inside
        if path.is_file() and path.name.endswith(_FORMATS) and path.name[0] not in "._"
    ]
    formats = {next(suffix for suffix in _FORMATS if path.name.endswith(suffix)) for path in parts}
    if len(formats) > 1:
        raise InputError(f"{stem} has parts as {' and '.join(sorted(formats))}; keep those of one format")
    if len(found := [*single, *([stem] if parts else [])]) > 1:
        raise InputError(f"{found[0]} and {found[1]} are the same table; keep one of them")
    return single or parts


def columns_of(path: Path) -> tuple[str, ...]:
    """Return the column names of a table; a column without a name gets one.

    Raises:
        InputError: If the file is not of the kind that its name says, or two columns have one name.
    """
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; fetch it again")
    with _explain_other_kind(path):
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
        else:
            with _open_csv(path) as file:
                header = file.readline(_LONGEST_HEADER).decode("utf-8-sig")
            _check_header(path, header)
            names = next(csv.reader([header]), [])
    columns = tuple(name or f"unnamed {place}" for place, name in enumerate(names))
    folded = [name.casefold() for name in columns]
    for place, name in enumerate(folded):
        if name in folded[:place]:  # the name may be a cell: of a file without its first line
            raise InputError(
                f"the columns {folded.index(name) + 1} and {place + 1} of {path} have the same name; keep "
                "one of them, or, if the first line does not name the columns, add one that does"
            )
    return columns


def _open_csv(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


@contextmanager
def _explain_other_kind(path: Path) -> Iterator[None]:
    """Turn the errors of a file that is not what its name says into an InputError."""
    kind = {".parquet": "a Parquet file", ".gz": "a gzip-compressed CSV file"}.get(path.suffix, "a CSV file")
    try:
        yield
    except (pa.ArrowInvalid, gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise InputError(f"{path} is not {kind}, as its name says; fetch it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {kind} in UTF-8, as its name says; fetch it again") from error


def _check_header(path: Path, header: str) -> None:
    """Check that the first line of a file can be the header of a CSV file.

    Raises:
        InputError: If it cannot; the message says what the file looks like instead.
    """
    line = header.strip()
    if not line:
        raise InputError(
            f"{path} begins with an empty line; expected the names of its columns: fetch it again"
        )
    if line.startswith("<"):
        raise InputError(
            f"{path} is a web page, perhaps a login form, not a CSV file; fetch it again with your user name"
        )
    if line.startswith("version https://git-lfs"):
        raise InputError(f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull`")
    if not line.replace("\t", "").isprintable():
        raise InputError(f"{path} is not a CSV file, as its name says; fetch it again")
    for separator, name in _SEPARATORS.items():
        if separator in line and "," not in line:
            raise InputError(f"{path} has {name} between its columns; expected commas: save it with commas")


def read_table(
    files: Sequence[SourceFile],
    schema: Schema,
    store: Store,
    csv_files: CsvFiles,
    may_be_empty: bool = False,
) -> Read:
    """Return the columns of a schema with its types, from all parts of a table; no other column is parsed.

    Raises:
        MissingInputError: If a column is missing.
        InputError: If the table has no row, unless it may be empty.
    """
    for file in files:
        if missing := [column for column in schema if column not in file.columns]:
            raise MissingInputError(
                f"{file.path} lacks the column {', '.join(missing)} of the table {file.kind}"
            )
    if files[0].path.suffix != ".parquet":
        return Read(csv_files.table(files, schema, may_be_empty))
    if not may_be_empty and not any(pq.read_metadata(file.path).num_rows for file in files):
        raise no_rows(place_of(files))
    whole = typed(_typed_table(files, store), schema)
    if not whole.typed[0].wrong or len(files) == 1:
        return whole
    parts = [typed(_typed_table([file], store), schema).typed[0] for file in files]  # counted one by one
    return Read(whole.table, parts)


def _typed_table(files: Sequence[SourceFile], store: Store) -> TypedTable:
    # in brackets, so that DuckDB finds no pattern in a path
    paths = [re.sub(r"([*?\[])", r"[\1]", str(file.path)) for file in files]
    rows = store.read_parquet(paths, union_by_name=len(paths) > 1)
    return TypedTable(files[0].name, str(files[0].path), files[0].feeds, rows, may_be_empty=True)
