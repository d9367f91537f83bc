"""The 17 clinical variables: which items feed them, and how a charted value becomes a number in its unit."""

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import ibis
import ibis.expr.types as ir
import polars as pl

Preset = Literal["extended", "benchmark"]

_DEFINITIONS = files("drfuse.cohort") / "definitions"
_PLAIN_NUMBER = r"^(\d+(\.\d*)?|\.\d+)$"
_HEIGHT_INCHES, _WEIGHT_POUNDS, _TEMPERATURE_FAHRENHEIT = 226707, 226531, 223761
_GCS_PARTS = ("gcs_eye_opening", "gcs_motor_response", "gcs_verbal_response")


@dataclass(frozen=True)
class Variable:
    """One clinical variable, as `variables.csv` and `variable_ranges.csv` describe it.

    Attributes:
        name: What it is called in the cohort.
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


def item_ids(preset: Preset, table: Literal["chartevents", "labevents"]) -> list[int]:
    """Return the items of one event table that a preset reads."""
    rows = _rows("variables.csv")
    return [int(row["itemid"]) for row in rows if row["table"] == table and row[preset] == "1"]


def clean_values(events: ir.Table, preset: Preset) -> ir.Table:
    """Return `events` with the columns `variable` (its name) and `measured` (float, in the variable's unit).

    Rows whose value is no number, or lies outside the outlier range (preset `extended`), are left out.
    `extended` takes `valuenum`, else the number or the score behind the text in `value`. `benchmark` takes
    `value` alone, converts no inches, and keeps outliers, as the published extraction does.

    Args:
        events: Event rows with `itemid`, `value` and `valuenum`.
        preset: Which items and which rules.
    """
    events = events.join(_items(preset), "itemid")
    scores = ibis.memtable(
        pl.DataFrame(_rows("text_scores.csv")).with_columns(pl.col("score").cast(pl.Float64))
    )
    text = events.value.strip().lower()
    events = events.left_join(scores, [events.variable == scores.variable, text == scores.text]).drop(
        "variable_right", "text"
    )
    number = events.value.try_cast("float64")
    if preset == "benchmark":
        laboratory = events.variable.isin(("glucose", "ph", "oxygen_saturation"))
        number = (~laboratory | events.value.re_search(_PLAIN_NUMBER)).ifelse(number, ibis.null("float64"))
        number = ibis.coalesce(number, events.score)
    else:
        number = ibis.coalesce(events.valuenum, number, events.score)
    events = events.mutate(measured=number)
    events = events.mutate(measured=_convert(events, preset))
    events = events.filter(~(events.measured.isnan() | events.measured.isinf()))
    if preset == "extended":
        events = events.filter(events.measured.between(events.outlier_low, events.outlier_high))
        events = events.mutate(
            measured=ibis.greatest(ibis.least(events.measured, events.valid_high), events.valid_low)
        )
    return events


def derive_gcs_total(measurements: ir.Table) -> ir.Table:
    """Return the GCS total wherever eye, verbal and motor response were charted at the same time.

    Args:
        measurements: Rows of `stay_id`, `variable`, `charttime`, `storetime` and `measured`.

    Returns:
        Rows of the same columns; of two scores of one part at one time, the last stored one counts.
    """
    rank = ibis.struct({"storetime": measurements.storetime, "measured": measurements.measured})
    part = {name: measurements.variable == name for name in _GCS_PARTS}
    parts = measurements.filter(measurements.variable.isin(_GCS_PARTS)).aggregate(
        by=["stay_id", "charttime"],
        storetime=measurements.storetime.max(),
        **{name: measurements.measured.argmax(rank, where=rows) for name, rows in part.items()},
    )
    eye, motor, verbal = (parts[name] for name in _GCS_PARTS)
    total = parts.mutate(variable=ibis.literal("gcs_total"), measured=eye + motor + verbal)
    return total.filter(total.measured.notnull()).select(measurements.columns)


def _convert(events: ir.Table, preset: Preset) -> ir.FloatingValue:
    """Return `events.measured` in the variable's unit."""
    value, item = events.measured, events.itemid
    fahrenheit = (events.variable == "temperature") & (value >= 79)
    rules = [
        ((events.variable == "fraction_inspired_oxygen") & (value > 1), value / 100),
        ((events.variable == "oxygen_saturation") & (value <= 1), value * 100),
        (item == _WEIGHT_POUNDS, value * 0.453592),
    ]
    if preset == "extended":
        fahrenheit |= item == _TEMPERATURE_FAHRENHEIT
        rules.append((item == _HEIGHT_INCHES, value * 2.54))
    rules.append((fahrenheit, (value - 32) * 5 / 9))
    return ibis.cases(*rules, else_=value)


def _items(preset: Preset) -> ir.Table:
    """Return a row for each item that a preset reads: `itemid`, `variable` and the variable's ranges."""
    ranges = {row["variable"]: row for row in _rows("variable_ranges.csv")}
    bounds = ("outlier_low", "valid_low", "valid_high", "outlier_high")
    rows = [
        {"itemid": int(row["itemid"]), "variable": row["variable"]}
        | {bound: float(ranges[row["variable"]][bound]) for bound in bounds}
        for row in _rows("variables.csv")
        if row[preset] == "1" and row["itemid"] != "derived"
    ]
    return ibis.memtable(pl.DataFrame(rows))


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((_DEFINITIONS / name).read_text(encoding="utf-8").splitlines()))
