"""A run on disk, and its predictions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drfuse.errors import InputError, MissingInputError
from drfuse.run import Predictions, Run, RunFacts, predictions_file
from drfuse.subsets import Split
from tests.builders import left_in

OPTIONAL = ("modality_weights", "logits_without_cxr", "logits_without_ehr")


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
        logits_without_ehr=np.array([[1, 2], [np.nan, np.nan], [4, 5]], np.float32) if weights else None,
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
    for name in OPTIONAL:
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


@pytest.mark.parametrize("weights", [True, False])
def test_one_split_is_read_as_if_chosen_afterwards(tmp_path: Path, weights: bool) -> None:
    path, written = tmp_path / "predictions.parquet", example(weights)
    written.write(path)
    for read, expected in (
        (Predictions.read(path, "test"), written.of_split("test")),
        (
            Predictions.read(path, "test", logits_only=True),
            replace(
                written.of_split("test"),
                modality_weights=None,
                logits_without_cxr=None,
                logits_without_ehr=None,
            ),
        ),
    ):
        assert read.stays.equals(expected.stays)
        for name in ("logits", "labels", *OPTIONAL):
            np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    assert Predictions.read(path, "validation").logits.shape == (0, 2)


@pytest.mark.parametrize("weights", [True, False])
def test_a_file_written_in_blocks_or_parts_holds_the_same_table(tmp_path: Path, weights: bool) -> None:
    whole, blocks, joined = (tmp_path / f"{name}.parquet" for name in ("whole", "blocks", "joined"))
    example(weights).write(whole)
    splits: tuple[Split, ...] = ("train", "test")
    with predictions_file(blocks) as append:
        for split in splits:
            append(example(weights).of_split(split))
            assert not blocks.exists()
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for part, split in zip(parts, splits, strict=True):
        example(weights).of_split(split).write(part)
    Predictions.join(parts, joined)
    expected = pl.read_parquet(whole)
    assert expected.schema["logits"] == pl.Array(pl.Float32, 2)
    for path in (blocks, joined):
        assert pl.read_parquet(path).equals(expected)
        assert pl.read_parquet_schema(path) == expected.schema
        assert Predictions.read(path).phenotypes == ["gout", "shock"]
    assert left_in(tmp_path) == {"whole.parquet", "blocks.parquet", "joined.parquet"}


def test_predictions_that_are_not_complete_do_not_appear(tmp_path: Path) -> None:
    def write(*blocks: object) -> None:
        with predictions_file(tmp_path / "predictions.parquet") as append:
            for block in blocks:
                append(block)  # type: ignore[arg-type]

    with pytest.raises(AttributeError):
        write(example(weights=True), None)
    assert not any(tmp_path.iterdir())


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


def test_a_finished_run_is_opened_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.config.write_text("epochs: 3\n")
    with pytest.raises(MissingInputError, match="not a finished run"):
        Run.open(tmp_path)
    example(weights=False).write(run.predictions)
    opened = Run.open(tmp_path)
    assert opened.read_options() == {"epochs": 3}
    assert opened.read_predictions("test").stays["stay_id"].to_list() == [6, 7]
    with pytest.raises(MissingInputError, match=r"has no metrics\.json; run `drfuse evaluate`"):
        opened.read_metrics()
    run.metrics.write_text('{"test": {}}')
    assert opened.read_metrics() == {"test": {}}


def test_half_of_the_predictions_are_no_finished_run(tmp_path: Path) -> None:
    path = Run(tmp_path).predictions
    example(weights=False).write(path)
    assert Run(tmp_path).is_finished
    whole = path.read_bytes()
    for n_bytes in (len(whole) - 1, 3, 0):
        path.write_bytes(whole[:n_bytes])
        assert not Run(tmp_path).is_finished
    path.unlink()
    assert not Run(tmp_path).is_finished


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match="holds no predictions"):
        Predictions.read(tmp_path / "predictions.parquet")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.parquet").write_text("no")
    with pytest.raises(InputError, match="holds no predictions"):
        Predictions.read(tmp_path / "predictions.parquet")
