"""Input as it should not be: refused, or left out and counted; nothing goes by in silence."""

import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filelock import FileLock

from drfuse.cohort import prepare
from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.errors import InputError
from tests.builders import left_in
from tests.mimic import write_hospital


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Return a folder with `mimic-iv` and `mimic-cxr`, csv.gz."""
    write_hospital(tmp_path, n_stays=30, image_size=40)
    return tmp_path


def rewrite(path: Path, edit: dict[str, str] | None = None, lines: dict[int, str] | None = None) -> None:
    """Replace texts, or whole lines, of a gzip-compressed CSV."""
    text = gzip.decompress(path.read_bytes()).decode()
    for old, new in (edit or {}).items():
        text = text.replace(old, new)
    rows = text.split("\n")
    for number, row in (lines or {}).items():
        rows[number] = row
    path.write_bytes(gzip.compress("\n".join(rows).encode()))


def make(folder: Path, **options: Any) -> dict[str, Any]:
    """Prepare the cohort; return its manifest."""
    given: dict[str, Any] = {"mimic_cxr": folder / "mimic-cxr", "image_size": 32} | options
    prepare(folder / "mimic-iv", folder / "cohort", **given)
    manifest: dict[str, Any] = json.loads((folder / "cohort" / "manifest.json").read_text())
    return manifest


@pytest.mark.parametrize("table", ["icu/chartevents", "hosp/diagnoses_icd"])
def test_damaged_bytes_within_a_gzip_file_are_found(hospital: Path, table: str) -> None:
    path = hospital / "mimic-iv" / f"{table}.csv.gz"
    packed = bytearray(path.read_bytes())
    packed[-6] ^= 0x01  # the sum at its end: every row still reads well
    path.write_bytes(packed)
    with pytest.raises(InputError, match=rf"{path.name} is damaged .*fetch it again"):
        make(hospital)
    assert left_in(hospital) == {"mimic-cxr", "mimic-iv"}


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_anywhere_is_found(hospital: Path, place: float) -> None:
    path = hospital / "mimic-iv/icu/chartevents.csv.gz"
    packed = bytearray(path.read_bytes())
    packed[int(place * len(packed))] ^= 0x10
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"chartevents\.csv\.gz"):
        make(hospital)
    assert not (hospital / "cohort").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "zeros"), [("hosp/patients", 1), ("icu/chartevents", 500), ("icu/chartevents", 2_000_000)]
)
def test_members_of_a_gzip_file_are_read_and_zero_bytes_behind_them_are_not(
    table: str, zeros: int, hospital: Path
) -> None:
    expected = make(hospital)["files"]
    path = hospital / "mimic-iv" / f"{table}.csv.gz"
    half = len(text := gzip.decompress(path.read_bytes())) // 2
    path.write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]) + bytes(zeros))
    assert make(hospital, overwrite=True)["files"] == expected


@pytest.mark.parametrize(
    ("table", "line"),
    [("hosp/patients", 3), ("icu/icustays", 5), ("hosp/labevents", 40), ("icu/chartevents", 2)],
)
def test_a_quote_that_is_not_closed_is_refused_with_its_line(table: str, line: int, hospital: Path) -> None:
    path = hospital / "mimic-iv" / f"{table}.csv.gz"
    row = gzip.decompress(path.read_bytes()).decode().split("\n")[line - 1]
    rewrite(path, lines={line - 1: row.replace(",", ',"', 1)})
    with pytest.raises(InputError, match=rf"the quote that opens in line {line} of .*{path.name} is "):
        make(hospital)
    assert left_in(hospital) == {"mimic-cxr", "mimic-iv"}


def test_a_broken_file_is_named_alone(hospital: Path) -> None:
    path = hospital / "mimic-iv/hosp/labevents.csv.gz"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError) as caught:
        make(hospital)
    assert re.fullmatch(f"{path} is damaged .*; fetch it again", str(caught.value))


def test_a_table_of_which_much_does_not_parse_is_refused(hospital: Path) -> None:
    path = hospital / "mimic-iv/icu/chartevents.csv.gz"
    rows = pl.read_csv(path, infer_schema=False).with_columns(charttime=pl.lit("01/02/2150 10:00"))
    path.write_bytes(gzip.compress(rows.write_csv().encode()))
    with pytest.raises(InputError, match=r"rows of .*chartevents\.csv\.gz do not parse, first: "):
        make(hospital)


def test_a_stay_that_does_not_parse_is_left_out_and_counted(hospital: Path) -> None:
    path = hospital / "mimic-iv/icu/icustays.csv.gz"
    header, first, *rest = gzip.decompress(path.read_bytes()).decode().split("\n")
    cells = first.split(",")
    cells[header.split(",").index("intime")] = "soon"
    path.write_bytes(gzip.compress("\n".join([header, ",".join(cells), *rest]).encode()))
    manifest = make(hospital)
    assert manifest["warnings"]["rejected_rows"] == {"icustays.csv.gz": 1}
    assert manifest["flow"][0]["stays"] == sum(map(bool, rest))
    with pytest.raises(InputError, match=r"1 rows of icustays\.csv\.gz do not parse; fix them"):
        make(hospital, overwrite=True, strict=True)


@pytest.mark.parametrize("twin", ["itemid", "ItemID"])
def test_two_columns_of_one_name_are_refused(hospital: Path, twin: str) -> None:
    rewrite(hospital / "mimic-iv/icu/chartevents.csv.gz", {"storetime": twin})
    with pytest.raises(InputError, match=r"the columns \d+ and \d+ of .*chartevents\.csv\.gz have the same"):
        make(hospital)


def test_a_column_without_a_name_is_no_obstacle(hospital: Path) -> None:
    path = hospital / "mimic-iv/hosp/patients.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    numbered = [f"{'' if number == 0 else number},{row}" for number, row in enumerate(rows)]
    path.write_bytes(gzip.compress(("\n".join(numbered) + "\n").encode()))
    assert make(hospital)["flow"][-1]["stays"] == 30


@pytest.mark.slow
def test_dates_with_hyphens_and_views_in_lower_case_are_understood(hospital: Path) -> None:
    before = make(hospital)["splits"]
    path = hospital / "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"
    rows = pl.read_csv(path, infer_schema=False)
    day = pl.col("StudyDate")
    hyphened = pl.concat_str(day.str.slice(0, 4), day.str.slice(4, 2), day.str.slice(6, 2), separator="-")
    rows = rows.with_columns(hyphened.alias("StudyDate"), pl.col("ViewPosition").str.to_lowercase())
    path.write_bytes(gzip.compress(rows.write_csv().encode()))
    assert make(hospital, overwrite=True)["splits"] == before


@pytest.mark.slow
@pytest.mark.parametrize("time", ["", "abc", "NaN", "inf", "240000", "129999", "126000", "-1"])
def test_a_radiograph_without_a_readable_time_is_counted(
    hospital: Path, time: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = hospital / "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"
    rows = pl.read_csv(path, infer_schema=False)
    clock = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(time)).otherwise("StudyTime")
    path.write_bytes(gzip.compress(rows.with_columns(clock.alias("StudyTime")).write_csv().encode()))
    with caplog.at_level(logging.WARNING):
        assert make(hospital)["warnings"]["undated_images"] == 1
    assert "1 images have no readable StudyDate and StudyTime" in caplog.text


def test_when_no_image_can_be_read_the_folder_is_wrong(hospital: Path) -> None:
    (hospital / "mimic-cxr" / "files").rename(hospital / "elsewhere")
    with pytest.raises(InputError, match=r"none of the \d+ radiographs under .*mimic-cxr can be read"):
        make(hospital)


def test_phenotypes_that_never_occur_are_named(hospital: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = hospital / "mimic-iv/hosp/diagnoses_icd.csv.gz"
    header = gzip.decompress(path.read_bytes()).decode().split("\n", 1)[0]
    path.write_bytes(gzip.compress(f"{header}\n".encode()))
    with caplog.at_level(logging.WARNING):
        make(hospital)
    assert "no stay has Acute and unspecified renal failure, " in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("string.yaml", "gout: {use_in_benchmark: true, codes: '4019'}", "is not a YAML file of the form"),
        ("nested.yaml", "gout: {use_in_benchmark: true, codes: [[a]]}", "is not a YAML file of the form"),
        (
            "version.csv",
            "phenotype,icd_version,icd_code\ngout,11,M10\n",
            "1 values of icd_version other than",
        ),
        ("nameless.csv", "phenotype,icd_version,icd_code\n,10,M10\n", "a code without a phenotype"),
        ("codeless.csv", "phenotype,icd_version,icd_code\ngout,10,\n", "a phenotype without a code"),
    ],
)
def test_a_phenotype_file_of_another_form_is_refused(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_phenotypes(tmp_path / name)


@pytest.mark.parametrize("name", ["age", "Age", "STAY_ID", "cxr_row"])
def test_a_phenotype_called_like_a_column_is_refused(hospital: Path, name: str) -> None:
    (hospital / "codes.csv").write_text(f"phenotype,icd_version,icd_code\n{name},10,M10\n")
    with pytest.raises(InputError, match=f"the phenotype '{name}' has the name of a column"):
        make(hospital, phenotypes=hospital / "codes.csv")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window_end", "first_careunit", "self", 'a "b", c.d', "hadm_id_right"])
def test_any_other_name_is_a_name(hospital: Path, name: str) -> None:
    codes = read_phenotypes().filter(pl.col("phenotype") == "Essential hypertension")
    codes.with_columns(phenotype=pl.lit(name)).write_csv(hospital / "codes.csv")
    make(hospital, phenotypes=hospital / "codes.csv")
    label = pl.read_parquet(hospital / "cohort/stays.parquet")[name]
    assert label.dtype == pl.Boolean
    make(hospital, overwrite=True)
    assert label.equals(pl.read_parquet(hospital / "cohort/stays.parquet")["Essential hypertension"])


def test_a_split_file_whose_name_is_a_pattern_is_read_itself(hospital: Path) -> None:
    for name, split in (("s1.csv", "test"), ("s[1].csv", "train")):
        subjects = pl.read_csv(hospital / "mimic-iv/hosp/patients.csv.gz").select("subject_id")
        subjects.with_columns(split=pl.lit(split)).write_csv(hospital / name)
    assert make(hospital, split_file=hospital / "s[1].csv")["splits"]["train"]["stays"] == 30


@pytest.mark.slow
def test_overwrite_keeps_what_is_not_the_cohorts(hospital: Path) -> None:
    make(hospital)
    (hospital / "cohort" / "run").mkdir()
    (hospital / "cohort" / "run" / "notes").touch()
    with pytest.raises(InputError, match=r"holds more than a cohort \(run/notes\)"):
        make(hospital, seed=1, overwrite=True)
    assert (hospital / "cohort" / "stays.parquet").is_file()


@pytest.mark.slow
def test_a_damaged_cohort_can_be_replaced(hospital: Path) -> None:
    make(hospital)
    (hospital / "cohort" / "manifest.json").write_text("{")
    assert make(hospital, overwrite=True)["flow"]


def test_two_commands_never_write_one_cohort(hospital: Path) -> None:
    lock = FileLock(hospital / ".cohort.lock")
    with lock, pytest.raises(InputError, match="another command is writing"):
        make(hospital)


def test_what_a_killed_command_left_is_cleared_away(hospital: Path) -> None:
    beside = hospital / ".cohort.0123456789abcdef.partial"
    (beside / "scratch").mkdir(parents=True)
    (beside / "ehr.npy").write_bytes(b"half")
    (hospital / ".cohort.lock").touch()
    make(hospital)
    assert left_in(hospital) == {"cohort", "mimic-cxr", "mimic-iv"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b", "it's", "a?b", "a[1]", "ä", "~x", "back\\slash"])
def test_any_folder_name_will_do(hospital: Path, name: str) -> None:
    (hospital / name).mkdir()
    (hospital / "mimic-iv").rename(hospital / name / "mimic-iv")
    prepare(hospital / name, hospital / name / "cohort")
    assert (hospital / name / "cohort" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "options",
    [{"window_hours": 0}, {"window_hours": 10**9}, {"image_size": 31}, {"preset": "all"}, {"view": ["ap"]}],
)
def test_options_out_of_range_are_refused(hospital: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        make(hospital, **options)


@pytest.mark.slow
def test_few_bad_rows_are_left_out_wherever_they_stand(hospital: Path) -> None:
    path = hospital / "mimic-iv/icu/chartevents.csv.gz"
    rows = pl.read_csv(path, infer_schema=False)
    assert rows.height > 25 / 0.05
    time = pl.when(pl.int_range(pl.len()) < 25).then(pl.lit("soon")).otherwise("charttime")
    path.write_bytes(gzip.compress(rows.with_columns(time.alias("charttime")).write_csv().encode()))
    assert make(hospital)["warnings"]["rejected_rows"] == {"chartevents.csv.gz": 25}


def test_a_stray_image_hides_no_patients(hospital: Path) -> None:
    before = make(hospital)["splits"]
    (hospital / "mimic-cxr/files/overview.png").write_bytes(b"")
    assert make(hospital, overwrite=True)["splits"] == before


@pytest.mark.slow
def test_what_a_replaced_cohort_left_is_no_obstacle(hospital: Path) -> None:
    make(hospital)
    (hospital / ".cohort.0123456789abcdef.replaced").mkdir()
    (hospital / ".cohort.0123456789abcdef.replaced" / "cxr.npy").write_bytes(b"old")
    make(hospital, overwrite=True)
    assert left_in(hospital) == {"cohort", "mimic-cxr", "mimic-iv"}


def test_a_cohort_set_aside_by_a_killed_command_comes_back_when_the_next_one_fails(hospital: Path) -> None:
    make(hospital)
    (hospital / "cohort").rename(
        hospital / ".cohort.0123456789abcdef.replaced"
    )  # killed between the two renames
    (hospital / "mimic-iv/icu/chartevents.csv.gz").write_bytes(b"damaged")
    with pytest.raises(InputError):
        make(hospital)
    assert (hospital / "cohort" / "manifest.json").is_file()
