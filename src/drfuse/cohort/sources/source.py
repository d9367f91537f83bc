"""What a source is: five Ibis tables, and what its engine does in its own way."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
from ibis.backends.duckdb import Backend as DuckDB

from drfuse.cohort.store import ROWS_A_BATCH, arrow_schema, cast_batch, first_line, read_batches
from drfuse.errors import InputError, MissingInputError

_SIMULATION = "simulation.json"  # beside records that `drfuse simulate` wrote

EventKind = Literal["chartevents", "labevents"]
"""How an event finds its stay: a chart event names it, a laboratory result its admission or nothing."""

Table = Literal["stays", "events", "diagnoses", "admissions", "radiographs"]
"""The five tables of a source."""


@dataclass(frozen=True)
class SourceFile:
    """One file that a source reads.

    Attributes:
        kind: Its own name in the source, such as `icustays`.
        feeds: The table of the source that is made from it.
        path: Its path.
        columns: The names of its columns.
    """

    kind: str
    feeds: Table
    path: Path
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Images(ABC):
    """The radiographs of a hospital: their table, and where the image files lie.

    Attributes:
        name: What the manifest calls them (`mimic_cxr`).
        release: The release as far as it can be told.
        root: The folder of the release.
        files: The files of the table.
        table: A row an image in the store: `dicom_id`, `subject_id`, `study_id`, `view_position` (as
            DICOM's ViewPosition), and `studied_at`, null where the time is unknown.
    """

    name: str
    release: str
    root: Path
    files: tuple[SourceFile, ...]
    table: ir.Table

    @abstractmethod
    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:
        """Return where an image should lie."""

    @abstractmethod
    def may_hold(self, missing: str) -> bool:
        """Return whether an image that was missing at this path below `root` may lie elsewhere now."""


@dataclass(frozen=True)
class Source(ABC):
    """The raw records of one hospital.

    The tables may have more columns than these. An engine answers for `stays`, `admissions`, `events` and
    `diagnoses`; `radiographs` lie in the store.

    Attributes:
        name: What the manifest calls records of this kind (`mimic_iv`).
        address: The folder, or the database's address without user and password.
        release: The release as far as it can be told.
        engine: The Ibis backend that answers.
        store: The local DuckDB database.
        stays: A row an ICU stay: `subject_id`, `hadm_id`, `stay_id`, `gender`, `birth_year`,
            `first_careunit`, `last_careunit`, `intime`, `outtime`, `los` (days). Years are those of the
            subject's own calendar, which may be shifted.
        admissions: A row an admission: `subject_id`, `hadm_id`, `admittime`, `admission_type`, `race`,
            `in_hospital_mortality` (null where it is unknown).
        events: A row a measurement: `subject_id`, `hadm_id`, `itemid`, `charttime`, `storetime`, `value`
            (text), `valuenum`; chart events also have `stay_id`, laboratory results `specimen_id`. There is
            one table for each kind: engines write a union that a query reads twice to disk.
        diagnoses: A row a diagnosis: `hadm_id`, `icd_code`, `icd_version`.
        root: The folder; None for a database.
        record_files: The files of these tables; none for a database, whose content cannot be recognized
            later.
        images: The radiographs; None if there are none.
        errors: What the engine raises when it cannot answer.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    """What addresses of this kind begin with, before `://`."""
    form: ClassVar[str] = ""
    """What addresses of this kind look like, for messages; empty if they cannot be given."""

    name: str
    address: str
    release: str
    engine: Any
    store: DuckDB
    stays: ir.Table
    admissions: ir.Table
    events: Mapping[EventKind, ir.Table]
    diagnoses: ir.Table
    root: Path | None = None
    record_files: tuple[SourceFile, ...] = ()
    images: Images | None = None
    errors: tuple[type[Exception], ...] = ()

    @classmethod
    @abstractmethod
    def open(cls, address: str, store: DuckDB) -> Self:
        """Open the records at an address; only the names and types of columns are read.

        Raises:
            MissingInputError: If the records, one of their tables or columns, or a driver are missing.
            InputError: If the address is malformed, or the records cannot be opened.
        """

    @property
    def radiographs(self) -> ir.Table | None:
        """The table of `images`."""
        return None if self.images is None else self.images.table

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All files but images."""
        return self.record_files + (() if self.images is None else self.images.files)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the records and the radiographs."""
        folder = self.address if self.root is None else self.root.name
        described = {self.name: _describe(self.release, folder, self.root, self.record_files)}
        if (images := self.images) is not None:
            described[images.name] = _describe(images.release, images.root.name, images.root, images.files)
        return described

    def close(self) -> None:
        """End the connection to the engine."""
        self.engine.disconnect()

    def batches(self, expr: ir.Table, rows: int = ROWS_A_BATCH) -> Iterator[pa.RecordBatch]:
        """Yield the engine's answer to a query in batches of about `rows` rows, in the engine's order.

        The whole answer is never held here. The batches have the types of the expression's schema, times
        without a zone.

        Raises:
            InputError: If the engine cannot answer.
        """
        schema = arrow_schema(expr)
        try:
            for batch in self._read(expr, rows):
                yield cast_batch(batch, schema)
        except self.errors as error:
            raise InputError(
                f"the database cannot answer: {first_line(error)}; check its tables and your rights there"
            ) from error

    def materialize(self, expr: ir.Table, name: str, order_by: str | None = None) -> ir.Table:
        """Return the engine's answer to a query as a table of the store, sorted if a column is named."""
        store = self.store
        store.con.register("answer", arrow_schema(expr).empty_table())
        store.raw_sql(f"CREATE TABLE {name} AS FROM answer")
        for batch in self.batches(expr):  # Python waits here, so that Ctrl-C works
            store.con.register("answer", pa.Table.from_batches([batch]))
            store.raw_sql(f"INSERT INTO {name} FROM answer")
        store.con.unregister("answer")
        if order_by is None:
            return store.table(name)
        store.raw_sql(f"CREATE TABLE {name}_in_order AS FROM {name} ORDER BY {order_by}")
        store.raw_sql(f"DROP TABLE {name}")
        return store.table(f"{name}_in_order")

    def queryable(self, stored: ir.Table, query: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return a table that the engine's own queries can join.

        Args:
            stored: The table in the store.
            query: The engine's query for the same rows.
        """
        return query

    def small_table(self, columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
        """Return a few rows as a table that the engine's own queries can join."""
        return literal_table(columns, types)

    @abstractmethod
    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the engine's answer to a query in batches, with whatever types the engine gives them."""


class StoreSource(Source):
    """Records that the store itself reads: files, or an attached DuckDB file.

    `store.explain_errors` turns DuckDB's errors into sentences.
    """

    def close(self) -> None:
        """Do nothing: whoever opened the store closes it."""

    def materialize(self, expr: ir.Table, name: str, order_by: str | None = None) -> ir.Table:
        """Return the answer to a query as a table of the store, sorted if a column is named."""
        return self.store.create_table(name, expr if order_by is None else expr.order_by(order_by))

    def queryable(self, stored: ir.Table, query: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return `stored`."""
        return stored

    def small_table(self, columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
        """Return a few rows as a table in memory, with which DuckDB compiles a query faster."""
        return memory_table(columns, types)

    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        return read_batches(self.store, expr, rows)


def _describe(release: str, folder: str, root: Path | None, files: Sequence[SourceFile]) -> dict[str, Any]:
    return {
        "release": release,
        "folder": folder,
        **({"simulated": True} if root and (root.parent / _SIMULATION).is_file() else {}),
        "files": {str(file.path.relative_to(root)): file.path.stat().st_size for file in files if root},
    }


def memory_table(columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
    """Return rows as a table in memory, which only the store can join."""
    return ibis.memtable(pl.DataFrame(dict(columns)), schema=dict(types))


def literal_table(columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
    """Return rows as literals of the query, which every engine can join."""
    tables = []
    for row in zip(*columns.values(), strict=True):
        # a float as a text, or PostgreSQL and Spark would take 0.1 for a decimal
        (name, first), *others = (
            (name, ibis.literal(str(value) if types[name] == "float64" else value).cast(types[name]))
            for name, value in zip(columns, row, strict=True)
        )
        tables.append(first.name(name).as_table().mutate(**dict(others)))
    return ibis.union(*tables)


def missing_driver(extra: str) -> MissingInputError:
    """Return the error that says which extra to install."""
    return MissingInputError(f"the driver is not installed; run pip install 'drfuse[{extra}]'")
