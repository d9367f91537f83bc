"""The last radiograph of each stay's window: find it, decode it, store it."""

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
    """Return `stay_id`, `subject_id`, `study_id`, `dicom_id` of each stay's last radiograph in its window.

    Args:
        studied: The metadata with `studied_at` (see `date_studies`).
        stays: Rows of `stay_id`, `subject_id`, `intime` and `window_end`.
        views: The `ViewPosition` values that count.
    """
    studied = studied.filter(studied.ViewPosition.strip().upper().isin(views))
    studied = studied.join(stays.select("stay_id", "subject_id", "intime", "window_end"), "subject_id")
    studied = studied.filter(studied.studied_at.between(studied.intime, studied.window_end))
    latest_first = [ibis.desc("studied_at"), ibis.desc("study_id"), ibis.desc("dicom_id")]
    rank = ibis.row_number().over(ibis.window(group_by="stay_id", order_by=latest_first))
    return (
        studied.filter(rank == 0).select("stay_id", "subject_id", "study_id", "dicom_id").order_by("stay_id")
    )


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

    Raises:
        OSError: If there is no such file, or it is no readable image.
    """
    with Image.open(path) as image:
        image.draft("L", (size, size))  # JPEG decodes at 1/2, 1/4 or 1/8 of its size, never below `size`
        grey = _eight_bits(image) if image.mode.startswith("I") else image.convert("L")
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
    images: Iterable[Path | Stored], size: int, out: Path, threads: int | None = None
) -> Iterator[bool]:
    """Decode images on all cores and write the readable ones, in order, into the NumPy file `out`.

    Args:
        images: JPEG or PNG files, or images decoded before, which are copied.
        size: Side of the stored images, in pixels.
        out: The file to write.
        threads: How many images are decoded at a time; without it, as many as there are cores.

    Yields:
        Whether each image was readable, in order; unreadable ones take no row.
    """
    waiting = iter(images)
    n_threads = threads or os.cpu_count()
    with array_in_order(out, (size, size), np.uint8) as append, ThreadPoolExecutor(n_threads) as pool:
        while some := list(islice(waiting, _DECODED_AHEAD)):
            for image in pool.map(partial(_read, size=size), some):
                if image is not None:
                    append(image)
                yield image is not None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image in 8 bits (Pillow's own conversion would cut every value off at 255)."""
    return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))


def _read(image: Path | Stored, size: int) -> NDArray[np.uint8] | None:
    if isinstance(image, Stored):
        return item_of(image.file, image.row)
    try:
        return decode(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all of Pillow's complaints
        return None
