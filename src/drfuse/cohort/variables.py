"""The 17 clinical variables: the items behind each, and how a charted value becomes a number in its unit."""

import csv
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import as_file, files
from typing import Literal

import ibis
import ibis.expr.types as ir
import polars as pl
from ibis import _

from drfuse.cohort.manifest import Variable
from drfuse.cohort.sources.source import EventKind, literal_table, memory_table

Preset = Literal["extended", "benchmark"]
_Columns = Mapping[str, Sequence[float]]
_MakeTable = Callable[[_Columns, Mapping[str, str]], ir.Table]

_DEFINITIONS = files("drfuse.cohort") / "definitions"
_PLAIN_NUMBER = "[0-9]+[.]?[0-9]*|[.][0-9]+"
_NUMBER = rf"[+-]?({_PLAIN_NUMBER})([eE][+-]?0*[0-9]{{1,2}})?"
_LONGEST_NUMBER = 100  # characters; with at most two digits of exponent, every number is a finite float64
_SMALLEST, _LARGEST = 1e-200, 1e203  # beyond these, arithmetic could overflow, and PostgreSQL fail
_HEIGHT_INCHES, _WEIGHT_POUNDS, _TEMPERATURE_FAHRENHEIT = 226707, 226531, 223761
SPECIMEN_TYPE, _BLOOD_SATURATION = 52033, 50817
"""The laboratory item that says where a specimen's blood is from, and an item that depends on it."""
_NULL = ibis.null("float64")
_GCS_PARTS = ("gcs_eye_opening", "gcs_motor_response", "gcs_verbal_response")


def load_variables() -> tuple[Variable, ...]:
    """Return the 17 variables, in the order of the last axis of `ehr.npy`.

    >>> [variable.name for variable in load_variables()][:2]
    ['capillary_refill_rate', 'diastolic_blood_pressure']
    """
    kinds = {row["variable"]: row for row in _rows("variables.csv")}
    return tuple(
        Variable(
            name=row["variable"],
            kind="categorical" if kinds[row["variable"]]["kind"] == "categorical" else "continuous",
            unit=kinds[row["variable"]]["unit"],
            normal=float(row["normal"]),
            valid_low=float(row["valid_low"]),
            valid_high=float(row["valid_high"]),
        )
        for row in _rows("variable_ranges.csv")
    )


def item_ids(preset: Preset, table: EventKind) -> list[int]:
    """Return the items that a preset reads from an event table."""
    rows = _rows("variables.csv")
    return [int(row["itemid"]) for row in rows if row["table"] == table and row[preset] == "1"]


def items_before_admission() -> list[int]:
    """Return the items of height and weight: measured once, they hardly change within hours."""
    steady = {row["variable"] for row in _rows("variable_ranges.csv") if row["before_admission"] == "1"}
    return [int(row["itemid"]) for row in _rows("variables.csv") if row["variable"] in steady]


def variable_of_items() -> dict[int, str]:
    """Return the name of the variable that each item of any preset feeds."""
    return {
        int(row["itemid"]): row["variable"] for row in _rows("variables.csv") if row["itemid"] != "derived"
    }


def read_units() -> pl.DataFrame:
    """Return the units in which a variable may be given, the usual one of each first.

    The columns: `variable`; `unit`, null for a variable that is charted as text; `itemid`, the item that
    stands for values in that unit; and `factor`, which values are multiplied by to be those of the item.
    """
    with as_file(_DEFINITIONS / "units.csv") as path:
        return pl.read_csv(path)


def arterial_saturation(labs: ir.Table) -> ir.Table:
    """Return laboratory results without oxygen saturations of blood that is not known to be arterial.

    Venous and mixed blood reads 20 to 25 points below pulse oximetry at the same time. `labs` must include
    the item `SPECIMEN_TYPE`.
    """
    says_arterial = (labs.itemid == SPECIMEN_TYPE) & (labs.value.strip().upper() == "ART.")
    is_arterial = says_arterial.ifelse(1, 0).max().over(ibis.window(group_by="specimen_id"))
    labs = labs.mutate(is_arterial=ibis.coalesce(is_arterial, 0))
    known = (labs.is_arterial == 1) & labs.specimen_id.notnull()
    return labs.filter((labs.itemid != _BLOOD_SATURATION) | known).drop("is_arterial")


def clean_values(events: ir.Table, preset: Preset, small_table: _MakeTable = memory_table) -> ir.Table:
    """Return `events` with `variable` (its index in `load_variables()`) and `measured` (in its unit).

    `extended` reads `valuenum`, or else the number or the score of the text in `value`, and leaves out
    outliers. `benchmark` reads `value` alone, keeps outliers and does not convert inches, as in the published
    extraction. Both leave out values that are not numbers. `small_table` is the source's.
    """
    index = _column_index()
    events = events.join(_items(preset, small_table), "itemid")
    number = _number(events.value)
    if preset == "benchmark":
        laboratory = events.variable.isin([index[name] for name in ("glucose", "ph", "oxygen_saturation")])
        number = (~laboratory | _matches(events.value, _PLAIN_NUMBER)).ifelse(number, _NULL)
        number = ibis.coalesce(number, _score(events))
    else:
        finite = (events.valuenum.abs() <= _LARGEST).ifelse(events.valuenum, _NULL)  # NaN may mean missing
        number = ibis.coalesce(finite, number, _score(events))
    events = events.mutate(measured=number)
    # Joining the ranges last matters: a filter by constants would be pushed below all this, and repeat it.
    events = events.mutate(measured=_convert(events, preset)).join(_ranges(preset, small_table), "variable")
    events = events.filter(events.measured.between(events.outlier_low, events.outlier_high))
    if preset == "benchmark":
        return events
    limited = ibis.greatest(ibis.least(events.measured, events.valid_high), events.valid_low)
    return events.mutate(measured=limited)


def derive_gcs_total(measurements: ir.Table) -> ir.Table:
    """Return the GCS total for each time at which eye, verbal and motor response were all charted.

    If one of them was charted twice at that time, the score stored last counts. The totals have the columns
    of `measurements` (see `timeseries.measure`).
    """
    index = _column_index()
    scores = literal_table({"variable": [index[part] for part in _GCS_PARTS]}, {"variable": "int8"})
    parts = measurements.semi_join(scores, "variable")  # a filter would be merged back into `measurements`
    stored_last = ibis.row_number().over(
        ibis.window(
            group_by=["stay_id", "charttime", "variable"],
            order_by=[ibis.desc("storetime"), ibis.desc("measured")],
        )
    )
    parts = parts.mutate(rank=stored_last).filter(_.rank == 0)
    eye, motor, verbal = (parts.measured.max(where=parts.variable == index[part]) for part in _GCS_PARTS)
    totals = parts.group_by("stay_id", "charttime").agg(
        variable=ibis.literal(index["gcs_total"], "int8"),
        storetime=parts.storetime.max(),
        measured=eye + motor + verbal,  # null if one is missing
        hour=parts.hour.max(),  # all parts have the same
        is_lab=ibis.literal(False),
    )
    return totals.filter(totals.measured.notnull()).select(measurements.columns)


def _column_index() -> dict[str, int]:
    """Return the index of each variable in `load_variables()`."""
    return {variable.name: index for index, variable in enumerate(load_variables())}


def _items(preset: Preset, small_table: _MakeTable) -> ir.Table:
    """Return the `itemid` and `variable` (its index) of each item that a preset reads."""
    index = _column_index()
    rows = [row for row in _rows("variables.csv") if row[preset] == "1" and row["itemid"] != "derived"]
    items: _Columns = {
        "itemid": [int(row["itemid"]) for row in rows],
        "variable": [index[row["variable"]] for row in rows],
    }
    return small_table(items, {"itemid": "int64", "variable": "int8"})


def _ranges(preset: Preset, small_table: _MakeTable) -> ir.Table:
    """Return the valid range of each `variable` (its index), and the range outside which lie outliers."""
    index, rows = _column_index(), _rows("variable_ranges.csv")
    widest = {
        "outlier_low": -_LARGEST,
        "valid_low": -_LARGEST,
        "valid_high": _LARGEST,
        "outlier_high": _LARGEST,
    }
    ranges: _Columns = {
        bound: [float(row[bound]) if preset == "extended" else limit for row in rows]
        for bound, limit in widest.items()
    }
    columns = {"variable": [index[row["variable"]] for row in rows], **ranges}
    return small_table(columns, {"variable": "int8", **dict.fromkeys(widest, "float64")})


def _matches(text: ir.StringColumn, pattern: str) -> ir.BooleanColumn:
    """Return whether a pattern matches the whole text.

    The appended semicolon is there because in some engines `$` also matches before a final line break.
    """
    return (text + ";").re_search(f"^({pattern});$")


def _number(text: ir.StringColumn) -> ir.FloatingColumn:
    """Return the number that a text spells, or null.

    The pattern comes first because engines differ in what they accept as a number, and because a failed cast
    ends a query in PostgreSQL. Every engine can hold every number that passes.
    """
    text = text.strip()
    is_number = (text.length() <= _LONGEST_NUMBER) & _matches(text, _NUMBER)
    return is_number.ifelse(text.try_cast("float64"), _NULL)


def _score(events: ir.Table) -> ir.FloatingColumn:
    """Return the score behind the text in `value`, or null."""
    index, text = _column_index(), events.value.strip().lower()
    texts: dict[tuple[str, str], list[str]] = {}
    for row in _rows("text_scores.csv"):
        texts.setdefault((row["variable"], row["score"]), []).append(row["text"])
    return ibis.cases(
        *(
            ((events.variable == index[variable]) & text.isin(spellings), ibis.literal(float(score)))
            for (variable, score), spellings in texts.items()
        ),
        else_=_NULL,
    )


def _convert(events: ir.Table, preset: Preset) -> ir.FloatingColumn:
    """Return `events.measured` in the variable's unit; null if arithmetic could overflow."""
    index, value, item = _column_index(), events.measured, events.itemid
    fahrenheit = (events.variable == index["temperature"]) & (value >= 79)
    rules = [
        ((value != 0) & ~value.abs().between(_SMALLEST, _LARGEST / 1000), _NULL),
        ((events.variable == index["fraction_inspired_oxygen"]) & (value > 1), value / 100),
        ((events.variable == index["oxygen_saturation"]) & (value <= 1), value * 100),
        (item == _WEIGHT_POUNDS, value * 0.453592),
    ]
    if preset == "extended":
        # on neither scale does a living patient have 50 degrees, so 50 tells the scales apart
        fahrenheit |= (item == _TEMPERATURE_FAHRENHEIT) & (value > 50)
        rules.append((item == _HEIGHT_INCHES, value * 2.54))
    rules.append((fahrenheit, (value - 32) * 5 / 9))
    return ibis.cases(*rules, else_=value)


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((_DEFINITIONS / name).read_text(encoding="utf-8").splitlines()))
