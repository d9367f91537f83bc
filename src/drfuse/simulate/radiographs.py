"""Chest radiographs that show an image's readings as the signs that a radiologist looks for.

The field of view is the square from -1 to 1, x to the right (the patient's left), y downwards. All shapes
are functions of the coordinates, so a batch of images is drawn at once. The less reliable an image is, the
more it is rotated, badly exposed and noisy.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.special import expit

from drfuse.simulate.disease import Readings

Pixels = NDArray[np.floating]
View = Literal["AP", "PA", "LATERAL"]

_MAX_BATCH, _MAX_BATCH_PIXELS = 32, 2**19
# where a focal opacity may be
_ZONES = np.array([[-0.40, -0.28], [0.42, -0.28], [-0.40, 0.10], [0.44, 0.08]])
_WIRES = np.linspace(-0.42, 0.30, 6)  # heights of the sternal wires
_JPEG_QUALITY = 92
_ABSENT = -3.0  # the reading at which a sign is as good as invisible
_VISIBLE = 0.05  # difference in brightness, which is 1 between black and white


def draw_radiographs(
    factors: Sequence[str],
    readings: Readings,
    views: Sequence[View],
    size: int,
    generator: np.random.Generator,
) -> Iterator[bytes]:
    """Yield n radiographs as JPEG files, 8-bit grey, (size, size).

    Each has its `readings` (n, K) of the K `factors` and its ViewPosition in `views`; a lateral image shows
    none of the factors.
    """
    with ThreadPoolExecutor() as pool:
        for batch in _batches(len(views), size):
            pixels, _ = _draw(factors, readings, views, batch, size, generator)
            yield from pool.map(_encode, pixels)


def draw_signs(
    factors: Sequence[str],
    readings: Readings,
    views: Sequence[View],
    size: int,
    generator: np.random.Generator,
    signs: Sequence[str],
) -> Iterator[NDArray[np.bool_]]:
    """Yield where each of n radiographs shows the signs of S factors, boolean (S, size, size).

    The other arguments are those of `draw_radiographs`; the same ones give the signs of its images. A sign is
    where the image, but for exposure and noise, would be visibly brighter or darker if the factor's reading
    were very low.
    """
    for batch in _batches(len(views), size):
        _, regions = _draw(factors, readings, views, batch, size, generator, signs)
        yield from regions


def _batches(n: int, size: int) -> Iterator[slice]:
    """Yield which of n images are drawn at once."""
    batch_size = min(_MAX_BATCH, max(1, _MAX_BATCH_PIXELS // size**2))
    for start in range(0, n, batch_size):
        yield slice(start, start + batch_size)


def _draw(
    factors: Sequence[str],
    readings: Readings,
    views: Sequence[View],
    batch: slice,
    size: int,
    generator: np.random.Generator,
    signs: Sequence[str] = (),
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the images (n, size, size) of a batch, and where they show some signs (n, S, size, size)."""
    values, reliability = readings.values[batch], readings.reliability[batch]
    lateral = np.array([view == "LATERAL" for view in views[batch]])[:, None, None]
    n, unreliable = len(reliability), 1 - reliability
    z = {
        name: np.clip(of_factor, -3, 3).astype(np.float32)[:, None, None]
        for name, of_factor in zip(factors, values.T, strict=True)
    }
    x, y = _coordinates(size, np.deg2rad(generator.normal(0, 1.5 + 9 * unreliable)), generator)
    same_chance = deepcopy(generator) if signs else generator
    frontal = _frontal_view(z, x, y, size, generator)
    regions = np.zeros((n, len(signs), size, size), bool)
    for number, sign in enumerate(signs):
        without = _frontal_view(z | {sign: np.full_like(z[sign], _ABSENT)}, x, y, size, deepcopy(same_chance))
        regions[:, number] = (np.abs(frontal - without) > _VISIBLE) & ~lateral
    image = np.where(lateral, _lateral_view(x, y, size), frontal)
    gain = np.exp(generator.normal(0, 0.03 + 0.25 * unreliable))[:, None, None]
    offset = generator.normal(0, 0.01 + 0.10 * unreliable)[:, None, None]
    noise = generator.standard_normal((n, size, size), np.float32) * (0.01 + 0.10 * unreliable)[:, None, None]
    image = np.clip(0.4 + (image - 0.4) * gain + offset + noise, 0, 1)
    marks = np.stack([_marker(size, right) for right in generator.random(n) < 0.5])
    pixels: NDArray[np.uint8] = np.round(255 * np.maximum(image, marks)).astype(np.uint8)
    return pixels, regions


def _coordinates(
    size: int, angle: NDArray[np.float64], generator: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Return x and y (n, size, size) in the patient's frame, turned by `angle` (n,) and shifted a little."""
    side = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    shift = generator.normal(0, 0.02, (2, len(angle), 1, 1)).astype(np.float32)
    across, down = side[None, None, :] - shift[0], side[None, :, None] - shift[1]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * across + sin * down, cos * down - sin * across


def _frontal_view(
    z: dict[str, Pixels], x: Pixels, y: Pixels, size: int, generator: np.random.Generator
) -> Pixels:
    """Return the brightness (n, size, size) of frontal images, 0 for black."""
    n, edge = len(x), 2.4 / size
    outward = np.abs(x)

    def inside(distance: Pixels) -> Pixels:
        """Return 1 where a distance from an edge is negative, 0 where it is positive, soft over a pixel."""
        return np.asarray(expit(-distance / edge))

    def random_side() -> Pixels:
        """Return 1 in the left or right half of each image, and 0 in the other."""
        sign = np.where(generator.random(n) < 0.5, -1, 1).astype(np.float32)[:, None, None]
        return (x * sign > 0).astype(np.float32)

    def strength(factor: str) -> Pixels:
        """Return how strong the sign of a factor is, from 0 to 1."""
        return np.asarray(expit(1.3 * z[factor]))

    habitus, hyperinflation = z["habitus"], z["hyperinflation"]
    body = inside(((outward / (0.80 + 0.05 * habitus)) ** 4 + (np.minimum(y + 0.1, 0) / 0.95) ** 4 - 1) * 0.2)
    image = 0.06 + (0.52 + 0.04 * habitus) * body

    # lungs: two ellipses cut off by the diaphragm
    width = 0.30 - 0.015 * habitus
    radius = np.sqrt(((outward - 0.40) / width) ** 2 + ((y + 0.08) / (0.70 + 0.02 * hyperinflation)) ** 2)
    dome = (0.16 - 0.045 * hyperinflation) * ((outward - 0.36) / 0.3) ** 2
    diaphragm = 0.32 + 0.07 * hyperinflation + dome - 0.08 * z["raised_diaphragm"] * (x < 0)
    lung = inside((radius - 1) * 0.3) * inside(y - diaphragm)
    image = image * (1 - lung) + lung * (0.20 - 0.012 * hyperinflation)
    image += 0.035 * body * np.cos((y + 0.45 * (outward - 0.2) ** 2) * (2 * np.pi / 0.19))  # ribs

    # opacities within the lungs
    hila = np.exp(-((outward - 0.24) ** 2) / 0.02 - (y + 0.02) ** 2 / 0.06)
    image += lung * hila * np.maximum(0.10 + 0.06 * z["congestion"], 0)
    image += lung * np.maximum(0.10 + 0.06 * z["respiratory_distress"], 0) * _mottle(x, y, generator)
    zone = _ZONES[generator.integers(len(_ZONES), size=n)].astype(np.float32)[:, :, None, None]
    blob = np.exp(-((x - zone[:, 0]) ** 2 + (y - zone[:, 1]) ** 2) / (2 * 0.11**2))
    image += lung * blob * 0.42 * strength("inflammation")

    # air outside a collapsed lung, fluid at the bottom of one side
    collapsed_side, collapse = random_side(), strength("collapse")
    withdrawn = 0.03 + 0.30 * collapse
    pleural = lung * collapsed_side * inside(y - 0.15) * inside(-(radius - 1 + withdrawn) * 0.3)
    image -= pleural * 0.16 * collapse
    line = np.exp(-(((radius - 1 + withdrawn) * 0.3 / 0.018) ** 2) / 2)
    image += lung * collapsed_side * inside(y - 0.15) * line * 0.30 * collapse
    level = 0.36 - (0.45 * strength("effusion")) * (0.75 + 0.8 * (outward - 0.36))
    fluid = inside((radius - 1) * 0.3) * random_side() * inside(level - y)
    image = image * (1 - fluid) + 0.68 * fluid

    # mediastinum, heart and aortic knob
    image = np.maximum(image, 0.60 * inside(outward - 0.10) * body)
    across = 0.30 + 0.045 * z["congestion"]
    heart = np.sqrt(((x - 0.10) / across) ** 2 + ((y - 0.20) / (0.27 + 0.012 * z["congestion"])) ** 2) - 1
    image = np.maximum(image, 0.63 * inside(heart * 0.3))
    from_knob = np.hypot(x - 0.14, y + 0.36) - (0.085 + 0.012 * z["vascular_stiffness"])
    image = np.maximum(image, 0.60 * inside(from_knob))
    image += 0.34 * strength("vascular_stiffness") * np.exp(-((from_knob / 0.022) ** 2) / 2) * (x > 0.10)

    # devices
    wires = np.exp(-((np.abs(y[:, None] - _WIRES[:, None, None]) / 0.02) ** 2) / 2).sum(axis=1)
    image += 0.38 * strength("sternal_wires") * wires * inside(outward - 0.06)
    pulse_generator = inside(np.maximum(np.abs(x - 0.56) - 0.10, np.abs(y + 0.60) - 0.07))
    course = np.clip((y + 0.60) / 0.45, 0, 1)
    lead = np.exp(-(((x - 0.50 + 0.42 * course**0.7 - 0.10 * np.maximum(y - 0.1, 0)) / 0.022) ** 2) / 2)
    lead *= inside(-(y + 0.58)) * inside(y - 0.36)
    image += 0.36 * strength("pacing_leads") * np.maximum(pulse_generator, lead)
    return np.asarray(image, np.float32)


def _lateral_view(x: Pixels, y: Pixels, size: int) -> Pixels:
    """Return the brightness (n, size, size) of lateral images: the same for every patient."""
    edge = 2.4 / size
    body = expit((1 - (x / 0.7) ** 4 - (np.minimum(y, 0) / 0.95) ** 4) * 0.2 / edge)
    lung = expit((1 - ((x + 0.02) / 0.50) ** 2 - ((y + 0.1) / 0.72) ** 2) * 0.3 / edge)
    spine = np.exp(-(((x - 0.48) / 0.08) ** 2) / 2)
    heart = np.exp(-(((x + 0.20) / 0.22) ** 2 + ((y - 0.25) / 0.2) ** 2) / 2)
    return np.asarray(0.06 + 0.5 * body - 0.28 * lung + 0.25 * spine * body + 0.25 * heart)


def _mottle(x: Pixels, y: Pixels, generator: np.random.Generator) -> Pixels:
    """Return a patchy pattern (n, size, size) around 1: the sum of four random waves."""
    wave = generator.uniform(6, 16, (4, 2, len(x), 1, 1)).astype(np.float32)
    phase = generator.uniform(0, 2 * np.pi, (4, len(x), 1, 1)).astype(np.float32)
    pattern = [np.sin(wx * x + wy * y + shift) for (wx, wy), shift in zip(wave, phase, strict=True)]
    return np.asarray(1 + 0.25 * np.sum(pattern, axis=0))


@lru_cache(maxsize=4)
def _marker(size: int, right: bool) -> Pixels:
    """Return the technician's text in an upper corner (size, size), up to 1 where it is bright."""
    canvas = Image.new("L", (size, size))
    text, font = ("L PORT" if right else "R"), ImageFont.load_default(max(8, size // 16))
    place = (size * 0.97, size * 0.03) if right else (size * 0.03, size * 0.03)
    ImageDraw.Draw(canvas).text(place, text, fill=230, font=font, anchor="ra" if right else "la")
    return np.asarray(canvas, np.float32) / 255


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
