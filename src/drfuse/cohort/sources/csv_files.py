"""CSV files, compressed or not, unpacked once in blocks of whole records and parsed on all cores."""

import gzip
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, NamedTuple, cast

import duckdb
import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir
import numpy as np
from isal import igzip, isal_zlib

from drfuse.cohort.sources.mimic_iv import EXPECTED, NULLS, Schema
from drfuse.cohort.sources.source import SourceFile, check_rejected, no_rows
from drfuse.cohort.store import Store
from drfuse.errors import InputError

if TYPE_CHECKING:  # numba takes a while to import, and not every command reads CSV
    from drfuse.cohort.sources.csv_records import Bytes, Cell, Fault, Selection

BLOCK_BYTES = 16 << 20
LONGEST_RECORD = 8 * BLOCK_BYTES
_FIRST_BYTES = 65_536
BATCH_BYTES = 16 << 20  # a query for each block alone would take longer
_DAMAGE = (gzip.BadGzipFile, isal_zlib.error, EOFError)
_ROWS = "csv_rows"  # the name of a file's table in a query of some of its rows
_CELLS: "dict[str, Cell]" = {
    "string": "text",
    "int64": "integer",
    "float64": "number",
    "timestamp(6)": "time",
}
_FAULTS: "dict[Fault, str]" = {
    "not closed": "is not closed",
    "records in it": "is closed in a later line, and rows lie between",
    "wrong number of cells": "is closed in a later line, and the row has the wrong number of cells",
}
_EXPECTED = {_CELLS[kind]: expected for kind, expected in EXPECTED.items()}
_REJECTED = """
SELECT count(DISTINCT line), min_by(error_type, line), min_by(column_name, line)
FROM reject_errors JOIN reject_scans USING (scan_id, file_id) WHERE file_path = $1
"""


class Block(NamedTuple):
    """Whole records of a CSV file, and the number of the line in which they begin (the header's is 1)."""

    records: "Bytes"
    line: int


class _Rejected(NamedTuple):
    """How many rows do not parse, and what is wrong with the first of them, and in which column."""

    n_rows: int
    error: str | None
    column: str | None


class CsvFiles:
    """The CSV files of a source. Each becomes a table of the store when a query first needs it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.before_query.append(self._load)
        self._unread: dict[str, tuple[Sequence[SourceFile], Schema, bool]] = {}

    def table(self, files: Sequence[SourceFile], schema: Schema, may_be_empty: bool = True) -> ir.Table:
        """Return the table of a file or of its parts, with the columns and types of a schema.

        The files are read when the store first answers a query of the table. That raises an InputError if a
        file is damaged, has a quote that is not closed, or has too many rows that do not parse, or if no file
        has a row and the table may not be empty.
        """
        name = f"csv_{files[0].kind}"
        self._unread[name] = files, schema, may_be_empty
        return ops.DatabaseTable(name, ibis.schema(schema), self._store, ops.Namespace()).to_expr()

    def select(
        self, table: ir.Table, column: str, wanted: Sequence[int], query: Callable[[ir.Table], ir.Table]
    ) -> ir.Table:
        """Return the store's table of the answer to a query of the rows with a wanted integer in one column.

        Args:
            table: A table; if it is not one of this object, the query itself is returned.
            column: The name of the column.
            wanted: The integers.
            query: Takes such rows and returns the query. It gets some rows of the file at a time, so it must
                treat each by itself.

        Raises:
            InputError: As queries of the table.
        """
        source = table.op()
        if not isinstance(source, ops.DatabaseTable) or source.name not in self._unread:
            return query(table.filter(table[column].isin(wanted)))
        return self._read(*self._unread[source.name], ibis.util.gen_name(source.name), column, wanted, query)

    def _load(self, expr: ir.Expr) -> None:
        for table in expr.op().find(ops.DatabaseTable):
            if table.name in self._unread:
                self._read(*self._unread.pop(table.name), table.name)

    def _read(
        self,
        files: Sequence[SourceFile],
        schema: Schema,
        may_be_empty: bool,
        name: str,
        column: str | None = None,
        wanted: Sequence[int] = (),
        query: Callable[[ir.Table], ir.Table] = lambda rows: rows,
    ) -> ir.Table:
        if not may_be_empty and not any(_has_rows(file.path) for file in files):
            raise no_rows(place_of(files))
        rows = ibis.table(schema, _ROWS)
        answer = query(rows if column is None else rows.filter(rows[column].isin(wanted)))
        self._load(answer)  # the tables that it joins
        stored = self._store.create_table(name, schema=answer.schema())
        statement = f'INSERT INTO "{name}" {self._store.compile(answer)}'
        scratch = Path(self._store.setting("temp_directory"))
        with tempfile.TemporaryDirectory(dir=scratch if scratch.is_dir() else None) as folder:
            for file in files:
                reading = _Reading(self._store, file, schema, column, wanted, statement, Path(folder))
                if n_rejected := reading.run():
                    self._store.rejected_rows[file.name] = n_rejected
        return stored


def place_of(files: Sequence[SourceFile]) -> Path:
    """Return where a table is: its file, or the folder of its parts."""
    return files[0].path.parent if files[0].is_part else files[0].path


def _has_rows(path: Path) -> bool:
    """Return whether there is more in a CSV file than its header and blank lines."""
    with _open(path) as file, _explain_damage(path):
        file.readline()
        while part := file.read(_FIRST_BYTES):
            if part.strip():
                return True
    return False


def _open(path: Path) -> BufferedReader:
    return cast(BufferedReader, igzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def read_blocks(path: Path) -> Iterator[Block]:
    """Yield a CSV file without its header, in blocks of about `BLOCK_BYTES`, each ending with a line feed.

    The sums of a gzip file are checked in passing. If a quoted cell never ends, the last block ends
    in it.

    Raises:
        InputError: If the file is damaged, or a row is longer than `LONGEST_RECORD` bytes.
    """
    from drfuse.cohort.sources.csv_records import count_lines, whole_records

    line, rest = 2, np.empty(0, np.uint8)
    with _open(path) as file:
        with _explain_damage(path):
            file.readline()
        while True:
            records = np.empty(len(rest) + BLOCK_BYTES, np.uint8)
            records[: len(rest)] = rest
            with _explain_damage(path):
                n_read = file.readinto(records[len(rest) :].data)
            if not n_read:
                break
            records = records[: len(rest) + n_read]
            end = whole_records(records)
            rest = records[end:]
            if end:
                yield Block(records[:end], line)
                line += count_lines(records[:end])
            if len(rest) > LONGEST_RECORD:
                raise InputError(
                    f"the row that begins in line {line} of {path} has more than {LONGEST_RECORD} bytes; "
                    "check for a quote that is not closed, or fetch the file again"
                )
    if len(rest):
        yield Block(np.append(rest, np.uint8(ord("\n"))), line)


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error


def _quoted(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


class _Reading:
    """Reads one file into a table: its rows are selected, then parsed, each step in threads.

    Args:
        store: The store.
        file: The file.
        schema: The columns to parse, and their types.
        column: The column that decides which rows are wanted; None if all are.
        wanted: Its wanted integers.
        statement: Inserts into the table what it selects from the table `csv_rows`.
        folder: Where rows lie while DuckDB parses them.
    """

    def __init__(
        self,
        store: Store,
        file: SourceFile,
        schema: Schema,
        column: str | None,
        wanted: Sequence[int],
        statement: str,
        folder: Path,
    ) -> None:
        types = {name: ibis.dtype(schema.get(name, "string")) for name in file.columns}
        columns = {name: store.compiler.type_mapper.to_string(kind) for name, kind in types.items()}
        names = ", ".join(f'"{name}"' for name in schema)
        typed = ", ".join(f"{_quoted(name)}: {_quoted(kind)}" for name, kind in columns.items())
        rows = (
            f"(SELECT {names} FROM read_csv($1, columns = {{{typed}}}, auto_detect = false, header = false, "
            f"delim = ',', quote = '\"', escape = '\"', new_line = '\\n', nullstr = {NULLS}, "
            "ignore_errors = true, store_rejects = true))"
        )
        self._statement = statement.replace(f'"{_ROWS}"', rows)
        self._path, self._folder, self._store = file.path, folder, store
        self._columns = file.columns
        self._cells = [_CELLS[schema[name]] if name in schema else "unread" for name in file.columns]
        self._column = -1 if column is None else file.columns.index(column)
        self._wanted = wanted
        self._n_threads = int(store.setting("threads"))
        self._of_thread, self._cursors = local(), list[duckdb.DuckDBPyConnection]()

    def run(self) -> int:
        """Read the file; return how many rows were left out because they do not parse.

        Raises:
            InputError: If too many do not, a quote is not closed, or the file is damaged.
        """
        n_rows, batch = 0, list["Selection"]()
        inserted: list[Future[_Rejected]] = []
        with ThreadPoolExecutor(self._n_threads) as pool:
            try:
                for selection in self._in_threads(pool, read_blocks(self._path)):
                    n_rows += selection.n_records
                    batch.append(selection)
                    if sum(len(part.records) for part in batch) >= BATCH_BYTES:
                        inserted.append(pool.submit(self._insert, batch, len(inserted)))
                        batch = []
                inserted.append(pool.submit(self._insert, batch, len(inserted)))
                rejected = [future.result() for future in inserted]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for cursor in self._cursors:
                    cursor.interrupt()
                raise
        n_rejected = sum(part.n_rows for part in rejected)
        if n_rejected:
            reason = self._explain(next(part for part in rejected if part.n_rows))
            check_rejected(n_rejected, n_rows, self._path, reason)
        return n_rejected

    def _explain(self, rejected: _Rejected) -> str:
        """Return why a row does not parse, without what it says: that may be about a patient."""
        if rejected.error != "CAST" or rejected.column not in self._columns:
            return (rejected.error or "unknown error").lower()
        cell = self._cells[self._columns.index(rejected.column)]
        return f"{rejected.column} is not {_EXPECTED.get(cell, cell)}"

    def _in_threads(self, pool: ThreadPoolExecutor, blocks: Iterable[Block]) -> "Iterator[Selection]":
        """Yield what `_select` returns for each block, in order; only a few blocks are in memory."""
        running: deque[Future[Selection]] = deque()
        for block in blocks:
            running.append(pool.submit(self._select, block))
            if len(running) > self._n_threads:
                yield running.popleft().result()
        for future in running:
            yield future.result()

    def _select(self, block: Block) -> "Selection":
        from drfuse.cohort.sources.csv_records import count_lines, select_records

        selection = select_records(block.records, self._cells, self._column, self._wanted)
        if selection.fault != "none":
            line = block.line + count_lines(block.records[: selection.fault_at])
            raise InputError(
                f"the quote that opens in line {line} of {self._path} {_FAULTS[selection.fault]}; correct "
                "that line, or fetch the file again"
            )
        return selection

    def _insert(self, batch: "Sequence[Selection]", number: int) -> _Rejected:
        """Parse the rows of some blocks and insert them."""
        file = self._folder / f"{number}.csv"
        try:
            with file.open("wb") as out:
                for part in batch:
                    out.write(part.records.data)
        except OSError as error:
            raise InputError(
                f"cannot write to {self._folder.parent}: {error.strerror}; choose a --temp-dir with more room"
            ) from error
        if not file.stat().st_size:
            return _Rejected(0, None, None)
        if not hasattr(self._of_thread, "cursor"):
            self._of_thread.cursor = self._store.con.cursor()
            self._cursors.append(self._of_thread.cursor)
        cursor: duckdb.DuckDBPyConnection = self._of_thread.cursor
        try:
            cursor.execute(self._statement, [str(file)])
            rejected = _Rejected(*cursor.execute(_REJECTED, [str(file)]).fetchall()[0])
        except duckdb.Error as error:
            raise type(error)(str(error).replace(str(file), str(self._path))) from None
        file.unlink()
        return rejected
