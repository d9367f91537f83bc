"""MIMIC-IV as files in PhysioNet's layout: CSV, compressed CSV or Parquet."""

from pathlib import Path
from typing import Self

import ibis.expr.types as ir
from ibis.backends.duckdb import Backend

from drfuse.cohort.sources.mimic_iv import TABLES, Schema, read_mimic_iv
from drfuse.cohort.sources.source import SourceFile, StoreSource
from drfuse.cohort.sources.table_files import columns_of, existing_file, find_release, read_table
from drfuse.errors import MissingInputError


class MimicFiles(StoreSource):
    """The folder of a release (it holds `icu/` and `hosp/`), or a folder above it."""

    @classmethod
    def open(cls, address: str, store: Backend) -> Self:
        """Return the records of a release; see `Source.open`."""
        root = find_release(
            Path(address), ("icu/icustays",), "a MIMIC-IV release (icu/icustays.csv.gz, hosp/...)"
        )
        files = {table: _find_table(root, table) for table in TABLES}
        admissions = files["admissions"]

        def read(table: str, schema: Schema) -> ir.Table:
            return read_table(files[table], schema, store)

        return cls(
            address=str(root),
            engine=store,
            store=store,
            root=root,
            record_files=tuple(files.values()),
            **read_mimic_iv(root.name, admissions.path.parent.name, admissions.columns, read),
        )


def _find_table(root: Path, table: str) -> SourceFile:
    feeds, modules, _ = TABLES[table]
    for module in modules:
        if path := existing_file(root / module / table):
            return SourceFile(table, feeds, path, columns_of(path))
    places = " or ".join(f"{module}/{table}.csv.gz" for module in modules)
    raise MissingInputError(f"{root} lacks the table {table}: expected {places} (or .csv, .parquet)")
