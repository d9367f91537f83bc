from collections.abc import Mapping, Sequence
from io import BytesIO
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from drfuse.simulate.disease import Disease, Readings
from drfuse.simulate.radiographs import View, draw_radiographs
from tests.simulate.samples import Floats, held_out_r2

# of a 64-pixel image: rows and columns, the patient's left on the right
AORTIC_KNOB = (slice(16, 25), slice(36, 41))
STERNUM = (slice(18, 42), slice(30, 34))
BELOW_LEFT_SHOULDER = (slice(10, 16), slice(46, 54))


def readings(
    disease: Disease,
    values: Mapping[str, float] = MappingProxyType({}),
    n: int = 48,
    reliability: float = 0.98,
    seed: int | None = None,
) -> Readings:
    """Return n readings that are 0 (or random, of `seed`), but for `values`."""
    shape = (n, len(disease.factors))
    drawn = np.zeros(shape) if seed is None else np.random.default_rng(seed).standard_normal(shape)
    drawn = drawn * disease.seen["cxr"]
    for name, value in values.items():
        drawn[:, disease.factors.index(name)] = value
    return Readings(drawn, np.full(n, reliability), disease.seen["cxr"])


def draw(
    disease: Disease,
    shown: Readings,
    views: Sequence[View] | None = None,
    size: int = 64,
    seed: int = 0,
) -> list[bytes]:
    views = ["AP"] * len(shown.values) if views is None else views
    return list(draw_radiographs(disease.factors, shown, views, size, np.random.default_rng(seed)))


def pixels(images: Sequence[bytes]) -> Floats:
    """Return the brightness (n, size, size), 0 to 1."""
    return np.stack([np.asarray(Image.open(BytesIO(image))) for image in images]) / 255


@pytest.fixture(scope="module")
def trusted(disease: Disease) -> Floats:
    return pixels(draw(disease, readings(disease, n=96, reliability=0.98)))


@pytest.fixture(scope="module")
def doubted(disease: Disease) -> Floats:
    return pixels(draw(disease, readings(disease, n=96, reliability=0.4)))


@pytest.mark.parametrize("size", [32, 100])
def test_a_radiograph_is_an_8_bit_grey_jpeg(disease: Disease, size: int) -> None:
    images = draw(disease, readings(disease, n=3, seed=1), ["AP", "PA", "LATERAL"], size)
    assert len(images) == 3
    for image in images:
        opened = Image.open(BytesIO(image))
        assert (opened.format, opened.mode, opened.size) == ("JPEG", "L", (size, size))
        assert np.asarray(opened).std() > 20


def test_the_same_seed_draws_the_same_bytes(disease: Disease) -> None:
    shown = readings(disease, n=40, seed=1)
    first = draw(disease, shown, seed=2)
    assert first == draw(disease, shown, seed=2)
    assert set(first).isdisjoint(draw(disease, shown, seed=3))


def test_a_lateral_view_is_the_same_whatever_the_readings_are(disease: Disease) -> None:
    views: list[View] = ["LATERAL", "AP", "LATERAL", "PA"]
    first = draw(disease, readings(disease, n=4, seed=1), views)
    second = draw(disease, readings(disease, n=4, seed=2), views)
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False, True, False]


def test_a_factor_that_an_image_does_not_show_leaves_no_trace(disease: Disease) -> None:
    hidden = np.array(disease.factors)[~disease.seen["cxr"]]
    shown = readings(disease, n=2, seed=1)
    changed = readings(disease, dict.fromkeys(hidden, 2.0), n=2, seed=1)
    assert len(hidden) == 6
    assert draw(disease, shown) == draw(disease, changed)


def test_every_factor_that_an_image_shows_changes_it(disease: Disease) -> None:
    plain = draw(disease, readings(disease, n=2))
    for name in np.array(disease.factors)[disease.seen["cxr"]]:
        assert set(plain).isdisjoint(draw(disease, readings(disease, {name: 1.0}, n=2))), name


@pytest.mark.parametrize(
    ("factor", "region"),
    [
        ("vascular_stiffness", AORTIC_KNOB),
        ("sternal_wires", STERNUM),
        ("pacing_leads", BELOW_LEFT_SHOULDER),
    ],
)
def test_what_a_radiologist_looks_for_is_brighter_the_larger_the_reading_is(
    disease: Disease, factor: str, region: tuple[slice, slice]
) -> None:
    brightness = [
        pixels(draw(disease, readings(disease, {factor: value})))[:, *region].mean()
        for value in (-2.0, -1.0, 0.0, 1.0, 2.0)
    ]
    assert (np.diff(brightness) > 0.005).all()
    elsewhere = pixels(draw(disease, readings(disease, {factor: 2.0})))[:, 50:, :20].mean()
    assert elsewhere == pytest.approx(
        pixels(draw(disease, readings(disease, {factor: -2.0})))[:, 50:, :20].mean(), abs=0.002
    )


def test_a_congested_heart_is_wide(disease: Disease) -> None:
    def width(value: float) -> float:
        middle = pixels(draw(disease, readings(disease, {"congestion": value})))[:, 36:42].mean(axis=(0, 1))
        return float((middle > 0.5).sum())

    assert width(2) >= width(-2) + 4


def test_fluid_and_collapse_are_on_either_side(disease: Disease) -> None:
    plain = pixels(draw(disease, readings(disease, {"effusion": -3.0})))
    fluid = pixels(draw(disease, readings(disease, {"effusion": 3.0})))
    rise = (fluid - plain)[:, 36:44]
    right, left = rise[:, :, 12:26].mean(axis=(1, 2)), rise[:, :, 38:52].mean(axis=(1, 2))
    assert (np.maximum(right, left) > 0.08).mean() > 0.9
    assert 0.25 < (right > left).mean() < 0.75


def test_a_less_reliable_image_is_noisier(trusted: Floats, doubted: Floats) -> None:
    def noise(images: Floats) -> float:
        curvature = images[:, 2:] - 2 * images[:, 1:-1] + images[:, :-2]
        return float(np.median(np.abs(curvature)))

    assert noise(doubted) > 2.5 * noise(trusted)


def test_a_less_reliable_image_is_badly_exposed(trusted: Floats, doubted: Floats) -> None:
    def contrast(images: Floats) -> Floats:
        smooth = images.reshape(len(images), 16, 4, 16, 4).mean(axis=(2, 4))
        return np.log(smooth.std(axis=(1, 2)))

    assert doubted.mean(axis=(1, 2)).std() > 3 * trusted.mean(axis=(1, 2)).std()
    assert contrast(doubted).std() > 3 * contrast(trusted).std()


def test_a_less_reliable_image_is_rotated(trusted: Floats, doubted: Floats) -> None:
    upright = trusted.mean(axis=0)
    along_y, along_x = np.gradient(upright)
    y, x = np.mgrid[:64, :64] - 31.5
    turning = x * along_y - y * along_x  # what a small rotation adds to an image

    def angles(images: Floats) -> Floats:
        return ((images - upright) * turning).sum(axis=(1, 2)) / (turning**2).sum()

    assert angles(doubted).std() > 2 * angles(trusted).std()


@pytest.mark.slow
def test_an_image_tells_every_factor_that_it_shows_and_no_other(disease: Disease) -> None:
    generator = np.random.default_rng(5)
    n = 3000
    factors = generator.standard_normal((n, len(disease.factors)))
    shown = Readings.draw(factors, generator.uniform(0.85, 0.98, n), disease.seen["cxr"], generator)
    images = pixels(draw(disease, shown, seed=6))
    pooled = images.reshape(n, 32, 2, 32, 2).mean(axis=(2, 4)).reshape(n, -1)
    r2 = held_out_r2(pooled, factors, penalty=300)
    told = dict(zip(disease.factors, r2.round(2).tolist(), strict=True))
    names = np.array(disease.factors)
    assert {name for name in told if told[name] > 0.5} == set(names[disease.seen["cxr"]]), told
    assert {name for name in told if told[name] < 0.1} == set(names[~disease.seen["cxr"]]), told
