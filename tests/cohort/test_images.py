import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from drfuse.cohort.images import Stored, decode, is_readable, store_images
from tests.mimic import draw


def write_image(pixels: NDArray[np.uint8 | np.uint16], path: Path, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    assert np.array_equal(decode(write_image(pixels, tmp_path / "image.png"), 40), pixels)


@pytest.mark.parametrize("wide", [False, True])
def test_the_short_side_fits_and_the_long_side_is_cropped_at_its_centre(wide: bool, tmp_path: Path) -> None:
    pixels = np.repeat(
        np.arange(100, dtype=np.uint8)[:, None] * 2, 60, axis=1
    )  # (100, 60), darker at the top
    if wide:
        pixels = pixels.T
    found = decode(write_image(pixels, tmp_path / "image.png"), 60)
    assert np.array_equal(found, pixels[:, 20:80] if wide else pixels[20:80])


@pytest.mark.parametrize(("height", "width"), [(256, 192), (192, 256), (500, 300), (61, 340), (20, 33)])
def test_any_shape_becomes_a_square_without_distortion(height: int, width: int, tmp_path: Path) -> None:
    short = min(height, width)
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < short / 4  # a disc in the middle
    path = write_image((inside * 255).astype(np.uint8), tmp_path / "image.png")
    found = decode(path, 48)
    assert (found.shape, found.dtype) == ((48, 48), np.uint8)
    bright = found > 127
    extent = bright.any(axis=0).sum(), bright.any(axis=1).sum()
    assert extent == (pytest.approx(24, abs=2), pytest.approx(24, abs=2))
    assert bright[23:25, 23:25].all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_colour_images_become_grey(mode: str, tmp_path: Path) -> None:
    pixels = np.full((32, 32), 90, np.uint8)
    found = decode(write_image(pixels, tmp_path / "image.png", mode), 32)
    assert np.abs(found.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("low_high", [(0, 2**16 - 1), (0, 4095), (1000, 3040)])
def test_16_bit_images_are_scaled_by_their_own_range(low_high: tuple[int, int], tmp_path: Path) -> None:
    low, high = low_high
    pixels = np.linspace(low, high, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = decode(write_image(pixels, tmp_path / "image.png"), 32)
    assert np.array_equal(found, (pixels.astype(np.int64) - low) * 255 // (high - low))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "BMP", "PPM"])
def test_only_jpeg_and_png_are_opened_whatever_the_name(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image.jpg"
    Image.new("L", (32, 32)).save(image, kind)
    assert not is_readable(image, tmp_path)


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("1", (10_001, 10_000)).save(image)
    assert image.stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than 100,000,000 pixels"):
        decode(image, 32)
    assert not is_readable(image, tmp_path)


def test_pipes_and_links_that_leave_the_folder_are_not_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "release", tmp_path / "elsewhere.png"
    inside.mkdir()
    for path in (outside, inside / "own.png"):
        Image.new("L", (32, 32)).save(path)
    (inside / "away.png").symlink_to(outside)
    (inside / "within.png").symlink_to(inside / "own.png")
    os.mkfifo(inside / "pipe.png")
    found = {path.name for path in inside.iterdir() if is_readable(path, inside)}
    assert found == {"own.png", "within.png"}


def png_of_16_bits(pixels: NDArray[np.uint16], kind: int) -> bytes:
    """Return the PNG file of an image (height, width, channels), which Pillow cannot write."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(("kind", "n_channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_unreadable_instead_of_black(
    kind: int, n_channels: int, tmp_path: Path
) -> None:
    grey = np.linspace(0, 4095, 32 * 32).reshape(32, 32, 1).astype(np.uint16)
    image = tmp_path / "image.png"
    image.write_bytes(png_of_16_bits(np.repeat(grey, n_channels, axis=2), kind))
    with Image.open(image) as opened:
        assert opened.size == (32, 32)  # it is an image
    assert not is_readable(image, image.parent)


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:16, :40] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / f"image.{kind}", exif=exif)
    with Image.open(tmp_path / f"image.{kind}") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(decode(tmp_path / f"image.{kind}", 64), expected)


def test_a_large_jpeg_looks_the_same_when_decoded_small(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(draw((1500, 1200), seed=3))
    with Image.open(path) as image:
        crop = image.crop((0, 150, 1200, 1350)).resize((64, 64), Image.Resampling.BICUBIC)
    difference = np.abs(decode(path, 64).astype(int) - np.asarray(crop))
    assert difference.mean() < 2


def broken_image(kind: str, path: Path) -> Path:
    """Write an image that cannot be read, or none."""
    jpeg = draw((64, 64), seed=0)
    contents = {
        "empty": b"",
        "text": b"this is not an image\n" * 20,
        "truncated": jpeg[: len(jpeg) // 2],
        "cut in its header": jpeg[:30],
    }
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(contents[kind])
    return path


BROKEN = ["missing", "empty", "text", "truncated", "cut in its header", "folder"]


@pytest.mark.parametrize("kind", BROKEN)
def test_an_image_that_cannot_be_read_is_an_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(broken_image(kind, tmp_path / "image.jpg"), 32)


def test_unreadable_images_take_no_row(tmp_path: Path) -> None:
    readable = []
    for number in range(4):
        readable.append(tmp_path / f"{number}.jpg")
        readable[-1].write_bytes(draw((48, 40), seed=number))
    broken = [broken_image(kind, tmp_path / f"{kind}.jpg") for kind in BROKEN]
    paths = [broken[0], readable[0], *broken[1:4], readable[1], readable[2], *broken[4:], readable[3]]

    places = list(store_images([[path] for path in paths], 32, tmp_path / "cxr.npy"))

    assert places == [0 if path in readable else None for path in paths]
    stored = np.load(tmp_path / "cxr.npy", mmap_mode="r")
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, np.stack([decode(path, 32) for path in readable]))


@pytest.mark.parametrize("n_images", [0, 1, 300])
def test_any_number_of_images_can_be_stored(n_images: int, tmp_path: Path) -> None:
    paths = []
    for number in range(n_images):
        paths.append(tmp_path / f"{number}.png")
        file = BytesIO()
        Image.fromarray(np.full((8, 8), number % 256, np.uint8)).save(file, "PNG")
        paths[-1].write_bytes(file.getvalue())
    assert set(store_images([[path] for path in paths], 8, tmp_path / "cxr.npy")) <= {0}
    stored = np.load(tmp_path / "cxr.npy")
    assert stored.shape == (n_images, 8, 8)
    assert stored[:, 0, 0].tolist() == [number % 256 for number in range(n_images)]


def test_images_that_were_decoded_before_are_copied(tmp_path: Path) -> None:
    before = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    np.save(tmp_path / "before.npy", before)
    (tmp_path / "new.jpg").write_bytes(draw((20, 20), seed=1))
    earlier = [Stored(tmp_path / "before.npy", row) for row in range(3)]
    images: list[list[Path | Stored]] = [
        [earlier[2]],
        [tmp_path / "new.jpg"],
        [tmp_path / "missing.jpg"],
        [earlier[0]],
    ]
    assert list(store_images(images, 16, tmp_path / "cxr.npy")) == [0, 0, None, 0]
    stored = np.load(tmp_path / "cxr.npy")
    assert np.array_equal(stored, np.stack([before[2], decode(tmp_path / "new.jpg", 16), before[0]]))


def test_a_stay_gets_its_first_readable_image(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(draw((20, 20), seed=number))
    broken, missing = broken_image(BROKEN[0], tmp_path / "broken.jpg"), tmp_path / "missing.jpg"
    stays = [
        [missing, broken, tmp_path / "1.jpg", tmp_path / "0.jpg"],
        [missing, broken],
        [tmp_path / "2.jpg"],
    ]
    assert list(store_images(stays, 16, tmp_path / "cxr.npy")) == [2, None, 0]
    expected = [decode(tmp_path / f"{number}.jpg", 16) for number in (1, 2)]
    assert np.array_equal(np.load(tmp_path / "cxr.npy"), np.stack(expected))
