"""Servers and databases that tests start themselves, with MIMIC-IV tables in them."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

PASSWORD = "p@ss/w:rd%1"
PASSWORD_IN_URL = "p%40ss%2Fw%3Ard%251"

_INTEGER, _SMALL, _NUMBER = "INTEGER", "SMALLINT", "DOUBLE PRECISION"
_TIME = "TIMESTAMP(0)"
# The column types of the tables that the MIMIC code repository's loader makes; columns it has and we do not
# write are left out.
_TYPES = {
    "subject_id": _INTEGER,
    "hadm_id": _INTEGER,
    "stay_id": _INTEGER,
    "labevent_id": _INTEGER,
    "specimen_id": _INTEGER,
    "itemid": _INTEGER,
    "seq_num": _INTEGER,
    "anchor_age": _SMALL,
    "anchor_year": _SMALL,
    "hospital_expire_flag": _SMALL,
    "icd_version": _SMALL,
    "warning": _SMALL,
    "los": _NUMBER,
    "valuenum": _NUMBER,
    "icd_code": "CHAR(7)",
    "gender": "CHAR(1)",
    "dod": "DATE",
    "comments": "TEXT",
}
_TIMES = {"admittime", "dischtime", "deathtime", "intime", "outtime", "charttime", "storetime"}


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on loopback; its superuser is `owner`, and `reader` may only select."""

    port: int

    def url(self, database: str, user: str = "reader", password: str = PASSWORD_IN_URL) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def postgres_server(binaries: Path) -> Iterator[Server]:
    """Start a server in a temporary folder; it is gone afterwards."""
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
            with (folder / f"{program}.log").open("a") as log:
                subprocess.run(command, check=True, stdout=log, stderr=log, user=user, cwd=folder)

        run("initdb", "-U", "owner", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "-N")
        # letters and times as a server elsewhere may have them: results must not depend on either
        settings = f"-p {port} -h 127.0.0.1 -k {folder} -F -c timezone=America/New_York"
        run("pg_ctl", "-w", "-o", settings, "-l", str(folder / "server.log"), "start")
        try:
            yield Server(port)
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def load_postgres(server: Server, database: str, frames: Mapping[str, pl.DataFrame]) -> str:
    """Make a database of tables by their path (`icu/chartevents`), as the loader does; return its address."""
    import psycopg

    with psycopg.connect(server.url("postgres", "owner"), autocommit=True) as client:
        client.execute(f'CREATE DATABASE "{database}"')
        if client.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader'").fetchone() is None:
            client.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
        client.execute(f'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC')
    with psycopg.connect(server.url(database, "owner")) as client:
        for path, frame in frames.items():
            module, table = path.split("/")
            columns = ", ".join(f"{name} {_postgres_type(name)}" for name in frame.columns)
            client.execute(f"CREATE SCHEMA IF NOT EXISTS mimiciv_{module}")
            client.execute(f"CREATE TABLE mimiciv_{module}.{table} ({columns})")
            with client.cursor().copy(f"COPY mimiciv_{module}.{table} FROM STDIN CSV") as copy:
                copy.write(frame.write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S"))
            client.execute(f"GRANT USAGE ON SCHEMA mimiciv_{module} TO reader")
            client.execute(f"GRANT SELECT ON mimiciv_{module}.{table} TO reader")
    return server.url(database)


def load_duckdb(path: Path, frames: Mapping[str, pl.DataFrame]) -> str:
    """Make a DuckDB file of tables by their path, as PostgreSQL would hold them; return its address."""
    with duckdb.connect(path) as connection:
        for name, frame in frames.items():
            module, table = name.split("/")
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS mimiciv_{module}")
            connection.register("frame", frame.to_arrow())
            connection.execute(f"CREATE TABLE mimiciv_{module}.{table} AS FROM frame")
    return f"duckdb://{path}"


def _postgres_type(column: str) -> str:
    return _TIME if column in _TIMES else _TYPES.get(column, "VARCHAR(200)")


def _unprivileged_user() -> str | None:
    """Return whom to run as: PostgreSQL refuses root."""
    return "nobody" if os.geteuid() == 0 else None
