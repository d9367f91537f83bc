"""MIMIC-IV in PostgreSQL, as the MIMIC code repository loads it."""

from collections.abc import Iterator
from typing import Self
from urllib.parse import unquote, urlsplit

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from drfuse.cohort.sources.mimic_iv import find_mimic_iv
from drfuse.cohort.sources.source import Source, missing_driver
from drfuse.cohort.store import Store
from drfuse.errors import InputError

_CONNECT_SECONDS = 30


class PostgreSQL(Source):
    """A PostgreSQL database, read through a read-only connection.

    The password may also come from `PGPASSWORD` or `~/.pgpass`.
    """

    schemes = ("postgresql", "postgres")
    form = "postgresql://user@host:port/database"

    @classmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records of a database; see `Source.open`."""
        try:
            import psycopg
        except ImportError as error:
            raise missing_driver("postgresql") from error
        try:
            parts = urlsplit(address)
            parts.port  # noqa: B018 - raises if it is not a number
            well_formed = parts.netloc.count("@") <= 1 and parts.path.strip("/") != ""
            options = psycopg.conninfo.conninfo_to_dict(address)
        except (ValueError, psycopg.Error):
            well_formed = False
        if not well_formed:
            raise InputError(
                "the address of the PostgreSQL database is not of the form "
                "postgresql://user:password@host:port/database; in a password, write @, :, / and % as %40, "
                "%3A, %2F and %25, or put the password into PGPASSWORD or ~/.pgpass"
            )
        name = without_user(address)
        try:
            options.setdefault("connect_timeout", _CONNECT_SECONDS)
            client = psycopg.connect(psycopg.conninfo.make_conninfo("", **options), autocommit=True)
            client.execute("SET default_transaction_read_only = on")
            client.execute("SET extra_float_digits = 3")  # every digit of a float, on old servers too
            client.execute("SET cursor_tuple_fraction = 1")  # every query is fetched to its end
        except psycopg.Error as error:
            reason = " ".join(str(error).split())  # the server's word on the connection, never a cell
            if secret := options.get("password"):
                reason = reason.replace(str(secret), "***")
            raise InputError(
                f"cannot connect to the PostgreSQL database {name}: {reason}; check the address, "
                "the user and the password"
            ) from None
        engine = ibis.postgres.from_connection(client)
        tables = find_mimic_iv(name, lambda table, schema: engine.table(table, database=schema))
        return cls(address=name, engine=engine, store=store, errors=(psycopg.Error,), **tables)

    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        yield from self.engine.to_pyarrow_batches(expr, chunk_size=rows)  # a cursor on the server


def without_user(url: str) -> str:
    """Return an address without its user, password and options.

    >>> without_user("postgresql://jane:secret@db.example:5433/mimic?sslmode=require")
    'postgresql://db.example:5433/mimic'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"
