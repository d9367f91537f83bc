import gzip
import math
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import polars as pl
import pytest

from drfuse.cohort.sources import Source, open_source
from drfuse.cohort.sources.mimic_cxr import MimicCxr
from drfuse.cohort.sources.mimic_files import MimicFiles
from drfuse.cohort.store import Store, explain_errors
from drfuse.errors import InputError, MissingInputError
from tests.mimic import HEART_RATE, Hospital, Layout, Suffix, write_tables

SUFFIXES: tuple[Suffix, ...] = (".csv", ".csv.gz", ".parquet")


def open_folder(folder: Path) -> Source:
    return open_source(folder, Store().connect())


def tables(source: Source) -> dict[str, ir.Table]:
    return {
        "stays": source.stays,
        "admissions": source.admissions,
        "diagnoses": source.diagnoses,
        "chartevents": source.events["chartevents"],
        "labevents": source.events["labevents"],
    }


def rows(table: ir.Table) -> list[dict[str, Any]]:
    return table.to_pyarrow().to_pylist()


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace text that stands in a CSV file once or more."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def hospital() -> Hospital:
    hospital = Hospital()
    stay = hospital.add_stay(race="ASIAN")
    hospital.chart(stay, HEART_RATE, 80)
    hospital.lab(stay, 50931, 90)
    hospital.diagnose(stay, "0031", 9)
    hospital.radiograph(stay)
    return hospital


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", ["hosp", "core"])
def test_every_layout_and_format_gives_the_same_tables(
    layout: Layout, suffix: Suffix, hospital: Hospital, tmp_path: Path
) -> None:
    reference = open_folder(hospital.write(tmp_path / "reference"))
    found = open_folder(hospital.write(tmp_path / "found", layout, suffix))
    for name, table in tables(reference).items():
        assert rows(tables(found)[name]) == rows(table), name
    assert rows(found.admissions)[0]["race"] == "ASIAN"
    assert rows(found.diagnoses)[0]["icd_code"] == "0031"


def test_columns_are_found_by_name(hospital: Hospital, tmp_path: Path) -> None:
    reference = open_folder(hospital.write(tmp_path / "reference", suffix=".csv"))
    frames = {
        stem: frame.select(*reversed(frame.columns)).with_columns(ours=pl.lit('a "new", one'))
        for stem, frame in hospital.frames().items()
    }
    found = open_folder(write_tables(frames, tmp_path / "found", ".csv"))
    for name, table in tables(reference).items():
        assert rows(tables(found)[name]) == rows(table), name


def test_types_are_stated_not_guessed(hospital: Hospital, tmp_path: Path) -> None:
    source = open_folder(hospital.write(tmp_path, suffix=".csv"))
    assert source.events["chartevents"].value.type().is_string()  # though it holds numbers only
    assert source.events["chartevents"].valuenum.type().is_float64()
    assert source.events["chartevents"].charttime.type().is_timestamp()
    assert source.diagnoses.icd_code.type().is_string()
    assert source.stays.stay_id.type().is_int64()


@pytest.mark.parametrize("parquet_type", [pl.Int32, pl.UInt32, pl.Float64, pl.String])
def test_parquet_ids_of_another_type_are_cast(
    parquet_type: type[pl.DataType], hospital: Hospital, tmp_path: Path
) -> None:
    frames = {
        stem: frame.cast({name: parquet_type for name in frame.columns if name.endswith("_id")})
        for stem, frame in hospital.frames().items()
    }
    source = open_folder(write_tables(frames, tmp_path, ".parquet"))
    assert rows(source.stays)[0]["stay_id"] == 92_000_001


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("column", ["subject_id", "hadm_id", "stay_id", "itemid", "valuenum"])
def test_nan_among_the_numbers_of_a_parquet_file_is_missing(
    column: str, odd: float, hospital: Hospital, tmp_path: Path
) -> None:
    frames = hospital.frames()
    chart = pl.concat([frames["icu/chartevents"]] * 3)
    # the file states 1 and 2 as the smallest and the largest number
    frames["icu/chartevents"] = chart.with_columns(pl.Series(column, [odd, 1, 2], pl.Float64))
    read = rows(open_folder(write_tables(frames, tmp_path, ".parquet")).events["chartevents"])
    assert [row[column] for row in read] == [None, 1, 2]


def test_a_number_of_32_bits_is_the_decimal_that_it_stands_for(hospital: Hospital, tmp_path: Path) -> None:
    frames = {
        stem: frame.with_columns(pl.lit(36.6, pl.Float32).alias("valuenum"))
        if "valuenum" in frame.columns
        else frame
        for stem, frame in hospital.frames().items()
    }
    (row,) = rows(open_folder(write_tables(frames, tmp_path, ".parquet")).events["chartevents"])
    assert row["valuenum"] == 36.6


@pytest.mark.parametrize("above", [".", "2.2", "physionet.org/files/mimiciv/2.2"])
def test_the_folder_may_be_given_with_or_without_its_top(
    above: str, hospital: Hospital, tmp_path: Path
) -> None:
    root = hospital.write(tmp_path / "given" / above)
    hospital.write_radiographs(tmp_path / "given-cxr" / above)
    source = open_folder(tmp_path / "given")
    cxr = MimicCxr.open(tmp_path / "given-cxr", Store().connect())
    assert source.root.samefile(root)
    assert len(rows(source.stays)) == len(rows(cxr.table)) == 1
    assert cxr.root.samefile(tmp_path / "given-cxr" / above)


@pytest.mark.parametrize("name", ["it's here", "100% new", "two  spaces", "čšž", "a,b", "{x}"])
def test_any_name_of_a_folder_will_do(name: str, hospital: Hospital, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        source = open_folder(hospital.write(tmp_path / suffix[1:] / name, suffix=suffix))
        assert len(rows(source.stays)) == 1


@pytest.mark.parametrize(("name", "neighbour"), [("mimic [2.2]", "mimic 2"), ("a?", "ab"), ("*", "any")])
def test_a_name_is_no_pattern(name: str, neighbour: str, hospital: Hospital, tmp_path: Path) -> None:
    other = Hospital()
    other.add_stay()
    other.add_stay()
    for suffix in SUFFIXES:
        other.write(tmp_path / suffix[1:] / neighbour, suffix=suffix)
        source = open_folder(hospital.write(tmp_path / suffix[1:] / name, suffix=suffix))
        assert len(rows(source.stays)) == 1


def test_two_releases_in_one_folder_are_refused(hospital: Hospital, tmp_path: Path) -> None:
    for release in ("2.2", "3.1"):
        hospital.write(tmp_path / release)
    with pytest.raises(InputError, match=r"more than one release .*2\.2.*3\.1"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("folder", "layout", "release"),
    [("mimiciv-3.1", "hosp", "3.1"), ("mimic", "core", "1.x"), ("mimic", "hosp", "2.0 or later")],
)
def test_the_release_is_told_as_far_as_it_shows(
    folder: str, layout: Layout, release: str, hospital: Hospital, tmp_path: Path
) -> None:
    assert open_folder(hospital.write(tmp_path / folder, layout)).release == release


def test_quoted_cells_line_ends_and_byte_order_marks_are_read(hospital: Hospital, tmp_path: Path) -> None:
    folder = hospital.write(tmp_path, suffix=".csv")
    rewrite(folder / "hosp/admissions.csv", "ASIAN", '"ASIAN, ""OTHER"""')
    rewrite(folder / "hosp/diagnoses_icd.csv", "0031", '"0031"')
    rewrite(folder / "hosp/labevents.csv", "90,90.0,,", '90,90.0,,"two\nlines"')
    for path in folder.rglob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    source = open_folder(folder)
    assert rows(source.admissions)[0]["race"] == 'ASIAN, "OTHER"'
    assert rows(source.diagnoses)[0]["icd_code"] == "0031"
    assert rows(source.stays)[0]["los"] == pytest.approx(100 / 24)
    assert rows(source.events["chartevents"])[0]["value"] == "80"
    assert [row["value"] for row in rows(source.events["labevents"])] == ["90"]


def test_rows_that_do_not_parse_are_left_out_and_counted(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    for value in (81, 82, 83):
        hospital.chart(stay, HEART_RATE, value)
    folder = hospital.write(tmp_path, suffix=".csv")
    rewrite(folder / "icu/chartevents.csv", ",82,82.0,", ",82,eighty-two,")
    rewrite(folder / "icu/chartevents.csv", ",83,83.0,,0\n", ",83\n")
    store = Store().connect()
    source = open_source(folder, store)
    assert sorted(row["value"] for row in rows(source.events["chartevents"])) == ["80", "81"]
    assert len(rows(source.events["labevents"])) == 1
    assert store.rejected_rows == {"chartevents.csv": 2}


def test_a_row_with_two_wrong_cells_counts_once_however_often_it_is_read(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.add_patient(90_999_999, age=61)
    folder = hospital.write(tmp_path, suffix=".csv")
    rewrite(folder / "hosp/patients.csv", "60,2150", "sixty,last year")
    store = Store().connect()
    source = open_source(folder, store)
    for _ in range(2):
        (stay,) = rows(source.stays)
        assert (stay["gender"], stay["birth_year"]) == (None, None)
    assert store.rejected_rows == {"patients.csv": 1}


def test_no_rows_were_rejected_where_no_csv_was_read(hospital: Hospital, tmp_path: Path) -> None:
    store = Store().connect()
    assert len(rows(open_source(hospital.write(tmp_path, suffix=".parquet"), store).stays)) == 1
    assert store.rejected_rows == {}


def test_records_are_closed_when_the_radiographs_cannot_be_opened(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(source: Source) -> None:
        closed.append(source.address)

    monkeypatch.setattr(MimicFiles, "close", close)
    with pytest.raises(MissingInputError, match="MIMIC-CXR-JPG"):
        open_source(hospital.write(tmp_path / "iv"), Store().connect(), tmp_path / "iv")
    assert closed == [str(tmp_path / "iv")]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        open_folder(tmp_path / "nowhere")


def test_a_folder_without_a_release_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"does not hold a MIMIC-IV release.*icu/icustays"):
        open_folder(tmp_path)
    with pytest.raises(MissingInputError, match=r"does not hold a MIMIC-CXR-JPG release.*metadata"):
        MimicCxr.open(tmp_path, Store().connect())


def test_a_release_may_lack_diagnoses(hospital: Hospital, tmp_path: Path) -> None:
    (hospital.write(tmp_path) / "hosp/diagnoses_icd.csv.gz").unlink()
    assert open_folder(tmp_path).diagnoses is None


@pytest.mark.parametrize("stem", ["hosp/patients", "hosp/admissions", "icu/chartevents", "hosp/labevents"])
def test_a_missing_table_is_named(stem: str, hospital: Hospital, tmp_path: Path) -> None:
    (hospital.write(tmp_path) / f"{stem}.csv.gz").unlink()
    with pytest.raises(MissingInputError, match=rf"lacks the table \w+.*{stem}\.csv\.gz"):
        open_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("stem", "column"),
    [
        ("hosp/patients", "anchor_year"),
        ("hosp/admissions", "hospital_expire_flag"),
        ("icu/icustays", "intime"),
        ("hosp/diagnoses_icd", "icd_version"),
        ("icu/chartevents", "stay_id"),
        ("hosp/labevents", "valuenum"),
    ],
)
def test_a_missing_column_is_named(
    stem: str, column: str, suffix: Suffix, hospital: Hospital, tmp_path: Path
) -> None:
    frames = hospital.frames()
    frames[stem] = frames[stem].drop(column)
    write_tables(frames, tmp_path, suffix)
    with pytest.raises(MissingInputError, match=rf"{stem}\{suffix} lacks the column {column} "):
        open_folder(tmp_path)


def test_a_file_that_is_not_what_its_name_says_is_named(hospital: Hospital, tmp_path: Path) -> None:
    text = b"subject_id,gender\n1,F\n"
    wrong = {
        "patients.csv.gz": text,
        "patients.parquet": text,
        "patients.csv": gzip.compress(text),
    }
    for number, (name, content) in enumerate(wrong.items()):
        folder = hospital.write(tmp_path / str(number))
        (folder / "hosp/patients.csv.gz").unlink()
        (folder / "hosp" / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is not a.* as its name says"):
            open_folder(folder)


def test_an_empty_file_is_named(hospital: Hospital, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        folder = hospital.write(tmp_path / suffix[1:], suffix=suffix)
        (folder / f"hosp/patients{suffix}").write_bytes(b"")
        with pytest.raises(InputError, match=rf"patients\{suffix}"):
            open_folder(folder)


def test_a_damaged_file_is_named_in_one_sentence(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    for row in range(5000):
        hospital.chart(stay, HEART_RATE, 50 + row * 7919 % 100, at=row * 7919 % 100)
    path = hospital.write(tmp_path) / "icu/chartevents.csv.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"chartevents\.csv\.gz") as caught:
        read_chart_events(tmp_path)
    assert "\n" not in str(caught.value)


def read_chart_events(folder: Path) -> list[dict[str, Any]]:
    source = open_folder(folder)
    with explain_errors([file.path for file in source.files]):
        return rows(source.events["chartevents"])


@pytest.mark.parametrize("times", [pl.Datetime("ns"), pl.Datetime("ms"), pl.String])
def test_parquet_times_of_any_kind_become_the_same_type(
    times: pl.DataType, hospital: Hospital, tmp_path: Path
) -> None:
    reference = open_folder(hospital.write(tmp_path / "csv", suffix=".csv"))
    text = pl.col(pl.Datetime).dt.strftime("%Y-%m-%d %H:%M:%S")
    frames = {
        stem: frame.with_columns(text if times == pl.String else pl.col(pl.Datetime).cast(times))
        for stem, frame in hospital.frames().items()
    }
    found = open_folder(write_tables(frames, tmp_path / "parquet", ".parquet"))
    for name, table in tables(reference).items():
        assert tables(found)[name].schema() == table.schema(), name
        assert rows(tables(found)[name]) == rows(table), name
