"""Open MIMIC-IV where it lies in a database, and stream what a query there returns.

Nothing is written to a database: DuckDB and PostgreSQL are opened read-only, and no query makes a table.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends.duckdb import Backend as DuckDB
from ibis.common.exceptions import TableNotFound

from drfuse.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from ibis.backends import BaseBackend

_FORMS = (
    "duckdb:///folder/file, postgresql://user@host:port/database, bigquery://project/dataset or "
    "spark://host:port/folder (spark://local[N]/folder on this machine)"
)
_CONNECT_SECONDS = 30
_ATTACHED = "mimic_iv"


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        name: Its address without user and password.
        engine: The Ibis backend that answers for it.
        find: Returns the table of a name in the first of some modules (`hosp`, `icu`) that has it, and where
            it lies; None where none has.
    """

    name: str
    engine: "BaseBackend"
    find: Callable[[Sequence[str], str], tuple[str, ir.Table] | None]


def is_database(source: str | Path) -> bool:
    """Return whether a source is the address of a database rather than a folder.

    >>> is_database("postgresql://localhost/mimic"), is_database("mimic-iv/3.1")
    (True, False)
    """
    return isinstance(source, str) and "://" in source


def open_database(url: str, connection: DuckDB) -> Database:
    """Open the database at an address.

    Args:
        url: `duckdb:///folder/file`; `postgresql://user@host:port/database` (the password also from
            `PGPASSWORD` or `~/.pgpass`); `bigquery://project/dataset`, where the dataset may be the part of
            the name that comes before `_hosp` and `_icu`, with `?billing_project=` to name who pays; or
            `spark://host:port/folder` with Parquet files in MIMIC-IV's layout, `spark://local[N]/folder` for
            N cores of this machine.
        connection: The local DuckDB connection, to which a DuckDB file is attached.

    Raises:
        MissingInputError: If there is no such file, or a driver is not installed.
        InputError: If the address is none of these, or the database does not let us in.
    """
    openers: Mapping[str, Callable[[str, DuckDB], Database]] = {
        "duckdb": _open_duckdb,
        "postgresql": _open_postgresql,
        "postgres": _open_postgresql,
        "bigquery": _open_bigquery,
        "spark": _open_spark,
    }
    scheme = url.partition("://")[0].lower()
    if scheme not in openers:
        raise InputError(f"there is no engine for addresses that begin with {scheme}://; expected {_FORMS}")
    return openers[scheme](url, connection)


def stream(expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield what a query returns in batches of about `rows` rows; the whole is never held here.

    The batches have the types of the expression's schema, times without a zone; their order is the engine's.
    On DuckDB they hold the connection: nothing else may run on it until the last one has come.

    Raises:
        InputError: If the database cannot answer.
    """
    engine, schema = expr.get_backend(), arrow_schema(expr)
    with _asking(engine):
        for batch in _READERS[engine.name](engine, expr, rows):
            yield batch if batch.schema == schema else _cast(batch, schema)


def arrow_schema(expr: ir.Table) -> pa.Schema:
    """Return the types of the batches that `stream` yields."""
    return pa.schema(
        [
            (name, pa.timestamp("us") if kind.is_timestamp() else kind.to_pyarrow())
            for name, kind in expr.schema().items()
        ]
    )


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _read_duckdb(engine: Any, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    engine._run_pre_execute_hooks(expr)  # what Ibis does before it runs a query: tables in memory
    yield from engine.con.sql(engine.compile(expr)).to_arrow_reader(rows)


def _read_postgresql(engine: Any, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    yield from engine.to_pyarrow_batches(expr, chunk_size=rows)  # a cursor on the server


def _read_bigquery(engine: Any, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    for batch in engine.to_pyarrow_batches(expr):
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _read_spark(engine: Any, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """Fetch a partition at a time; Ibis would collect them all.

    Each batch travels as one binary value: Spark has no iterator over Arrow batches.
    """
    engine._session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows)
    packed = engine._session.sql(engine.compile(expr)).mapInArrow(_pack, "batch binary")
    for row in packed.toLocalIterator(prefetchPartitions=True):
        yield from pa.ipc.open_stream(row.batch)


def _pack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        packed = pa.array([sink.getvalue().to_pybytes()], pa.binary())
        yield pa.RecordBatch.from_arrays([packed], names=["batch"])


_READERS: Mapping[str, Callable[[Any, ir.Table, int], Iterator[pa.RecordBatch]]] = {
    "duckdb": _read_duckdb,
    "postgres": _read_postgresql,
    "bigquery": _read_bigquery,
    "pyspark": _read_spark,
}


@contextmanager
def _asking(engine: "BaseBackend") -> Iterator[None]:
    """Turn what an engine says of a query that failed into one sentence; DuckDB's words are for `reading`."""
    errors: tuple[type[Exception], ...] = ()
    if engine.name == "postgres":
        import psycopg

        errors = (psycopg.Error,)
    elif engine.name == "pyspark":
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        errors = (Py4JError, PySparkException)
    elif engine.name == "bigquery":
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        errors = (GoogleAPIError, GoogleAuthError)
    try:
        yield
    except errors as error:
        raise InputError(
            f"the database cannot answer: {_first_line(error)}; check its tables and your rights there"
        ) from error


def _open_duckdb(url: str, connection: DuckDB) -> Database:
    """Attach a DuckDB file to the local connection, whose memory, threads and spill folder then hold."""
    path = Path(url.partition("://")[2])
    if not path.is_file():
        raise MissingInputError(f"there is no DuckDB file {path}; expected duckdb:///folder/file")
    try:
        connection.attach(path, name=_ATTACHED, read_only=True)
    except duckdb.Error as error:
        raise InputError(f"cannot open {path} as a DuckDB database: {_first_line(error)}") from error

    def find(modules: Sequence[str], table: str) -> tuple[str, ir.Table] | None:
        places = [(_ATTACHED, schema) for schema in _schemas(modules)]
        return _first_table(connection, [*places, (_ATTACHED, "main")], table)

    return Database(f"duckdb://{path}", connection, find)


def _open_postgresql(url: str, _: DuckDB) -> Database:
    try:
        import psycopg
    except ImportError as error:
        raise _no_driver("postgresql") from error
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is not a number
        well_formed = parts.netloc.count("@") <= 1 and parts.path.strip("/") != ""
        options = psycopg.conninfo.conninfo_to_dict(url)
    except (ValueError, psycopg.Error):
        well_formed = False
    if not well_formed:
        raise InputError(
            "the address of the PostgreSQL database is not of the form "
            "postgresql://user:password@host:port/database; write @, :, / and % of a password as %40, %3A, "
            "%2F and %25, or leave the password to PGPASSWORD or ~/.pgpass"
        )
    try:
        options.setdefault("connect_timeout", _CONNECT_SECONDS)
        client = psycopg.connect(psycopg.conninfo.make_conninfo("", **options), autocommit=True)
        client.execute("SET default_transaction_read_only = on")
        client.execute("SET extra_float_digits = 3")  # every digit of a float, on old servers too
        client.execute("SET cursor_tuple_fraction = 1")  # we fetch all that we ask for
    except psycopg.Error as error:
        reason = _first_line(error)
        if secret := options.get("password"):
            reason = reason.replace(str(secret), "***")
        raise InputError(
            f"cannot connect to the PostgreSQL database {_without_user(url)}: {reason}; check the address, "
            "the user and the password"
        ) from None
    engine = ibis.postgres.from_connection(client)

    def find(modules: Sequence[str], table: str) -> tuple[str, ir.Table] | None:
        return _first_table(engine, [(None, schema) for schema in _schemas(modules)], table)

    return Database(_without_user(url), engine, find)


def _open_bigquery(url: str, _: DuckDB) -> Database:
    parts = urlsplit(url)
    project, dataset = parts.netloc, parts.path.strip("/")
    if not re.fullmatch(r"[\w.:-]+", project) or not re.fullmatch(r"\w+", dataset):
        raise InputError("the address of the BigQuery dataset is not of the form bigquery://project/dataset")
    try:
        import google.auth
        from google.api_core.exceptions import GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError

        ibis.bigquery  # noqa: B018 - imports the client
    except ImportError as error:
        raise _no_driver("bigquery") from error
    name = f"bigquery://{project}/{dataset}"
    try:
        scopes = ["https://www.googleapis.com/auth/bigquery"]
        credentials, own_project = google.auth.default(scopes)
        payer = parse_qs(parts.query).get("billing_project", [own_project or project])[0]
        engine = ibis.bigquery.connect(payer, f"{project}.{dataset}", credentials=credentials)
    except (GoogleAPIError, GoogleAuthError) as error:
        raise InputError(
            f"cannot connect to {name}: {_first_line(error)}; log in with "
            "`gcloud auth application-default login`"
        ) from error

    def find(modules: Sequence[str], table: str) -> tuple[str, ir.Table] | None:
        for place in [*(f"{dataset}_{module}" for module in modules), dataset]:
            try:
                return place, engine.table(table, database=(project, place))
            except (NotFound, TableNotFound):
                continue
            except (GoogleAPIError, GoogleAuthError) as error:
                raise InputError(
                    f"cannot read {name}: {_first_line(error)}; check your rights there"
                ) from error
        return None

    return Database(name, engine, find)


def _open_spark(url: str, _: DuckDB) -> Database:
    host, _slash, path = url.partition("://")[2].partition("/")
    folder = path if "://" in path else f"/{path}"
    if not host or not path:
        raise InputError(
            "the address of the Spark cluster is not of the form spark://host:port/folder or "
            "spark://local[N]/folder"
        )
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import AnalysisException, PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise _no_driver("spark") from error
    local = host.startswith("local")
    builder = SparkSession.builder.appName("drfuse").master(host if local else f"spark://{host}")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.log.level", "ERROR")
    if local:
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.ui.enabled", "false")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or it takes what it finds on the PATH
    try:
        engine = ibis.pyspark.connect(builder.getOrCreate())
    except (Py4JError, PySparkException) as error:
        raise InputError(f"cannot connect to the Spark cluster {host}: {_first_line(error)}") from error

    def find(modules: Sequence[str], table: str) -> tuple[str, ir.Table] | None:
        for place in (f"{module}/{table}{suffix}" for module in modules for suffix in (".parquet", "")):
            try:
                return place, engine.read_parquet(f"{folder.rstrip('/')}/{place}")
            except AnalysisException as error:
                if error.getCondition() != "PATH_NOT_FOUND":
                    raise InputError(f"Spark cannot read {folder}/{place}: {_first_line(error)}") from error
            except (Py4JError, PySparkException) as error:
                raise InputError(f"Spark cannot read {folder}/{place}: {_first_line(error)}") from error
        return None

    inner = re.sub(r"//[^/]*@", "//", path)  # keys of an object store
    return Database(f"spark://{host}/{inner}", engine, find)


def _schemas(modules: Sequence[str]) -> list[str]:
    """Return what a module's schema may be called: as the MIMIC code repository's loader does, or plainly."""
    return [name for module in modules for name in (f"mimiciv_{module}", module)]


def _first_table(
    engine: "BaseBackend", places: Sequence[tuple[str | None, str]], table: str
) -> tuple[str, ir.Table] | None:
    for catalog, schema in places:
        try:
            return schema, engine.table(table, database=schema if catalog is None else (catalog, schema))
        except TableNotFound:
            continue
    return None


def _without_user(url: str) -> str:
    """Return an address without user, password and options.

    >>> _without_user("postgresql://jane:secret@db.example:5433/mimic?sslmode=require")
    'postgresql://db.example:5433/mimic'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"


def _no_driver(extra: str) -> MissingInputError:
    return MissingInputError(f"the driver is not installed; run pip install 'drfuse[{extra}]'")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".;") if lines else type(error).__name__
