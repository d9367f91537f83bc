import gzip
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import FlowStep, Manifest, load_variables, prepare
from drfuse.cohort.images import decode
from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.sums import sha256
from tests.builders import left_in
from tests.cohort.prepared import Prepared, open_cohort, prepare_hospital
from tests.mimic import (
    CELSIUS,
    FAHRENHEIT,
    GCS_EYE,
    GCS_MOTOR,
    GCS_VERBAL,
    GLUCOSE_LAB,
    HEART_RATE,
    HEIGHT_INCHES,
    INTIME,
    PH_URINE_LAB,
    SYSTOLIC,
    UNUSED_CHART_ITEM,
    Hospital,
    Layout,
    Stay,
    Suffix,
    image_path,
    write_hospital,
    write_tables,
)


@dataclass(frozen=True)
class Example:
    """Ten patients, one in all details."""

    hospital: Hospital
    described: Stay
    short: Stay
    unobserved: Stay
    others: list[Stay]
    image: str


def example() -> Example:
    hospital = Hospital()
    described = hospital.add_stay(hours=100, age=71, race="ASIAN", died=True)
    hospital.chart(described, HEART_RATE, 80, at=0)
    hospital.chart(described, HEART_RATE, 90, at=47.5)
    hospital.chart(described, HEART_RATE, 100, at=49)
    hospital.chart(described, HEIGHT_INCHES, 70, at=1.5)
    hospital.chart(described, FAHRENHEIT, 98.6, at=2.5)
    for item, score in ((GCS_EYE, 4), (GCS_MOTOR, 6), (GCS_VERBAL, 5)):
        hospital.chart(described, item, score, at=3.5)
    hospital.lab(described, GLUCOSE_LAB, 110, at=4.5, hadm_id=None)
    hospital.lab(described, PH_URINE_LAB, 6, at=4.5)
    hospital.diagnose(described, "R570", 10)  # cardiogenic shock
    hospital.diagnose(described, "5849", 9)  # acute kidney failure
    image = hospital.radiograph(described, at=10)

    short = hospital.add_stay(hours=5.5)
    hospital.chart(short, SYSTOLIC, 110, at=5.5)
    unobserved = hospital.add_stay()
    hospital.chart(unobserved, UNUSED_CHART_ITEM, 1)
    hospital.chart(unobserved, HEART_RATE, 70, at=50)
    hospital.add_stay(units=("MICU", "SICU"))
    hospital.add_stay(age=17)
    others = []
    for number in range(5):
        others.append(hospital.add_stay(intime=INTIME + timedelta(days=number)))
        hospital.chart(others[-1], CELSIUS, 36 + number / 2, at=1.5)
    for number, stay in enumerate(others[:3]):
        hospital.radiograph(stay, at=2, size=(80, 64 + 8 * number))
    return Example(hospital, described, short, unobserved, others, image)


@pytest.fixture(scope="module")
def case() -> Example:
    return example()


@pytest.fixture(scope="module")
def cohort(case: Example, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_hospital(case.hospital, tmp_path_factory.mktemp("example"), image_size=32)


def test_the_flow_counts_the_stays_after_each_criterion(cohort: Prepared) -> None:
    assert cohort.manifest.flow == [
        FlowStep("all ICU stays", 10),
        FlowStep("same first and last care unit", 9),
        FlowStep("only such stay of the admission", 9),
        FlowStep("age at least 18 years", 8),
        FlowStep("a variable observed in the window", 7),
    ]


def test_the_stays_are_those_observed_in_the_order_of_their_ids(case: Example, cohort: Prepared) -> None:
    included = [case.described, case.short, *case.others]
    assert cohort.stays["stay_id"].to_list() == [stay.stay_id for stay in included]
    assert cohort.ehr.shape == (7, 48, 17)
    assert cohort.ehr.dtype == np.float32


def test_a_stay_is_described(case: Example, cohort: Prepared) -> None:
    row = cohort.row(case.described)
    assert row["subject_id"] == case.described.subject_id
    assert row["hadm_id"] == case.described.hadm_id
    assert (row["age"], row["gender"], row["race"], row["admission_type"]) == (71, "F", "ASIAN", "URGENT")
    assert (row["intime"], row["outtime"]) == (INTIME, INTIME + timedelta(hours=100))
    assert row["los"] == pytest.approx(100 / 24)
    assert row["n_hours"] == 48
    assert row["in_hospital_mortality"] is True
    assert cohort.row(case.short)["n_hours"] == 6
    assert cohort.row(case.short)["in_hospital_mortality"] is False


def test_the_observed_hours_hold_their_values(case: Example, cohort: Prepared) -> None:
    expected = {
        "heart_rate": {0: 80, 47: 90},
        "height": {1: pytest.approx(177.8)},
        "temperature": {2: pytest.approx(37)},
        "gcs_eye_opening": {3: 4},
        "gcs_motor_response": {3: 6},
        "gcs_verbal_response": {3: 5},
        "gcs_total": {3: 15},
        "glucose": {4: 110},
    }
    for variable in load_variables():
        assert cohort.values(case.described, variable.name) == expected.get(variable.name, {}), variable.name
    assert cohort.values(case.short, "systolic_blood_pressure") == {5: 110}


def test_nothing_is_observed_after_n_hours(cohort: Prepared) -> None:
    hour = np.arange(cohort.ehr.shape[1])
    after = hour[None, :] >= cohort.stays["n_hours"].to_numpy()[:, None]
    assert np.isnan(cohort.ehr[after]).all()


def test_a_stay_has_the_phenotypes_of_its_admission(case: Example, cohort: Prepared) -> None:
    assert len(cohort.manifest.phenotypes) == 25
    row = cohort.row(case.described)
    assert {name for name in cohort.manifest.phenotypes if row[name]} == {
        "Acute and unspecified renal failure",
        "Shock",
    }
    assert not any(cohort.row(case.short)[name] for name in cohort.manifest.phenotypes)
    assert cohort.stays.select(cohort.manifest.phenotypes).dtypes == [pl.Boolean] * 25


def test_an_admission_without_a_diagnosis_has_unknown_labels(tmp_path: Path) -> None:
    hospital = Hospital()
    ill, healthy, unknown = (hospital.add_stay() for _ in range(3))
    for stay in (ill, healthy, unknown):
        hospital.chart(stay, HEART_RATE, 70)
    hospital.diagnose(ill, "N1830", 10)
    hospital.diagnose(healthy, "Z000", 10)
    found = prepare_hospital(hospital, tmp_path)
    labels = {row["stay_id"]: row["Chronic kidney disease"] for row in found.stays.iter_rows(named=True)}
    assert labels == {ill.stay_id: True, healthy.stay_id: False, unknown.stay_id: None}
    assert found.manifest.warnings["stays_with_unknown"]["phenotypes"] == 1
    assert found.manifest.warnings["diagnoses"]["unlisted"] == 1


def test_each_radiograph_has_the_row_that_its_stay_names(case: Example, cohort: Prepared) -> None:
    with_cxr = cohort.stays.filter("has_cxr")
    assert with_cxr["stay_id"].to_list() == [stay.stay_id for stay in (case.described, *case.others[:3])]
    assert with_cxr["cxr_row"].to_list() == list(range(4))
    assert cohort.row(case.described)["dicom_id"] == case.image
    assert cohort.cxr.shape == (4, 32, 32)
    paths = {ids[-1]: image_path(*ids) for ids in case.hospital.images}
    for row in with_cxr.iter_rows(named=True):
        path = cohort.folder.parent / "mimic-cxr" / paths[row["dicom_id"]]
        assert np.array_equal(cohort.cxr[row["cxr_row"]], decode(path, 32))
    assert cohort.row(case.short)["dicom_id"] is None
    assert cohort.row(case.short)["cxr_row"] is None


def test_the_manifest_tells_what_was_made(case: Example, cohort: Prepared) -> None:
    manifest = Manifest.read(cohort.folder)
    assert manifest == cohort.manifest
    assert manifest.options == {
        "preset": "extended",
        "window_hours": 48,
        "before_hours": 6,
        "image_size": 32,
        "view": ["AP"],
        "phenotypes": None,
        "split_file": None,
        "seed": 0,
    }
    assert manifest.warnings["rejected_rows"] == {}
    assert manifest.warnings["unreadable_images"] == []
    assert manifest.warnings["undated_images"] == 0
    assert manifest.variables == list(load_variables())
    written = {path.name for path in cohort.folder.iterdir()}
    content = {"stays.parquet", "ehr.npy", "cxr.npy", "normalization.json"}
    assert written == {*content, "manifest.json", "inputs.parquet"}
    assert manifest.files == {name: sha256(cohort.folder / name) for name in content}
    sources = manifest.sources["mimic_iv"]["files"]
    assert (
        sources["icu/icustays.csv.gz"]
        == (cohort.folder.parent / "mimic-iv/icu/icustays.csv.gz").stat().st_size
    )
    counts = cohort.stays.group_by("split").agg(stays=pl.len(), with_cxr=pl.col("has_cxr").sum())
    found = {row.pop("split"): row for row in counts.iter_rows(named=True)}
    assert {split: count for split, count in manifest.splits.items() if count["stays"]} == found


def test_normalization_is_that_of_the_training_split(cohort: Prepared) -> None:
    statistics = json.loads((cohort.folder / "normalization.json").read_text())
    continuous = [variable for variable in load_variables() if variable.kind == "continuous"]
    assert list(statistics) == [variable.name for variable in continuous]
    training = cohort.ehr[(cohort.stays["split"] == "train").to_numpy()].astype(float)
    names = [variable.name for variable in load_variables()]
    temperatures = training[..., names.index("temperature")]
    temperatures = temperatures[~np.isnan(temperatures)]
    assert len(temperatures) > 2
    assert statistics["temperature"]["mean"] == pytest.approx(temperatures.mean())
    assert statistics["temperature"]["std"] == pytest.approx(temperatures.std())
    assert statistics["ph"] == {"mean": 7.4, "std": 1.0}  # never observed


def test_no_value_of_another_split_enters_the_normalization(tmp_path: Path) -> None:
    hospital = Hospital()
    rows = ["subject_id,split"]
    for value, split in ((60, "train"), (80, "train"), (300, "validation"), (310, "test")):
        stay = hospital.add_stay()
        hospital.chart(stay, HEART_RATE, value)
        rows.append(f"{stay.subject_id},{split}")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    cohort = prepare_hospital(hospital, tmp_path, split_file=tmp_path / "split.csv")
    statistics = json.loads((cohort.folder / "normalization.json").read_text())
    assert statistics["heart_rate"] == {"mean": pytest.approx(70), "std": pytest.approx(10)}
    assert cohort.stays["split"].to_list() == ["train", "train", "validation", "test"]
    assert cohort.manifest.options["split_file"] == "split.csv"


@pytest.mark.parametrize(("layout", "suffix"), [("hosp", ".csv"), ("hosp", ".parquet"), ("core", ".csv.gz")])
def test_every_layout_and_format_gives_the_same_cohort(
    layout: Layout, suffix: Suffix, case: Example, cohort: Prepared, tmp_path: Path
) -> None:
    iv = case.hospital.write(tmp_path / "iv", layout, suffix)
    cxr = case.hospital.write_radiographs(tmp_path / "cxr", suffix=suffix)
    manifest = prepare(iv, tmp_path / "cohort", cxr, image_size=32)
    assert manifest.files == cohort.manifest.files


def test_formats_may_be_mixed(case: Example, cohort: Prepared, tmp_path: Path) -> None:
    iv = case.hospital.write(tmp_path / "iv")
    frames = case.hospital.frames()
    (iv / "icu/chartevents.csv.gz").unlink()
    write_tables({"icu/chartevents": frames["icu/chartevents"]}, iv, ".parquet")
    (iv / "hosp/patients.csv.gz").unlink()
    write_tables({"hosp/patients": frames["hosp/patients"]}, iv, ".csv")
    manifest = prepare(iv, tmp_path / "cohort", cohort.folder.parent / "mimic-cxr", image_size=32)
    assert manifest.files == cohort.manifest.files


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_may_be_a_folder_of_parts(
    suffix: Suffix, case: Example, cohort: Prepared, tmp_path: Path
) -> None:
    iv, cxr = case.hospital.write(tmp_path / "iv"), cohort.folder.parent / "mimic-cxr"
    for stem in ("icu/chartevents", "hosp/diagnoses_icd", "icu/icustays"):
        (iv / f"{stem}.csv.gz").unlink()
        frame = case.hospital.frames()[stem]
        half = len(frame) // 2
        parts = {
            f"{stem}/part-0": frame[:half],
            f"{stem}/part-1": frame[half:].select(*sorted(frame.columns)),
        }
        write_tables(parts, iv, suffix)
        (iv / stem / "_SUCCESS").touch()
    out = tmp_path / "cohort"
    assert prepare(iv, out, cxr, image_size=32).files == cohort.manifest.files
    assert prepare(iv, out, cxr, image_size=32).files == cohort.manifest.files
    (iv / f"icu/chartevents/part-1{suffix}").unlink()
    assert prepare(iv, out, cxr, image_size=32, overwrite=True).files != cohort.manifest.files


def test_two_files_of_a_table_are_refused(case: Example, tmp_path: Path) -> None:
    iv = case.hospital.write(tmp_path / "iv")
    chart = {"icu/chartevents": case.hospital.frames()["icu/chartevents"]}
    write_tables(chart, iv, ".parquet")
    with pytest.raises(
        InputError, match=r"chartevents\.parquet and .*chartevents\.csv\.gz are the same table"
    ):
        prepare(iv, tmp_path / "cohort")
    (iv / "icu/chartevents.parquet").rename(iv / "part-0.parquet")
    (iv / "icu/chartevents.csv.gz").rename(iv / "part-1.csv.gz")
    (iv / "icu/chartevents").mkdir()
    for path in iv.glob("part-*"):
        path.rename(iv / "icu/chartevents" / path.name)
    with pytest.raises(InputError, match=r"chartevents has parts as \.csv\.gz and \.parquet"):
        prepare(iv, tmp_path / "cohort")


def test_the_order_of_rows_and_columns_does_not_matter(
    case: Example, cohort: Prepared, tmp_path: Path
) -> None:
    frames = {
        stem: frame.sample(fraction=1, shuffle=True, seed=1)
        .select(*sorted(frame.columns))
        .with_columns(extra=pl.lit("x, y"))
        for stem, frame in case.hospital.frames().items()
    }
    above = tmp_path / "physionet.org/files"
    write_tables(frames, above / "mimiciv/2.2", ".csv")
    manifest = prepare(
        tmp_path / "physionet.org", tmp_path / "out", cohort.folder.parent / "mimic-cxr", image_size=32
    )
    assert manifest.files == cohort.manifest.files
    assert manifest.sources["mimic_iv"]["release"] == "2.2"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    iv, cxr = write_hospital(tmp_path, n_stays=12, image_size=32)
    for name in ("first", "second"):
        prepare(iv, tmp_path / name, cxr, image_size=32)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_resized_images_may_lie_in_one_folder(case: Example, cohort: Prepared, tmp_path: Path) -> None:
    cxr = case.hospital.write_radiographs(tmp_path / "cxr", flat="resized")
    assert not (cxr / "files").exists()
    manifest = prepare(cohort.folder.parent / "mimic-iv", tmp_path / "cohort", cxr, image_size=32)
    assert manifest.files == cohort.manifest.files


def test_without_radiographs_no_stay_has_one(case: Example, cohort: Prepared, tmp_path: Path) -> None:
    alone = prepare_hospital(case.hospital, tmp_path, mimic_cxr=None, image_size=32)
    assert alone.cxr.shape == (0, 32, 32)
    assert alone.stays["has_cxr"].to_list() == [False] * 7
    assert alone.stays["cxr_row"].null_count() == alone.stays["dicom_id"].null_count() == 7
    assert alone.stays.schema == cohort.stays.schema
    assert np.array_equal(alone.ehr, cohort.ehr, equal_nan=True)
    assert alone.stays["split"].equals(cohort.stays["split"])
    assert "mimic_cxr" not in alone.manifest.sources


def test_a_shorter_window_reads_and_stores_less(case: Example, cohort: Prepared, tmp_path: Path) -> None:
    half = prepare_hospital(case.hospital, tmp_path, window_hours=24, image_size=32)
    assert half.ehr.shape == (7, 24, 17)
    assert half.row(case.described)["n_hours"] == 24
    assert half.values(case.described, "heart_rate") == {0: 80}
    assert np.array_equal(half.ehr, cohort.ehr[:, :24], equal_nan=True)


def test_a_longer_window_reads_more(case: Example, tmp_path: Path) -> None:
    longer = prepare_hospital(case.hospital, tmp_path, window_hours=72, mimic_cxr=None)
    assert longer.values(case.described, "heart_rate") == {0: 80, 47: 90, 48: 100}
    assert longer.values(case.unobserved, "heart_rate") == {49: 70}


def test_the_benchmark_preset_reads_and_cleans_as_published(case: Example, tmp_path: Path) -> None:
    cohort = prepare_hospital(case.hospital, tmp_path, preset="benchmark", image_size=32)
    assert cohort.values(case.described, "height") == {1: 70}
    assert cohort.values(case.described, "gcs_total") == {}
    assert cohort.values(case.described, "glucose") == {}
    assert cohort.values(case.described, "ph") == {4: 6}
    assert cohort.manifest.options["preset"] == "benchmark"


def test_the_views_can_be_widened(tmp_path: Path) -> None:
    hospital = Hospital()
    stay, other = hospital.add_stay(), hospital.add_stay()
    for one in (stay, other):
        hospital.chart(one, HEART_RATE, 70)
    hospital.radiograph(stay, at=1)
    last = hospital.radiograph(stay, at=2, view="PA")
    only = hospital.radiograph(other, at=2, view="PA")
    hospital.radiograph(other, at=3, view="LATERAL")
    cohort = prepare_hospital(hospital, tmp_path, view=("AP", "PA"))
    assert cohort.stays["dicom_id"].to_list() == [last, only]
    assert cohort.manifest.options["view"] == ["AP", "PA"]


def test_a_stay_that_is_left_out_brings_no_radiograph(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.radiograph(hospital.add_stay())
    hospital.radiograph(hospital.add_stay(age=17))
    observed = hospital.add_stay()
    hospital.chart(observed, HEART_RATE, 70)
    image = hospital.radiograph(observed)
    cohort = prepare_hospital(hospital, tmp_path)
    assert cohort.stays["dicom_id"].to_list() == [image]
    assert cohort.cxr.shape[0] == 1


def test_a_stay_without_outtime_never_enters(tmp_path: Path) -> None:
    hospital = Hospital()
    for hours in (None, 50):
        stay = hospital.add_stay(hours=hours)
        hospital.chart(stay, HEART_RATE, 70)
    cohort = prepare_hospital(hospital, tmp_path)
    assert cohort.stays["stay_id"].to_list() == [stay.stay_id]
    assert [step.stays for step in cohort.manifest.flow] == [2, 2, 2, 2, 1]


def test_a_stay_observed_only_before_the_admission_is_left_out(tmp_path: Path) -> None:
    hospital = Hospital()
    before, within = hospital.add_stay(), hospital.add_stay()
    for stay in (before, within):
        hospital.chart(stay, HEIGHT_INCHES, 70, at=-2)
    hospital.chart(within, HEART_RATE, 70)
    cohort = prepare_hospital(hospital, tmp_path)
    assert cohort.stays["stay_id"].to_list() == [within.stay_id]
    assert cohort.values(within, "height") == {0: pytest.approx(177.8)}
    assert [step.stays for step in cohort.manifest.flow] == [2, 2, 2, 2, 1]


@pytest.mark.slow
def test_a_subject_stays_on_its_side_when_the_cohort_grows(tmp_path: Path) -> None:
    hospital = Hospital()
    first = hospital.add_stay()
    for _ in range(20):
        hospital.chart(hospital.add_stay(), HEART_RATE, 70)
    hospital.chart(first, HEART_RATE, 70)
    small = prepare_hospital(hospital, tmp_path / "small")
    again = hospital.add_stay(same_subject=first, intime=INTIME + timedelta(days=100))
    hospital.chart(again, HEART_RATE, 70)
    for _ in range(20):
        hospital.chart(hospital.add_stay(), HEART_RATE, 70)
    large = prepare_hospital(hospital, tmp_path / "large")
    before = dict(small.stays.select("subject_id", "split").iter_rows())
    after = dict(large.stays.select("subject_id", "split").iter_rows())
    assert {subject: after[subject] for subject in before} == before
    assert large.row(again)["split"] == large.row(first)["split"]


def test_another_seed_splits_otherwise(case: Example, cohort: Prepared, tmp_path: Path) -> None:
    other = prepare_hospital(case.hospital, tmp_path, seed=3, image_size=32)
    assert other.manifest.options["seed"] == 3
    assert other.stays["split"].to_list() != cohort.stays["split"].to_list()
    assert np.array_equal(other.ehr, cohort.ehr, equal_nan=True)


def test_phenotypes_can_be_ones_own(case: Example, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "B: {use_in_benchmark: true, codes: [5849]}\nA: {use_in_benchmark: true, codes: [R570, '0031']}\n"
    )
    cohort = prepare_hospital(case.hospital, tmp_path, phenotypes=path, mimic_cxr=None)
    assert cohort.manifest.phenotypes == ["B", "A"]
    assert cohort.manifest.options["phenotypes"] == "own.yaml"
    assert cohort.stays.columns[-2:] == ["B", "A"]
    assert cohort.stays.filter("A")["stay_id"].to_list() == [case.described.stay_id]
    assert cohort.stays.filter("B")["stay_id"].to_list() == [case.described.stay_id]


@pytest.fixture
def with_broken_images() -> Hospital:
    hospital = Hospital()
    for file in ("missing", None, b"not an image", None, b""):
        stay = hospital.add_stay()
        hospital.chart(stay, HEART_RATE, 70)
        hospital.radiograph(stay, file=file)
    cut = hospital.add_stay()
    hospital.chart(cut, HEART_RATE, 70)
    whole = next(image for image in hospital.images.values() if image)
    hospital.radiograph(cut, file=whole[: len(whole) // 2])
    return hospital


def test_an_unreadable_image_costs_its_stay_the_radiograph(
    with_broken_images: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cohort = prepare_hospital(with_broken_images, tmp_path, image_size=32)
    ids = [dicom_id for _, _, dicom_id in with_broken_images.images]
    assert cohort.stays["dicom_id"].to_list() == [None, ids[1], None, ids[3], None, None]
    assert cohort.stays["cxr_row"].to_list() == [None, 0, None, 1, None, None]
    assert cohort.cxr.shape == (2, 32, 32)
    assert cohort.manifest.warnings["unreadable_images"] == [ids[0], ids[2], ids[4], ids[5]]
    warnings = [record.message for record in caplog.records if record.name.startswith("drfuse")]
    assert [warning for warning in warnings if warning.startswith("4 images are missing or unreadable")]


def test_strict_makes_an_unreadable_image_an_error(with_broken_images: Hospital, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 images are missing or unreadable"):
        prepare_hospital(with_broken_images, tmp_path, strict=True)
    assert left_in(tmp_path) == {"mimic-iv", "mimic-cxr"}


@pytest.mark.slow
def test_rows_that_do_not_parse_are_counted_or_refused(
    case: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    iv = case.hospital.write(tmp_path / "iv", suffix=".csv")
    events = iv / "icu/chartevents.csv"
    events.write_text(
        events.read_text().replace(",90,90.0,", ",90,ninety,").replace(",98.6,98.6,,0", ",98.6")
    )
    with caplog.at_level(logging.WARNING):
        manifest = prepare(iv, tmp_path / "cohort")
    cohort = open_cohort(tmp_path / "cohort", manifest)
    assert manifest.warnings["rejected_rows"] == {"chartevents.csv": 2}
    assert cohort.values(case.described, "heart_rate") == {0: 80}
    assert cohort.values(case.described, "temperature") == {}
    assert "2 rows of chartevents.csv do not parse" in caplog.text
    with pytest.raises(InputError, match=r"2 rows of chartevents\.csv do not parse"):
        prepare(iv, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def damage(change: Callable[[Path], object], path: str) -> Callable[[Path], str]:
    """Return a function that changes one file of a hospital and says which."""

    def changed(folder: Path) -> str:
        change(folder / path)
        return path

    return changed


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_gzip(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def as_text(suffix: str) -> Callable[[Path], None]:
    """Return a function that puts text under the name of another format."""

    def change(path: Path) -> None:
        path.with_name(path.name.replace(".csv.gz", suffix)).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()

    return change


def binary(path: Path) -> None:
    path.with_suffix("").write_bytes(path.read_bytes())
    path.unlink()


def renamed(column: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(text.replace(column, "other", 1).encode()))

    return change


def write_labs(folder: Path) -> None:
    """Write a table of many laboratory results."""
    hospital = Hospital()
    stay = hospital.add_stay()
    for row in range(1500):
        hospital.lab(stay, GLUCOSE_LAB, 80 + row * 7919 % 101, at=row * 7919 % 1009)
    write_tables({"labevents": hospital.frames()["hosp/labevents"]}, folder)


WRONG = {
    "no chart events": damage(Path.unlink, "mimic-iv/icu/chartevents.csv.gz"),
    "no patients": damage(Path.unlink, "mimic-iv/hosp/patients.csv.gz"),
    "no lab folder": damage(shutil.rmtree, "mimic-iv/hosp"),
    "no folder at all": damage(shutil.rmtree, "mimic-iv"),
    "no radiographs at all": damage(shutil.rmtree, "mimic-cxr"),
    "no metadata": damage(Path.unlink, "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"),
    "no charttime": damage(renamed("charttime"), "mimic-iv/icu/chartevents.csv.gz"),
    "no StudyTime": damage(renamed("StudyTime"), "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"),
    "gz that is not gz": damage(without_gzip, "mimic-iv/hosp/labevents.csv.gz"),
    "metadata gz that is not gz": damage(without_gzip, "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"),
    "truncated gz": damage(cut, "mimic-iv/icu/chartevents.csv.gz"),
    "truncated lab gz": damage(cut, "mimic-iv/hosp/labevents.csv.gz"),
    "truncated metadata gz": damage(cut, "mimic-cxr/mimic-cxr-2.0.0-metadata.csv.gz"),
    "parquet that is text": damage(as_text(".parquet"), "mimic-iv/icu/icustays.csv.gz"),
    "csv that is binary": damage(binary, "mimic-iv/hosp/admissions.csv.gz"),
}
# What the message calls the file, where that is not the file's own name.
CALLED = {
    "no lab folder": "mimic-iv lacks the table patients",
    "parquet that is text": "icustays.parquet",
    "csv that is binary": "admissions.csv",
    "no metadata": "mimic-cxr-2.0.0-metadata",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_hospital(folder, n_stays=12, image_size=32)
    write_labs(folder / "mimic-iv/hosp")
    return folder


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named_and_leaves_nothing_behind(wrong: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "in")
    path = WRONG[wrong](tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "in/mimic-iv", tmp_path / "out/cohort", tmp_path / "in/mimic-cxr")
    assert CALLED.get(wrong, Path(path).name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window_hours": 0}, "window_hours is 0"),
        ({"image_size": 8}, "image_size is 8"),
        ({"phenotypes": Path("absent.yaml")}, "absent.yaml"),
        ({"split_file": Path("absent.csv")}, "absent.csv"),
        ({"mimic_cxr": Path("absent-cxr")}, "absent-cxr"),
    ],
)
def test_a_wrong_option_is_named_and_leaves_nothing_behind(
    options: dict[str, Any], named: str, case: Example, tmp_path: Path
) -> None:
    iv = case.hospital.write(tmp_path / "iv")
    with pytest.raises(InputError, match=re.escape(named)):
        prepare(iv, tmp_path / "cohort", **options)
    assert left_in(tmp_path) == {"iv"}


def test_a_phenotype_cannot_take_the_name_of_another_column(case: Example, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("phenotype,icd_version,icd_code\nage,9,5849\n")
    with pytest.raises(InputError, match="'age'"):
        prepare_hospital(case.hospital, tmp_path, phenotypes=tmp_path / "own.csv")


def test_a_split_file_must_name_every_subject(case: Example, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text(f"subject_id,split\n{case.described.subject_id},train\n")
    with pytest.raises(InputError, match="leaves out the subjects of 6 stays"):
        prepare_hospital(case.hospital, tmp_path, split_file=tmp_path / "split.csv")
    assert not any("cohort" in name for name in left_in(tmp_path))


def test_a_hospital_without_a_stay_to_include_is_an_error(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.add_stay(age=17)
    with pytest.raises(InputError, match=r"no stay that can be included \(all ICU stays: 1, .*years: 0"):
        prepare_hospital(hospital, tmp_path)
    assert left_in(tmp_path) == {"mimic-iv"}


@pytest.mark.parametrize("table", ["icustays", "patients", "admissions"])
def test_a_stay_described_twice_is_an_error(table: str, tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.chart(hospital.add_stay(), HEART_RATE, 70)
    hospital.rows[table] *= 2
    with pytest.raises(
        InputError, match=f"the table {table} of .* has 1 values of .*_id in more than one row"
    ):
        prepare_hospital(hospital, tmp_path)


def tree(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((str(path), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_lies_at_the_output_is_kept(case: Example, tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    iv = case.hospital.write(tmp_path / "iv")
    before = dict(tree(tmp_path))
    for name in ("cohort", "file"):
        with pytest.raises(InputError, match=rf"{name} exists"):
            prepare(iv, tmp_path / name)
    with pytest.raises(InputError, match=r"cohort holds more than a cohort \(notes"):
        prepare(iv, tmp_path / "cohort", overwrite=True)
    assert dict(tree(tmp_path)) == before


@pytest.mark.slow
def test_a_cohort_is_replaced_when_asked_and_only_by_a_whole_one(case: Example, tmp_path: Path) -> None:
    first = prepare_hospital(case.hospital, tmp_path, image_size=32)
    before = dict(tree(first.folder))
    iv = first.folder.parent / "mimic-iv"
    with pytest.raises(InputError, match="nowhere"):
        prepare(iv, first.folder, tmp_path / "nowhere", overwrite=True)
    assert dict(tree(first.folder)) == before
    prepare(iv, first.folder, window_hours=24, overwrite=True)
    assert Manifest.read(first.folder).options["window_hours"] == 24
    assert np.load(first.folder / "ehr.npy").shape == (7, 24, 17)
    assert left_in(tmp_path) == {"mimic-iv", "mimic-cxr", "cohort"}


def test_an_empty_folder_may_become_the_cohort_and_an_interrupted_run_is_cleared(
    case: Example, tmp_path: Path
) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / ".cohort.0123456789abcdef.partial").mkdir()
    (tmp_path / ".cohort.0123456789abcdef.partial/ehr.npy").write_text("half")
    assert len(prepare_hospital(case.hospital, tmp_path, mimic_cxr=None).stays) == 7
    assert not (tmp_path / ".cohort.0123456789abcdef.partial").exists()


def test_the_folders_above_the_output_are_made(case: Example, tmp_path: Path) -> None:
    manifest = prepare(case.hospital.write(tmp_path / "iv"), tmp_path / "new/deep/cohort")
    assert Manifest.read(tmp_path / "new/deep/cohort") == manifest


@pytest.mark.parametrize("options", [{"memory_limit": "200MiB", "threads": 1}, {"temp_dir": "elsewhere"}])
def test_memory_threads_and_temporary_files_change_nothing(
    options: dict[str, Any], case: Example, cohort: Prepared, tmp_path: Path
) -> None:
    if "temp_dir" in options:
        options = {"temp_dir": tmp_path / "elsewhere"}
    again = prepare_hospital(case.hospital, tmp_path, image_size=32, **options)
    assert again.manifest.files == cohort.manifest.files
    left = {path.name for path in tmp_path.rglob(".*") if path.suffix != ".lock"} | {
        path.name for path in tmp_path.glob("elsewhere/*")
    }
    assert left == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_limit": "much"}, r"memory_limit is 'much'; expected an amount such as 2GiB"),
        ({"memory_limit": "0GB"}, r"memory_limit is '0GB'; expected an amount such as 2GiB"),
        ({"memory_limit": "-1"}, r"memory_limit is '-1'; expected an amount such as 2GiB"),
        ({"threads": 0}, r"threads is 0; expected 1 to 1024"),
        ({"threads": -1}, r"threads is -1; expected 1 to 1024"),
        ({"temp_dir": "/dev/null"}, r"cannot write to /dev/null: .*; choose a different --temp-dir"),
    ],
)
def test_resources_that_are_not_there_are_refused(
    options: dict[str, Any], said: str, case: Example, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        prepare_hospital(case.hospital, tmp_path, **options)
    assert left_in(tmp_path) == {"mimic-iv", "mimic-cxr"}


def test_too_little_memory_ends_in_one_sentence(tmp_path: Path) -> None:
    iv, _ = write_hospital(tmp_path, n_stays=12, image_size=32)
    with pytest.raises(InputError, match=r"more memory .* --memory-limit"):
        prepare(iv, tmp_path / "cohort", memory_limit="1MiB")


@pytest.mark.slow
def test_stays_without_diagnoses_are_prepared_without_labels(tmp_path: Path) -> None:
    shown = example()
    labelled = prepare_hospital(shown.hospital, tmp_path)
    (tmp_path / "mimic-iv" / "hosp" / "diagnoses_icd.csv.gz").unlink()
    with pytest.raises(InputError, match=r"lacks the table diagnoses_icd.*prepare with --labels false"):
        prepare(tmp_path / "mimic-iv", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    out = tmp_path / "unlabelled"
    images = tmp_path / "mimic-cxr"
    found = open_cohort(out, prepare(tmp_path / "mimic-iv", out, images, labels=False))
    assert found.manifest.phenotypes == []
    assert found.stays.equals(labelled.stays.drop(labelled.manifest.phenotypes))
    np.testing.assert_array_equal(found.ehr, labelled.ehr)
    with pytest.raises(InputError, match="phenotypes defines labels, and labels is false"):
        prepare(tmp_path / "mimic-iv", out, phenotypes=tmp_path / "own.csv", labels=False)
    with pytest.raises(InputError, match="was prepared without labels"):
        Task.of(Cohort.open(out))
