"""MIMIC-IV in a DuckDB file, which is attached to the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import duckdb
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend

from drfuse.cohort.sources.mimic_iv import find_in_schemas, find_mimic_iv
from drfuse.cohort.sources.source import StoreSource
from drfuse.cohort.store import first_line
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
            return find_in_schemas(
                lambda name, schema: store.table(name, database=(_ATTACHED, schema)), modules, table, "main"
            )

        name = f"duckdb://{path}"
        return cls(address=name, engine=store, store=store, **find_mimic_iv(name, find))
