"""What a cohort was made of decides what is made again; files that are not to be read are spoilt here."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import Manifest, images, prepare, radiographs, reuse
from drfuse.data import Cohort
from drfuse.errors import InputError
from tests.mimic import HEART_RATE, Hospital, write_hospital

OWN_CODES = "Renal: {use_in_benchmark: true, codes: [5849]}\n"


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Return a folder with `mimic-iv` and `mimic-cxr` and their cohort."""
    write_hospital(tmp_path, n_stays=16, image_size=40)
    make(tmp_path)
    return tmp_path


def make(folder: Path, out: str = "cohort", **options: Any) -> Manifest:
    given: dict[str, Any] = {"mimic_cxr": folder / "mimic-cxr", "image_size": 32} | options
    return prepare(folder / "mimic-iv", folder / out, **given)


def spoil(path: Path) -> None:
    """Damage a file without changing its size or its time: whoever reads it will complain."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-8] + b"spoilt!!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def spoil_image(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def spoil_tables(folder: Path, *names: str) -> None:
    for name in names:
        spoil(next((folder / "mimic-iv").rglob(f"{name}.csv.gz")))


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_command_does_nothing(hospital: Path, overwrite: bool) -> None:
    before = content(hospital / "cohort")
    spoil_tables(hospital, "chartevents", "labevents", "diagnoses_icd", "icustays", "admissions", "patients")
    for image in (hospital / "mimic-cxr").rglob("*.jpg"):
        spoil_image(image)
    assert make(hospital, overwrite=overwrite) == Manifest.read(hospital / "cohort")
    assert content(hospital / "cohort") == before


def touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "what", ["mimic-iv/icu/icustays.csv.gz", "mimic-iv/hosp/diagnoses_icd.csv.gz", "image"]
)
def test_a_file_that_was_written_since_is_read_again(hospital: Path, what: str) -> None:
    inputs = pl.read_parquet(hospital / "cohort/inputs.parquet")
    image = hospital / "mimic-cxr" / inputs.filter(kind="image")["file"][0]
    touch(image if what == "image" else hospital / what)
    with pytest.raises(InputError, match="--overwrite"):
        make(hospital)
    inode = (hospital / "cohort").stat().st_ino
    make(hospital, overwrite=True)
    assert (hospital / "cohort").stat().st_ino != inode


def test_without_overwrite_another_option_is_refused(hospital: Path) -> None:
    before = content(hospital / "cohort")
    with pytest.raises(InputError, match=r"exists; choose a different --out, or replace it with --overwrite"):
        make(hospital, seed=3)
    assert content(hospital / "cohort") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "spoilt"),
    [
        ({"seed": 3}, ["chartevents", "labevents", "diagnoses_icd", "images"]),
        ({"split_file": "split.csv"}, ["chartevents", "labevents", "diagnoses_icd", "images"]),
        ({"phenotypes": "own.yaml"}, ["chartevents", "labevents", "images"]),
        ({"image_size": 33}, ["chartevents", "labevents", "diagnoses_icd"]),
        ({"mimic_cxr": None}, ["chartevents", "labevents", "diagnoses_icd"]),
        ({"window_hours": 24}, ["images"]),
        ({"preset": "benchmark"}, ["images"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_option_makes_again_only_what_depends_on_it(
    options: dict[str, Any], spoilt: list[str], hospital: Path
) -> None:
    (hospital / "own.yaml").write_text(OWN_CODES)
    subjects = pl.read_parquet(hospital / "cohort/stays.parquet")["subject_id"].unique(maintain_order=True)
    pl.DataFrame({"subject_id": subjects, "split": "train"}).write_csv(hospital / "split.csv")
    files = {key: hospital / str(options[key]) for key in ("phenotypes", "split_file") if key in options}
    named: dict[str, Any] = options | files
    expected = make(hospital, "fresh", **named)
    known = set(pl.read_parquet(hospital / "cohort/stays.parquet")["dicom_id"])
    for name in spoilt:
        if name != "images":
            spoil_tables(hospital, name)
            continue
        for image in (hospital / "mimic-cxr").rglob("*.jpg"):
            if image.stem in known:  # another window may have another radiograph
                spoil_image(image)
    assert make(hospital, overwrite=True, **named) == expected
    assert make(hospital, **named) == expected  # and is known again


def by_older_rules(cohort: Path) -> None:
    """Let a cohort say that it was made before the rules of reading changed."""
    path = cohort / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))


@pytest.mark.parametrize("change", ["event", "window", "version", "rules", "damage"])
def test_what_no_longer_holds_is_read_again(
    change: str, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_tables(hospital, "chartevents")
    options: dict[str, Any] = {"seed": 3}
    if change == "event":
        touch(hospital / "mimic-iv/hosp/labevents.csv.gz")
    elif change == "window":
        options["window_hours"] = 24
    elif change == "version":
        monkeypatch.setattr(reuse, "__version__", "0.0.0")
    elif change == "rules":
        by_older_rules(hospital / "cohort")
    else:
        with (hospital / "cohort/ehr.npy").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
    with pytest.raises(InputError, match=r"chartevents\.csv\.gz is damaged"):
        make(hospital, overwrite=True, **options)


@pytest.mark.slow
def test_nothing_of_a_cohort_by_older_rules_is_kept(hospital: Path) -> None:
    expected = Manifest.read(hospital / "cohort")
    by_older_rules(hospital / "cohort")
    with pytest.raises(InputError, match="--overwrite"):  # though files and options are the same
        make(hospital)
    with pytest.raises(InputError, match=r"format version 1, this drfuse reads 2; .*--overwrite"):
        Cohort.open(hospital / "cohort")
    before = {path.name: path.stat().st_ino for path in (hospital / "cohort").iterdir()}
    assert make(hospital, overwrite=True) == expected
    after = {path.name: path.stat().st_ino for path in (hospital / "cohort").iterdir()}
    assert not set(before.values()) & set(after.values())
    by_older_rules(hospital / "cohort")
    for image in (hospital / "mimic-cxr").rglob("*.jpg"):
        spoil_image(image)
    with pytest.raises(InputError, match=r"radiographs under .* can be read"):  # each was tried again
        make(hospital, overwrite=True)


@pytest.mark.slow
def test_a_damaged_cohort_is_made_anew(hospital: Path) -> None:
    expected = Manifest.read(hospital / "cohort")
    (hospital / "cohort/normalization.json").write_text("{}")
    with pytest.raises(InputError, match="--overwrite"):
        make(hospital)
    assert make(hospital, overwrite=True) == expected
    (hospital / "cohort/inputs.parquet").write_bytes(b"PAR1")
    assert make(hospital, overwrite=True) == expected


def with_stays(n: int) -> Hospital:
    hospital = Hospital()
    for number in range(n):
        stay = hospital.add_stay()
        hospital.chart(stay, HEART_RATE, 60 + number)
        hospital.radiograph(stay)
    return hospital


@pytest.mark.slow
def test_more_stays_decode_only_new_images(tmp_path: Path) -> None:
    def write(n: int) -> Path:
        with_stays(n).write(tmp_path / "mimic-iv")
        return with_stays(n).write_radiographs(tmp_path / "mimic-cxr")

    images = sorted(write(5).rglob("*.jpg"))
    make(tmp_path)
    before = np.load(tmp_path / "cohort/cxr.npy")
    stamps = {image: image.stat() for image in images}
    write(8)
    for image, found in stamps.items():
        os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
        spoil_image(image)
    manifest = make(tmp_path, overwrite=True)
    after = np.load(tmp_path / "cohort/cxr.npy")
    assert manifest.warnings["unreadable_images"] == []
    assert len(after) == 8
    assert np.array_equal(after[:5], before)
    assert all(image.std() > 1 for image in after[5:])


@pytest.mark.slow
def test_an_image_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    hospital = with_stays(3)
    hospital.write(tmp_path / "mimic-iv")
    broken = sorted(hospital.write_radiographs(tmp_path / "mimic-cxr").rglob("*.jpg"))[1]
    whole = broken.read_bytes()
    broken.unlink()
    assert len(make(tmp_path).warnings["unreadable_images"]) == 1
    assert len(make(tmp_path).warnings["unreadable_images"]) == 1  # known again, and still missing
    broken.write_bytes(whole)
    manifest = make(tmp_path, overwrite=True)
    assert manifest.warnings["unreadable_images"] == []
    assert manifest.files == make(tmp_path, "fresh").files


def test_rows_that_did_not_parse_are_remembered_and_still_refused_when_strict(
    hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = hospital / "mimic-iv/icu/chartevents.csv"
    rows = pl.read_csv(path.with_suffix(".csv.gz"), infer_schema=False)
    path.with_suffix(".csv.gz").unlink()
    first = pl.int_range(pl.len()) == 0
    rows.with_columns(charttime=pl.when(first).then(pl.lit("soon")).otherwise("charttime")).write_csv(path)
    rejected = {"chartevents.csv": 1}
    assert make(hospital, overwrite=True).warnings["rejected_rows"] == rejected
    assert make(hospital, seed=1, overwrite=True).warnings["rejected_rows"] == rejected
    caplog.clear()
    assert make(hospital, seed=1).warnings["rejected_rows"] == rejected
    assert "1 rows of chartevents.csv do not parse" in caplog.text
    with pytest.raises(InputError, match=r"1 rows of chartevents\.csv do not parse"):
        make(hospital, seed=1, strict=True)


def test_inputs_list_every_file_with_size_and_time(hospital: Path) -> None:
    rows = pl.read_parquet(hospital / "cohort/inputs.parquet")
    tables = rows.filter(pl.col("kind") != "image")
    assert set(tables["kind"]) == {
        *("patients", "admissions", "icustays", "chartevents", "labevents", "diagnoses_icd", "metadata")
    }
    images = rows.filter(pl.col("kind") == "image")
    stays = pl.read_parquet(hospital / "cohort/stays.parquet").drop_nulls("cxr_row")
    assert images["cxr_row"].to_list() == stays["cxr_row"].to_list()
    for row in rows.iter_rows(named=True):
        root = "mimic-cxr" if row["kind"] in ("image", "metadata") else "mimic-iv"
        found = (hospital / root / row["file"]).stat()
        assert (row["bytes"], row["modified_ns"]) == (found.st_size, found.st_mtime_ns)


def edit_inputs(folder: Path, change: str) -> None:
    path = folder / "inputs.parquet"
    rows = pl.read_parquet(path)
    is_image = pl.col("kind") == "image"
    turned = pl.col("cxr_row").reverse().over("kind")
    changed = {
        "permuted": rows.with_columns(cxr_row=pl.when(is_image).then(turned)),
        "repeated": pl.concat([rows, rows.filter(is_image)]),
        "out of range": rows.with_columns(pl.col("cxr_row") + 1000),
        "negative": rows.with_columns(-1 - pl.col("cxr_row")),
        "text": rows.with_columns(pl.format("{}?", "bytes").alias("bytes")),
        "lacking a column": rows.drop("kind"),
    }
    changed[change].write_parquet(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["permuted", "repeated", "out of range", "negative", "text", "lacking a column"]
)
def test_edited_inputs_never_lead_to_another_patients_radiograph(change: str, hospital: Path) -> None:
    expected = make(hospital, "fresh", seed=3)
    edit_inputs(hospital / "cohort", change)
    assert make(hospital, seed=3, overwrite=True) == expected


@pytest.mark.parametrize(
    "edit",
    [
        {"warnings": {}},
        {"files": {}},
        {"files": []},
        {"options": None},
        {"phenotypes": []},
        {"warnings": {"rejected_rows": None}},
    ],
    ids=str,
)
def test_an_edited_manifest_is_not_believed(edit: dict[str, object], hospital: Path) -> None:
    expected = Manifest.read(hospital / "cohort")
    path = hospital / "cohort/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(InputError, match="--overwrite"):
        make(hospital)
    assert make(hospital, overwrite=True) == expected


@pytest.mark.slow
def test_blocks_of_images_make_the_same_cohort(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Manifest.read(hospital / "cohort"), make(hospital, "seed 3", seed=3)
    for module in (reuse, radiographs):
        monkeypatch.setattr(module, "FILES_PER_BLOCK", 2)
    assert make(hospital) == expected[0]  # known again, with nothing written
    assert make(hospital, "in blocks") == expected[0]
    for image in (hospital / "mimic-cxr").rglob("*.jpg"):
        spoil_image(image)
    assert make(hospital, "in blocks", seed=3, overwrite=True) == expected[1]
    listed = [pl.read_parquet(hospital / out / "inputs.parquet") for out in ("seed 3", "in blocks")]
    assert listed[0].equals(listed[1])
    assert listed[0].filter(kind="image").height > 4


@pytest.mark.slow
def test_two_stays_may_share_their_last_image(tmp_path: Path) -> None:
    hospital = Hospital()
    first = hospital.add_stay(hours=60)
    second = hospital.add_stay(same_subject=first, hours=60)
    for stay in (first, second):
        hospital.chart(stay, HEART_RATE, 70)
    image = hospital.radiograph(first, at=5)
    hospital.write(tmp_path / "mimic-iv")
    hospital.write_radiographs(tmp_path / "mimic-cxr")
    manifest = make(tmp_path)
    assert pl.read_parquet(tmp_path / "cohort/stays.parquet")["dicom_id"].to_list() == [image, image]
    assert make(tmp_path) == manifest
    assert make(tmp_path, seed=1, overwrite=True).files["cxr.npy"] == manifest.files["cxr.npy"]


@pytest.mark.slow
def test_an_image_that_has_become_readable_is_read(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a chmod, or when a disk answers again: neither size nor time has changed."""
    whole = make(hospital, "whole")

    def fail(path: Path, size: int) -> None:
        raise OSError

    with monkeypatch.context() as broken:
        first = sorted(pl.read_parquet(hospital / "cohort/inputs.parquet").filter(kind="image")["file"])[0]
        decode = images.decode
        broken.setattr(
            images,
            "decode",
            lambda path, size: fail(path, size) if path.match(first) else decode(path, size),
        )
        lacking = make(hospital, "lacking")
        assert len(lacking.warnings["unreadable_images"]) == 1
        assert make(hospital, "lacking") == lacking
    with pytest.raises(InputError, match="--overwrite"):
        make(hospital, "lacking")
    assert make(hospital, "lacking", overwrite=True) == whole


@pytest.mark.slow
def test_a_missing_image_is_looked_for_in_every_folder(tmp_path: Path) -> None:
    hospital = with_stays(3)
    hospital.write(tmp_path / "mimic-iv")
    image = sorted(hospital.write_radiographs(tmp_path / "mimic-cxr", flat="resized").rglob("*.jpg"))[1]
    kept = image.rename(tmp_path / image.name)
    assert len(make(tmp_path).warnings["unreadable_images"]) == 1
    assert len(make(tmp_path).warnings["unreadable_images"]) == 1
    kept.rename(image)  # in the folder of the others, not where it was missed
    assert make(tmp_path, overwrite=True).warnings["unreadable_images"] == []


@pytest.mark.slow
def test_a_disk_where_a_file_has_one_name_only_will_do(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    expected = make(hospital, "fresh", seed=3)
    monkeypatch.setattr(os, "link", refuse)
    assert make(hospital, seed=3, overwrite=True) == expected
