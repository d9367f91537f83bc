"""Files of single patients are read by the rules of `prepare`, and what cannot be read is refused."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from drfuse.cohort import load_variables
from drfuse.cohort.patients import Patients, read_patients
from drfuse.data import Cohort
from drfuse.errors import InputError
from tests.mimic import HEART_RATE, O2_SATURATION_LAB, SPECIMEN_TYPE, UNUSED_CHART_ITEM

NAMES = [variable.name for variable in load_variables()]
Row = tuple[Any, ...]


def read(
    rows: list[Row], columns: tuple[str, ...] = ("stay_id", "hours", "variable", "value", "unit")
) -> Patients:
    cells = [[None if cell is None else str(cell) for cell in row] for row in rows]
    return read_patients(pl.DataFrame(cells, dict.fromkeys(columns, pl.String), orient="row"))


def values(found: Patients, stay: int = 0) -> dict[tuple[str, int], float]:
    """Return the observed values of a stay by variable and hour."""
    return {
        (NAMES[v], int(hour)): round(float(found.ehr[stay, hour, v]), 3)
        for hour, v in np.argwhere(~np.isnan(found.ehr[stay]))
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((1, 0, "heart_rate", 80, None), {("heart_rate", 0): 80}),
        ((1, -0.01, "heart_rate", 80, "bpm"), {("heart_rate", 0): 80}),  # less than a minute before
        ((1, 1, "heart_rate", 80, "BPM"), {("heart_rate", 0): 80}),  # an hour includes its end
        ((1, 1.001, "heart_rate", 80, None), {("heart_rate", 1): 80}),
        ((1, 2, "temperature", 98.6, "F"), {("temperature", 1): 37}),
        ((1, 2, "temperature", 37, "°C"), {("temperature", 1): 37}),
        ((1, 2, "glucose", 10, "mmol/L"), {("glucose", 1): 180.156}),
        ((1, 2, "weight", 180, "lb"), {("weight", 1): 81.647}),
        ((1, 2, "height", 1.7, "m"), {("height", 1): 170}),
        ((1, 2, "height", 70, "in"), {("height", 1): 177.8}),
        ((1, 2, "mean_blood_pressure", 10, "kPa"), {("mean_blood_pressure", 1): 75.006}),
        ((1, 2, "oxygen_saturation", 0.97, "fraction"), {("oxygen_saturation", 1): 97}),
        ((1, 2, "fraction_inspired_oxygen", 40, "%"), {("fraction_inspired_oxygen", 1): 0.4}),
        ((1, 2, "fraction_inspired_oxygen", 102, "%"), {("fraction_inspired_oxygen", 1): 1}),
        ((1, 2, "gcs_eye_opening", "To Speech", None), {("gcs_eye_opening", 1): 3}),
        ((1, 2, "capillary_refill_rate", "delayed", None), {("capillary_refill_rate", 1): 1}),
    ],
)
def test_a_value_is_converted_from_its_unit_into_its_hour(
    row: Row, expected: dict[tuple[str, int], float]
) -> None:
    assert values(read([row])) == expected


def test_the_last_value_of_an_hour_counts_and_the_window_ends_with_the_record() -> None:
    found = read(
        [
            (7, 20.5, "heart_rate", 90, None),
            (7, 20.2, "heart_rate", 70, None),
            (7, -3, "weight", 80, "kg"),
            (7, -3, "heart_rate", 60, None),  # only height and weight count from before
            (3, 60, "ph", 7.3, None),
            (3, 47, "ph", 7.2, None),
            (3, 5, "ph", "not done", None),
        ]
    )
    assert found.stay_id.tolist() == [3, 7]
    assert found.n_hours.tolist() == [48, 21]
    assert values(found) == {("ph", 46): 7.2}
    assert values(found, 1) == {("heart_rate", 20): 90, ("weight", 0): 80}
    assert found.n_unused == 3
    assert found.cxr_row.tolist() == [-1, -1]


def test_items_are_read_as_in_a_release() -> None:
    columns = ("stay_id", "hours", "itemid", "value")
    rows: list[Row] = [
        (1, 1, HEART_RATE, 80),
        (1, 1, UNUSED_CHART_ITEM, 80),
        (1, 2, O2_SATURATION_LAB, 96),
        (1, 2, SPECIMEN_TYPE, "ART."),
        (1, 3, O2_SATURATION_LAB, 70),  # of blood that is not known to be arterial
    ]
    assert values(read(rows, columns)) == {("heart_rate", 0): 80, ("oxygen_saturation", 1): 96}


def test_a_hospitals_stays_read_as_patients_are_those_of_its_cohort(small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    chart = pl.read_csv(
        next((small_cohort.parent / "mimic-iv").rglob("chartevents.csv.gz")), try_parse_dates=True
    )
    hours = (pl.col("charttime") - pl.col("intime").cast(pl.Datetime("us"))).dt.total_seconds() / 3600
    table = chart.join(cohort.stays.select("stay_id", "intime"), "stay_id").with_columns(hours=hours)
    found = read_patients(table.select("stay_id", "hours", "itemid", pl.col("value").cast(pl.String)))
    assert found.stay_id.tolist() == cohort.stay_id.tolist()
    # of two heights or weights of a minute, a release says which was stored last; the rest is of laboratories
    others = ("height", "weight", "glucose", "ph", "oxygen_saturation")
    charted = [v for v, name in enumerate(NAMES) if name not in others]
    np.testing.assert_array_equal(found.ehr[..., charted], cohort.ehr[..., charted])
    assert (~np.isnan(found.ehr[..., charted])).sum() > 10_000


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ([(1, 1, 2)], ("stay_id", "hours", "value"), r"lacks the column variable \(or itemid\)"),
        ([(1, "ph", 2)], ("stay_id", "variable", "value"), "lacks the column hours"),
        ([(1.5, 1, "ph", 7)], None, "row 1 has no usable stay_id; expected a whole number"),
        ([(1, 1, "ph", 7), (2, "soon", "ph", 7)], None, "row 2 has no usable hours; expected a number"),
        ([(1, "inf", "ph", 7)], None, "row 1 has no usable hours"),
        ([(1, 1, None, 7)], None, "row 1 has no usable variable or itemid; expected one of the two"),
        ([(1, 1, "pulse", 7)], None, "row 1 has the variable 'pulse'; expected one of capillary"),
        ([(1, 1, "gcs_total", 7)], None, "gcs_total, which is computed from others; give those"),
        ([(1, 1, "ph", "acid")], None, r"the stay 1 has no value that can be read .*1 of 1 stays"),
        ([(1, 99, "ph", 7.3), (2, 1, "ph", 7.3)], None, r"the stay 1 has no value .*1 of 2 stays"),
        (
            [(1, 1, "ph", 7)] * 2 + [(1, 1, "x", 7)] * 3,
            None,
            "3 rows, the first row 3, have the variable 'x'",
        ),
        ([], None, "is empty; expected a row for each measurement"),
        ([(1, 1, "ph", "7,3")], None, "row 1 has a comma in a number; write 36.5"),
        ([(1, 1, "glucose", "1,200")], None, "row 1 has a comma in a number"),
        (
            [("031", 1, "ph", 7), (31, 1, "ph", 7)],
            None,
            "row 2 has a stay_id that an earlier row spells diff",
        ),
        ([("9007199254740993.0", 1, "ph", 7)], None, "row 1 has no usable stay_id"),  # a float rounds it
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    rows: list[Row], columns: tuple[str, ...] | None, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        read(rows, columns or ("stay_id", "hours", "variable", "value"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stay_id;hours;variable;value\n1;1;ph;7\n", "lacks the column stay_id, .*separated by commas"),
        ("Stay_ID,Hours,Variable,Value\n1,1,ph,7\n", "lacks the column stay_id, .*in small letters"),
        ("stay_id,hours,variable,value,value\n1,1,ph,7,8\n", "the column value more than once"),
        ("stay_id,hours,variable,value, value\n1,1,ph,7,8\n", "the column value more than once"),
        (
            "stay_id,hours,variable,value\n1,1,ph,7,,\n",
            r"\(found more fields than defined in \.\.\.\); write",
        ),
        ('stay_id,hours,variable,value\n1,1,"ph,7\n1,2,ph,7\n', r"\(could not parse \.\.\.\); write"),
        ("", r"cannot be read as its name says \(empty CSV\)"),
        ("stay_id,hours,variable,value\n1,1,ph\xff,7\n", "invalid utf-8"),
    ],
)
def test_a_csv_of_another_form_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "patient.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=expected) as refused:
        read_patients(path)
    assert "truncate_ragged_lines" not in str(refused.value)
    assert "infer_schema" not in str(refused.value)


@pytest.mark.parametrize(
    "value", [[7.3], {"x": 7.3}, b"\xff", True, datetime(2020, 1, 1), timedelta(hours=1)], ids=repr
)
@pytest.mark.parametrize("name", ["hours", "value"])
def test_a_column_of_neither_numbers_nor_text_is_refused(name: str, value: object) -> None:
    row: dict[str, object] = {"stay_id": 1, "hours": 1, "variable": "ph", "value": 7}
    with pytest.raises(InputError, match=f"the column {name} is of type .*; expected numbers or text"):
        read_patients(pl.DataFrame([row | {name: value}]))


def test_categories_and_decimals_are_read() -> None:
    table = pl.DataFrame({"stay_id": 1, "hours": 1, "variable": "ph", "value": 7.3})
    kinds = {"variable": pl.Categorical, "value": pl.Decimal(5, 2), "hours": pl.Decimal(5, 2)}
    assert values(read_patients(table.cast(kinds))) == {("ph", 0): 7.3}  # type: ignore[arg-type]


def test_units_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="row 1 has an unknown unit; expected, for temperature, one of C"):
        read([(1, 1, "temperature", 300, "K")])
    columns = ("stay_id", "hours", "itemid", "value", "unit")
    with pytest.raises(InputError, match="a unit that is not that of the itemid"):
        read([(1, 1, 223761, 37, "C")], columns)  # the item of degrees Fahrenheit
    assert values(read([(1, 1, 223761, 98.6, "F")], columns)) == {("temperature", 0): 37}
    assert values(read([(1, 1, 50931, 10, "mmol/L")], columns)) == {("glucose", 0): 180.156}


def test_every_unit_leads_to_an_item_of_its_variable() -> None:
    from drfuse.cohort.variables import read_units, variable_of_items

    units, items = read_units(), variable_of_items()
    assert [items[item] for item in units["itemid"]] == units["variable"].to_list()
    assert set(NAMES) - set(units["variable"]) == {"gcs_total"}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_files_are_read_as_their_names_say(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ehr{suffix}"
    table = pl.DataFrame({"stay_id": [1], "hours": [1.0], "variable": ["heart_rate"], "value": [80]})
    if suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, compression="gzip" if suffix == ".csv.gz" else "uncompressed")
    assert values(read_patients(path)) == {("heart_rate", 0): 80}
    path.write_bytes(b"\x1f\x8b no gzip" if suffix != ".csv" else b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot be read as its name says|lacks the column"):
        read_patients(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_patients(tmp_path / "none.csv")
    (tmp_path / "ehr.xlsx").touch()
    with pytest.raises(InputError, match=r"is not called \.csv, \.csv\.gz or \.parquet"):
        read_patients(tmp_path / "ehr.xlsx")


def test_radiographs_are_found_by_their_stays(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"stay_id": [5, 6, 7], "hours": [1.0] * 3, "variable": ["heart_rate"] * 3, "value": [80] * 3}
    )
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (40, 60), 200).save(folder / "7.png")
    Image.new("L", (40, 60), 100).save(folder / "5.JPG", "JPEG")
    (folder / "notes.txt").touch()
    found = read_patients(table, folder, image_size=32)
    assert found.cxr_row.tolist() == [0, -1, 1]
    assert [int(image.mean()) for image in found.cxr] == [100, 200]
    one = read_patients(table[2:], folder / "7.png", image_size=32)
    np.testing.assert_array_equal(one.cxr[0], found.cxr[1])
    with pytest.raises(InputError, match="is one image, but the table of measurements has 3 stays"):
        read_patients(table, folder / "7.png")
    (folder / "._7.jpg").write_bytes(b"what macOS keeps of a file")
    (folder / "7.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match="are of one stay; keep one of them"):
        read_patients(table, folder)
    (folder / "7.png").unlink()
    with pytest.raises(InputError, match=r"7\.jpg cannot be read as an image"):
        read_patients(table, folder)
    (folder / "7.jpg").rename(folder / "8.jpg")
    with pytest.raises(InputError, match=r"8\.jpg is not named by a stay"):
        read_patients(table, folder)
    with pytest.raises(InputError, match=r"holds no \.jpg"):
        read_patients(table, tmp_path)
