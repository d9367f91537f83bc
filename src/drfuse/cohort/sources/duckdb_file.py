"""MIMIC-IV in a DuckDB file, which is attached to the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import duckdb
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend
from ibis.common.exceptions import TableNotFound

from drfuse.cohort.sources.mimic_iv import find_mimic_iv, schema_names
from drfuse.cohort.sources.source import StoreSource, first_line
from drfuse.errors import InputError, MissingInputError

_ATTACHED = "mimic_iv"


class DuckDBFile(StoreSource):
    """A DuckDB file, opened read-only; the store's memory, threads and spill folder apply."""

    schemes = ("duckdb",)
    form = "duckdb:///folder/file"

    @classmethod
    def open(cls, address: str, store: Backend) -> Self:
        """Attach a file; see `Source.open`."""
        path = Path(address.partition("://")[2])
        if not path.is_file():
            raise MissingInputError(f"there is no DuckDB file {path}; expected {cls.form}")
        try:
            store.attach(path, name=_ATTACHED, read_only=True)
        except duckdb.Error as error:
            raise InputError(
                f"cannot open {path} as a DuckDB database: {first_line(error)}; check the file, or fetch it "
                "again"
            ) from error

        def find(modules: Sequence[str], table: str) -> tuple[str, ir.Table] | None:
            for schema in [*schema_names(modules), "main"]:
                try:
                    return schema, store.table(table, database=(_ATTACHED, schema))
                except TableNotFound:
                    continue
            return None

        name = f"duckdb://{path}"
        return cls(address=name, engine=store, store=store, **find_mimic_iv(name, find))
