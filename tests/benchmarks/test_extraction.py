"""The floor and the row-by-row walk find what `prepare` finds, and the benchmark shows all three."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.extraction import extraction
from benchmarks.floor import floor
from benchmarks.growth import growth
from benchmarks.walk import walk
from drfuse.cohort import load_variables, prepare
from tests import mimic
from tests.mimic import Hospital, write_hospital

NAMES = [variable.name for variable in load_variables()]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hospital(tmp_path_factory.mktemp("hospital"), n_stays=20, seed=5, image_size=32)[0]


def cells(cohort: Path) -> int:
    ehr = np.load(cohort / "ehr.npy")
    return int(np.isfinite(np.delete(ehr, NAMES.index("gcs_total"), axis=2)).sum())


@pytest.mark.slow
def test_the_floor_finds_every_cell_where_nothing_needs_cleaning(tmp_path: Path) -> None:
    hospital = Hospital()
    stay = hospital.add_stay(hours=60)
    for at in (0, 0.5, 1, 1.01, 47.9, 48, 48.01, 59):
        hospital.chart(stay, mimic.HEART_RATE, 80 + at, at)
    hospital.chart(stay, mimic.UNUSED_CHART_ITEM, 1)
    hospital.chart(stay, mimic.CELSIUS, 37, 2)
    hospital.lab(stay, mimic.GLUCOSE_LAB, 100, 3)
    hospital.lab(stay, mimic.GLUCOSE_LAB, 101, 4, hadm_id=None)
    hospital.lab(stay, mimic.GLUCOSE_LAB, 102, 5, hadm_id=99_000_000)
    child = hospital.add_stay(age=12)
    hospital.chart(child, mimic.HEART_RATE, 90)
    moved = hospital.add_stay(units=("MICU", "SICU"))
    hospital.chart(moved, mimic.HEART_RATE, 90)
    for suffix in (".csv.gz", ".csv", ".parquet"):
        folder = hospital.write(tmp_path / f"release{suffix}", suffix=suffix)
        # heart rate in hours 0, 1 and 47 (1.0 is in hour 0, and 48.0 in hour 47), temperature, glucose twice
        assert floor(folder) == 3 + 1 + 2
        prepare(folder, tmp_path / "cohort", overwrite=True)
        assert cells(tmp_path / "cohort") == 6


def test_the_floor_misses_no_cell_of_a_hospital_but_what_cleaning_adds_or_drops(
    release: Path, tmp_path: Path
) -> None:
    prepare(release, tmp_path / "cohort")
    assert floor(release) == pytest.approx(cells(tmp_path / "cohort"), rel=0.05)


def test_the_walk_finds_the_values_of_the_preset_benchmark(release: Path, tmp_path: Path) -> None:
    prepare(release, tmp_path / "cohort", preset="benchmark")
    n_stays = walk(release, tmp_path / "walk")
    expected = np.load(tmp_path / "cohort" / "ehr.npy")
    ids = pl.read_parquet(tmp_path / "cohort" / "stays.parquet")["stay_id"]
    assert n_stays == len(ids)
    np.testing.assert_array_equal(np.load(tmp_path / "walk" / "stay_id.npy"), ids)
    np.testing.assert_allclose(np.load(tmp_path / "walk" / "ehr.npy"), expected, rtol=1e-6)
    assert np.isfinite(expected).sum() > 1000


@pytest.mark.slow
def test_the_benchmark_shows_floor_prepare_and_walk(release: Path, tmp_path: Path) -> None:
    report = extraction(release, copies=2, repeats=1, folder=tmp_path, save=tmp_path / "report.json")
    commands = [row[""] for row in report.tables[0].rows]
    assert commands == [
        "floor, csv.gz",
        "prepare, csv.gz",
        "walk, csv.gz",
        "floor, parquet",
        "prepare, parquet",
    ]
    assert all(row["seconds"] > 0 and row["peak memory, GiB"] > 0.01 for row in report.tables[0].rows)
    assert [target.met is None for target in report.targets] == [False, True, False, True, False, False]


@pytest.mark.slow
def test_growth_is_measured_at_each_size_and_drawn(release: Path, tmp_path: Path) -> None:
    figure = tmp_path / "growth.svg"
    report = growth(release, [2], [2, 3], folder=tmp_path, figure=figure)
    sizes = [(row["form"], row["copies"]) for row in report.tables[0].rows]
    assert sizes == [("csv.gz", 2), ("parquet", 2), ("parquet", 3)]
    grown, peak = report.targets[1:]
    per_row = [row["seconds"] / row["event rows"] for row in report.tables[0].rows[1:]]
    assert grown.value == pytest.approx(per_row[1] / per_row[0])
    assert 0.01 < peak.value < 4
    assert figure.read_text().count("event rows") == 2
    assert figure.with_suffix(".png").exists()
