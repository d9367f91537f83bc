"""Image files -> `cxr.npy`: decoded, resized, in order."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from drfuse.cohort.arrays import array_in_order, item_of

MOST_PIXELS = 100_000_000
"""A radiograph has some 10 million; a small file can hold so many that they fill the memory."""
_DECODED_AHEAD = 256  # images in memory that are decoded and not yet written
_FORMATS = ("JPEG", "PNG")
"""Pillow would start a program for some others."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF tag `Orientation`. Pillow's own function also writes the tags
again, which fails if one of them is wrong."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS is the limit here


def decode(path: Path, size: int) -> NDArray[np.uint8]:
    """Return a grey image (`size`, `size`): resized so that the short side fits, then centre-cropped.

    A grey image of more than 8 bits is scaled by its own range, as MIMIC-CXR-JPG was made from
    DICOM: the minimum becomes 0, the maximum 255, and values in between are rounded down. Unlike in
    MIMIC-CXR-JPG, the histogram is not equalised. In colour images, and in grey ones with alpha, Pillow reads
    only the upper 8 of 16 bits, which makes 12-bit data black: such images are refused. An image is turned
    as its EXIF data say.

    Raises:
        OSError: If there is no such file, or it is not a readable JPEG or PNG.
        ValueError: If it has more than `MOST_PIXELS`, or a colour has 16 bits.
    """
    if not path.is_file():  # a pipe would block, a device never end
        raise FileNotFoundError("it is not a file")
    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has more than {MOST_PIXELS:,} pixels")
        image.draft("L", (size, size))  # decodes a JPEG at 1/2, 1/4 or 1/8 of its size, not below `size`
        if image.mode.startswith("I"):
            grey = _eight_bits(image)
        elif any(";16" in str(tile.args) for tile in image.tile):  # the layout of the pixels in the file
            raise ValueError("a colour has 16 bits, of which Pillow reads 8")
        else:
            grey = image.convert("L")
        if (turn := _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))) is not None:
            grey = grey.transpose(turn)
    return np.asarray(ImageOps.fit(grey, (size, size), method=Image.Resampling.BICUBIC))


class Stored(NamedTuple):
    """An image that an earlier command decoded in the same size: a row of a `cxr.npy`."""

    file: Path
    row: int


def is_readable(path: Path, root: Path) -> bool:
    """Return whether a file is an image that can be decoded, and no link leads from it out of `root`."""
    return _read(path, 32, root) is not None


def store_images(
    candidates: Iterable[Sequence[Path | Stored]],
    size: int,
    out: Path,
    threads: int | None = None,
    root: Path | None = None,
) -> Iterator[int | None]:
    """Write one image of each stay, in order, to the NumPy file `out`.

    Args:
        candidates: The images of each stay, of which the first readable one is stored: JPEG or PNG files, or
            images decoded before, which are copied.
        size: Side of the stored images, in pixels.
        out: The file to write.
        threads: Images decoded at the same time; by default, one per core.
        root: Where they are; a link that leads out of it is not followed.

    Yields:
        The index of each stay's image among its candidates; None if none is readable, and no row is written.
    """
    remaining = iter(candidates)
    n_threads = threads or os.cpu_count()
    with array_in_order(out, (size, size), np.uint8) as append, ThreadPoolExecutor(n_threads) as pool:
        while stays := list(islice(remaining, _DECODED_AHEAD)):
            for index, image in pool.map(partial(_read_first, size=size, root=root), stays):
                if image is not None:
                    append(image)
                yield index


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image in 8 bits, scaled by its own range; Pillow would clip every value at 255."""
    pixels = np.asarray(image, np.float64)
    pixels = pixels - pixels.min()
    if (highest := pixels.max()) > 0:
        pixels *= 255  # before the division, so that whole numbers stay exact
        pixels /= highest
    return Image.fromarray(pixels.astype(np.uint8))


def _read_first(
    candidates: Sequence[Path | Stored], size: int, root: Path | None
) -> tuple[int | None, NDArray[np.uint8] | None]:
    """Return the index of the first readable image, and the image."""
    for index, candidate in enumerate(candidates):
        if (image := _read(candidate, size, root)) is not None:
            return index, image
    return None, None


def _read(image: Path | Stored, size: int, root: Path | None) -> NDArray[np.uint8] | None:
    if isinstance(image, Stored):
        return item_of(image.file, image.row)
    try:
        if root is not None and not image.resolve().is_relative_to(root.resolve()):
            return None
        return decode(image, size)
    # all that Pillow raises, and what a link that leads to itself does
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return None
