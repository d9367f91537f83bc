"""MIMIC-CXR-JPG 2.x: the metadata of its radiographs, and where the images are."""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

import ibis
import ibis.expr.types as ir

from drfuse.cohort.sources.csv_files import CsvFiles
from drfuse.cohort.sources.source import Images
from drfuse.cohort.sources.table_files import find_release, find_table, read_table
from drfuse.cohort.store import Store

_STEMS = ("mimic-cxr-2.0.0-metadata", "mimic-cxr-2.1.0-metadata")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_COLUMNS = {
    "dicom_id": "string",
    "subject_id": "int64",
    "study_id": "int64",
    "ViewPosition": "string",
    "StudyDate": "string",
    "StudyTime": "string",
}


class MimicCxr(Images):
    """A release of MIMIC-CXR-JPG.

    Images are in `files/pXX/pXXXXXXXX/sXXXXXXXX/`. If a resized copy has no such folders, they are in the
    release's own folder or directly in one of its subfolders.
    """

    form = "files/pXX/pXXXXXXXX/sXXXXXXXX/DICOM_ID.jpg, or DICOM_ID.jpg in a copy without these folders"

    @classmethod
    def open(cls, folder: Path, store: Store) -> Self:
        """Return the release in or below a folder, opened; only column names and types are read yet.

        Raises:
            MissingInputError: If the folder, the metadata file or one of its columns is missing.
            InputError: If the metadata file is not the kind of file that its name says.
        """
        root = find_release(folder, _STEMS, "a MIMIC-CXR-JPG release (mimic-cxr-2.0.0-metadata.csv.gz)")
        tables = (find_table(root / stem, "radiographs", "metadata") for stem in _STEMS)
        files = next(table for table in tables if table)
        read = read_table(files, _COLUMNS, store, CsvFiles(store))
        number = re.search(r"\d\.\d(\.\d)?", root.name)
        return cls(
            name="mimic_cxr",
            release=number.group() if number else "2.x",
            root=root,
            files=files,
            table=date_studies(read.table),
            typed_tables=read.typed,
        )

    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:
        """Return where an image should be."""
        if self._flat is not None:
            return self._flat.get(dicom_id, self.root / f"{dicom_id}.jpg")
        return self.root / image_path(subject_id, study_id, dicom_id)

    def may_hold(self, missing: str) -> bool:
        """Return whether an image that was missing at this path below `root` may be elsewhere now."""
        if self._flat is None:
            return not missing.startswith("files/")
        found = self._flat.get(Path(missing).stem)
        return found is not None and found != self.root / missing

    @cached_property
    def _flat(self) -> Mapping[str, Path] | None:
        """The images of a resized copy, by `dicom_id`; None if each study has a folder."""
        nested = self.root / "files"
        if nested.is_dir():
            inside = list(nested.iterdir())
            has_patients = any(re.fullmatch(r"p\d\d", path.name) for path in inside)
            if has_patients or not any(map(_is_image, inside)):
                return None
        folders = [self.root, *sorted(path for path in self.root.iterdir() if path.is_dir())]
        images = [path for folder in folders for path in folder.iterdir() if _is_image(path)]
        return {path.stem: path for path in reversed(images)}  # if two have the same name, the first


def image_path(subject_id: int, study_id: int, dicom_id: str) -> Path:
    """Return where MIMIC-CXR-JPG keeps an image, below the release's folder."""
    patient = f"p{subject_id}"
    return Path("files", patient[:3], patient, f"s{study_id}", f"{dicom_id}.jpg")


def date_studies(metadata: ir.Table) -> ir.Table:
    """Return the metadata as `Images.table`; `studied_at` is null if StudyDate or StudyTime is unreadable.

    `StudyTime` is hhmmss.sss without its leading zeros.
    """
    day = metadata.StudyDate.replace("-", "").substr(0, 8)
    midnight = (day.substr(0, 4) + "-" + day.substr(4, 2) + "-" + day.substr(6, 2)).try_cast("timestamp")
    clock = metadata.StudyTime.try_cast("float64")
    is_time = (clock >= 0) & (clock < 240000) & (clock % 10000 < 6000) & (clock % 100 < 60)
    clock = is_time.ifelse(clock, ibis.null("float64"))
    seconds = (clock // 10000) * 3600 + (clock % 10000 // 100) * 60 + clock % 100
    # `mutate` keeps StudyTime as text: if it were only cast, DuckDB would parse it as a number, and reject
    # rows with other text
    return metadata.mutate(
        view_position="ViewPosition",
        studied_at=midnight + (seconds * 1e6).round().cast("int64").as_interval("us"),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES
