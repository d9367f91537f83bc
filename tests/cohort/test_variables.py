import csv
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import ibis
import pytest

from drfuse.cohort.variables import Preset, clean_values, derive_gcs_total, item_ids, load_variables
from tests.mimic import (
    CAPILLARY_REFILL,
    CELSIUS,
    DIASTOLIC,
    DIASTOLIC_MANUAL_RIGHT,
    FAHRENHEIT,
    FIO2,
    GCS_EYE,
    GCS_MOTOR,
    GCS_VERBAL,
    GLUCOSE_CHART,
    GLUCOSE_LAB,
    GLUCOSE_URINE_LAB,
    HEART_RATE,
    HEIGHT_CM,
    HEIGHT_INCHES,
    MEAN_PRESSURE,
    O2_SATURATION,
    O2_SATURATION_LAB,
    PH_LAB,
    PH_URINE_LAB,
    RESPIRATORY_RATE,
    WEIGHT_KG,
    WEIGHT_POUNDS,
)

Value = float | str | None
Case = tuple[int, Value, float | None]

SAME_IN_BOTH: list[Case] = [
    (HEART_RATE, 80, 80),
    (HEART_RATE, None, None),
    (FIO2, 40, 0.4),
    (FIO2, 100, 1),
    (FIO2, 0.5, 0.5),
    (FIO2, 1, 1),
    (O2_SATURATION, 97, 97),
    (O2_SATURATION, 0.97, 97),
    (O2_SATURATION, 1, 100),
    (O2_SATURATION_LAB, 0.5, 50),
    (CELSIUS, 37.2, 37.2),
    (CELSIUS, 98.6, 37),
    (CELSIUS, 79, 26.1111),
    (FAHRENHEIT, 98.6, 37),
    (FAHRENHEIT, 95, 35),
    (HEIGHT_CM, 170, 170),
    (WEIGHT_KG, 80, 80),
    (WEIGHT_POUNDS, 200, 90.7184),
    (GLUCOSE_LAB, "ERROR", None),
    (GLUCOSE_LAB, "HEMOLYZED", None),
    (GLUCOSE_LAB, "<10", None),
    (GLUCOSE_LAB, "1_000", None),
    (HEART_RATE, " 80\t", 80),
    (HEART_RATE, "\n80.5", 80.5),
    (HEART_RATE, "+80", 80),
    (HEART_RATE, ".8e+02", 80),
    (HEART_RATE, "8E01", 80),
    (HEART_RATE, "1e999", None),
    (HEART_RATE, "9" * 400, None),
    (HEART_RATE, "80d", None),  # a number to Java
    (HEART_RATE, "0x50", None),
    (HEART_RATE, "infinity", None),
    (HEART_RATE, "8 0", None),
    (HEART_RATE, "", None),
    (GLUCOSE_LAB, "105", 105),
    (PH_LAB, "7.", 7),
    (GCS_EYE, "None", 1),
    (GCS_EYE, "To Pain", 2),
    (GCS_EYE, "To Speech", 3),
    (GCS_EYE, "Spontaneously", 4),
    (GCS_MOTOR, "No response", 1),
    (GCS_MOTOR, "Abnormal extension", 2),
    (GCS_MOTOR, "Abnormal Flexion", 3),
    (GCS_MOTOR, "Flex-withdraws", 4),
    (GCS_MOTOR, "Localizes Pain", 5),
    (GCS_MOTOR, "Obeys Commands", 6),
    (GCS_VERBAL, "No Response", 1),
    (GCS_VERBAL, "No Response-ETT", 1),
    (GCS_VERBAL, "Incomprehensible sounds", 2),
    (GCS_VERBAL, "Inappropriate Words", 3),
    (GCS_VERBAL, "Confused", 4),
    (GCS_VERBAL, "Oriented", 5),
    (GCS_VERBAL, "asleep", None),
]
EXTENDED_ONLY: list[Case] = [
    (HEIGHT_INCHES, 70, 177.8),
    (FAHRENHEIT, 77, 25 + 1),  # 25 degrees: in the outlier range, raised to the lowest valid value
    (CAPILLARY_REFILL, "Normal <3 Seconds", 0),
    (CAPILLARY_REFILL, "Abnormal >3 Seconds", 1),
    (CAPILLARY_REFILL, " normal <3 secs ", 0),
    (CAPILLARY_REFILL, "Comment", None),
    (DIASTOLIC_MANUAL_RIGHT, 60, 60),
    (GLUCOSE_URINE_LAB, 300, None),
    (PH_URINE_LAB, 6.5, None),
    # at and beyond the bounds of variable_ranges.csv
    (HEART_RATE, 350, 350),
    (HEART_RATE, 351, 350),
    (HEART_RATE, 390, 350),
    (HEART_RATE, 390.5, None),
    (HEART_RATE, -1, None),
    (MEAN_PRESSURE, 5, 14),
    (MEAN_PRESSURE, 0, None),  # no pressure of a living patient
    (DIASTOLIC, 0, None),
    (O2_SATURATION, 0, None),
    (HEART_RATE, 0, 0),  # asystole is real
    (GLUCOSE_LAB, 0, None),
    (WEIGHT_KG, 1, None),
    (WEIGHT_KG, 19.9, None),
    (HEIGHT_CM, 61, None),
    (HEIGHT_CM, 1.75, None),
    (HEIGHT_CM, 231, None),
    (FAHRENHEIT, 36.8, 36.8),  # Celsius, whatever the item says
    (GLUCOSE_LAB, 2100, 2000),
    (GLUCOSE_LAB, 2201, None),
    (GLUCOSE_CHART, 20, 33),
    (GLUCOSE_CHART, 999_999, None),
    (DIASTOLIC, 376, None),
    (FIO2, 20, 0.21),
    (FIO2, 19, None),
    (FIO2, 1.05, None),  # above 1, so a percentage
    (FIO2, 0.1, None),
    (O2_SATURATION, 120, 100),
    (CELSIUS, 14, None),
    (CELSIUS, 46, 45),
    (PH_LAB, 8.5, 8.4),
    (PH_LAB, 6.2, None),
    (GCS_EYE, 5, None),
]
BENCHMARK_ONLY: list[Case] = [
    (HEIGHT_INCHES, 70, 70),
    (CAPILLARY_REFILL, "Normal <3 Seconds", None),
    (DIASTOLIC_MANUAL_RIGHT, 60, None),
    (GLUCOSE_URINE_LAB, 300, 300),
    (PH_URINE_LAB, 6.5, 6.5),
    (FAHRENHEIT, 77, 77),
    (GLUCOSE_LAB, "-5", None),
    (GLUCOSE_LAB, "1e2", None),
    (GLUCOSE_LAB, "90\n", None),
    (GLUCOSE_LAB, " 90", None),
    (HEART_RATE, 10_000, 10_000),
    (HEART_RATE, -1, -1),
    (GLUCOSE_CHART, 999_999, 999_999),
    (RESPIRATORY_RATE, 0, 0),
]


def clean(cases: Sequence[tuple[int, Value, float | None]], preset: Preset) -> list[float | None]:
    """Return what becomes of each (itemid, value, valuenum)."""
    rows = [
        {"row": row, "itemid": item, "value": None if value is None else str(value), "valuenum": number}
        for row, (item, value, number) in enumerate(cases)
    ]
    schema = {"row": "int64", "itemid": "int64", "value": "string", "valuenum": "float64"}
    cleaned = clean_values(ibis.memtable(rows, schema=schema), preset).to_pyarrow().to_pylist()
    values = {row["row"]: row["measured"] for row in cleaned}
    assert len(values) == len(cleaned)
    return [values.get(row) for row in range(len(cases))]


def number_of(value: Value) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)


@pytest.mark.parametrize(
    ("preset", "cases"),
    [
        ("extended", SAME_IN_BOTH),
        ("benchmark", SAME_IN_BOTH),
        ("extended", EXTENDED_ONLY),
        ("benchmark", BENCHMARK_ONLY),
    ],
    ids=["common, extended", "common, benchmark", "extended", "benchmark"],
)
def test_each_charted_value_becomes_a_number_in_its_unit(preset: Preset, cases: list[Case]) -> None:
    found = clean([(item, value, number_of(value)) for item, value, _ in cases], preset)
    assert [
        (item, value, None if one is None else round(one, 4))
        for (item, value, _), one in zip(cases, found, strict=True)
    ] == cases


def test_extended_prefers_the_number_beside_the_text() -> None:
    found = clean([(GLUCOSE_LAB, "ERROR", 90), (GCS_EYE, "None", 1), (HEART_RATE, None, 70)], "extended")
    assert found == [90, 1, 70]


def test_benchmark_reads_the_text_alone() -> None:
    found = clean([(GLUCOSE_LAB, "ERROR", 90), (HEART_RATE, None, 70), (HEART_RATE, "71", 70)], "benchmark")
    assert found == [None, None, 71]


@pytest.mark.parametrize("preset", ["extended", "benchmark"])
def test_a_value_that_is_not_finite_is_missing(preset: Preset) -> None:
    cases = [(HEART_RATE, "nan", math.nan), (HEART_RATE, "inf", math.inf), (HEART_RATE, "-inf", -math.inf)]
    assert clean(cases, preset) == [None, None, None]


def test_the_presets_read_the_items_of_the_published_list(shared: Path) -> None:
    with (shared / "reference" / "variables.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    presets: tuple[Preset, ...] = ("extended", "benchmark")
    for preset in presets:
        for table in ("chartevents", "labevents"):
            expected = {int(row["itemid"]) for row in rows if row["table"] == table and row[preset] == "1"}
            assert set(item_ids(preset, table)) == expected


def test_urine_is_neither_blood_glucose_nor_blood_ph() -> None:
    assert {GLUCOSE_URINE_LAB, PH_URINE_LAB} <= set(item_ids("benchmark", "labevents"))
    assert not {GLUCOSE_URINE_LAB, PH_URINE_LAB} & set(item_ids("extended", "labevents"))


def test_no_item_feeds_two_variables() -> None:
    presets: tuple[Preset, ...] = ("extended", "benchmark")
    for preset in presets:
        items = item_ids(preset, "chartevents") + item_ids(preset, "labevents")
        assert len(items) == len(set(items))


def test_there_are_17_variables_and_5_of_them_are_categories() -> None:
    variables = load_variables()
    assert len({variable.name for variable in variables}) == len(variables) == 17
    sizes = {
        variable.name: variable.valid_high - variable.valid_low + 1
        for variable in variables
        if variable.kind == "categorical"
    }
    assert sizes == {
        "capillary_refill_rate": 2,
        "gcs_eye_opening": 4,
        "gcs_motor_response": 6,
        "gcs_total": 13,
        "gcs_verbal_response": 5,
    }


def test_normal_values_are_valid() -> None:
    for variable in load_variables():
        assert variable.valid_low <= variable.normal <= variable.valid_high, variable.name


def test_every_charted_score_is_a_valid_category() -> None:
    categories = {variable.name: variable for variable in load_variables()}
    text = (files("drfuse.cohort") / "definitions" / "text_scores.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        variable = categories[row["variable"]]
        assert variable.kind == "categorical"
        assert variable.valid_low <= float(row["score"]) <= variable.valid_high
        assert row["text"] == row["text"].strip().lower()


def test_the_gcs_total_is_the_sum_of_three_parts_of_one_time() -> None:
    parts = [
        # stay, time, storing time, part, score, hour
        (1, 1, 1, "gcs_eye_opening", 4, 0),
        (1, 1, 1, "gcs_motor_response", 6, 0),
        (1, 1, 2, "gcs_verbal_response", 5, 0),
        (1, 2, 2, "gcs_eye_opening", 3, 1),  # alone
        (2, 1, 1, "gcs_eye_opening", 1, 7),
        (2, 1, 3, "gcs_motor_response", 2, 7),  # stored after the next one
        (2, 1, 2, "gcs_motor_response", 6, 7),
        (2, 1, 1, "gcs_verbal_response", 1, 7),
        (2, 1, 1, "heart_rate", 80, 7),
    ]
    place = {variable.name: place for place, variable in enumerate(load_variables())}
    schema = {
        "stay_id": "int64",
        "charttime": "int64",
        "storetime": "int64",
        "variable": "int8",
        "measured": "float64",
        "hour": "int16",
    }
    rows = [(*row[:3], place[str(row[3])], *row[4:]) for row in parts]
    measurements = ibis.memtable([dict(zip(schema, row, strict=True)) for row in rows], schema=schema)
    totals = derive_gcs_total(measurements).order_by("stay_id")
    assert totals.schema() == measurements.schema()
    assert [tuple(row.values()) for row in totals.to_pyarrow().to_pylist()] == [
        (1, 1, 2, place["gcs_total"], 15, 0),
        (2, 1, 3, place["gcs_total"], 4, 7),
    ]
