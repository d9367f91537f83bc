"""Copies of a hospital hold every row N times, under ids of their own."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.replicate import TABLES, Form, count_events, replicate
from drfuse.cohort import prepare
from tests.mimic import write_hospital

IDS = ("subject_id", "hadm_id", "stay_id")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hospital(tmp_path_factory.mktemp("hospital"), n_stays=12, seed=3, image_size=32)[0]


def read(folder: Path, table: str, form: Form) -> pl.DataFrame:
    path = folder / f"{table}.{form}"
    return pl.read_parquet(path) if form == "parquet" else pl.read_csv(path, infer_schema_length=None)


@pytest.mark.parametrize("form", ["csv.gz", "csv", "parquet"])
def test_each_copy_has_all_rows_and_joins_within_itself(release: Path, tmp_path: Path, form: Form) -> None:
    out = replicate(release, tmp_path / "copies", 3, form)
    for table in TABLES:
        one, all_copies = read(release, table, "csv.gz"), read(out, table, form)
        assert all_copies.height == 3 * one.height
        others = [name for name in one.columns if name not in (*IDS, "value")]
        for copy in all_copies.iter_slices(one.height):
            shown = (frame.select(pl.col(others).cast(str)) for frame in (copy, one))
            if form != "parquet":  # which shows times and numbers in another way
                assert next(shown).equals(next(shown))
    for name, table in (
        ("subject_id", "hosp/patients"),
        ("hadm_id", "hosp/admissions"),
        ("stay_id", "icu/icustays"),
    ):
        assert read(out, table, form)[name].is_unique().all()
    of_one = read(release, "icu/chartevents", "csv.gz").join(read(release, "icu/icustays", "csv.gz"), on=IDS)
    of_all = read(out, "icu/chartevents", form).join(read(out, "icu/icustays", form), on=IDS)
    assert of_all.height == 3 * of_one.height > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv.gz", "parquet"])
def test_a_cohort_of_copies_is_the_cohort_again_and_again(release: Path, tmp_path: Path, form: Form) -> None:
    prepare(release, tmp_path / "one")
    prepare(replicate(release, tmp_path / "copies", 2, form), tmp_path / "two")
    one, two = (np.load(tmp_path / name / "ehr.npy") for name in ("one", "two"))
    stays = pl.read_parquet(tmp_path / "two" / "stays.parquet")
    assert len(two) == 2 * len(one) > 0
    assert (
        stays["subject_id"].n_unique()
        == 2 * pl.read_parquet(tmp_path / "one" / "stays.parquet")["subject_id"].n_unique()
    )
    np.testing.assert_array_equal(two[: len(one)], one)
    np.testing.assert_array_equal(two[len(one) :], one)


def test_text_is_one_gzip_member_with_the_very_bytes_of_its_source(release: Path, tmp_path: Path) -> None:
    replicate(release, tmp_path / "copies", 1)
    path = Path("hosp", "labevents.csv.gz")
    text = gzip.decompress((tmp_path / "copies" / path).read_bytes())
    assert text == gzip.decompress((release / path).read_bytes())


def test_copies_are_used_again_unless_their_input_changed(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "copies"
    replicate(release, out, 2)
    first = (out / "copies.json").stat().st_mtime_ns
    replicate(release, out, 2)
    assert (out / "copies.json").stat().st_mtime_ns == first
    replicate(release, out, 3)
    assert count_events(out) == 3 * count_events(release)
