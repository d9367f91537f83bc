"""The last readable radiograph of each stay's window: find it, decode it, store it."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from drfuse.cohort.arrays import array_in_order, item_of

_SUFFIXES = (".jpg", ".jpeg", ".png")
_DECODED_AHEAD = 256  # images that may wait in memory for their turn to be written


def date_studies(metadata: ir.Table) -> ir.Table:
    """Return the metadata with `studied_at`, null where StudyDate or StudyTime cannot be read.

    Args:
        metadata: MIMIC-CXR-JPG's metadata table. `StudyTime` is hhmmss.sss without its leading zeros.
    """
    day = metadata.StudyDate.replace("-", "").substr(0, 8)
    midnight = (day.substr(0, 4) + "-" + day.substr(4, 2) + "-" + day.substr(6, 2)).try_cast("timestamp")
    clock = metadata.StudyTime.try_cast("float64")
    is_time = (clock >= 0) & (clock < 240000) & (clock % 10000 < 6000) & (clock % 100 < 60)
    clock = is_time.ifelse(clock, ibis.null("float64"))
    seconds = (clock // 10000) * 3600 + (clock % 10000 // 100) * 60 + clock % 100
    return metadata.mutate(studied_at=midnight + (seconds * 1e6).round().cast("int64").as_interval("us"))


def select_radiographs(studied: ir.Table, stays: ir.Table, views: Sequence[str]) -> ir.Table:
    """Return `stay_id`, `subject_id`, `study_id`, `dicom_id` of the radiographs in each stay's window.

    They are in the order of the stays, and of a stay the latest comes first.

    Args:
        studied: The metadata with `studied_at` (see `date_studies`).
        stays: Rows of `stay_id`, `subject_id`, `intime` and `window_end`.
        views: The `ViewPosition` values that count.
    """
    studied = studied.filter(studied.ViewPosition.strip().upper().isin(views))
    studied = studied.join(stays.select("stay_id", "subject_id", "intime", "window_end"), "subject_id")
    studied = studied.filter(studied.studied_at.between(studied.intime, studied.window_end))
    latest_first = [ibis.desc("studied_at"), ibis.desc("study_id"), ibis.desc("dicom_id")]
    return studied.order_by("stay_id", *latest_first).select("stay_id", "subject_id", "study_id", "dicom_id")


@dataclass(frozen=True)
class ImageFolder:
    """Where the images of a MIMIC-CXR-JPG release lie.

    That is `files/pXX/pXXXXXXXX/sXXXXXXXX/` where the release has a folder `files`, else any folder of
    resized images directly in it, or the release's folder itself.

    Attributes:
        root: Folder of the release.
        flat: The images that lie directly in a folder, by `dicom_id`; None where each study has a folder.
    """

    root: Path
    flat: Mapping[str, Path] | None

    @classmethod
    def open(cls, root: Path) -> "ImageFolder":
        """Look how the images lie."""
        nested = list((root / "files").iterdir()) if (root / "files").is_dir() else []
        has_patients = any(re.fullmatch(r"p\d\d", path.name) for path in nested)
        if (root / "files").is_dir() and (has_patients or not any(map(_is_image, nested))):
            return cls(root, None)
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        images = [path for folder in folders for path in folder.iterdir() if _is_image(path)]
        return cls(root, {path.stem: path for path in reversed(images)})  # the first of two with one name

    def may_hold(self, missing: str) -> bool:
        """Return whether an image that was missing at a path below the release may lie elsewhere now."""
        if self.flat is None:
            return not missing.startswith("files/")
        found = self.flat.get(Path(missing).stem)
        return found is not None and found != self.root / missing

    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:
        """Return where an image should lie."""
        if self.flat is not None:
            return self.flat.get(dicom_id, self.root / f"{dicom_id}.jpg")
        patient = f"p{subject_id}"
        return self.root / "files" / patient[:3] / patient / f"s{study_id}" / f"{dicom_id}.jpg"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def decode(path: Path, size: int) -> NDArray[np.uint8]:
    """Return a grey image (`size`, `size`): resized so that the short side fits, then centre-cropped.

    A grey image of more than 8 bits, or of floats, is scaled by its own range, as MIMIC-CXR-JPG was made from
    DICOM: the minimum becomes 0, the maximum 255, what is between is cut down. MIMIC-CXR-JPG then equalised
    the histogram, which is not done here. Of colours and grey with alpha Pillow reads the upper 8 of 16 bits,
    in which 12-bit data are black: these are refused.

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
    """An image that was decoded before, in the size that is wanted.

    Attributes:
        file: A `cxr.npy`.
        row: The image's row in it.
    """

    file: Path
    row: int


def is_readable(path: Path) -> bool:
    """Return whether there is an image that can be decoded."""
    return _read(path, 32) is not None


def store_radiographs(
    candidates: Iterable[Sequence[Path | Stored]], size: int, out: Path, threads: int | None = None
) -> Iterator[int | None]:
    """Decode one image of each stay on all cores and write them, in order, into the NumPy file `out`.

    Args:
        candidates: The images that each stay may have, of which the first readable one counts: JPEG or PNG
            files, or images decoded before, which are copied.
        size: Side of the stored images, in pixels.
        out: The file to write.
        threads: How many images are decoded at a time; without it, as many as there are cores.

    Yields:
        The place of each stay's image among its candidates; None where none is readable, which takes no row.
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
    """Return the place of the first readable image, and that image."""
    for place, candidate in enumerate(candidates):
        if (image := _read(candidate, size)) is not None:
            return place, image
    return None, None


def _read(image: Path | Stored, size: int) -> NDArray[np.uint8] | None:
    if isinstance(image, Stored):
        return item_of(image.file, image.row)
    try:
        return decode(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all of Pillow's complaints
        return None
