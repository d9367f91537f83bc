"""Where a sign is drawn, against the images themselves."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from drfuse.data import Cohort
from drfuse.errors import InputError, MissingInputError
from drfuse.simulate import Disease, Truth, drawn_signs
from drfuse.simulate.disease import Readings
from drfuse.simulate.radiographs import View, draw_radiographs, draw_signs
from tests.simulate.samples import Simulated

SIGNS = ("effusion", "sternal_wires", "pacing_leads", "inflammation", "collapse", "vascular_stiffness")


def shown(disease: Disease, n: int, **values: float) -> Readings:
    drawn = np.random.default_rng(1).standard_normal((n, len(disease.factors)))
    for name, value in values.items():
        drawn[:, disease.factors.index(name)] = value
    return Readings(drawn * disease.seen["cxr"], np.full(n, 0.98), disease.seen["cxr"])


def signs(disease: Disease, readings: Readings, names: tuple[str, ...], size: int = 64) -> NDArray[Any]:
    views: list[View] = ["AP"] * len(readings.values)
    found = draw_signs(disease.factors, readings, views, size, np.random.default_rng(2), names)
    return np.stack(list(found))


def images(disease: Disease, readings: Readings, size: int = 64) -> NDArray[Any]:
    views: list[View] = ["AP"] * len(readings.values)
    drawn = draw_radiographs(disease.factors, readings, views, size, np.random.default_rng(2))
    return np.stack([np.asarray(Image.open(BytesIO(image)), float) for image in drawn]) / 255


@pytest.mark.parametrize("sign", SIGNS)
def test_an_image_differs_where_its_sign_is_drawn_and_nowhere_else(disease: Disease, sign: str) -> None:
    n = 40  # more than a batch
    present, absent = (shown(disease, n, **{sign: value}) for value in (2.0, -3.0))
    (region,) = signs(disease, present, (sign,)).transpose(1, 0, 2, 3)
    change = np.abs(images(disease, present) - images(disease, absent))
    assert 0.003 < region.mean() < 0.2
    assert change[region].mean() > 0.08
    assert change[~region].mean() < 0.01
    assert not signs(disease, absent, (sign,)).any()


def test_other_signs_do_not_change_where_one_is(disease: Disease) -> None:
    readings = shown(disease, 3)
    together = signs(disease, readings, SIGNS)
    for number, sign in enumerate(SIGNS):
        np.testing.assert_array_equal(together[:, number], signs(disease, readings, (sign,))[:, 0])


def test_a_lateral_image_shows_no_sign(disease: Disease) -> None:
    views: list[View] = ["LATERAL", "PA"]
    readings = shown(disease, 2, effusion=2.0)
    lateral, frontal = draw_signs(
        disease.factors, readings, views, 64, np.random.default_rng(0), ["effusion"]
    )
    assert not lateral.any()
    assert frontal.any()


def test_the_signs_of_a_hospital_are_those_of_its_files(simulated: Simulated) -> None:
    found = drawn_signs(simulated.folder, ["pacing_leads"])
    assert len(found) == simulated.simulation.images
    leads = Truth.read(simulated.folder).stays.filter("has_cxr", pl.col("cxr_pacing_leads") > 1.5)
    read = simulated.stays.filter(pl.col("stay_id").is_in(leads["stay_id"].implode()))
    assert read.height > 3
    pixels, regions = Cohort.open(simulated.cohort).cxr, [found[name][0] for name in read["dicom_id"]]
    bright = [
        pixels[row][region].mean() - pixels[row][region[:, ::-1]].mean()
        for row, region in zip(read["cxr_row"], regions, strict=True)
    ]
    assert np.mean(bright) > 30


def test_what_no_image_shows_has_no_region(simulated: Simulated, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images do not show 'renal'; expected some of congestion, "):
        drawn_signs(simulated.folder, ["effusion", "renal"])
    with pytest.raises(MissingInputError, match=r"has no simulation\.json"):
        drawn_signs(tmp_path, ["effusion"])
