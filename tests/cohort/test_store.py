from pathlib import Path

from drfuse.cohort.store import open_store, spill_folder


def test_what_does_not_fit_in_memory_goes_to_the_temporary_folder(tmp_path: Path) -> None:
    with open_store(1, "40MiB") as store, spill_folder(store, tmp_path / "cohort", tmp_path / "temp"):
        store.raw_sql("CREATE TABLE t AS SELECT hash(range) AS x FROM range(8_000_000) ORDER BY x")
        assert any(path.is_file() for path in (tmp_path / "temp").rglob("*"))
    assert list((tmp_path / "temp").iterdir()) == []
