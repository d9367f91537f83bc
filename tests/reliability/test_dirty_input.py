"""Dirty tables, images and options of `drfuse prepare`: one sentence each, or left out and counted."""

import gzip
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from PIL import Image

from drfuse.cohort import Manifest, prepare
from drfuse.errors import InputError
from drfuse.failures import traceback_of
from drfuse.yaml_files import read_yaml
from tests.builders import left_in
from tests.mimic import GLUCOSE_LAB, HEART_RATE, SYSTOLIC, Hospital

CHART, LAB, ICU = "mimic-iv/icu/chartevents.csv", "mimic-iv/hosp/labevents.csv", "mimic-iv/icu/icustays.csv"
PATIENTS, ADMISSIONS = "mimic-iv/hosp/patients.csv", "mimic-iv/hosp/admissions.csv"
DIAGNOSES, METADATA = "mimic-iv/hosp/diagnoses_icd.csv", "mimic-cxr/mimic-cxr-2.0.0-metadata.csv"
N_STAYS = 30

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clean hospital of 30 stays as CSV files; a case changes a copy of it."""
    folder, hospital = tmp_path_factory.mktemp("hospital"), Hospital()
    for number in range(N_STAYS):
        stay = hospital.add_stay(60)
        for hour in range(4):
            hospital.chart(stay, HEART_RATE, 70 + number, hour + 0.5)
            hospital.chart(stay, SYSTOLIC, 120 + hour, hour + 0.5)
        hospital.lab(stay, GLUCOSE_LAB, 100, 2)
        hospital.diagnose(stay, "4019", 9)
        hospital.radiograph(stay, 1)
    hospital.write(folder / "mimic-iv", suffix=".csv")
    hospital.write_radiographs(folder / "mimic-cxr", suffix=".csv")
    return folder


@pytest.fixture
def hospital(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the hospital."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder: Path, **options: Any) -> Manifest:
    """Prepare the cohort of a hospital with small images."""
    given: dict[str, Any] = {"mimic_cxr": folder / "mimic-cxr", "image_size": 32, "threads": 2} | options
    source, out = given.pop("mimic_iv", folder / "mimic-iv"), given.pop("out", folder / "cohort")
    return prepare(source, out, **given)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what gives all that a user or an administrator could read of a command, and of its error."""
    caplog.set_level(logging.DEBUG)

    def read(error: BaseException | None = None) -> str:
        chain = "" if error is None else "".join(traceback.format_exception(error))
        frames = "".join(line for line in chain.splitlines() if not line.startswith("    "))  # code
        return (
            caplog.text
            + "".join(capfd.readouterr())
            + frames
            + ("" if error is None else traceback_of(error))
        )

    return read


def assert_no_patient(said: str, folder: Path) -> None:
    """Check that no id and no cell of a hospital's tables is in what was said."""
    said = said.replace(str(folder), "")
    for table in (*folder.glob("mimic-*/**/*.csv"), *folder.glob("codes.csv")):
        lines = table.read_bytes().decode("utf-8", "replace").split("\n")[1:]
        cells = {cell.strip('" \0') for line in lines for cell in line.split(",")}
        assert not [cell for cell in cells if len(cell) > 4 and cell in said]


def becomes(file: str, content: str | bytes) -> Change:
    """Return a change that gives a file another content."""
    written = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(written)


def header_only(file: str, rest: str = "") -> Change:
    return lambda folder: (folder / file).write_text((folder / file).read_text().split("\n")[0] + "\n" + rest)


def text(file: str, old: str, new: str, count: int = -1) -> Change:
    """Return a change that replaces a text in a file."""

    def change(folder: Path) -> None:
        before = (folder / file).read_text()
        assert old in before
        (folder / file).write_text(before.replace(old, new, count))

    return change


def cell(file: str, column: str, value: str, rows: int = 1) -> Change:
    """Return a change that sets a column in the first rows of a table."""

    def change(folder: Path) -> None:
        table = pl.read_csv(folder / file, infer_schema=False)
        changed = pl.when(pl.int_range(pl.len()) < rows).then(pl.lit(value)).otherwise(column)
        table.with_columns(changed.alias(column)).write_csv(folder / file)

    return change


def twice(file: str) -> Change:
    """Return a change that repeats the first row of a table."""

    def change(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text("".join([*lines, lines[1]]))

    return change


def separated_by(separator: str) -> Change:
    return lambda folder: (folder / CHART).write_text((folder / CHART).read_text().replace(",", separator))


def images(change: Callable[[Path], object]) -> Change:
    """Return a change of every image file."""
    return lambda folder: [change(path) for path in (folder / "mimic-cxr").rglob("*.jpg")]


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def compressed(file: str, content: bytes) -> Change:
    """Return a change that puts a gzip file of some content in a table's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / f"{file}.gz").write_bytes(content)

    return change


def remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def nothing(_folder: Path) -> None:
    """Change nothing: the options are what is wrong."""


PAGE = "<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"
REFUSED: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "chart events: only a header": (header_only(CHART), r"chartevents\.csv has no row", {}),
    "laboratory results: only a header": (header_only(LAB), r"labevents\.csv has no row", {}),
    "chart events: blank lines": (header_only(CHART, "\n \n\n"), r"chartevents\.csv has no row", {}),
    "stays: only a header": (header_only(ICU), r"icustays\.csv has no row", {}),
    "patients: only a header": (header_only(PATIENTS), r"patients\.csv has no row", {}),
    "admissions: only a header": (header_only(ADMISSIONS), r"admissions\.csv has no row", {}),
    "radiographs: only a header": (header_only(METADATA), r"metadata\.csv has no row", {}),
    "laboratory results: no row parses": (
        header_only(LAB, "x,y,z,q,w,soon,now,1,1,u,c\n"),
        r"1 of the 1 rows of .*labevents\.csv do not parse, first: ",
        {},
    ),
    "an empty file": (becomes(CHART, ""), r"chartevents\.csv is empty; fetch it again", {}),
    "an empty gzip file": (compressed(CHART, b""), r"chartevents\.csv\.gz is empty", {}),
    "a gzip file of nothing": (compressed(CHART, gzip.compress(b"")), "begins with an empty line", {}),
    "a first line that is blank": (becomes(ICU, "\n1,2\n"), r"icustays\.csv begins with an empty line", {}),
    "a web page": (becomes(CHART, PAGE), r"chartevents\.csv is a web page, .* not a CSV file", {}),
    "a web page, compressed": (compressed(LAB, gzip.compress(PAGE.encode())), "is a web page", {}),
    "a web page named .gz": (compressed(LAB, PAGE.encode()), "is not a gzip-compressed CSV file", {}),
    "an error of a server": (
        becomes(ICU, '<?xml version="1.0"?><Error/>'),
        r"icustays\.csv is a web page",
        {},
    ),
    "a pointer of Git LFS": (
        becomes(CHART, "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "is a pointer of Git LFS, not the file itself",
        {},
    ),
    "semicolons": (separated_by(";"), r"chartevents\.csv has semicolons between its columns", {}),
    "tabs": (separated_by("\t"), r"chartevents\.csv has tabs between its columns", {}),
    "vertical bars": (separated_by("|"), r"chartevents\.csv has vertical bars between its columns", {}),
    "a ZIP file named .csv": (
        becomes(LAB, b"PK\x03\x04\x14\x00\x00\x00"),
        r"labevents\.csv is not a CSV file",
        {},
    ),
    "a Parquet file named .csv": (
        becomes(LAB, b"PAR1\x15\x04\x15\x0e"),
        r"labevents\.csv is not a CSV file",
        {},
    ),
    "UTF-16": (becomes(ICU, "subject_id,stay_id\n".encode("utf-16")), r"icustays\.csv is not a CSV file", {}),
    "no header": (
        text(ICU, "subject_id,hadm_id,stay_id", "1,2,3"),
        r"lacks the column subject_id, hadm_id",
        {},
    ),
    "a column is missing": (text(CHART, "charttime", "time"), "lacks the column charttime of the table", {}),
    "a column twice": (
        text(CHART, "storetime", "charttime"),
        r"columns 4 and 5 of .*chartevents\.csv have the same name",
        {},
    ),
    "a quote that is not closed": (
        text(CHART, ",70", ',"70', 1),
        r"the quote that opens in line \d+ of .*chartevents\.csv",
        {},
    ),
    "a table is missing": (remove(LAB), "lacks the table labevents", {}),
    "diagnoses are missing": (remove(DIAGNOSES), "lacks the table diagnoses_icd", {}),
    "all ids of stays have fractions": (
        cell(ICU, "stay_id", "12.5", N_STAYS),
        r"30 of the 30 rows of .*icustays\.csv do not parse, first: stay_id is not a whole number",
        {},
    ),
    "all admissions are in the year 290000": (
        cell(ADMISSIONS, "admittime", "290000-01-01 00:00:00", N_STAYS),
        r"30 of the 30 rows of .* first: admittime is not a time such as .* from 1900 to 2300",
        {},
    ),
    "words in place of times": (
        cell(CHART, "charttime", "soon", 200),
        r"200 of the 240 rows of .*chartevents\.csv do not parse, first: charttime is not a time",
        {},
    ),
    "a patient twice": (
        twice(PATIENTS),
        "the table patients of .* 1 values of subject_id in more than one",
        {},
    ),
    "an admission twice": (
        twice(ADMISSIONS),
        "the table admissions of .* 1 values of subject_id, hadm_id",
        {},
    ),
    "a stay twice": (twice(ICU), "the table icustays of .* has 1 values of stay_id in more than one row", {}),
    "a stay without id": (cell(ICU, "stay_id", ""), "has 1 ICU stays without stay_id", {}),
    "every stay ends before it begins": (
        cell(ICU, "outtime", "2101-01-01 00:00:00", N_STAYS),
        "has no stay that can be included",
        {},
    ),
    "an image id that climbs": (cell(METADATA, "dicom_id", "../../x"), "1 images of .* not a plain name", {}),
    "an image id from the root": (
        cell(METADATA, "dicom_id", "/etc/x"),
        "1 images of .* not a plain name",
        {},
    ),
    "an image id with NUL": (cell(METADATA, "dicom_id", "a\0b"), "1 images of .* not a plain name", {}),
    "an image id of dots": (cell(METADATA, "dicom_id", ".."), "1 images of .* not a plain name", {}),
    "an image id of 200 letters": (cell(METADATA, "dicom_id", "a" * 200), "not a plain name", {}),
    "no image id": (cell(METADATA, "dicom_id", "", 3), "3 images of .* not a plain name", {}),
    "no image exists": (images(Path.unlink), r"none of the 30 radiographs under .* can be read", {}),
    "all images are text": (images(lambda path: path.write_text("x")), "none of the 30 radiographs", {}),
    "all images are TIFF": (
        images(lambda path: Image.new("L", (40, 40)).save(path, "TIFF")),
        "none of the 30 radiographs",
        {},
    ),
    "all images are links out of the release": (
        images(lambda path: (path.unlink(), path.symlink_to("/dev/zero"))),
        "none of the 30 radiographs .* links out of that folder are not followed",
        {},
    ),
    "strict, and a row does not parse": (
        cell(CHART, "charttime", "soon"),
        r"1 rows of chartevents\.csv do not parse; fix them, or leave out --strict",
        {"strict": True},
    ),
    "--out is the root": (nothing, "/ .*choose a ", {"out": Path("/")}),
    "--memory-limit of 1 kB": (nothing, "--memory-limit", {"memory_limit": "1kB"}),
    "--memory-limit of words": (nothing, "memory_limit is 'much'; expected", {"memory_limit": "much"}),
    "--phenotypes is a folder": (nothing, "expected CSV or YAML", {"phenotypes": Path("/")}),
    "--split-file is a folder": (
        nothing,
        "expected a CSV with subject_id and split",
        {"split_file": Path("/")},
    ),
    "--mimic-cxr is a file": (nothing, "there is no folder", {"mimic_cxr": Path(__file__)}),
    "--threads 0": (nothing, "threads is 0; expected 1 to 1024", {"threads": 0}),
    "--window-hours of a century": (nothing, "window_hours is 876000", {"window_hours": 876_000}),
    "--image-size 100000": (nothing, "image_size is 100000; expected 32 to 4096", {"image_size": 100_000}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_sentence(name: str, hospital: Path, told: Callable[..., str]) -> None:
    change, complaint, options = REFUSED[name]
    change(hospital)
    before = left_in(hospital)
    with pytest.raises(InputError, match=complaint) as caught:
        run(hospital, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert left_in(hospital) == before
    assert_no_patient(told(caught.value), hospital)


DEFINITIONS: dict[str, tuple[str, str]] = {
    "a name of 201 letters": (f"phenotype,icd_version,icd_code\n{'x' * 201},9,4019\n", "longer than 200"),
    "a name with an escape": ("phenotype,icd_version,icd_code\n\x1b[31mred,9,4019\n", "control characters"),
    "no row": ("phenotype,icd_version,icd_code\n", "defines no phenotype"),
    "semicolons": ("phenotype;icd_version;icd_code\ngout;9;4019\n", "is not a CSV with the columns"),
    "nothing": ("", "is not a CSV with the columns"),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_are_refused_in_one_sentence(name: str, hospital: Path, told: Callable[..., str]) -> None:
    content, complaint = DEFINITIONS[name]
    (hospital / "codes.csv").write_text(content)
    with pytest.raises(InputError, match=complaint) as caught:
        run(hospital, phenotypes=hospital / "codes.csv")
    assert_no_patient(told(caught.value), hospital)


def other_split(folder: Path) -> Path:
    """Return a split file in which every patient is in training."""
    subjects = pl.read_csv(folder / PATIENTS).select("subject_id")
    subjects.with_columns(split=pl.lit("train")).write_csv(folder / "split.csv")
    return folder / "split.csv"


SAID: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "an id with a fraction": (
        cell(CHART, "stay_id", "92000001.5"),
        "1 rows of chartevents.csv do not parse",
        {"rejected_rows": {"chartevents.csv": 1}},
    ),
    "an id with NUL": (
        cell(CHART, "stay_id", "9200\0001"),
        "1 rows of chartevents.csv do not parse",
        {"rejected_rows": {"chartevents.csv": 1}},
    ),
    "a stay in the year 290000": (
        cell(ICU, "intime", "290000-01-01 00:00:00"),
        "1 rows of icustays.csv do not parse",
        {"rejected_rows": {"icustays.csv": 1}},
    ),
    "events in the year 1": (
        cell(CHART, "charttime", "0001-01-01 00:00:00", 5),
        "5 rows of chartevents.csv do not parse",
        {"rejected_rows": {"chartevents.csv": 5}},
    ),
    "a stay that ends before it begins": (
        cell(ICU, "outtime", "2101-01-01 00:00:00", 2),
        "2 stays end before they begin",
        {"stays_that_end_before_they_begin": 2},
    ),
    "a negative length of stay": (
        cell(ICU, "los", "-3.0", 2),
        "2 stays have unknown los",
        {"stays_with_unknown": {"phenotypes": 0, "in_hospital_mortality": 0, "los": 2}},
    ),
    "hardly any chart events": (
        cell(CHART, "itemid", "1", 8 * 20),
        "20 of 30 stays (67 %) have no chart events; check that the release is complete",
        {"stays_without": {"chart events": 20, "laboratory results": 0, "radiograph": 0, "labels": 0}},
    ),
    "hardly any laboratory results": (
        cell(LAB, "itemid", "1", 16),
        "16 of 30 stays (53 %) have no laboratory results",
        {"stays_without": {"chart events": 0, "laboratory results": 16, "radiograph": 0, "labels": 0}},
    ),
    "no radiograph falls into a stay": (
        cell(METADATA, "StudyDate", "21990101", N_STAYS),
        "30 of 30 stays (100 %) have no radiograph",
        {"stays_without": {"chart events": 0, "laboratory results": 0, "radiograph": 30, "labels": 0}},
    ),
    "hardly any diagnoses": (
        cell(DIAGNOSES, "hadm_id", "1", 20),
        "20 of 30 stays (67 %) have no labels",
        {"stays_without": {"chart events": 0, "laboratory results": 0, "radiograph": 0, "labels": 20}},
    ),
    "diagnoses of which none is a phenotype": (
        cell(DIAGNOSES, "icd_code", "V999", N_STAYS),
        "no stay has any of the 25 phenotypes; check diagnoses_icd and --phenotypes",
        {},
    ),
    "one image is a bomb": (
        lambda folder: Image.new("1", (20_000, 20_000)).save(
            next((folder / "mimic-cxr").rglob("*.jpg")), "PNG"
        ),
        "1 images are missing or unreadable",
        {},
    ),
    "one image is a pipe": (
        lambda folder: (path := next((folder / "mimic-cxr").rglob("*.jpg"))).unlink() or os.mkfifo(path),
        "1 images are missing or unreadable",
        {},
    ),
    "no patient is validated or tested on": (
        nothing,
        "no stay is in the split validation or test",
        {"rejected_rows": {}},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_it_is_left_out_counted_and_said(
    name: str, hospital: Path, caplog: pytest.LogCaptureFixture, told: Callable[..., str]
) -> None:
    change, sentence, counts = SAID[name]
    change(hospital)
    split = other_split(hospital) if name.startswith("no patient") else None
    with caplog.at_level(logging.WARNING):
        manifest = run(hospital, split_file=split)
    assert sentence in caplog.text
    assert manifest.warnings | counts == manifest.warnings
    assert json.loads((hospital / "cohort/manifest.json").read_text())["warnings"] == manifest.warnings
    assert_no_patient(told(), hospital)


@pytest.mark.slow
def test_ids_written_as_decimals_are_the_same_ids(hospital: Path) -> None:
    expected = run(hospital).files
    for file in (CHART, ICU, LAB):
        table = pl.read_csv(hospital / file, infer_schema=False)
        table.with_columns(pl.col("subject_id") + ".0", pl.col("hadm_id") + ".0").write_csv(hospital / file)
    assert run(hospital, overwrite=True).files == expected


def test_a_clean_hospital_says_nothing(hospital: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = run(hospital)
    assert not [record for record in caplog.records if "no stay has" not in record.getMessage()]
    assert np.load(hospital / "cohort/cxr.npy").shape == (N_STAYS, 32, 32)
    assert manifest.flow[-1].stays == N_STAYS


FEW = pl.int_range(pl.len()) < 2
ODD: dict[str, tuple[str, str, pl.Expr]] = {
    "fractions": (CHART, "stay_id", pl.when(FEW).then(12.5).otherwise(pl.col("stay_id").cast(pl.Float64))),
    "floats beyond integers": (
        CHART,
        "stay_id",
        pl.when(FEW).then(1e30).otherwise(pl.col("stay_id").cast(pl.Float64)),
    ),
    "integers beyond 64 bits": (
        LAB,
        "hadm_id",
        pl.when(FEW).then(pl.lit(2**64 - 1, pl.UInt64)).otherwise(pl.col("hadm_id").cast(pl.UInt64)),
    ),
    "decimals with fractions": (
        DIAGNOSES,
        "hadm_id",
        (pl.col("hadm_id") + pl.when(FEW).then(0.5).otherwise(0)).cast(pl.Decimal(18, 2)),
    ),
    "text": (
        CHART,
        "itemid",
        pl.when(FEW).then(pl.lit("x")).otherwise(pl.col("itemid").cast(pl.String) + ".0"),
    ),
    "numbers of text": (LAB, "valuenum", pl.when(FEW).then(pl.lit("high")).otherwise(pl.lit("1e2"))),
    "times of text": (
        CHART,
        "charttime",
        pl.when(FEW).then(pl.lit("soon")).otherwise(pl.col("charttime").cast(pl.String)),
    ),
    "times of another age": (
        ICU,
        "intime",
        pl.when(FEW).then(pl.datetime(2901, 1, 1)).otherwise(pl.col("intime")).cast(pl.Datetime("us")),
    ),
}


def as_typed(hospital: Path, form: str, changes: dict[str, Callable[[pl.DataFrame], pl.DataFrame]]) -> str:
    """Write a hospital's tables as Parquet files or as a DuckDB database; return its address."""
    with duckdb.connect(hospital / "mimic.duckdb") as database:
        for path in hospital.glob("mimic-iv/*/*.csv"):
            rows = pl.read_csv(path, infer_schema_length=None, try_parse_dates=True)
            rows = changes.get(str(path.relative_to(hospital)), lambda table: table)(rows)
            if form == "parquet":
                rows.write_parquet(path.with_suffix(".parquet"))
                path.unlink()
            else:
                database.execute(f"CREATE TABLE {path.stem} AS FROM rows")
    return str(hospital / "mimic-iv") if form == "parquet" else f"duckdb://{hospital / 'mimic.duckdb'}"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "duckdb"])
@pytest.mark.parametrize("name", ODD)
def test_odd_cells_of_typed_tables_are_counted_as_those_of_csv_files(
    name: str, form: str, hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, column, odd = ODD[name]
    address = as_typed(hospital, form, {file: lambda table: table.with_columns(odd.alias(column))})
    manifest = run(hospital, mimic_iv=address)
    table = Path(file).with_suffix(".parquet").name if form == "parquet" else Path(file).stem
    assert manifest.warnings["rejected_rows"] == {table: 2}
    assert f"2 rows of {table} do not parse; left out and counted in manifest.json" in caplog.text
    assert manifest.flow[-1].stays == N_STAYS - (2 if file == ICU else 0)


@pytest.mark.parametrize("form", ["parquet", "duckdb"])
@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        (CHART, lambda table: table.clear(), "chartevents.* has no row"),
        (LAB, lambda table: table.clear(), "labevents.* has no row"),
        (
            ICU,
            lambda table: table.with_columns(stay_id=pl.lit(12.5)),
            r"30 of the 30 rows of .*icustays.* do not parse, first: stay_id is not a whole number",
        ),
        (
            CHART,
            lambda table: table.with_columns(
                charttime=pl.lit("soon"), itemid=pl.col("itemid").cast(pl.String)
            ),
            r"240 of the 240 rows of .*chartevents.* do not parse, first: charttime is not a time such as",
        ),
    ],
)
def test_typed_tables_that_cannot_be_right_are_refused_as_csv_files(
    file: str, change: Any, complaint: str, form: str, hospital: Path
) -> None:
    address = as_typed(hospital, form, {file: change})
    with pytest.raises(InputError, match=complaint):
        run(hospital, mimic_iv=address)


PLANTED = "zz77700001SECRETzz"
"""An id, a name, a time and a value that nothing else in a hospital looks like."""
COLUMNS = {
    PATIENTS: ("subject_id", "gender", "anchor_age", "anchor_year"),
    ADMISSIONS: ("hadm_id", "admittime", "admission_type", "race", "hospital_expire_flag"),
    ICU: ("stay_id", "first_careunit", "intime", "los"),
    CHART: ("stay_id", "itemid", "charttime", "value", "valuenum"),
    LAB: ("subject_id", "hadm_id", "specimen_id", "storetime", "value"),
    DIAGNOSES: ("hadm_id", "icd_code", "icd_version"),
    METADATA: ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "parquet", "duckdb"])
@pytest.mark.parametrize(
    ("file", "column"), [(file, one) for file, every in COLUMNS.items() for one in every]
)
def test_no_cell_is_ever_said(
    file: str, column: str, form: str, hospital: Path, told: Callable[..., str]
) -> None:
    cell(file, column, PLANTED, 10**6)(hospital)
    source = str(hospital / "mimic-iv") if form == "csv" else as_typed(hospital, form, {})
    error = None
    try:
        run(hospital, mimic_iv=source)
    except InputError as raised:
        error = raised
    said = told(error)
    assert PLANTED not in said
    assert "SECRET" not in said


STRANGE_FILES: dict[str, Callable[[Path], object]] = {
    "a table as split file": lambda folder: run(folder, split_file=folder / PATIENTS),
    "a split file with its columns exchanged": lambda folder: run(
        folder, split_file=folder / "exchanged.csv"
    ),
    "a table as definitions": lambda folder: run(folder, phenotypes=folder / DIAGNOSES),
    "a table as definitions in YAML": lambda folder: run(folder, phenotypes=folder / "table.yaml"),
    "a table as options": lambda folder: read_yaml(folder / "table.yaml"),
    "an alias in options": lambda folder: read_yaml(folder / "alias.yaml"),
    "a tag in options": lambda folder: read_yaml(folder / "tag.yaml"),
    "a table without its first line": lambda folder: (
        (folder / CHART).write_text(f"{PLANTED},1,{PLANTED},3\n"),
        run(folder),
    ),
    "an image that is a link to itself": lambda folder: (
        images(lambda path: (path.unlink(), path.symlink_to(path.name)))(folder),
        run(folder),
    ),
}


@pytest.mark.parametrize("name", STRANGE_FILES)
def test_no_cell_of_a_strange_file_is_said(name: str, hospital: Path, told: Callable[..., str]) -> None:
    (hospital / "exchanged.csv").write_text(f"subject_id,split\n1,{PLANTED}\n")
    (hospital / "table.yaml").write_text(f"subject_id: [{PLANTED}\n {PLANTED}: 1\n")
    (hospital / "alias.yaml").write_text(f"a: *{PLANTED}\n")
    (hospital / "tag.yaml").write_text(f"a: !{PLANTED} 1\n")
    with pytest.raises(InputError) as caught:
        STRANGE_FILES[name](hospital)
    said = told(caught.value)
    assert "SECRET" not in said
    assert_no_patient(said, hospital)
