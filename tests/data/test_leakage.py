"""A cohort in which a patient, an admission or an image is on two sides of a split."""

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drfuse.data import Cohort
from drfuse.data.leakage import check_leakage, hash_images
from drfuse.errors import InputError
from drfuse.sums import sha256
from drfuse.training.train import train
from tests.builders import write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return a cohort of twelve subjects, the first six in training."""
    return write_cohort(tmp_path / "cohort")


def edit(cohort: Path, **columns: pl.Expr) -> Cohort:
    """Return the cohort with columns of its stays changed."""
    stays = pl.read_parquet(cohort / "stays.parquet").with_columns(**columns)
    stays.write_parquet(cohort / "stays.parquet")
    return Cohort.open(cohort)


def test_a_sound_cohort_says_nothing(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_leakage(Cohort.open(cohort))
    assert not caplog.records


@pytest.mark.parametrize(
    ("column", "values", "complaint"),
    [
        ("stay_id", pl.col("stay_id").replace(1010, 1000), "has 1 rows of stays that it already has"),
        ("subject_id", pl.col("subject_id").replace(911, 900), "has 1 subjects in more than one split"),
        ("hadm_id", pl.col("subject_id") // 4, "has 2 admissions in more than one split"),
    ],
)
def test_what_is_in_two_splits_is_refused(cohort: Path, column: str, values: pl.Expr, complaint: str) -> None:
    opened = edit(cohort, **{column: values})
    with pytest.raises(InputError, match=complaint):
        check_leakage(opened)


def test_admissions_may_have_several_stays(cohort: Path) -> None:
    check_leakage(edit(cohort, hadm_id=pl.col("subject_id") // 3))


def test_an_image_in_two_splits_is_counted(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.load(cohort / "cxr.npy")
    pixels[5] = pixels[0]  # of a test stay and of a training stay
    pixels[2] = pixels[1]  # both of training
    np.save(cohort / "cxr.npy", pixels)
    with caplog.at_level(logging.WARNING):
        check_leakage(Cohort.open(cohort))
    assert "2 radiographs of" in caplog.text


def test_images_that_differ_in_one_pixel_differ() -> None:
    images = np.zeros((3, 7, 7), np.uint8)
    images[1, 6, 6] = 1
    first, other, same = hash_images(images)
    assert first == same != other


def test_train_looks_for_leaks_by_itself(cohort: Path, tmp_path: Path) -> None:
    edit(cohort, subject_id=pl.lit(900))
    manifest = json.loads((cohort / "manifest.json").read_text())
    manifest["files"]["stays.parquet"] = sha256(cohort / "stays.parquet")
    (cohort / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has 1 subjects in more than one split"):
        train(cohort, tmp_path / "run", "drfuse.models.LateFusion", epochs=1, progress=False)
    assert not (tmp_path / "run").exists()
