"""A source: the five Ibis tables of a hospital, and what differs between engines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa

from drfuse.cohort.store import (
    ROWS_PER_BATCH,
    Store,
    arrow_schema,
    cast_batch,
    create_from_blocks,
    fetch,
    read_batches,
)
from drfuse.errors import InputError, MissingInputError, without_data
from drfuse.escapes import without_secrets

TOLERATED_ROWS, TOLERATED_SHARE = 20, 0.05  # rows that do not parse, before a table is refused
_SIMULATION = "simulation.json"  # `drfuse simulate` writes it beside the records

EventKind = Literal["chartevents", "labevents"]
"""Chart events carry the id of their stay; laboratory results carry that of their admission, or none."""

Table = Literal["stays", "events", "diagnoses", "admissions", "radiographs"]


@dataclass(frozen=True)
class SourceFile:
    """One file that a source reads.

    Attributes:
        kind: Its name in the source's own layout, such as `icustays`.
        feeds: The table of the source that it goes into.
        path: Where it is.
        columns: The names of its columns.
        is_part: Whether it lies in a folder that holds the table in parts.
    """

    kind: str
    feeds: Table
    path: Path
    columns: tuple[str, ...]
    is_part: bool = False

    @property
    def name(self) -> str:
        """Its file name; of a part, with the folder's name."""
        return f"{self.kind}/{self.path.name}" if self.is_part else self.path.name


@dataclass(frozen=True)
class TypedTable:
    """A table whose columns have types of their own: a Parquet file, or a table of a database.

    Attributes:
        name: Its name, or its file's.
        where: The same, for messages.
        feeds: The table of the source that it goes into.
        rows: Its rows, as they are.
        may_be_empty: Whether it needs no row.
        wrong: By column, where a cell is not what is expected. Such rows are left out.
        expected: What is expected, by column.
    """

    name: str
    where: str
    feeds: Table
    rows: ir.Table
    may_be_empty: bool = False
    wrong: Mapping[str, ir.BooleanColumn] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)

    def count(self) -> ir.Table:
        """Return a query of one row: `n_rows` (at most 1 if no cell can be wrong), `n_wrong` and `wrong_K`.

        The last are the numbers of wrong cells, by the place of their column in `wrong`.
        """
        if not self.wrong:
            some = self.rows.limit(1)
            return some.agg(n_rows=some.count(), n_wrong=ibis.literal(0))
        cells = {f"wrong_{k}": where.sum().fill_null(0) for k, where in enumerate(self.wrong.values())}
        n_wrong = ibis.or_(*self.wrong.values()).sum().fill_null(0)
        return self.rows.agg(n_rows=self.rows.count(), n_wrong=n_wrong, **cells)

    def check(self, counts: Mapping[str, int]) -> None:
        """Raise InputError if the table has too few rows, or too many that do not parse, by `count`."""
        if not counts["n_rows"] and not self.may_be_empty:
            raise no_rows(self.where)
        _, column = max(((counts[f"wrong_{k}"], name) for k, name in enumerate(self.wrong)), default=(0, ""))
        reason = f"{column} is not {self.expected.get(column)}"
        check_rejected(counts["n_wrong"], counts["n_rows"], self.where, reason)


def no_rows(where: str | Path) -> InputError:
    """Return the error that a table has no row."""
    return InputError(f"{where} has no row, only the names of its columns; fetch it again")


def check_rejected(n_rejected: int, n_rows: int, where: str | Path, reason: str) -> None:
    """Raise InputError if so many rows of a table do not parse that it cannot be the right one."""
    if n_rejected > max(TOLERATED_ROWS, TOLERATED_SHARE * n_rows) or 0 < n_rows == n_rejected:
        raise InputError(
            f"{n_rejected} of the {n_rows} rows of {where} do not parse, first: {reason}; check that it is "
            "the right file, or fetch it again"
        )


@dataclass(frozen=True)
class Images(ABC):
    """The radiographs of a hospital: their table, and where the image files are.

    Attributes:
        name: Their name in the manifest (`mimic_cxr`).
        release: The release, as far as it can be told.
        root: The folder of the release.
        files: The files that the table is read from.
        table: One row per image, in the store: `dicom_id`, `subject_id`, `study_id`, `view_position` (DICOM's
            ViewPosition), and `studied_at`, null if the time is unknown.
        typed_tables: What it is read from, if that has types of its own.
    """

    form: ClassVar[str] = ""
    """Where images are below `root`, for messages."""

    name: str
    release: str
    root: Path
    files: tuple[SourceFile, ...]
    table: ir.Table
    typed_tables: Sequence[TypedTable] = ()

    @abstractmethod
    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:
        """Return where an image should be."""

    @abstractmethod
    def may_hold(self, missing: str) -> bool:
        """Return whether an image that was missing at this path below `root` may be elsewhere now."""


@dataclass(frozen=True)
class Source(ABC):
    """The raw records of one hospital.

    The tables may have more columns than listed here. The engine queries `stays`, `admissions`, `events` and
    `diagnoses`; `radiographs` is a table of the store.

    Attributes:
        name: The name of such records in the manifest (`mimic_iv`).
        address: The folder, or the database's address without user and password.
        release: The release, as far as it can be told.
        engine: The Ibis backend that runs the queries.
        store: The local DuckDB database.
        stays: One row per ICU stay: `subject_id`, `hadm_id`, `stay_id`, `gender`, `birth_year`,
            `first_careunit`, `last_careunit`, `intime`, `outtime`, `los` (days). Years are those of the
            subject's own calendar, which may be shifted.
        admissions: One row per admission: `subject_id`, `hadm_id`, `admittime`, `admission_type`, `race`,
            `in_hospital_mortality` (null if unknown).
        events: One row per measurement: `subject_id`, `hadm_id`, `itemid`, `charttime`, `storetime`, `value`
            (text), `valuenum`; chart events also have `stay_id`, laboratory results `specimen_id`. One table
            for each kind, because engines write a union to disk if a query reads it twice.
        keys: The records' own tables of which no two rows may share some columns, with these columns.
        typed_tables: What the records are read from, if that has types of its own.
        diagnoses: One row per diagnosis: `hadm_id`, `icd_code`, `icd_version`; None if there are none.
        root: The folder; None for a database.
        record_files: The files behind these tables; none for a database: it cannot be checked for changes.
        images: The radiographs; None if there are none.
        errors: What the engine raises if a query fails.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    """What addresses of this kind begin with, before `://`; empty for a folder."""
    form: ClassVar[str] = ""
    """What addresses of this kind look like, for messages."""

    name: str
    address: str
    release: str
    engine: Any
    store: Store
    stays: ir.Table
    admissions: ir.Table
    events: Mapping[EventKind, ir.Table]
    diagnoses: ir.Table | None
    root: Path | None = None
    record_files: tuple[SourceFile, ...] = ()
    images: Images | None = None
    keys: Mapping[str, tuple[ir.Table, Sequence[str]]] = field(default_factory=dict)
    typed_tables: Sequence[TypedTable] = ()
    errors: tuple[type[Exception], ...] = ()

    @classmethod
    @abstractmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records at an address, opened; only column names and types are read yet.

        Raises:
            MissingInputError: If the records, one of their tables or columns, or a driver is missing.
            InputError: If the address is malformed, or the records cannot be opened.
        """

    @property
    def radiographs(self) -> ir.Table | None:
        """The table of `images`."""
        return None if self.images is None else self.images.table

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All files except images."""
        return self.record_files + (() if self.images is None else self.images.files)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says about the records and the radiographs."""
        folder = without_secrets(self.address) if self.root is None else self.root.name
        described = {self.name: _describe(self.release, folder, self.root, self.record_files)}
        if (images := self.images) is not None:
            described[images.name] = _describe(images.release, images.root.name, images.root, images.files)
        return described

    def close(self) -> None:
        """End the connection to the engine."""
        self.engine.disconnect()

    def batches(self, expr: ir.Table, rows: int = ROWS_PER_BATCH) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query in batches of about `rows` rows, in the engine's order.

        The whole result is never in memory. Columns have the types of the expression's schema; times have no
        zone.

        Raises:
            InputError: If the query fails.
        """
        schema = arrow_schema(expr)
        try:
            for batch in self._read(expr, rows):
                yield cast_batch(batch, schema)
        except self.errors as error:
            raise InputError(
                f"the database cannot answer: {without_data(error)}; check its tables and your rights there"
            ) from error

    def check_typed_tables(self, unread: Collection[str]) -> None:
        """Count the rows of typed tables that do not parse, in `Store.rejected_rows`.

        Args:
            unread: The tables of the source that are not read.

        Raises:
            InputError: If a table has no row, or too many that do not parse.
        """
        images = () if self.images is None else self.images.typed_tables
        for number, table in enumerate((*self.typed_tables, *images)):
            if table.feeds in unread:
                continue
            query, name = table.count(), f"checked_{number}"
            is_record = number < len(self.typed_tables)
            kept = self.materialize(query, name) if is_record else self.store.create_table(name, query)
            (counts,) = fetch(self.store, kept).to_pylist()
            table.check(counts)
            if counts["n_wrong"]:
                self.store.rejected_rows[table.name] = int(counts["n_wrong"])

    def select_events(
        self, kind: EventKind, items: Sequence[int], query: Callable[[ir.Table], ir.Table]
    ) -> ir.Table:
        """Return a query of the events of some items, or its result where events can be read only once.

        Args:
            kind: The table of events.
            items: Their `itemid`.
            query: Takes these events and returns the query. It may get some of them at a time, so it must
                treat each event by itself.
        """
        events = self.events[kind]
        return query(events.filter(events.itemid.isin(items)))

    def materialize(self, expr: ir.Table, name: str, order_by: str | None = None) -> ir.Table:
        """Return the result of a query as a table of the store, sorted by a column if one is given."""
        store = self.store
        blocks = (pa.Table.from_batches([batch]) for batch in self.batches(expr))
        table = create_from_blocks(store, name, chain([arrow_schema(expr).empty_table()], blocks))
        if order_by is None:
            return table
        store.raw_sql(f"CREATE TABLE {name}_in_order AS FROM {name} ORDER BY {order_by}")
        store.raw_sql(f"DROP TABLE {name}")
        return store.table(f"{name}_in_order")

    def queryable(self, stored: ir.Table, query: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return rows as a table that the engine's queries can join.

        Args:
            stored: The rows as a table of the store.
            query: The same rows as a query of the engine.
        """
        return query

    def small_table(self, columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
        """Return a few rows as a table that the engine's queries can join."""
        return literal_table(columns, types)

    def is_in(self, column: ir.Column, values: Sequence[str]) -> ir.BooleanColumn:
        """Return whether a column has one of many values, in the engine's own queries."""
        return column.isin(values)

    @abstractmethod
    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query in batches, with whatever types the engine gives them."""


class StoreSource(Source):
    """Records that the store itself reads: files, or an attached DuckDB file."""

    def close(self) -> None:
        """Do nothing: the store is closed where it was opened."""

    def materialize(self, expr: ir.Table, name: str, order_by: str | None = None) -> ir.Table:
        """Return the result of a query as a table of the store; see `Source.materialize`."""
        return self.store.create_table(name, expr if order_by is None else expr.order_by(order_by))

    def queryable(self, stored: ir.Table, query: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return `stored`."""
        return stored

    def small_table(self, columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
        """Return a few rows as a table in memory: DuckDB compiles it faster than literals."""
        return memory_table(columns, types)

    def is_in(self, column: ir.Column, values: Sequence[str]) -> ir.BooleanColumn:
        """Return whether a column has one of many values, from a table in memory, which compiles faster."""
        return column.isin(ibis.memtable(pl.DataFrame({"value": values})).value)

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
    """Return rows as a table in memory, for queries of the store alone."""
    return ibis.memtable(pl.DataFrame(dict(columns)), schema=dict(types))


def literal_table(columns: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> ir.Table:
    """Return rows as literals of the query, for queries of any engine."""
    tables = []
    for row in zip(*columns.values(), strict=True):
        # floats are cast from text: PostgreSQL and Spark take 0.1 for a decimal
        (name, first), *others = (
            (name, ibis.literal(str(value) if types[name] == "float64" else value).cast(types[name]))
            for name, value in zip(columns, row, strict=True)
        )
        tables.append(first.name(name).as_table().mutate(**dict(others)))
    return ibis.union(*tables)


def missing_driver(extra: str) -> MissingInputError:
    """Return the error that tells the user to install an extra."""
    return MissingInputError(
        f"this database's driver is not installed; run `pip install '.[{extra}]'` in drfuse's checkout"
    )
