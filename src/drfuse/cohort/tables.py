"""Open the tables of MIMIC-IV 1.0 to 3.1 and MIMIC-CXR-JPG 2.x where they lie.

Files are csv, csv.gz or parquet; MIMIC-IV may also lie in a database (see `databases`).
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend
from isal import igzip, isal_zlib

from drfuse.cohort.databases import Database, is_database, open_database
from drfuse.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from ibis.backends import BaseBackend

_FORMATS = (".parquet", ".csv.gz", ".csv")
_TOLERATED_ROWS, _TOLERATED_SHARE = 20, 0.05  # rows that do not parse, before a file is refused
_NOT_A_NUMBER = ("", "NaN", "nan", "NAN")  # how a CSV writes that a cell is missing
_LONGEST_HEADER = 100_000  # bytes; a binary file may have no line break at all
_MAX_DEPTH = 4  # physionet.org/files/mimiciv/2.2, as wget lays a mirror out

_MODULES = {
    "patients": ("hosp", "core"),
    "admissions": ("hosp", "core"),
    "icustays": ("icu",),
    "diagnoses_icd": ("hosp",),
    "chartevents": ("icu",),
    "labevents": ("hosp",),
}
_PATIENTS = {"subject_id": "int64", "gender": "string", "anchor_age": "int64", "anchor_year": "int64"}
_ADMISSIONS = {
    "subject_id": "int64",
    "hadm_id": "int64",
    "admittime": "timestamp(6)",
    "admission_type": "string",
    "hospital_expire_flag": "int64",
}
_ICUSTAYS = {
    "subject_id": "int64",
    "hadm_id": "int64",
    "stay_id": "int64",
    "first_careunit": "string",
    "last_careunit": "string",
    "intime": "timestamp(6)",
    "outtime": "timestamp(6)",
    "los": "float64",
}
_DIAGNOSES = {"hadm_id": "int64", "icd_code": "string", "icd_version": "int64"}
_EVENTS = {
    "subject_id": "int64",
    "hadm_id": "int64",
    "charttime": "timestamp(6)",
    "storetime": "timestamp(6)",
    "itemid": "int64",
    "value": "string",
    "valuenum": "float64",
}
_RADIOGRAPHS = {
    "dicom_id": "string",
    "subject_id": "int64",
    "study_id": "int64",
    "ViewPosition": "string",
    "StudyDate": "string",
    "StudyTime": "string",
}


@dataclass(frozen=True)
class SourceFile:
    """One file that was read: its table, where it lies, and what its columns are called."""

    table: str
    path: Path
    columns: tuple[str, ...]


@dataclass(frozen=True)
class MimicIV:
    """The tables of one MIMIC-IV release as Ibis expressions; `admissions` calls the race column `race`.

    Attributes:
        name: What to call it: its folder, or its database's address without user and password.
        release: The release as far as it shows.
        engine: The Ibis backend on which the tables lie.
        root: Its folder; None where it lies in a database.
        files: The files of the tables; none where it lies in a database.
    """

    name: str
    release: str
    engine: "BaseBackend"
    root: Path | None
    patients: ir.Table
    admissions: ir.Table
    icustays: ir.Table
    diagnoses: ir.Table
    chartevents: ir.Table
    labevents: ir.Table
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class MimicCxr:
    """The metadata of one MIMIC-CXR-JPG release as an Ibis expression, and the folder of its images."""

    root: Path
    metadata: ir.Table
    files: tuple[SourceFile, ...]

    @property
    def release(self) -> str:
        """The release, where the folder is called by its number."""
        named = re.search(r"\d\.\d(\.\d)?", self.root.name)
        return named.group() if named else "2.x"


def open_mimic_iv(source: str | Path, connection: Backend) -> MimicIV:
    """Return the tables of a MIMIC-IV release; nothing is read yet but names and types of columns.

    Args:
        source: The folder of the release (it holds `icu/` and `hosp/`), a folder above it, or the address of
            a database (see `open_database`).
        connection: The DuckDB connection on which files are opened.

    Raises:
        MissingInputError: If the source, a table or a column is not there.
        InputError: If a file is not what its name says, several releases lie under a folder, or a database
            does not let us in.
    """
    if is_database(source):
        return _open_tables(open_database(str(source), connection))
    return _open_files(Path(source), connection)


def _open_files(folder: Path, connection: Backend) -> MimicIV:
    root = _find_release(folder, ("icu/icustays",), "a MIMIC-IV release (icu/icustays.csv.gz, hosp/...)")
    files = {table: _find_table(root, modules, table) for table, modules in _MODULES.items()}
    admissions = files["admissions"]
    tables = {
        table: _read(files[table], schema, connection)
        for table, schema in _schemas(admissions.columns).items()
    }
    release = _release(root.name, admissions.path.parent.name, admissions.columns)
    return _mimic_iv(str(root), release, connection, root, tables, tuple(files.values()))


def _open_tables(database: Database) -> MimicIV:
    found = {}
    for table, modules in _MODULES.items():
        place = database.find(modules, table)
        if place is None:
            raise MissingInputError(
                f"{database.name} lacks the table {table}; expected it in {' or '.join(modules)} "
                "(as a schema, mimiciv_hosp and mimiciv_icu, or a folder)"
            )
        found[table] = place
    where, admissions = found["admissions"]
    tables = {}
    for table, schema in _schemas(admissions.columns).items():
        if missing := [column for column in schema if column not in found[table][1].columns]:
            raise MissingInputError(
                f"{database.name} lacks the column {', '.join(missing)} of the table {table}"
            )
        # BigQuery's functions of times take those with a zone
        time = "timestamp('UTC')" if database.engine.name == "bigquery" else "timestamp(6)"
        kinds = {name: kind.replace("timestamp(6)", time) for name, kind in schema.items()}
        tables[table] = _typed(found[table][1], kinds)
    release = _release(f"{database.name.rpartition('/')[2]} {where}", where, admissions.columns)
    return _mimic_iv(database.name, release, database.engine, None, tables, ())


def _mimic_iv(
    name: str,
    release: str,
    engine: "BaseBackend",
    root: Path | None,
    tables: Mapping[str, ir.Table],
    files: tuple[SourceFile, ...],
) -> MimicIV:
    admissions = tables["admissions"]
    if "race" not in admissions.columns:
        admissions = admissions.rename(race="ethnicity")
    return MimicIV(
        name=name,
        release=release,
        engine=engine,
        root=root,
        patients=tables["patients"],
        admissions=admissions,
        icustays=tables["icustays"],
        diagnoses=tables["diagnoses_icd"],
        chartevents=tables["chartevents"],
        labevents=tables["labevents"],
        files=files,
    )


def _schemas(admission_columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the columns and types of each table that are read; releases before 2.0 write `ethnicity`."""
    race = "race" if "race" in admission_columns else "ethnicity"
    return {
        "patients": _PATIENTS,
        "admissions": _ADMISSIONS | {race: "string"},
        "icustays": _ICUSTAYS,
        "diagnoses_icd": _DIAGNOSES,
        "chartevents": _EVENTS | {"stay_id": "int64"},
        "labevents": _EVENTS | {"specimen_id": "int64"},
    }


def _release(name: str, module: str, admission_columns: Sequence[str]) -> str:
    """Return the number in a release's name, else what its layout fits."""
    if named := re.search(r"\d[._]\d([._]\d)?", name):
        return named.group().replace("_", ".")
    if module.endswith("core"):
        return "1.x"
    return "2.0 or later" if "race" in admission_columns else "unknown"


def open_mimic_cxr(folder: Path, connection: Backend) -> MimicCxr:
    """Return the metadata table and the image folder of a MIMIC-CXR-JPG release.

    Raises:
        MissingInputError: If the folder, the metadata file or one of its columns is not there.
        InputError: If the metadata file is not what its name says.
    """
    stems = ("mimic-cxr-2.0.0-metadata", "mimic-cxr-2.1.0-metadata")
    root = _find_release(folder, stems, "a MIMIC-CXR-JPG release (mimic-cxr-2.0.0-metadata.csv.gz)")
    path = next(path for stem in stems if (path := _existing(root / stem)))
    file = SourceFile("metadata", path, _columns_of(path))
    return MimicCxr(root=root, metadata=_read(file, _RADIOGRAPHS, connection), files=(file,))


@contextmanager
def reading(files: Sequence[SourceFile]) -> Iterator[None]:
    """Turn what DuckDB says of unreadable files into one sentence that names them.

    Raises:
        InputError: If a query within cannot read one of `files`.
    """
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except duckdb.OutOfMemoryException as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"the queries need more memory or temporary space ({reason}); give a larger --memory-limit, "
            "fewer --threads, or a --temp-dir with more room"
        ) from error
    except (duckdb.OperationalError, duckdb.DataError, duckdb.InvalidInputException) as error:
        reason = str(error).split("\n", 1)[0]
        paths = [str(file.path) for file in files]
        named = [path for path in paths if path in str(error)] or paths or ["the database"]
        if "gzip" in reason.lower():  # it does not always say which file
            for path in (Path(path) for path in named if path.endswith(".gz")):
                if _is_padded(path):
                    raise InputError(
                        f"{path} ends in zero bytes after its gzip stream, which DuckDB cannot read; write "
                        "it anew without them: `gzip -dc FILE | gzip > NEW`"
                    ) from error
                if damage := _gzip_damage(path, Event()):
                    raise InputError(f"{path} is damaged ({damage}); fetch it again") from error
        raise InputError(
            f"cannot read {', '.join(named)}: {reason}; if the disk has room, fetch the file again"
        ) from error


@contextmanager
def checking_gzip(files: Sequence[SourceFile]) -> Iterator[None]:
    """Check the sums of gzip files beside the queries within: DuckDB reads on over damaged bytes.

    Raises:
        InputError: If a file is damaged.
    """
    paths = [file.path for file in files if file.path.suffix == ".gz"]
    given_up = Event()
    with ThreadPoolExecutor(1) as pool:
        damages = [pool.submit(_gzip_damage, path, given_up) for path in paths]
        try:
            yield
        except BaseException:
            given_up.set()
            raise
        for path, damage in zip(paths, damages, strict=True):
            if damage.result():
                raise InputError(f"{path} is damaged ({damage.result()}); fetch it again")


def _gzip_damage(path: Path, given_up: Event) -> str | None:
    """Read a gzip file to its end, unless that was given up; return what is wrong with it."""
    try:
        with igzip.open(path) as file:
            while not given_up.is_set() and file.read(1 << 20):  # other threads run meanwhile
                pass
    except (gzip.BadGzipFile, isal_zlib.error, EOFError) as error:
        return str(error)
    return None


def _is_padded(path: Path) -> bool:
    """Return whether zero bytes follow a gzip stream, as gzip itself ignores them."""
    member = None
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            while block:
                if member is None and block[0] == 0:  # where the next member would begin
                    return True
                member = member or isal_zlib.decompressobj(wbits=31)
                try:
                    member.decompress(block)
                except isal_zlib.error:
                    return False
                block = member.unused_data
                member = None if member.eof else member
    return False


def count_rejected_rows(connection: Backend) -> dict[str, int]:
    """Return how many rows of each file (by name) were left out because a cell had the wrong type.

    Raises:
        InputError: If those are so many that the file cannot be what it should.
    """
    query = """
        SELECT file_path, count(DISTINCT line), min_by(error_message, line)
        FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY ALL ORDER BY ALL
    """
    try:
        rows = connection.raw_sql(query).fetchall()
    except duckdb.CatalogException:  # no CSV file was scanned
        return {}
    for path, count, message in rows:
        if count > _TOLERATED_ROWS and count > _TOLERATED_SHARE * (n_lines := _count_lines(Path(path))):
            reason = str(message).split("\n", 1)[0]
            raise InputError(f"{count} of the {n_lines} rows of {path} do not parse, first: {reason}")
    return {Path(path).name: count for path, count, _ in rows}


def _count_lines(path: Path) -> int:
    try:
        with igzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b""))
    except (gzip.BadGzipFile, isal_zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error


def _find_release(folder: Path, stems: Sequence[str], what: str) -> Path:
    """Return `folder`, or the one folder below it, in which a file of one of `stems` lies."""
    if not folder.is_dir():
        raise MissingInputError(f"there is no folder {folder}; expected {what}")
    level = [folder]
    for _ in range(_MAX_DEPTH + 1):
        found = [path for path in level if any(_existing(path / stem) for stem in stems)]
        if len(found) > 1:
            names = ", ".join(str(path) for path in found)
            raise InputError(f"{folder} holds more than one release ({names}); name one of them")
        if found:
            return found[0]
        level = [child for path in level for child in _subfolders(path)]
    raise MissingInputError(f"{folder} does not hold {what}; name the folder that does")


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that are not the 65,000 patients' image folders (pXX, pXXXXXXXX)."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not re.fullmatch(r"p\d+", path.name)
        )
    except PermissionError:  # lost+found, say
        return []


def _find_table(root: Path, modules: Sequence[str], table: str) -> SourceFile:
    for module in modules:
        if path := _existing(root / module / table):
            return SourceFile(table, path, _columns_of(path))
    places = " or ".join(f"{module}/{table}.csv.gz" for module in modules)
    raise MissingInputError(f"{root} lacks the table {table}: expected {places} (or .csv, .parquet)")


def _existing(stem: Path) -> Path | None:
    paths = (stem.with_name(stem.name + suffix) for suffix in _FORMATS)
    return next((path for path in paths if path.is_file()), None)


def _columns_of(path: Path) -> tuple[str, ...]:
    """Return the column names of a table; a column without a name gets one.

    Raises:
        InputError: If the file is not of the kind that its name says, or two columns have one name.
    """
    kind = {".parquet": "a Parquet file", ".gz": "a gzip-compressed CSV file"}.get(path.suffix, "a CSV file")
    try:
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                header = file.readline(_LONGEST_HEADER).decode("utf-8-sig")
            names = next(csv.reader([header]), [])
    except (pa.ArrowInvalid, gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise InputError(f"{path} is not {kind}, as its name says; fetch it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {kind} in UTF-8, as its name says; fetch it again") from error
    columns = tuple(name or f"unnamed {place}" for place, name in enumerate(names))
    folded = [name.casefold() for name in columns]
    if twice := [name for name, fold in zip(columns, folded, strict=True) if folded.count(fold) > 1]:
        raise InputError(f"{path} has two columns called {twice[0]}; keep one of them")
    return columns


def _read(file: SourceFile, schema: Mapping[str, str], connection: Backend) -> ir.Table:
    """Open a file as a table of the columns in `schema`, with those types; other columns are never parsed.

    A CSV row with a cell of the wrong type is left out and counted (`count_rejected_rows`).
    """
    if missing := [column for column in schema if column not in file.columns]:
        raise MissingInputError(
            f"{file.path} lacks the column {', '.join(missing)} of the table {file.table}"
        )
    if file.path.suffix == ".parquet":
        return _typed(connection.read_parquet(_literally(file.path)), schema)
    types = {name: ibis.dtype(schema.get(name, "string")) for name in file.columns}
    table = connection.read_csv(
        _literally(file.path),
        compression="gzip" if file.path.suffix == ".gz" else "none",
        columns={name: connection.compiler.type_mapper.to_string(kind) for name, kind in types.items()},
        auto_detect=False,
        header=True,
        delim=",",
        quote='"',
        escape='"',
        nullstr=list(_NOT_A_NUMBER),
        ignore_errors=True,
        store_rejects=True,
    )
    return table.select(*schema)


def _typed(table: ir.Table, schema: Mapping[str, str]) -> ir.Table:
    """Return the columns in `schema`, with those types.

    NaN, as pandas writes a missing number, and what is infinite are null. A float of 32 bits is taken for the
    decimal that it stands for: 36.6 is not 36.599998.
    """
    columns = {}
    for name, kind in schema.items():
        column = table[name]
        if column.type().is_floating():
            # not `isnan`: DuckDB trusts the smallest and largest value that a Parquet file states, which
            # leave NaN out, and answers tests of NaN and of ranges without a look at the values
            column = (column - column == 0).ifelse(column, ibis.null(column.type()))
        if column.type().is_float32() and kind == "float64":
            column = column.cast("string")
        columns[name] = column.cast(kind)
    return table.select(**columns)


def _literally(path: Path) -> str:
    """Return a path in which DuckDB finds no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
