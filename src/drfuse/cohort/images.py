"""Image files -> `cxr.npy`: decode them, resize them, write them in order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from drfuse.cohort.arrays import array_in_order, item_of

_DECODED_AHEAD = 256  # images that may wait in memory for their turn to be written


def decode(path: Path, size: int) -> NDArray[np.uint8]:
    """Return a grey image (`size`, `size`): resized so that the short side fits, then centre-cropped.

    A grey image of more than 8 bits, or of floats, is scaled by its own range, as MIMIC-CXR-JPG was made from
    DICOM: the minimum becomes 0, the maximum 255, and what is between is rounded down. MIMIC-CXR-JPG then
    equalised the histogram, which is not done here. Of colours, and of grey with alpha, Pillow reads only the
    upper 8 of 16 bits, which makes 12-bit data black: such images are refused.

    Raises:
        OSError: If there is no such file, or it is not a readable image.
        ValueError: If a pixel is not a finite number, or a colour has 16 bits.
    """
    with Image.open(path) as image:
        image.draft("L", (size, size))  # JPEG decodes at 1/2, 1/4 or 1/8 of its size, never below `size`
        if image.mode.startswith(("I", "F")):
            grey = _eight_bits(image)
        elif any(";16" in str(tile.args) for tile in image.tile):  # how the pixels lie in the file
            raise ValueError("a colour has 16 bits, of which Pillow reads 8")
        else:
            grey = image.convert("L")
    return np.asarray(ImageOps.fit(grey, (size, size), method=Image.Resampling.BICUBIC))


class Stored(NamedTuple):
    """An image that was decoded before, in the size that is wanted: a row of a `cxr.npy`."""

    file: Path
    row: int


def is_readable(path: Path) -> bool:
    """Return whether there is an image that can be decoded."""
    return _read(path, 32) is not None


def store_images(
    candidates: Iterable[Sequence[Path | Stored]], size: int, out: Path, threads: int | None = None
) -> Iterator[int | None]:
    """Decode one image of each stay on all cores and write them, in order, into the NumPy file `out`.

    Args:
        candidates: The images that each stay may have, of which it gets the first readable one: JPEG or PNG
            files, or images decoded before, which are copied.
        size: Side of the stored images, in pixels.
        out: The file to write.
        threads: Images decoded at a time; by default one a core.

    Yields:
        The place of each stay's image among its candidates; None if none is readable: it then takes no row.
    """
    waiting = iter(candidates)
    n_threads = threads or os.cpu_count()
    with array_in_order(out, (size, size), np.uint8) as append, ThreadPoolExecutor(n_threads) as pool:
        while some := list(islice(waiting, _DECODED_AHEAD)):
            for place, image in pool.map(partial(_read_first, size=size), some):
                if image is not None:
                    append(image)
                yield place


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image in 8 bits, scaled by its own range (Pillow would cut every value off at 255)."""
    pixels = np.asarray(image, np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("a pixel is not a finite number")
    pixels = pixels - pixels.min()
    widest = pixels.max()
    if widest > 0:
        pixels *= 255  # before the division, so that whole numbers stay exact
        pixels /= widest
    return Image.fromarray(pixels.astype(np.uint8))


def _read_first(
    candidates: Sequence[Path | Stored], size: int
) -> tuple[int | None, NDArray[np.uint8] | None]:
    """Return the first readable image and its place."""
    for place, candidate in enumerate(candidates):
        if (image := _read(candidate, size)) is not None:
            return place, image
    return None, None


def _read(image: Path | Stored, size: int) -> NDArray[np.uint8] | None:
    if isinstance(image, Stored):
        return item_of(image.file, image.row)
    try:
        return decode(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow raises
        return None
