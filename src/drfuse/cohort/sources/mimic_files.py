"""MIMIC-IV as files in PhysioNet's layout: CSV, compressed CSV or Parquet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import ibis.expr.types as ir

from drfuse.cohort.sources.csv_files import CsvFiles
from drfuse.cohort.sources.mimic_iv import TABLES, Read, Schema, read_mimic_iv
from drfuse.cohort.sources.source import EventKind, SourceFile, StoreSource
from drfuse.cohort.sources.table_files import find_release, find_table, read_table
from drfuse.cohort.store import Store
from drfuse.errors import MissingInputError


@dataclass(frozen=True, kw_only=True)
class MimicFiles(StoreSource):
    """The folder of a release (it holds `icu/` and `hosp/`), or a folder above it.

    Attributes:
        csv_files: What reads the tables that are CSV files.
    """

    csv_files: CsvFiles

    @classmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records of a release; see `Source.open`."""
        root = find_release(
            Path(address), ("icu/icustays",), "a MIMIC-IV release (icu/icustays.csv.gz, hosp/...)"
        )
        files = {table: found for table in TABLES if (found := _find_table(root, table))}
        admissions, csv_files = files["admissions"][0], CsvFiles(store)

        def read(table: str, schema: Schema) -> Read:
            return read_table(files[table], schema, store, csv_files, not TABLES[table].is_needed)

        return cls(
            address=str(root),
            engine=store,
            store=store,
            root=root,
            csv_files=csv_files,
            record_files=tuple(chain.from_iterable(files.values())),
            **read_mimic_iv(
                root.name, admissions.path.relative_to(root).parts[0], admissions.columns, files, read
            ),
        )

    def select_events(
        self, kind: EventKind, items: Sequence[int], query: Callable[[ir.Table], ir.Table]
    ) -> ir.Table:
        """Return the answer to a query of the events of some items; only those events of a CSV are parsed."""
        return self.csv_files.select(self.events[kind], "itemid", items, query)


def _find_table(root: Path, table: str) -> tuple[SourceFile, ...]:
    """Return the files of a table; none if the release lacks it and it is not needed."""
    feeds, modules, _, is_needed = TABLES[table]
    for module in modules:
        if files := find_table(root / module / table, feeds):
            return files
    if not is_needed:
        return ()
    places = " or ".join(f"{module}/{table}.csv.gz" for module in modules)
    raise MissingInputError(
        f"{root} lacks the table {table}: expected {places} (or .csv, .parquet, or a folder of parts)"
    )
