"""The tables of MIMIC-IV 1.0 to 3.1, in files or in a database -> the tables of a source."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypedDict

import ibis
import ibis.expr.types as ir
from ibis.common.exceptions import TableNotFound

from drfuse.cohort.sources.source import EventKind, Table
from drfuse.errors import MissingInputError

Schema = Mapping[str, str]
"""The columns to read from a table, and their types."""

FIRST_YEAR, LAST_YEAR = 1900, 2300
"""Times of other years are typing errors; the calendars of MIMIC's patients are shifted to 2100 and later."""


class RawTable(NamedTuple):
    """A table of MIMIC-IV.

    Attributes:
        feeds: The source's table that it goes into.
        modules: The modules that may hold it.
        schema: What to read.
        is_needed: Whether a release without it is refused.
    """

    feeds: Table
    modules: tuple[str, ...]
    schema: Schema
    is_needed: bool = True


_EVENTS = {
    "subject_id": "int64",
    "hadm_id": "int64",
    "charttime": "timestamp(6)",
    "storetime": "timestamp(6)",
    "itemid": "int64",
    "value": "string",
    "valuenum": "float64",
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

TABLES = {
    "patients": RawTable("stays", ("hosp", "core"), _PATIENTS),
    "admissions": RawTable("admissions", ("hosp", "core"), _ADMISSIONS),
    "icustays": RawTable("stays", ("icu",), _ICUSTAYS),
    "diagnoses_icd": RawTable("diagnoses", ("hosp",), _DIAGNOSES, is_needed=False),
    "chartevents": RawTable("events", ("icu",), _EVENTS | {"stay_id": "int64"}),
    "labevents": RawTable("events", ("hosp",), _EVENTS | {"specimen_id": "int64"}),
}


class MimicIV(TypedDict):
    """The fields of `Source` that are the same wherever MIMIC-IV is stored."""

    name: str
    release: str
    stays: ir.Table
    admissions: ir.Table
    events: Mapping[EventKind, ir.Table]
    diagnoses: ir.Table | None
    keys: Mapping[str, tuple[ir.Table, Sequence[str]]]


def read_mimic_iv(
    folder: str,
    module: str,
    admission_columns: Sequence[str],
    tables: Collection[str],
    read: Callable[[str, Schema], ir.Table],
) -> MimicIV:
    """Return the tables of a release.

    Args:
        folder: The name of its folder or database, which may contain the number of the release.
        module: The module that holds the table `admissions`.
        admission_columns: The columns of that table.
        tables: The keys of `TABLES` that the release has.
        read: Takes a key of `TABLES`; returns that table with the columns and types of a schema.
    """
    race = "race" if "race" in admission_columns else "ethnicity"  # before 2.0
    schemas = {name: table.schema for name, table in TABLES.items()}
    schemas["admissions"] = {**schemas["admissions"], race: "string"}
    raw = {name: read(name, schema) for name, schema in schemas.items() if name in tables}
    patients, admissions = raw["patients"], raw["admissions"]
    # anchor_age is the age in anchor_year; each subject's calendar is shifted
    born = patients.select("subject_id", "gender", birth_year=patients.anchor_year - patients.anchor_age)
    return MimicIV(
        name="mimic_iv",
        release=_release(folder, module, admission_columns),
        stays=raw["icustays"].left_join(born, "subject_id").drop("subject_id_right"),
        admissions=admissions.select(
            "subject_id",
            "hadm_id",
            "admittime",
            "admission_type",
            race=race,
            in_hospital_mortality=admissions.hospital_expire_flag == 1,
        ),
        events={"chartevents": raw["chartevents"], "labevents": raw["labevents"]},
        diagnoses=raw.get("diagnoses_icd"),
        keys={
            "patients": (patients, ("subject_id",)),
            "admissions": (admissions, ("subject_id", "hadm_id")),
            "icustays": (raw["icustays"], ("stay_id",)),
        },
    )


def find_mimic_iv(
    address: str,
    open_table: Callable[[str, str], ir.Table],
    places: Sequence[str] = ("mimiciv_{module}", "{module}"),
    last_places: Sequence[str] = (),
    time_type: str = "timestamp(6)",
) -> MimicIV:
    """Return the tables of a release in a database.

    Args:
        address: The database, for messages.
        open_table: Takes the name of a table and a place; returns the table, or raises `TableNotFound`.
        places: Where each module's tables may be, in the order to try, as templates of `{module}` and
            `{table}`. The default is the MIMIC code repository's schemas, with and without their prefix.
        last_places: Where to look after all modules.
        time_type: The timestamp type that the engine calculates with.

    Raises:
        MissingInputError: If a table or a column is missing.
    """
    found: dict[str, tuple[str, ir.Table]] = {}
    for name, table in TABLES.items():
        of_modules = (place.format(module=module, table=name) for module in table.modules for place in places)
        for place in (*of_modules, *last_places):
            try:
                found[name] = place, open_table(name, place)
                break
            except TableNotFound:
                continue
        else:
            if not table.is_needed:
                continue
            raise MissingInputError(
                f"{address} lacks the table {name}; expected it in {' or '.join(table.modules)} "
                "(as a schema, mimiciv_hosp and mimiciv_icu, or a folder)"
            )

    def read(name: str, schema: Schema) -> ir.Table:
        _, there = found[name]
        if missing := [column for column in schema if column not in there.columns]:
            raise MissingInputError(f"{address} lacks the column {', '.join(missing)} of the table {name}")
        return typed(there, {name: kind.replace("timestamp(6)", time_type) for name, kind in schema.items()})

    where, admissions = found["admissions"]
    return read_mimic_iv(f"{address.rpartition('/')[2]} {where}", where, admissions.columns, found, read)


def typed(table: ir.Table, schema: Schema) -> ir.Table:
    """Return the columns of a schema with its types.

    NaN (pandas writes it for a missing number) and infinity become null, and so do numbers with a fraction
    where a whole one is expected. A 32-bit float becomes the decimal
    that it stands for: 36.6, not 36.599998.
    """
    columns = {}
    for name, kind in schema.items():
        column = table[name]
        if column.type().is_floating():
            # not `isnan`: DuckDB answers tests for NaN and for ranges from the minimum and maximum that a
            # Parquet file states, without reading the values, and NaN is not among those
            column = (column - column == 0).ifelse(column, ibis.null(column.type()))
        if column.type().is_floating() and kind == "int64":
            column = (column == column.floor()).ifelse(column, ibis.null(column.type()))
        if column.type().is_float32() and kind == "float64":
            column = column.cast("string")
        columns[name] = column.cast(kind)
    return table.select(**columns)


def _release(folder: str, module: str, admission_columns: Sequence[str]) -> str:
    """Return the number in a release's name, else what its layout suggests."""
    if named := re.search(r"\d[._]\d([._]\d)?", folder):
        return named.group().replace("_", ".")
    if module.endswith("core"):
        return "1.x"
    return "2.0 or later" if "race" in admission_columns else "unknown"
