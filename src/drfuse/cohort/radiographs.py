"""The last radiograph of each stay's window: find it, decode it, store it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import ibis
import ibis.expr.types as ir
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

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


def image_paths(root: Path, rows: Iterable[tuple[int, int, str]]) -> list[Path]:
    """Return where the image of each (`subject_id`, `study_id`, `dicom_id`) should lie.

    That is `files/pXX/pXXXXXXXX/sXXXXXXXX/` where `root` has a folder `files`, else any folder of resized
    images directly in `root`, or `root` itself.
    """
    nested = list((root / "files").iterdir()) if (root / "files").is_dir() else []
    has_patients = any(re.fullmatch(r"p\d\d", path.name) for path in nested)
    if (root / "files").is_dir() and (has_patients or not any(map(_is_image, nested))):
        return [
            root / "files" / f"p{str(subject_id)[:2]}" / f"p{subject_id}" / f"s{study_id}" / f"{dicom_id}.jpg"
            for subject_id, study_id, dicom_id in rows
        ]
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    images = [path for folder in folders for path in folder.iterdir() if _is_image(path)]
    flat = {path.stem: path for path in reversed(images)}  # the first of two with one name stands
    return [flat.get(dicom_id, root / f"{dicom_id}.jpg") for _, _, dicom_id in rows]


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


def store_radiographs(paths: Sequence[Path], size: int, out: Path) -> Iterator[bool]:
    """Decode images on all cores and write the readable ones, in order, into the NumPy file `out`.

    Yields:
        Whether each image was readable, in the order of `paths`; unreadable ones take no row.
    """
    n_stored = 0
    with out.open("wb") as file, ThreadPoolExecutor() as pool:
        _write_header(file, (len(paths), size, size))
        for start in range(0, len(paths), _DECODED_AHEAD):
            some = paths[start : start + _DECODED_AHEAD]
            for image in pool.map(partial(_decode_or_none, size=size), some):
                if image is not None:
                    file.write(image.tobytes())
                    n_stored += 1
                yield image is not None
        file.seek(0)
        _write_header(file, (n_stored, size, size))  # NumPy pads headers, so that they can grow in place


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image in 8 bits (Pillow's own conversion would cut every value off at 255)."""
    return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))


def _decode_or_none(path: Path, size: int) -> NDArray[np.uint8] | None:
    try:
        return decode(path, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all of Pillow's complaints
        return None


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
