"""The 17 clinical variables: which items feed them, and how a charted value becomes a number in its unit."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import ibis
import ibis.expr.types as ir
from ibis import _

from drfuse.cohort.sources.source import EventKind, literal_table, memory_table

Preset = Literal["extended", "benchmark"]
_Columns = Mapping[str, Sequence[float]]
_MakeTable = Callable[[_Columns, Mapping[str, str]], ir.Table]

_DEFINITIONS = files("drfuse.cohort") / "definitions"
_PLAIN_NUMBER = "[0-9]+[.]?[0-9]*|[.][0-9]+"
_NUMBER = rf"[+-]?({_PLAIN_NUMBER})([eE][+-]?0*[0-9]{{1,2}})?"
_LONGEST_NUMBER = 100  # characters: with it and the exponent of two digits, every number is a finite float64
_SMALLEST, _LARGEST = 1e-200, 1e203  # what lies beyond could overflow, and PostgreSQL ends a query there
_HEIGHT_INCHES, _WEIGHT_POUNDS, _TEMPERATURE_FAHRENHEIT = 226707, 226531, 223761
SPECIMEN_TYPE, _BLOOD_SATURATION = 52033, 50817
"""The laboratory item that says where the blood of a specimen is from, and one that depends on it."""
_NULL = ibis.null("float64")
_GCS_PARTS = ("gcs_eye_opening", "gcs_motor_response", "gcs_verbal_response")


@dataclass(frozen=True)
class Variable:
    """One clinical variable, as `variables.csv` and `variable_ranges.csv` describe it.

    Attributes:
        name: Its name in the cohort.
        kind: `continuous`, or `categorical`: whole numbers from `valid_low` to `valid_high`.
        unit: Unit of its values.
        normal: Value that stands in until the first observation.
        valid_low: Lower values are raised to this one (preset `extended`).
        valid_high: Higher values are lowered to this one (preset `extended`).
    """

    name: str
    kind: Literal["continuous", "categorical"]
    unit: str
    normal: float
    valid_low: float
    valid_high: float


def load_variables() -> tuple[Variable, ...]:
    """Return the 17 variables in the order of the cohort's feature axis.

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
    """Return the items of one event table that a preset reads."""
    rows = _rows("variables.csv")
    return [int(row["itemid"]) for row in rows if row["table"] == table and row[preset] == "1"]


def items_before_admission() -> list[int]:
    """Return the items of height and weight, which are measured once and hardly change within hours."""
    steady = {row["variable"] for row in _rows("variable_ranges.csv") if row["before_admission"] == "1"}
    return [int(row["itemid"]) for row in _rows("variables.csv") if row["variable"] in steady]


def arterial_saturation(labs: ir.Table) -> ir.Table:
    """Return laboratory results without the saturations of blood that is not known to be arterial.

    Venous and mixed blood lies 20 to 25 points below what pulse oximetry reads at that time.

    Args:
        labs: Rows of `itemid`, `value` and `specimen_id`, with those of `SPECIMEN_TYPE`.
    """
    says_arterial = (labs.itemid == SPECIMEN_TYPE) & (labs.value.strip().upper() == "ART.")
    is_arterial = says_arterial.ifelse(1, 0).max().over(ibis.window(group_by="specimen_id"))
    labs = labs.mutate(is_arterial=ibis.coalesce(is_arterial, 0))
    known = (labs.is_arterial == 1) & labs.specimen_id.notnull()
    return labs.filter((labs.itemid != _BLOOD_SATURATION) | known).drop("is_arterial")


def clean_values(events: ir.Table, preset: Preset, small_table: _MakeTable = memory_table) -> ir.Table:
    """Return `events` with `variable` (its place in `load_variables()`) and `measured` (in its unit).

    Rows whose value is not a number, or lies outside the outlier range (preset `extended`), are left out.
    `extended` takes `valuenum`, else the number or the score behind the text in `value`. `benchmark` takes
    `value` alone, converts no inches, and keeps outliers, as the published extraction does.

    Args:
        events: Event rows with `itemid`, `value` and `valuenum`.
        preset: Which items and which rules.
        small_table: Makes the tables of items and ranges that the query joins (`Source.small_table`).
    """
    places = _column_index()
    events = events.join(_items(preset, small_table), "itemid")
    number = _number(events.value)
    if preset == "benchmark":
        laboratory = events.variable.isin([places[name] for name in ("glucose", "ph", "oxygen_saturation")])
        number = (~laboratory | _matches(events.value, _PLAIN_NUMBER)).ifelse(number, _NULL)
        number = ibis.coalesce(number, _score(events))
    else:
        number = ibis.coalesce(_finite(events.valuenum), number, _score(events))
    events = events.mutate(measured=number)
    # The ranges are joined last: a filter by constants would be pushed below all this, and repeat it.
    events = events.mutate(measured=_convert(events, preset)).join(_ranges(preset, small_table), "variable")
    events = events.filter(events.measured.between(events.outlier_low, events.outlier_high))
    if preset == "benchmark":
        return events
    limited = ibis.greatest(ibis.least(events.measured, events.valid_high), events.valid_low)
    return events.mutate(measured=limited)


def derive_gcs_total(measurements: ir.Table) -> ir.Table:
    """Return the GCS total wherever eye, verbal and motor response were charted at the same time.

    Args:
        measurements: Rows of `stay_id`, `variable`, `charttime`, `storetime`, `measured` and `hour`.

    Returns:
        Rows of the same columns; of two scores of one part at one time, the last stored one counts.
    """
    places = _column_index()
    scores = literal_table({"variable": [places[part] for part in _GCS_PARTS]}, {"variable": "int8"})
    parts = measurements.semi_join(scores, "variable")  # a filter would be merged into `measurements` again
    stored_last = ibis.row_number().over(
        ibis.window(
            group_by=["stay_id", "charttime", "variable"],
            order_by=[ibis.desc("storetime"), ibis.desc("measured")],
        )
    )
    parts = parts.mutate(rank=stored_last).filter(_.rank == 0)
    eye, motor, verbal = (parts.measured.max(where=parts.variable == places[part]) for part in _GCS_PARTS)
    totals = parts.group_by("stay_id", "charttime").agg(
        variable=ibis.literal(places["gcs_total"], "int8"),
        storetime=parts.storetime.max(),
        measured=eye + motor + verbal,  # null where one is absent
        hour=parts.hour.max(),  # it follows from the stay and the time
    )
    return totals.filter(totals.measured.notnull()).select(measurements.columns)


def _column_index() -> dict[str, int]:
    """Return the place of each variable on the cohort's feature axis."""
    return {variable.name: place for place, variable in enumerate(load_variables())}


def _items(preset: Preset, small_table: _MakeTable) -> ir.Table:
    """Return the `itemid` and `variable` (its place) of each item that a preset reads."""
    places = _column_index()
    rows = [row for row in _rows("variables.csv") if row[preset] == "1" and row["itemid"] != "derived"]
    items: _Columns = {
        "itemid": [int(row["itemid"]) for row in rows],
        "variable": [places[row["variable"]] for row in rows],
    }
    return small_table(items, {"itemid": "int64", "variable": "int8"})


def _ranges(preset: Preset, small_table: _MakeTable) -> ir.Table:
    """Return the range of each `variable` (its place) and the range beyond which its values are outliers."""
    places, rows = _column_index(), _rows("variable_ranges.csv")
    bounds = ("outlier_low", "valid_low", "valid_high", "outlier_high")
    anything = dict.fromkeys(bounds[:2], -_LARGEST) | dict.fromkeys(bounds[2:], _LARGEST)
    ranges: _Columns = {
        bound: [float(row[bound]) if preset == "extended" else anything[bound] for row in rows]
        for bound in bounds
    }
    numbers = {"variable": [places[row["variable"]] for row in rows], **ranges}
    return small_table(numbers, {"variable": "int8", **dict.fromkeys(bounds, "float64")})


def _matches(text: ir.StringColumn, pattern: str) -> ir.BooleanColumn:
    """Return whether a pattern matches the whole text.

    A semicolon is appended, because engines differ in whether `$` matches before a final line break.
    """
    return (text + ";").re_search(f"^({pattern});$")


def _number(text: ir.StringColumn) -> ir.FloatingColumn:
    """Return the number that a text spells, or null; engines differ in what else they take for a number.

    The pattern is tested first because PostgreSQL has no cast that may fail. Every number that passes is one
    that all engines can hold.
    """
    text = text.strip()
    is_number = (text.length() <= _LONGEST_NUMBER) & _matches(text, _NUMBER)
    return is_number.ifelse(text.try_cast("float64"), _NULL)


def _finite(number: ir.FloatingColumn) -> ir.FloatingColumn:
    """Return a number; null for NaN and infinity, which some writers use for a missing value."""
    return (number.abs() <= _LARGEST).ifelse(number, _NULL)


def _score(events: ir.Table) -> ir.FloatingColumn:
    """Return the score behind the text in `value`, or null."""
    places, text = _column_index(), events.value.strip().lower()
    texts: dict[tuple[str, str], list[str]] = {}
    for row in _rows("text_scores.csv"):
        texts.setdefault((row["variable"], row["score"]), []).append(row["text"])
    return ibis.cases(
        *(
            ((events.variable == places[variable]) & text.isin(spellings), ibis.literal(float(score)))
            for (variable, score), spellings in texts.items()
        ),
        else_=_NULL,
    )


def _convert(events: ir.Table, preset: Preset) -> ir.FloatingColumn:
    """Return `events.measured` in the variable's unit; null where arithmetic could overflow."""
    places, value, item = _column_index(), events.measured, events.itemid
    fahrenheit = (events.variable == places["temperature"]) & (value >= 79)
    rules = [
        ((value != 0) & ~value.abs().between(_SMALLEST, _LARGEST / 1000), _NULL),
        ((events.variable == places["fraction_inspired_oxygen"]) & (value > 1), value / 100),
        ((events.variable == places["oxygen_saturation"]) & (value <= 1), value * 100),
        (item == _WEIGHT_POUNDS, value * 0.453592),
    ]
    if preset == "extended":
        # no living patient has 50 degrees on either scale, so 50 tells them apart
        fahrenheit |= (item == _TEMPERATURE_FAHRENHEIT) & (value > 50)
        rules.append((item == _HEIGHT_INCHES, value * 2.54))
    rules.append((fahrenheit, (value - 32) * 5 / 9))
    return ibis.cases(*rules, else_=value)


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((_DEFINITIONS / name).read_text(encoding="utf-8").splitlines()))
