"""MIMIC-IV in a DuckDB file."""

from pathlib import Path
from typing import Self

import duckdb
import ibis.expr.types as ir

from drfuse.cohort.sources.mimic_iv import find_mimic_iv
from drfuse.cohort.sources.source import StoreSource
from drfuse.cohort.store import Store
from drfuse.errors import InputError, MissingInputError, reason_of

_ATTACHED = "mimic_iv"


class DuckDBFile(StoreSource):
    """A DuckDB file, attached to the store read-only."""

    schemes = ("duckdb",)
    form = "duckdb:///folder/file"

    @classmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records of a DuckDB file; see `Source.open`."""
        path = Path(address.partition("://")[2])
        if not path.is_file():
            raise MissingInputError(f"there is no DuckDB file {path}; expected {cls.form}")
        try:
            store.attach(path, name=_ATTACHED, read_only=True)
        except duckdb.Error as error:
            raise InputError(
                f"cannot open {path} as a DuckDB database: {reason_of(error)}; check the file, or fetch it "
                "again"
            ) from error

        def open_table(table: str, schema: str) -> ir.Table:
            return store.table(table, database=(_ATTACHED, schema))

        name = f"duckdb://{path}"
        tables = find_mimic_iv(name, open_table, last_places=("main",))
        return cls(address=name, engine=store, store=store, **tables)
