"""Opening a cohort and finding things in it."""

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.cohort.patients import Patients
from drfuse.data import Cohort, StayDataset, Task
from drfuse.errors import InputError, MissingInputError
from drfuse.sums import sha256
from tests.builders import PHENOTYPES, write_cohort


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort")


def test_an_opened_cohort_holds_what_was_written(folder: Path) -> None:
    cohort = Cohort.open(folder)
    stays = pl.read_parquet(folder / "stays.parquet")
    assert len(cohort) == 12
    assert cohort.phenotypes == PHENOTYPES
    assert cohort.image_size == 12
    assert cohort.ehr.shape == (12, 8, 17)
    np.testing.assert_array_equal(cohort.labels, stays.select(PHENOTYPES).to_numpy().astype(np.float32))
    assert cohort.labels.dtype == np.float32
    assert cohort.n_hours.tolist() == stays["n_hours"].to_list()
    assert cohort.n_hours.dtype == np.int64
    assert cohort.cxr_row.tolist() == [0, -1, 1, 2, -1, -1, 3, -1, 4, -1, 5, -1]
    assert np.flatnonzero(cohort.has_cxr).tolist() == [0, 2, 3, 6, 8, 10]
    for stay in (0, 2, 3, 6, 8, 10):
        assert (cohort.cxr[cohort.cxr_row[stay]] == stay).all()


def test_arrays_are_memory_mapped_and_cannot_be_written(folder: Path) -> None:
    cohort = Cohort.open(folder)
    for array in (cohort.ehr, cohort.cxr):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_batches_read_no_column_of_the_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort.open(folder)
    dataset = StayDataset(cohort, Task.unlabelled(cohort, "phenotyping", ["gout"]))

    def read(*names: str) -> None:
        raise AssertionError(f"a forked process would wait forever for {names}")

    monkeypatch.setattr(Cohort, "columns", read)
    assert dataset[[0, 1]].stay_id.tolist() == [1000, 1010]


def test_stays_in_no_folder_are_copied_to_another_process(folder: Path) -> None:
    cohort = Cohort.open(folder)
    patients = _first_patient(cohort)
    given = Cohort.of_patients(patients, cohort.normalization, window_hours=8)
    copy = pickle.loads(pickle.dumps(given))
    assert (copy.stay_id.tolist(), copy.cxr_row.tolist()) == ([1000], [0])
    np.testing.assert_array_equal(copy.ehr, given.ehr)
    np.testing.assert_array_equal(copy.cxr, given.cxr)


def _first_patient(cohort: Cohort) -> Patients:
    """Return the first stay, which has the first radiograph."""
    n_hours, ehr = cohort.n_hours[:1], cohort.ehr[:1]
    return Patients(
        cohort.manifest.variables, cohort.stay_id[:1], n_hours, ehr, cohort.cxr[:1], np.zeros(1, np.int64), 0
    )


def test_rows_of_a_split_are_all_or_the_matched_ones_in_order(folder: Path) -> None:
    cohort = Cohort.open(folder)
    assert cohort.rows("train").tolist() == [0, 1, 2, 3, 4, 5]
    assert cohort.rows("validation").tolist() == [6, 7, 8]
    assert cohort.rows("test", "full").tolist() == [9, 10, 11]
    assert cohort.rows("train", "matched").tolist() == [0, 2, 3]
    assert cohort.rows("validation", "matched").tolist() == [6, 8]
    assert cohort.rows("test", "matched").tolist() == [10]


def test_every_stay_is_found_by_its_id(folder: Path) -> None:
    cohort = Cohort.open(folder)
    assert [cohort.row_of(stay_id) for stay_id in cohort.stays["stay_id"]] == list(range(12))


@pytest.mark.parametrize("stay_id", [0, 999, 1005, 1111, 10**12, -5])
def test_a_stay_that_is_not_there_is_named(folder: Path, stay_id: int) -> None:
    with pytest.raises(InputError, match=f"no stay {stay_id}"):
        Cohort.open(folder).row_of(stay_id)


def test_the_fingerprint_changes_with_the_content(folder: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", seed=1)
    same = write_cohort(tmp_path / "same")
    assert Cohort.open(folder).fingerprint == Cohort.open(same).fingerprint
    assert Cohort.open(folder).fingerprint != Cohort.open(other).fingerprint
    assert Cohort.open(folder).fingerprint == sha256(folder / "manifest.json")


def test_a_cohort_without_radiographs_opens(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", with_cxr=()))
    assert cohort.image_size == 12
    assert not cohort.has_cxr.any()
    assert cohort.rows("train", "matched").tolist() == []


def test_any_other_folder_is_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"is not a cohort.*drfuse prepare"):
        Cohort.open(tmp_path)
    with pytest.raises(MissingInputError, match="is not a cohort"):
        Cohort.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["stays.parquet", "ehr.npy", "cxr.npy", "normalization.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingInputError, match=f"lacks {name}; run `drfuse prepare` again"):
        Cohort.open(folder)


@pytest.mark.parametrize("name", ["stays.parquet", "ehr.npy", "cxr.npy", "normalization.json"])
@pytest.mark.parametrize("content", [b"", b"neither parquet nor numpy nor json"])
def test_a_damaged_file_is_no_traceback(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.*run `drfuse prepare` again"):
        Cohort.open(folder)


@pytest.mark.parametrize(
    ("mean", "std"), [(math.nan, 1.0), (math.inf, 1.0), ("80", 1.0), (80, 0), (80, -1.0), (80, None)]
)
def test_a_normalization_that_cannot_be_used_is_damaged(folder: Path, mean: Any, std: Any) -> None:
    path = folder / "normalization.json"
    statistics = json.loads(path.read_text())
    path.write_text(json.dumps(statistics | {"heart_rate": {"mean": mean, "std": std}}))
    with pytest.raises(InputError, match=r"normalization\.json is damaged: .*; run `drfuse prepare` again"):
        Cohort.open(folder)
    del statistics["heart_rate"]
    path.write_text(json.dumps(statistics))
    with pytest.raises(InputError, match=r"the normalization of heart_rate is \{\}"):
        Cohort.open(folder)


@pytest.mark.parametrize("name", ["ehr.npy", "cxr.npy"])
def test_a_truncated_array_is_damaged(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        Cohort.open(folder)


@pytest.mark.parametrize("name", ["ehr.npy", "cxr.npy", "stays.parquet"])
def test_files_of_different_cohorts_are_told_apart(folder: Path, tmp_path: Path, name: str) -> None:
    other = write_cohort(tmp_path / "other", splits=("train",) * 5, with_cxr=(0, 1))
    shutil.copy(other / name, folder / name)
    with pytest.raises(InputError, match=r"different cohorts.*run `drfuse prepare` again"):
        Cohort.open(folder)


def test_another_window_is_another_cohort(folder: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", window_hours=6)
    shutil.copy(other / "ehr.npy", folder / "ehr.npy")
    with pytest.raises(InputError, match=r"\(12, 6, 17\), expected \(12, 8, 17\)"):
        Cohort.open(folder)


def test_a_table_of_something_else_is_refused(folder: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(folder / "stays.parquet")
    with pytest.raises(InputError):
        Cohort.open(folder)


def test_a_cohort_of_another_format_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {"format_version": 999}), encoding="utf-8")
    with pytest.raises(InputError, match="format version 999"):
        Cohort.open(folder)


def test_columns_are_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cohort(tmp_path / "cohort")
    expected = pl.read_parquet(folder / "stays.parquet")
    read: list[object] = []
    original = pl.read_parquet

    def noted(*arguments: Any, columns: Any = None, **options: Any) -> pl.DataFrame:
        read.append(columns)
        return original(*arguments, columns=columns, **options)

    monkeypatch.setattr(pl, "read_parquet", noted)
    cohort = Cohort.open(folder)
    dataset = StayDataset(cohort)
    assert dataset[[3, 1]].stay_id.tolist() == expected["stay_id"][[3, 1]].to_list()
    assert cohort.rows("test").tolist() == [9, 10, 11]
    assert None not in read
    assert cohort.columns("split", "los").equals(expected.select("split", "los"))
    assert cohort.stays.equals(expected)


def test_unknown_labels_take_a_byte_too(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort")
    stays = pl.read_parquet(folder / "stays.parquet")
    unknown = pl.when(pl.col("stay_id") != 1010).then(pl.col(PHENOTYPES[1])).alias(PHENOTYPES[1])
    stays.with_columns(unknown).write_parquet(folder / "stays.parquet")
    cohort = Cohort.open(folder)
    assert cohort.labels_in_bytes.dtype == np.int8
    assert np.argwhere(cohort.labels_in_bytes < 0).tolist() == [[1, 1]]
    assert np.argwhere(np.isnan(cohort.labels)).tolist() == [[1, 1]]
    assert 1 not in Task.of(cohort).rows()


def test_what_was_read_can_be_released_and_read_again(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort"))
    values, pixels = np.array(cohort.ehr), np.array(cohort.cxr)
    cohort.release()
    np.testing.assert_array_equal(cohort.ehr, values)
    np.testing.assert_array_equal(cohort.cxr, pixels)


def test_brackets_in_a_path_are_no_pattern(small_cohort: Path, elsewhere: Path, tmp_path: Path) -> None:
    shutil.copytree(elsewhere, tmp_path / "c9")  # what the other name is a pattern of
    copied = shutil.copytree(small_cohort, tmp_path / "c[9]")
    assert Cohort.open(copied).column_names == Cohort.open(small_cohort).column_names
    assert Cohort.open(copied).stays.equals(Cohort.open(small_cohort).stays)
