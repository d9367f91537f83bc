"""Radiographs are made, decoded in each way, and added to a cohort."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.radiographs import decode_every_pixel, radiographs, write_radiographs
from drfuse.cohort.images import decode


def test_both_ways_of_decoding_give_nearly_the_same_image(tmp_path: Path) -> None:
    (path,) = write_radiographs(tmp_path / "made", 1, 500, 620)
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((500, 620), "L")
    full, draft = decode_every_pixel(path, 64), decode(path, 64)
    assert full.shape == draft.shape == (64, 64)
    assert np.abs(np.subtract(full, draft, dtype=float)).mean() < 3 < full.std()


@pytest.mark.slow  # its processes import everything anew
def test_each_way_is_measured(tmp_path: Path) -> None:
    report = radiographs(2, 64, 1, 12, 200, 240, (40, 80), tmp_path / "report.json")
    decoding, adding, listing = report.tables
    assert [row["way"] for row in decoding.rows] == [
        "every pixel, one core",
        "draft, one core",
        "stored, all cores",
    ]
    assert all(row["images a second"] > 0 for row in decoding.rows)
    some, more, all_new = (row["images in the table"] for row in adding.rows)
    assert 0 < some < more == all_new
    assert [row["of them tried"] for row in listing.rows] == [10, 20]  # one of four is stored
