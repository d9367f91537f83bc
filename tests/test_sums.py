"""The files of a cohort are read once, and again after they changed."""

import json
import os
from pathlib import Path

import pytest

from drfuse import sums
from drfuse.cohort.manifest import Manifest
from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.sums import sha256
from tests.builders import write_cohort


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cohort; its files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sums, "_SETTLED_NS", 0)
    return write_cohort(tmp_path / "cohort")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files whose sums are computed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(sums, "sha256", counted)
    return names


def changed(folder: Path) -> str | None:
    return sums.changed_file(folder, Manifest.read(folder).files)


def test_whole_files_are_read_once(cohort: Path, read: list[str]) -> None:
    Cohort.open(cohort, verify=True)
    assert sorted(read) == ["cxr.npy", "ehr.npy", "normalization.json", "stays.parquet"]
    read.clear()
    Cohort.open(cohort, verify=True)
    assert not read


def test_a_change_of_one_byte_is_noticed(cohort: Path, read: list[str]) -> None:
    assert changed(cohort) is None
    read.clear()
    content = bytearray((cohort / "ehr.npy").read_bytes())
    content[-1] ^= 1
    before = (cohort / "ehr.npy").stat()
    (cohort / "ehr.npy").write_bytes(content)
    os.utime(cohort / "ehr.npy", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    for _ in range(2):
        with pytest.raises(InputError, match=r"ehr\.npy is not what `drfuse prepare` wrote"):
            Cohort.open(cohort, verify=True)
    assert read == ["ehr.npy"] * 2


def test_another_sum_in_the_manifest_is_noticed(cohort: Path) -> None:
    assert changed(cohort) is None
    path = cohort / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(json.loads(text)["files"]["cxr.npy"], "0" * 64), encoding="utf-8")
    assert changed(cohort) == "cxr.npy"


def test_files_that_were_just_written_are_read_again(
    cohort: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "_SETTLED_NS", 10**12)
    for _ in range(2):
        assert changed(cohort) is None
    assert len(read) == 8


def test_a_damaged_or_unwritable_cache_only_costs_time(cohort: Path, read: list[str], tmp_path: Path) -> None:
    assert changed(cohort) is None
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for content in ("[1]", '{"ehr.npy": 3}', "no"):
        kept.write_text(content, encoding="utf-8")
        assert changed(cohort) is None
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file in the place of the folder", encoding="utf-8")
    read.clear()
    assert changed(cohort) is None
    assert len(read) == 4


def test_a_cohort_that_was_moved_is_read_again(cohort: Path, read: list[str]) -> None:
    assert changed(cohort) is None
    read.clear()
    assert changed(cohort.rename(cohort.with_name("moved"))) is None
    assert len(read) == 4


def test_the_stamps_of_other_files_are_kept(cohort: Path, read: list[str]) -> None:
    files = Manifest.read(cohort).files
    for name in files:
        assert sums.changed_file(cohort, {name: files[name]}) is None
    read.clear()
    assert changed(cohort) is None
    assert not read
