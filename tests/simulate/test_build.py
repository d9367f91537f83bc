import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import prepare
from drfuse.cohort.images import decode
from drfuse.errors import InputError
from drfuse.simulate import Simulation, Truth, block, build, simulate
from drfuse.simulate.record import draw_events
from tests.builders import left_in
from tests.mimic import image_path
from tests.simulate.samples import Simulated, study_times

METADATA = "mimic-cxr/mimic-cxr-2.0.0-metadata"
TABLES = (
    "mimic-iv/hosp/patients",
    "mimic-iv/hosp/admissions",
    "mimic-iv/hosp/diagnoses_icd",
    "mimic-iv/hosp/d_icd_diagnoses",
    "mimic-iv/hosp/labevents",
    "mimic-iv/hosp/d_labitems",
    "mimic-iv/icu/icustays",
    "mimic-iv/icu/chartevents",
    "mimic-iv/icu/d_items",
    METADATA,
)


def read(folder: Path, table: str) -> pl.DataFrame:
    codes = {"icd_code": pl.String, "value": pl.String, "comments": pl.String}
    return pl.read_csv(
        folder / f"{table}.csv.gz", schema_overrides=codes, infer_schema_length=None, try_parse_dates=True
    )


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ids(folder: Path) -> dict[str, set[Any]]:
    stays, metadata = read(folder, "mimic-iv/icu/icustays"), read(folder, METADATA)
    return {
        **{name: set(stays[name]) for name in ("subject_id", "hadm_id", "stay_id")},
        **{name: set(metadata[name]) for name in ("study_id", "dicom_id")},
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 20 stays at a time."""
    monkeypatch.setattr(block, "STAYS_PER_BLOCK", 20)
    monkeypatch.setattr(block, "INDICES_PER_BLOCK", 40)


@pytest.fixture(scope="module")
def truth(simulated: Simulated) -> Truth:
    """Return the truth about the cohort's stays, in its order."""
    return Truth.read(simulated.folder).of(simulated.stays["stay_id"])


def test_the_cohort_has_the_stays_asked_for(simulated: Simulated) -> None:
    stays = simulated.stays
    assert stays.height == simulated.simulation.eligible == 150
    assert simulated.manifest.flow[0].stays == simulated.simulation.icu_stays == 150 + 12 + 2 + 2 * 6
    everyone = Truth.read(simulated.folder).stays
    assert set(stays["stay_id"]) == set(everyone.filter("eligible")["stay_id"])


def test_nothing_is_left_out_but_by_the_inclusion_rules(simulated: Simulated) -> None:
    warnings = dict(simulated.manifest.warnings)
    diagnoses, without = warnings.pop("diagnoses"), warnings.pop("stays_without")
    n_imaged = simulated.simulation.with_cxr
    assert without == {
        "chart events": 0,
        "laboratory results": 0,
        "labels": 0,
        "radiograph": simulated.stays.height - n_imaged,
    }
    assert diagnoses["listed"] > diagnoses["unlisted"] > 0  # some of its diagnoses are of no phenotype
    assert diagnoses["start listed"] == diagnoses["not ICD"] == 0
    assert warnings == {
        "rejected_rows": {},
        "unreadable_images": [],
        "undated_images": 0,
        "stays_with_unknown": {"phenotypes": 0, "in_hospital_mortality": 0, "los": 0},
        "phenotypes_without_positive": [],
        "stays_that_end_before_they_begin": 0,
    }


def test_the_labels_are_the_true_ones(simulated: Simulated, truth: Truth) -> None:
    assert simulated.manifest.phenotypes == truth.phenotypes
    assert np.array_equal(simulated.stays.select(truth.phenotypes).to_numpy(), truth.labels)


def test_a_stay_has_a_radiograph_where_the_truth_says_so(simulated: Simulated, truth: Truth) -> None:
    assert simulated.stays["has_cxr"].equals(truth.stays["has_cxr"])
    assert simulated.stays["has_cxr"].sum() == simulated.simulation.with_cxr
    assert 40 < simulated.simulation.with_cxr < 110


def test_the_radiograph_is_the_last_ap_one_of_the_window(simulated: Simulated) -> None:
    metadata = read(simulated.folder, METADATA)
    metadata = metadata.with_columns(at=pl.Series(study_times(metadata))).filter(ViewPosition="AP")
    images = np.load(simulated.cohort / "cxr.npy")
    for stay in simulated.stays.iter_rows(named=True):
        end = min(stay["outtime"], stay["intime"] + timedelta(hours=48))
        inside = metadata.filter(
            pl.col("subject_id") == stay["subject_id"], pl.col("at").is_between(stay["intime"], end)
        ).sort("at")
        assert stay["dicom_id"] == (inside["dicom_id"][-1] if inside.height else None)
        if inside.height:
            path = image_path(stay["subject_id"], inside["study_id"][-1], stay["dicom_id"])
            assert np.array_equal(images[stay["cxr_row"]], decode(simulated.folder / "mimic-cxr" / path, 64))


def test_every_image_of_the_metadata_is_there_and_no_other(simulated: Simulated) -> None:
    rows = read(simulated.folder, METADATA).select("subject_id", "study_id", "dicom_id")
    expected = {image_path(*row) for row in rows.iter_rows()}
    root = simulated.folder / "mimic-cxr"
    assert {path.relative_to(root) for path in root.rglob("*.jpg")} == expected
    assert len(expected) == simulated.simulation.images


@pytest.mark.slow
def test_the_tables_belong_together_and_are_counted(simulated: Simulated) -> None:
    tables = {name.rpartition("/")[2]: read(simulated.folder, name) for name in TABLES}
    events = tables["chartevents"].height + tables["labevents"].height
    assert simulated.simulation.events == events
    patients = set(tables["patients"]["subject_id"])
    admissions = set(tables["admissions"].select("subject_id", "hadm_id").iter_rows())
    stays = set(tables["icustays"].select("subject_id", "hadm_id", "stay_id").iter_rows())
    assert {subject_id for subject_id, _ in admissions} == patients
    assert {(subject_id, hadm_id) for subject_id, hadm_id, _ in stays} == admissions
    assert len(stays) == simulated.simulation.icu_stays
    diagnoses, chart, labs = (tables[name] for name in ("diagnoses_icd", "chartevents", "labevents"))
    assert set(diagnoses.select("subject_id", "hadm_id").iter_rows()) == admissions
    assert set(chart.select("subject_id", "hadm_id", "stay_id").unique().iter_rows()) <= stays
    assert set(labs["subject_id"]) <= patients
    assert set(labs.drop_nulls("hadm_id").select("subject_id", "hadm_id").unique().iter_rows()) <= admissions
    assert set(tables["mimic-cxr-2.0.0-metadata"]["subject_id"]) <= patients
    assert set(chart["itemid"]) <= set(tables["d_items"]["itemid"])
    assert set(labs["itemid"]) <= set(tables["d_labitems"]["itemid"])
    titles = set(tables["d_icd_diagnoses"].select("icd_code", "icd_version").iter_rows())
    assert set(diagnoses.select("icd_code", "icd_version").iter_rows()) <= titles


def test_a_hospital_says_what_it_consists_of(simulated: Simulated) -> None:
    written = json.loads((simulated.folder / "simulation.json").read_text(encoding="utf-8"))
    assert Simulation(**written) == simulated.simulation
    assert simulated.simulation.options == {
        "stays": 150,
        "cxr_rate": 0.5,
        "cxr_missing": "severity",
        "image_size": 64,
        "seed": 3,
    }
    assert {path.name for path in simulated.folder.iterdir()} == {
        "mimic-iv",
        "mimic-cxr",
        "truth.parquet",
        "simulation.json",
    }


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_mimic(simulated: Simulated, shared: Path, table: str) -> None:
    root = shared / table.replace("mimic-iv/", "mimic-iv-demo/").replace("mimic-cxr/", "mimic-cxr-demo/")
    with gzip.open(f"{root}.csv.gz", "rt", encoding="utf-8") as file:
        real = file.readline().strip().split(",")
    with gzip.open(simulated.folder / f"{table}.csv.gz", "rt", encoding="utf-8") as file:
        columns = file.readline().strip().split(",")
    assert columns == [name for name in real if name in columns]


def test_the_cohort_says_that_it_is_simulated(simulated: Simulated) -> None:
    assert [source["simulated"] for source in simulated.manifest.sources.values()] == [True, True]


def test_the_benchmark_preset_prepares_the_same_stays(simulated: Simulated, tmp_path: Path) -> None:
    manifest = prepare(simulated.folder / "mimic-iv", tmp_path / "cohort", preset="benchmark")
    assert manifest.warnings["rejected_rows"] == {}
    stays = pl.read_parquet(tmp_path / "cohort/stays.parquet")
    assert stays["stay_id"].equals(simulated.stays["stay_id"])
    ehr = np.load(tmp_path / "cohort/ehr.npy")
    for column, variable in enumerate(manifest.variables):
        never = not np.isfinite(ehr[..., column]).any()
        assert never == (variable.name in ("capillary_refill_rate", "gcs_total")), variable.name


def test_the_same_seed_writes_the_same_bytes(simulated: Simulated, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again", stays=150, cxr_rate=0.5, image_size=64, seed=3)
    assert again == simulated.simulation
    assert sums(tmp_path / "again") == sums(simulated.folder)


def test_another_seed_shares_no_id(simulated: Simulated, tmp_path: Path) -> None:
    simulate(tmp_path / "other", stays=30, cxr_rate=0.5, image_size=32, seed=33)
    first, second = ids(simulated.folder), ids(tmp_path / "other")
    for name in first:
        assert second[name]
        assert first[name].isdisjoint(second[name]), name


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_larger_hospital_begins_with_the_same_stays(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    simulate(small, stays=45, cxr_rate=0.5, image_size=32)
    simulate(large, stays=70, cxr_rate=0.5, image_size=32)
    for table in (table for table in TABLES if "/d_" not in table):
        first, second = (
            read(folder, table).filter(pl.col("subject_id") % 10**8 < 80) for folder in (small, large)
        )
        assert first.height > 0
        assert first.equals(second), table
    truths = [Truth.read(folder).stays.filter(pl.col("stay_id") % 10**8 < 80) for folder in (small, large)]
    assert truths[0]["eligible"].sum() == 40
    assert truths[0].equals(truths[1])
    beyond = [Truth.read(folder).stays.filter(pl.col("stay_id") % 10**8 >= 80) for folder in (small, large)]
    assert [stays["eligible"].sum() for stays in beyond] == [5, 30]
    images = [sums(folder / "mimic-cxr/files") for folder in (small, large)]
    common = [{path for path in some if int(Path(path).parts[1][-8:]) < 80} for some in images]
    assert common[0]
    assert common[0] == common[1]
    assert all(images[0][path] == images[1][path] for path in common[0])


@pytest.mark.usefixtures("small_blocks")
def test_the_blocks_of_a_hospital_share_no_id(tmp_path: Path) -> None:
    simulation = simulate(tmp_path / "hospital", stays=70, cxr_rate=0.5, image_size=32)
    assert simulation.eligible == 70
    for table, key in (
        ("mimic-iv/hosp/patients", "subject_id"),
        ("mimic-iv/hosp/admissions", "hadm_id"),
        ("mimic-iv/icu/icustays", "stay_id"),
        ("mimic-iv/hosp/labevents", "labevent_id"),
        (METADATA, "dicom_id"),
    ):
        assert read(tmp_path / "hospital", table)[key].is_unique().all(), key
    results = read(tmp_path / "hospital", "mimic-iv/hosp/labevents")
    taken = results.group_by("specimen_id").agg(pl.struct("subject_id", "charttime").n_unique().alias("n"))
    assert taken["n"].max() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "rate"), [("mcar", 0.3), ("severity", 0), ("mcar", 1)])
def test_each_way_of_imaging_can_be_prepared(tmp_path: Path, missing: Any, rate: float) -> None:
    simulate(tmp_path / "hospital", stays=25, cxr_rate=rate, cxr_missing=missing, image_size=32)
    folder = tmp_path / "hospital"
    prepare(folder / "mimic-iv", tmp_path / "cohort", folder / "mimic-cxr", image_size=32)
    stays = pl.read_parquet(tmp_path / "cohort/stays.parquet")
    assert stays["has_cxr"].equals(Truth.read(folder).of(stays["stay_id"]).stays["has_cxr"])
    if rate in (0, 1):
        assert stays["has_cxr"].sum() == 25 * rate


def test_one_stay_is_a_hospital(tmp_path: Path) -> None:
    assert simulate(tmp_path / "hospital", stays=1, image_size=32).icu_stays == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stays", 0),
        ("stays", 50_000_001),
        ("cxr_rate", -0.1),
        ("cxr_rate", 1.1),
        ("cxr_rate", float("nan")),
        ("image_size", 31),
        ("image_size", 4097),
        ("seed", -1),
        ("seed", 10**9),
        ("cxr_missing", "never"),
    ],
)
def test_an_option_out_of_range_is_named(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{option} is "):
        simulate(tmp_path / "hospital", **{"stays": 5, option: value})
    assert left_in(tmp_path) == set()


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "hospital"
    simulate(folder, stays=3, image_size=32)
    before = sums(folder)
    with pytest.raises(InputError, match=r"exists.*--overwrite"):
        simulate(folder, stays=4, image_size=32, seed=1)
    assert sums(folder) == before
    assert left_in(tmp_path) == {"hospital"}


def test_a_simulated_hospital_can_be_replaced(tmp_path: Path) -> None:
    simulate(tmp_path / "hospital", stays=3, image_size=32)
    simulate(tmp_path / "fresh", stays=4, image_size=32, seed=1)
    simulate(tmp_path / "hospital", stays=4, image_size=32, seed=1, overwrite=True)
    assert sums(tmp_path / "hospital") == sums(tmp_path / "fresh")


def test_what_is_no_simulated_hospital_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        simulate(tmp_path / "hospital", stays=3, image_size=32, overwrite=True)
    assert (tmp_path / "hospital/thesis.txt").read_text() == "years of work"


def failing_the_second_time(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("no space left")
        return function(*arguments)

    return call


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("part", ["draw_events", "draw_radiographs", "describe_truth"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    module = block if part == "draw_events" else build
    monkeypatch.setattr(module, part, failing_the_second_time(getattr(module, part)))
    with pytest.raises(OSError, match="no space left"):
        simulate(tmp_path / "hospital", stays=45, cxr_rate=0.5, image_size=32)
    assert left_in(tmp_path) == set()


@pytest.mark.usefixtures("small_blocks")
def test_a_failure_leaves_the_old_hospital_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path / "hospital", stays=3, image_size=32)
    before = sums(tmp_path / "hospital")
    monkeypatch.setattr(block, "draw_events", failing_the_second_time(draw_events))
    with pytest.raises(OSError, match="no space left"):
        simulate(tmp_path / "hospital", stays=45, image_size=32, overwrite=True)
    assert sums(tmp_path / "hospital") == before
    assert left_in(tmp_path) == {"hospital"}
