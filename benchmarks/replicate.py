"""Makes a MIMIC-IV folder many times as large: the same patients again and again, with ids of their own.

`python -m benchmarks.replicate --mimic-iv DIR --out DIR --copies 20 --form csv.gz` writes the tables that
`drfuse prepare` reads. Copies that were made before are found again, and used if they are of the same
input.
"""

import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import polars as pl

from benchmarks.command import command
from drfuse.files import atomic_folder

Form = Literal["csv.gz", "csv", "parquet"]

EVENTS = ("icu/chartevents", "hosp/labevents")
TABLES = (*EVENTS, "icu/icustays", "hosp/patients", "hosp/admissions", "hosp/diagnoses_icd")
COPIES = Path(tempfile.gettempdir(), "drfuse-benchmarks")
"""Where copies lie if no other folder is named."""

_IDS = ("subject_id", "hadm_id", "stay_id")
_TEXTS = ("value", "icd_code")  # also where all rows happen to hold numbers
_MARKER = "copies.json"
_GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])  # deflate, no name, no time, unknown system


def replicate(mimic_iv: Path, out: Path, copies: int, form: Form = "csv.gz") -> Path:
    """Write a release that holds every row of another one `copies` times.

    Subjects, admissions and stays of each copy have ids of their own, so that tables join within a copy and
    never across copies; all else is equal. A table is its copies one after the other. One copy of a table is
    held in memory for each core.

    Args:
        mimic_iv: Folder of a release (it holds `icu/` and `hosp/`), with tables as csv.gz.
        out: Folder to write; if it holds these copies of this input, it is left as it is.
        copies: How many times each row stands in `out`.
        form: Format of its tables. csv.gz is one gzip member, with quotes where MIMIC has them; Parquet has
            whole numbers, doubles, timestamps and text, and DuckDB's defaults otherwise.

    Returns:
        `out`.
    """
    sources = {table: mimic_iv / f"{table}.csv.gz" for table in TABLES}
    made_of = {
        "copies": copies,
        "form": form,
        "input": {table: [path.stat().st_size, path.stat().st_mtime_ns] for table, path in sources.items()},
    }
    if (out / _MARKER).is_file() and json.loads((out / _MARKER).read_text(encoding="utf-8")) == made_of:
        return out
    tables = {table: _read(path) for table, path in sources.items()}
    strides = {name: _stride([table[name] for table in tables.values() if name in table]) for name in _IDS}
    with atomic_folder(out, "copy", _MARKER, {_MARKER, "hosp/*", "icu/*"}, overwrite=True) as folder:
        for table, frame in tables.items():
            path = folder / f"{table}.{form}"
            path.parent.mkdir(exist_ok=True)
            if form == "parquet":
                _write_parquet(path, sources[table], frame.columns, strides, copies)
            else:
                _write_text(path, frame, strides, copies)
        (folder / _MARKER).write_text(json.dumps(made_of), encoding="utf-8")
    return out


def copied(mimic_iv: Path, copies: int, form: Form, folder: Path = COPIES) -> Path:
    """Return the copies that lie in `folder`; make them if they do not."""
    return replicate(mimic_iv, folder / f"{copies}x-{form.replace('.', '-')}", copies, form)


def count_events(mimic_iv: Path) -> int:
    """Return the rows of both event tables of a release as csv.gz."""
    return sum(
        pl.scan_csv(mimic_iv / f"{table}.csv.gz", infer_schema=False).select(pl.len()).collect().item()
        for table in EVENTS
    )


def _read(path: Path) -> pl.DataFrame:
    """Read a table: ids as numbers, all else as the text that it is."""
    found = pl.read_csv(path, infer_schema=False)
    return found.with_columns(pl.col(name).cast(pl.Int64) for name in _IDS if name in found)


def _stride(ids: Sequence[pl.Series]) -> int:
    """Return how far the ids of two copies lie apart: a power of ten beyond the range of one copy."""
    found = pl.concat(ids).drop_nulls().to_numpy()
    return int(10 ** len(str(np.ptp(found)))) if len(found) else 1


def _write_parquet(
    path: Path, source: Path, columns: Sequence[str], strides: Mapping[str, int], copies: int
) -> None:
    ids = [name for name in _IDS if name in columns]
    types = dict.fromkeys(ids, "BIGINT") | {name: "VARCHAR" for name in _TEXTS if name in columns}
    reader = (
        f"read_csv('{source}', header = true, quote = '\"', escape = '\"', sample_size = -1, types = {types})"
    )
    shifted = (
        ", ".join(f"{name} + {copy * strides[name]} AS {name}" for name in ids) for copy in range(copies)
    )
    query = " UNION ALL ".join(f"SELECT * REPLACE ({change}) FROM source" for change in shifted)
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE source AS FROM {reader}")
        connection.execute("SET memory_limit = '2GB'")  # it would keep half of the rows, to order them
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")


def _write_text(path: Path, frame: pl.DataFrame, strides: Mapping[str, int], copies: int) -> None:
    """Write a CSV file, compressed on all cores where its name says so."""
    pack = _deflated if path.suffix == ".gz" else bytes
    part = partial(_part, frame, strides, pack)
    cores = os.cpu_count() or 1
    check, size = 0, 0
    with path.open("wb") as file, ThreadPoolExecutor(cores) as pool:
        if path.suffix == ".gz":
            file.write(_GZIP_HEADER)
        for start in range(0, copies, cores):
            for text, packed in pool.map(part, range(start, min(start + cores, copies))):
                check, size = zlib.crc32(text, check), size + len(text)
                file.write(packed)
        if path.suffix == ".gz":
            file.write(zlib.compressobj(wbits=-15).flush())  # an empty last block
            file.write(struct.pack("<II", check, size % 2**32))


def _part(
    frame: pl.DataFrame, strides: Mapping[str, int], pack: Callable[[bytes], bytes], copy: int
) -> tuple[bytes, bytes]:
    """Return the text of one copy of a table, the first with a header, and what is written of it."""
    ids = [name for name in _IDS if name in frame]
    buffer = io.BytesIO()
    shifted = frame.with_columns(pl.col(name) + copy * strides[name] for name in ids)
    shifted.write_csv(buffer, include_header=copy == 0)
    return buffer.getvalue(), pack(buffer.getvalue())


def _deflated(text: bytes) -> bytes:
    """Return blocks of a deflate stream that go on where another part ended."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)


if __name__ == "__main__":
    command(replicate)
