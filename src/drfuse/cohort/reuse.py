"""What a cohort was made of, so that only what changed is made again."""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from drfuse import __version__
from drfuse.cohort.images import is_readable
from drfuse.cohort.left_out import COUNTS
from drfuse.cohort.manifest import Manifest, sha256
from drfuse.cohort.sources import Images, Source, SourceFile
from drfuse.errors import InputError

INPUTS = "inputs.parquet"
"""The file that lists what a cohort was made of; it is not part of the cohort's content."""

Part = Literal["series", "labels", "images"]

STAMP_SCHEMA = {"file": pl.String, "bytes": pl.Int64, "modified_ns": pl.Int64}
_SCHEMA = {"kind": pl.String, **STAMP_SCHEMA, "cxr_row": pl.Int32}
_IMAGE = "image"

# time series decide which stays are in, and those whose labels are there
_TABLES: dict[Part, tuple[str, ...]] = {
    "series": ("stays", "admissions", "events"),
    "labels": ("stays", "admissions", "events", "diagnoses"),
    "images": (),
}
_DEFINITIONS: dict[Part, tuple[str, ...]] = {"series": (), "labels": ("phenotypes",), "images": ()}
_OPTIONS: dict[Part, tuple[str, ...]] = {
    "series": ("preset", "window_hours", "before_hours"),
    "labels": ("preset", "window_hours", "before_hours", "phenotypes"),
    "images": ("image_size",),
}
_FILES: dict[Part, tuple[str, ...]] = {
    "series": ("ehr.npy", "stays.parquet"),
    "labels": ("stays.parquet",),
    "images": ("cxr.npy", "stays.parquet"),
}
_SMALL_FILES = {"normalization.json"}


class Stamp(NamedTuple):
    """A file as it was when it was read; if the size or the time differs, so may the content.

    Attributes:
        file: Its path below the folder that it belongs to.
        bytes: Its size; None if there is no such file.
        modified_ns: When it was last written, in nanoseconds.
    """

    file: str
    bytes: int | None
    modified_ns: int | None


def stamp(path: Path, root: Path) -> Stamp:
    """Return the stamp of a file below `root`."""
    name = os.path.relpath(path, root)
    try:
        found = path.stat()
    except OSError:
        return Stamp(name, None, None)
    return Stamp(name, found.st_size, found.st_mtime_ns)


def stamp_all(paths: Sequence[Path], root: Path, threads: int | None) -> pl.DataFrame:
    """Return the stamps of many files, a row each."""
    with ThreadPoolExecutor(threads) as pool:  # a shared disk answers many at a time
        stamps = list(pool.map(partial(stamp, root=root), paths, chunksize=1024))
    return pl.DataFrame(stamps, STAMP_SCHEMA, orient="row")


@dataclass(frozen=True)
class Inputs:
    """What a cohort is to be made of.

    Attributes:
        source: The records and radiographs.
        stamps: The stamp of each file of a table and each definition file, by its kind.
        options: The options that decide the content.
    """

    source: Source
    stamps: dict[str, Stamp]
    options: dict[str, Any]

    @classmethod
    def of(cls, source: Source, definitions: Mapping[str, Path | None], options: dict[str, Any]) -> "Inputs":
        """Look at the files as they are now."""
        folders = [(source.root, source.record_files)]
        if source.images is not None:
            folders.append((source.images.root, source.images.files))
        stamps = {file.kind: stamp(file.path, root) for root, files in folders for file in files if root}
        given = {kind: Path(path) for kind, path in definitions.items() if path is not None}
        return cls(source, stamps | {kind: stamp(path, path.parent) for kind, path in given.items()}, options)

    @property
    def can_be_compared(self) -> bool:
        """Whether a later command can check that the records are unchanged. False for a database."""
        return bool(self.source.record_files)

    def kinds(self, part: Part) -> tuple[str, ...]:
        """Return the kinds of files that a part of the cohort is made of, but images."""
        return (
            *(file.kind for file in self.source.files if file.feeds in _TABLES[part]),
            *_DEFINITIONS[part],
        )


@dataclass(frozen=True)
class Earlier:
    """A cohort that was made before.

    Attributes:
        folder: Where it lies.
        manifest: Its manifest.
        tables: The stamp of each table and definition file that it was made of, by its kind.
        images: A row an image that was looked for: `file`, `bytes`, `modified_ns`, and its `cxr_row`, null if
            it could not be read.
    """

    folder: Path
    manifest: Manifest
    tables: dict[str, Stamp]
    images: pl.DataFrame

    @classmethod
    def at(cls, folder: Path) -> "Earlier | None":
        """Return the cohort in `folder`, or None if there is none that this version made."""
        try:
            manifest = Manifest.read(folder)
            rows = pl.read_parquet(folder / INPUTS, glob=False).select(*_SCHEMA).cast(pl.Schema(_SCHEMA))
            columns = pq.read_schema(folder / "stays.parquet").names
        except (InputError, OSError, pl.exceptions.PolarsError, pa.ArrowException):
            return None
        is_image = pl.col("kind") == _IMAGE
        tables = {kind: Stamp(*of_file) for kind, *of_file, _ in rows.filter(~is_image).iter_rows()}
        earlier = cls(folder, manifest, tables, rows.filter(is_image).drop("kind"))
        return earlier if earlier._is_sound(columns) else None

    def _is_sound(self, columns: Sequence[str]) -> bool:
        """Return whether this version wrote the manifest, and nobody has changed it since."""
        manifest = self.manifest
        return (
            manifest.drfuse == __version__
            and isinstance(manifest.options, dict)
            and isinstance(manifest.files, dict)
            and manifest.files.keys() == {name for names in _FILES.values() for name in names} | _SMALL_FILES
            and isinstance(manifest.warnings, dict)
            and manifest.warnings.keys() == set(COUNTS)
            and all(isinstance(manifest.warnings[name], dict) for name in ("rejected_rows", "diagnoses"))
            and list(columns[len(columns) - len(manifest.phenotypes) :]) == manifest.phenotypes
            and len(manifest.phenotypes) > 0
        )

    def is_current(self, inputs: Inputs, threads: int | None) -> bool:
        """Return whether it is what the inputs give, and undamaged."""
        if (
            not inputs.can_be_compared
            or self.tables != inputs.stamps
            or self.manifest.options != inputs.options
        ):
            return False
        images = inputs.source.images
        return (images is None or self._has_the_same_images(images, threads)) and self.is_whole()

    def still_holds(self, part: Part, inputs: Inputs) -> bool:
        """Return whether a part of it is what the inputs give, and undamaged."""
        known = part == "images" or inputs.can_be_compared
        same_tables = all(self.tables.get(kind) == inputs.stamps.get(kind) for kind in inputs.kinds(part))
        same_options = all(self.manifest.options.get(name) == inputs.options[name] for name in _OPTIONS[part])
        made = known and same_tables and same_options and self.is_whole(*_FILES[part])
        return made and (part != "images" or self._knows_its_images())

    def _knows_its_images(self) -> bool:
        """Return whether the rows of images are those that the stays have."""
        files = self.images.drop_nulls("cxr_row").select(
            "cxr_row", dicom_id=pl.col("file").map_elements(lambda file: Path(file).stem, pl.String)
        )
        of_stays = cast(pl.DataFrame, pl.from_arrow(self.stays("cxr_row", "dicom_id"))).drop_nulls("cxr_row")
        return files.sort("cxr_row").equals(of_stays.sort("cxr_row"))

    def is_whole(self, *files: str) -> bool:
        """Return whether files of it, by default all, still are as they were written."""
        sums = self.manifest.files
        try:
            return all(sha256(self.folder / name) == sums.get(name) for name in files or sums)
        except OSError:
            return False

    def _has_the_same_images(self, images: Images, threads: int | None) -> bool:
        """Return whether no image that was tried has changed, nor can be read now if it could not be."""
        now = stamp_all([images.root / file for file in self.images["file"]], images.root, threads)
        unread = self.images.filter(pl.col("cxr_row").is_null())["file"]
        return now.equals(self.images.select(*STAMP_SCHEMA)) and not any(
            images.may_hold(file) or is_readable(images.root / file) for file in unread
        )

    def rows_of(self, stamps: pl.DataFrame) -> pl.Series:
        """Return where in its `cxr.npy` images with these stamps are, null where they are not."""
        known = self.images.unique(list(STAMP_SCHEMA), keep="first")  # two stays may share an image
        joined = stamps.join(known, on=list(STAMP_SCHEMA), how="left", maintain_order="left")
        return joined["cxr_row"]

    def stays(self, *columns: str) -> pa.Table:
        """Return columns of its `stays.parquet`."""
        return pq.read_table(self.folder / "stays.parquet", columns=list(columns))

    def labels(self) -> ir.Table:
        """Return the labels of its stays' admissions, as `label_admissions` does."""
        names = self.manifest.phenotypes
        labels = self.stays("hadm_id", *names)
        return ibis.memtable(labels.rename_columns(["hadm_id", *(f"label_{c}" for c in range(len(names)))]))

    def rejected_rows(self, unread: Sequence[SourceFile]) -> dict[str, int]:
        """Return how many rows of each of these files do not parse."""
        before: dict[str, int] = self.manifest.warnings["rejected_rows"]
        names = {file.path.name for file in unread}
        return {name: count for name, count in before.items() if name in names}


def write_inputs(path: Path, tables: Mapping[str, Stamp], images: pl.DataFrame) -> None:
    """Write what a cohort was made of, which `Earlier.at` reads: its `tables` and `images`."""
    rows = pl.DataFrame([(kind, *of_file, None) for kind, of_file in tables.items()], _SCHEMA, orient="row")
    pl.concat([rows, images.with_columns(kind=pl.lit(_IMAGE)).select(*_SCHEMA)]).write_parquet(path)


def link_or_copy(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where a file can have one name only."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
