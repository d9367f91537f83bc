"""The tables of MIMIC-IV 1.0 to 3.1, in files or in a database -> the tables of a source."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import ibis
import ibis.expr.types as ir
from ibis.common.exceptions import TableNotFound

from drfuse.cohort.sources.source import EventKind, Table, TypedTable
from drfuse.errors import MissingInputError

Schema = Mapping[str, str]
"""The columns to read from a table, and their types."""

FIRST_YEAR, LAST_YEAR = 1900, 2300
"""Times of other years are typing errors; the calendars of MIMIC's patients are shifted to 2100 and later."""

EXPECTED = {
    "string": "text",
    "int64": "a whole number",
    "float64": "a number",
    "timestamp(6)": f"a time such as 2180-07-23 12:36:00, from {FIRST_YEAR} to {LAST_YEAR}",
}
"""What the cells of a column have to be, by its type in a schema."""
NULLS = ["", "NaN", "nan", "NAN"]
"""How text says that a cell is missing."""
_MOST = 9.2e18  # below 2**63, as a float that every engine can compare with
_LONGEST = 100  # characters of a number
_SPELLED = {
    "int64": "^[+-]?[0-9]{1,18}([.]0*)?$",
    "float64": "^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?0*[0-9]{1,2})?$",
}


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
    typed_tables: Sequence[TypedTable]


class Read(NamedTuple):
    """A table as its columns are needed, and what it was read from if that has types of its own."""

    table: ir.Table
    typed: Sequence[TypedTable] = ()


def read_mimic_iv(
    folder: str,
    module: str,
    admission_columns: Sequence[str],
    tables: Collection[str],
    read: Callable[[str, Schema], Read],
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
    found = {name: read(name, schema) for name, schema in schemas.items() if name in tables}
    raw = {name: one.table for name, one in found.items()}
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
        typed_tables=[typed for one in found.values() for typed in one.typed],
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

    def read(name: str, schema: Schema) -> Read:
        _, there = found[name]
        if missing := [column for column in schema if column not in there.columns]:
            raise MissingInputError(f"{address} lacks the column {', '.join(missing)} of the table {name}")
        table = TypedTable(
            name, f"the table {name} of {address}", TABLES[name].feeds, there, not TABLES[name].is_needed
        )
        return typed(table, schema, time_type)

    where, admissions = found["admissions"]
    return read_mimic_iv(f"{address.rpartition('/')[2]} {where}", where, admissions.columns, found, read)


def typed(table: TypedTable, schema: Schema, time_type: str = "timestamp(6)") -> Read:
    """Return the columns of a schema with its types, without the rows that have a cell of another kind.

    NaN (pandas writes it for a missing number) and infinity become null. A 32-bit float becomes the decimal
    that it stands for: 36.6, not 36.599998. Times of events may be of any year: those that are not in the
    window of a stay do not count.
    """
    columns, wrong = {}, {}
    for name, kind in schema.items():
        value, is_wrong = _read_as(table.rows[name], kind, table.feeds == "events")
        columns[name] = value.cast(kind.replace("timestamp(6)", time_type))
        if is_wrong is not None:
            wrong[name] = is_wrong.fill_null(False)
    parsed = table.rows.filter(~ibis.or_(*wrong.values())) if wrong else table.rows
    expected = {name: EXPECTED[schema[name]] for name in wrong}
    return Read(parsed.select(**columns), [replace(table, wrong=wrong, expected=expected)])


def _read_as(column: ir.Column, kind: str, is_event: bool) -> tuple[ir.Column, ir.BooleanColumn | None]:
    """Return a column that can be cast to a type of a schema, and where it is null only because it cannot."""
    found, whole = column.type(), kind == "int64"
    if found.is_floating():
        # not `isnan`: DuckDB answers tests for NaN and for ranges from the minimum and maximum that a
        # Parquet file states, without reading the values, and NaN is not among those
        column = (column - column == 0).ifelse(column, ibis.null(found))
        if found.is_float32() and kind == "float64":
            return column.cast("string"), None
    if found.is_string() and kind != "string":
        column = column.strip()
        column = column.isin(NULLS).ifelse(ibis.null("string"), column)
        if kind not in _SPELLED:
            value = column.try_cast("timestamp(6)")
            return value, column.notnull() & ~_is_of_a_year(value).fill_null(False)
        is_right = (column.length() <= _LONGEST) & column.re_search(_SPELLED[kind])
        digits = column.re_replace("[.]0*$", "") if whole else column
        return is_right.ifelse(digits, ibis.null("string")), ~is_right
    if whole and (found.is_floating() or found.is_decimal() or found.is_uint64()):
        fits = column.between(-_MOST, _MOST).ifelse(column, ibis.null(found))
        is_right = (fits.notnull() if found.is_integer() else fits == fits.floor()).fill_null(False)
        return is_right.ifelse(fits, ibis.null(found)), column.notnull() & ~is_right
    if found.is_timestamp() and kind == "timestamp(6)" and not is_event:
        return column, ~_is_of_a_year(column)
    return column, None


def _is_of_a_year(time: ir.TimestampColumn) -> ir.BooleanColumn:
    return time.year().between(FIRST_YEAR, LAST_YEAR)


def _release(folder: str, module: str, admission_columns: Sequence[str]) -> str:
    """Return the number in a release's name, else what its layout suggests."""
    if named := re.search(r"\d[._]\d([._]\d)?", folder):
        return named.group().replace("_", ".")
    if module.endswith("core"):
        return "1.x"
    return "2.0 or later" if "race" in admission_columns else "unknown"
