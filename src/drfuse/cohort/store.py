"""The store: an in-memory DuckDB database that reads files and holds the results of queries."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
from ibis.backends.duckdb import Backend

from drfuse.errors import InputError, without_data
from drfuse.files import scratch_folder

ROWS_PER_BATCH = 100_000


class Store(Backend):  # type: ignore[misc]  # Ibis has no types
    """A DuckDB database in memory.

    Attributes:
        before_query: Called with each Ibis expression before the store answers it.
        rejected_rows: Rows of each CSV file (by name) that were left out because a cell has the wrong type.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before_query: list[Callable[[ir.Expr], None]] = []
        self.rejected_rows: dict[str, int] = {}

    def setting(self, name: str) -> str:
        """Return one of DuckDB's settings."""
        return str(self.raw_sql(f"SELECT current_setting('{name}')").fetchall()[0][0])

    def _run_pre_execute_hooks(self, expr: ir.Expr) -> None:  # Ibis's own step before a query
        for prepare in self.before_query:
            prepare(expr)
        super()._run_pre_execute_hooks(expr)


@contextmanager
def open_store(threads: int | None, memory_limit: str) -> Iterator[Store]:
    """Yield the store.

    Raises:
        InputError: If `memory_limit` is not an amount of memory.
    """
    store = Store().connect()
    try:
        store.raw_sql("SET enable_progress_bar = false")
        store.raw_sql("SET TimeZone = 'UTC'")  # a Parquet time with a zone reads the same everywhere
        if threads is not None:
            store.raw_sql(f"SET threads = {threads}")
        try:
            if not re.match(r"\d*\.?\d*[1-9]", memory_limit):  # zero or negative
                raise duckdb.InvalidInputException(memory_limit)
            store.con.execute("SET memory_limit = $1", [memory_limit])
        except duckdb.Error as error:
            raise InputError(f"memory_limit is {memory_limit!r}; expected an amount such as 2GiB") from error
        yield store
    finally:
        store.disconnect()


@contextmanager
def spill_folder(store: Backend, out: Path, temp_dir: Path | None) -> Iterator[None]:
    """Give the store a folder for what does not fit in memory; at the end, close the store and delete it."""
    out = out.resolve()
    place = out if temp_dir is None else Path(temp_dir).resolve() / out.name
    with ExitStack() as folders:
        try:
            scratch = folders.enter_context(scratch_folder(place))
        except (OSError, InputError) as error:  # the second if a file is in its place
            reason = getattr(error, "strerror", None) or "it is not a folder"
            raise InputError(
                f"cannot write to {place.parent}: {reason}; choose a different --temp-dir"
            ) from error
        store.con.execute("SET temp_directory = $1", [str(scratch)])
        try:
            yield
        finally:
            store.disconnect()


def create_from_blocks(store: Backend, name: str, blocks: Iterable[pl.DataFrame | pa.Table]) -> ir.Table:
    """Return a new table of the store with the rows of blocks; only one of them is in memory.

    The first block, which may be empty, gives the types.
    """
    statement = f"CREATE TABLE {name} AS"
    for block in blocks:  # Python waits here, so that Ctrl-C works
        store.con.register("block", block)
        store.raw_sql(f"{statement} FROM block")
        statement = f"INSERT INTO {name}"
    store.con.unregister("block")
    return store.table(name)


def arrow_schema(expr: ir.Table) -> pa.Schema:
    """Return the Arrow types of a query's result; times have no zone."""
    types = expr.schema().items()
    return pa.schema(
        [(name, pa.timestamp("us") if kind.is_timestamp() else kind.to_pyarrow()) for name, kind in types]
    )


def read_batches(store: Backend, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the result of a query of the store in batches of about `rows` rows.

    Nothing else may run on the store before the last batch was read.
    """
    store._run_pre_execute_hooks(expr)  # Ibis's own: registers memtables
    yield from store.con.sql(store.compile(expr)).to_arrow_reader(rows)


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the types of a schema."""
    if batch.schema == schema:
        return batch
    columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def fetch(store: Backend, expr: ir.Table) -> pa.Table:
    """Return the result of a query of the store; it must be small."""
    schema = arrow_schema(expr)
    batches = (cast_batch(batch, schema) for batch in read_batches(store, expr, ROWS_PER_BATCH))
    return pa.Table.from_batches(batches, schema)


def count(store: Backend, table: ir.Table) -> int:
    """Return the number of rows of a table in the store."""
    return int(fetch(store, table.aggregate(n=table.count()))["n"][0].as_py())


@contextmanager
def explain_errors(files: Sequence[Path]) -> Iterator[None]:
    """Turn DuckDB's errors into one sentence that says which of `files` is to blame.

    Raises:
        InputError: If a query in the context fails: a file cannot be read, or memory runs out.
    """
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            f"the queries need more memory or temporary space ({without_data(error)}); choose a larger "
            "--memory-limit, fewer --threads, or a --temp-dir with more space"
        ) from error
    except (duckdb.OperationalError, duckdb.DataError, duckdb.InvalidInputException) as error:
        paths = [str(path) for path in files]
        named = [path for path in paths if path in str(error)] or paths or ["the database"]
        reason = without_data(error)
        raise InputError(
            f"cannot read {', '.join(named)}: {reason}; if the disk is not full, fetch the file again"
        ) from error
