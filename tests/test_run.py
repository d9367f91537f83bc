"""Predictions on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.errors import InputError, MissingInputError
from drfuse.run import Predictions, RunFacts, RunFiles


def example(weights: bool) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        phenotypes=["gout", "shock"],
        stays=pl.DataFrame(
            {"subject_id": [1, 1, 2], "stay_id": [5, 6, 7], "split": ["train", "test", "test"]}
        ).with_columns(has_cxr=pl.Series([True, False, True])),
        logits=rng.normal(size=(3, 2)).astype(np.float32),
        labels=np.array([[0, 1], [1, 0], [1, 1]], np.uint8),
        modality_weights=rng.random((3, 2, 3)).astype(np.float32) if weights else None,
        logits_without_cxr=np.array([[1, np.nan], [2, 3], [4, 5]], np.float32) if weights else None,
    )


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_written_is_read(tmp_path: Path, weights: bool) -> None:
    written = example(weights)
    written.write(tmp_path / "predictions.parquet")
    read = Predictions.read(tmp_path / "predictions.parquet")
    assert read.phenotypes == written.phenotypes
    assert read.stays.equals(written.stays)
    np.testing.assert_array_equal(read.logits, written.logits)
    np.testing.assert_array_equal(read.labels, written.labels)
    for name in ("modality_weights", "logits_without_cxr"):
        if weights:
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        else:
            assert getattr(read, name) is None
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


@pytest.mark.parametrize(
    ("split", "full", "matched"),
    [
        ("train", [True, False, False], [True, False, False]),
        ("validation", [False] * 3, [False] * 3),
        ("test", [False, True, True], [False, False, True]),
    ],
)
def test_rows_are_those_of_a_split_and_subset(split: Any, full: list[bool], matched: list[bool]) -> None:
    predictions = example(weights=False)
    assert predictions.rows(split).tolist() == predictions.rows(split, "full").tolist() == full
    assert predictions.rows(split, "matched").tolist() == matched


def test_missing_predictions_name_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} has no predictions\.parquet"):
        Predictions.read(tmp_path / "predictions.parquet")


def test_a_replaced_run_is_named(tmp_path: Path) -> None:
    (tmp_path / ".run.replaced").mkdir()
    for missing in (Predictions.read, lambda path: RunFacts.read(path.parent)):
        with pytest.raises(MissingInputError, match=r"not a finished run of `drfuse train`$"):
            missing(tmp_path / "run" / "predictions.parquet")
    example(weights=False).write(tmp_path / ".run.replaced" / "predictions.parquet")
    for missing in (Predictions.read, lambda path: RunFacts.read(path.parent)):
        with pytest.raises(MissingInputError, match=rf"replace is in {tmp_path}/\.run\.replaced$"):
            missing(tmp_path / "run" / "predictions.parquet")


def test_half_of_the_predictions_are_no_finished_run(tmp_path: Path) -> None:
    path = RunFiles(tmp_path).predictions
    example(weights=False).write(path)
    assert RunFiles(tmp_path).is_finished
    whole = path.read_bytes()
    for n_bytes in (len(whole) - 1, 3, 0):
        path.write_bytes(whole[:n_bytes])
        assert not RunFiles(tmp_path).is_finished
    path.unlink()
    assert not RunFiles(tmp_path).is_finished


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match="holds no predictions"):
        Predictions.read(tmp_path / "predictions.parquet")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.parquet").write_text("no")
    with pytest.raises(InputError, match="holds no predictions"):
        Predictions.read(tmp_path / "predictions.parquet")
