"""What a cohort was made from, so that only what changed is made again."""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

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
from drfuse.cohort.sources.source import Table
from drfuse.errors import InputError

INPUTS = "inputs.parquet"
"""The file that lists what a cohort was made from; it is not part of the cohort's content."""
CONTENT = ("cxr.npy", "ehr.npy", "normalization.json", "stays.parquet")
"""The files whose SHA-256 the manifest lists."""

STAMP_SCHEMA = {"file": pl.String, "bytes": pl.Int64, "modified_ns": pl.Int64}
_SCHEMA = {"kind": pl.String, **STAMP_SCHEMA, "cxr_row": pl.Int32}
_IMAGE = "image"


@dataclass(frozen=True)
class Part:
    """A part of a cohort that a later one can take over, and what it depends on.

    Attributes:
        files: The files of the cohort that hold it.
        options: The options that determine it.
        tables: The tables of the source that it is made from.
        definitions: The definition files that it is made from.
    """

    files: tuple[str, ...]
    options: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    definitions: tuple[str, ...] = ()


_SERIES = Part(
    files=("ehr.npy", "stays.parquet"),
    options=("preset", "window_hours", "before_hours"),
    tables=("stays", "admissions", "events"),
)
_LABELS = Part(  # only of the included stays, so all that decides inclusion counts too
    files=("stays.parquet",),
    options=(*_SERIES.options, "phenotypes", "labels"),
    tables=(*_SERIES.tables, "diagnoses"),
    definitions=("phenotypes",),
)
_IMAGES = Part(files=("cxr.npy", "stays.parquet"), options=("image_size",))
PARTS = (_SERIES, _LABELS, _IMAGES)


class Stamp(NamedTuple):
    """The state of a file when it was read. A file with a different size or time is taken as changed.

    Attributes:
        file: Its path below a root folder.
        bytes: Its size; None if there is no such file.
        modified_ns: When it was last written, in nanoseconds; None if there is no such file.
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
    """Return the stamps of many files, one per row."""
    with ThreadPoolExecutor(threads) as pool:  # a network disk answers many requests at a time
        stamps = list(pool.map(partial(stamp, root=root), paths, chunksize=1024))
    return pl.DataFrame(stamps, STAMP_SCHEMA, orient="row")


@dataclass(frozen=True)
class Inputs:
    """What a cohort is about to be made from.

    Attributes:
        source: The records and radiographs.
        stamps: The stamps of the source's files (except images) and of the definition files, by kind.
        options: The options that determine the content.
    """

    source: Source
    stamps: dict[str, Stamp]
    options: dict[str, Any]

    @classmethod
    def of(cls, source: Source, definitions: Mapping[str, Path | None], options: dict[str, Any]) -> "Inputs":
        """Return the inputs, with stamps of the files as they are now."""
        folders = [(source.root, source.record_files)]
        if source.images is not None:
            folders.append((source.images.root, source.images.files))
        stamps = {
            file.name if file.is_part else file.kind: stamp(file.path, root)
            for root, files in folders
            for file in files
            if root
        }
        given = {kind: Path(path) for kind, path in definitions.items() if path is not None}
        return cls(source, stamps | {kind: stamp(path, path.parent) for kind, path in given.items()}, options)

    @property
    def can_be_compared(self) -> bool:
        """Whether a later command can check that the records are unchanged; not so for a database."""
        return bool(self.source.record_files)


@dataclass(frozen=True)
class Earlier:
    """A cohort that an earlier command made.

    Attributes:
        folder: Where it is.
        manifest: Its manifest.
        stamps: `Inputs.stamps` of that command.
        images: One row per image that was tried: its stamp, and its `cxr_row`, null if it could not be read.
    """

    folder: Path
    manifest: Manifest
    stamps: dict[str, Stamp]
    images: pl.DataFrame

    @classmethod
    def at(cls, folder: Path) -> "Earlier | None":
        """Return the cohort in `folder`, or None if there is none that this version of drfuse made."""
        try:
            manifest = Manifest.read(folder)
            rows = pl.read_parquet(folder / INPUTS, glob=False).select(*_SCHEMA).cast(pl.Schema(_SCHEMA))
            columns = pq.read_schema(folder / "stays.parquet").names
        except (InputError, OSError, pl.exceptions.PolarsError, pa.ArrowException):
            return None
        is_image = pl.col("kind") == _IMAGE
        stamps = {kind: Stamp(*of_file) for kind, *of_file, _ in rows.filter(~is_image).iter_rows()}
        earlier = cls(folder, manifest, stamps, rows.filter(is_image).drop("kind"))
        return earlier if earlier._is_sound(columns) else None

    def _is_sound(self, columns: Sequence[str]) -> bool:
        """Return whether this version wrote the manifest, and its form is unchanged since."""
        manifest = self.manifest
        return (
            manifest.drfuse == __version__
            and isinstance(manifest.options, dict)
            and isinstance(manifest.files, dict)
            and manifest.files.keys() == set(CONTENT)
            and isinstance(manifest.warnings, dict)
            and manifest.warnings.keys() == set(COUNTS)
            and all(isinstance(manifest.warnings[name], dict) for name in ("rejected_rows", "diagnoses"))
            and list(columns[len(columns) - len(manifest.phenotypes) :]) == manifest.phenotypes
            and bool(manifest.phenotypes) == manifest.options.get("labels", True)
        )

    def is_current(self, inputs: Inputs, threads: int | None) -> bool:
        """Return whether making the cohort again would change nothing, and its files are undamaged."""
        images = inputs.source.images
        return (
            inputs.can_be_compared
            and self.stamps == inputs.stamps
            and self.manifest.options == inputs.options
            and (images is None or self._has_the_same_images(images, threads))
            and self.is_whole()
        )

    def still_holds(self, part: Part, inputs: Inputs) -> bool:
        """Return whether making a part of it again would change nothing, and its files are undamaged."""
        kinds = {file.kind for file in inputs.source.files if file.feeds in part.tables}
        kinds.update(part.definitions)

        def relevant(stamps: Mapping[str, Stamp]) -> dict[str, Stamp]:
            return {name: found for name, found in stamps.items() if name.partition("/")[0] in kinds}

        return (
            (part == _IMAGES or inputs.can_be_compared)
            and relevant(self.stamps) == relevant(inputs.stamps)
            and all(self.manifest.options.get(name) == inputs.options.get(name) for name in part.options)
            and self.is_whole(*part.files)
            and (part != _IMAGES or self._images_match_stays())
        )

    def _images_match_stays(self) -> bool:
        """Return whether `images` and `stays.parquet` agree on which image is in which row of `cxr.npy`."""
        files = self.images.drop_nulls("cxr_row").select(
            "cxr_row", dicom_id=pl.col("file").map_elements(lambda file: Path(file).stem, pl.String)
        )
        of_stays = cast(pl.DataFrame, pl.from_arrow(self.stays("cxr_row", "dicom_id"))).drop_nulls("cxr_row")
        return files.sort("cxr_row").equals(of_stays.sort("cxr_row"))

    def is_whole(self, *files: str) -> bool:
        """Return whether some of its files, by default all, are as they were written."""
        sums = self.manifest.files
        try:
            return all(sha256(self.folder / name) == sums.get(name) for name in files or sums)
        except OSError:
            return False

    def _has_the_same_images(self, images: Images, threads: int | None) -> bool:
        """Return whether no image that was tried has changed, and those that were unreadable still are."""
        now = stamp_all([images.root / file for file in self.images["file"]], images.root, threads)
        unreadable = self.images.filter(pl.col("cxr_row").is_null())["file"]
        return now.equals(self.images.select(*STAMP_SCHEMA)) and not any(
            images.may_hold(file) or is_readable(images.root / file) for file in unreadable
        )

    def rows_of(self, stamps: pl.DataFrame) -> pl.Series:
        """Return the row of `cxr.npy` that holds each image, by its stamp; null if none does."""
        known = self.images.unique(list(STAMP_SCHEMA), keep="first")  # two stays may share an image
        return stamps.join(known, on=list(STAMP_SCHEMA), how="left", maintain_order="left")["cxr_row"]

    def stays(self, *columns: str) -> pa.Table:
        """Return columns of its `stays.parquet`."""
        return pq.read_table(self.folder / "stays.parquet", columns=list(columns))

    def labels(self) -> ir.Table:
        """Return the labels of its stays' admissions, in the form of `label_admissions`."""
        names = self.manifest.phenotypes
        labels = self.stays("hadm_id", *names)
        return ibis.memtable(labels.rename_columns(["hadm_id", *(f"label_{c}" for c in range(len(names)))]))

    def rejected_rows(self, unread: Sequence[SourceFile]) -> dict[str, int]:
        """Return how many rows of these files, which are not read again, do not parse."""
        names = {file.name for file in unread}
        rejected: dict[str, int] = self.manifest.warnings["rejected_rows"]
        return {name: count for name, count in rejected.items() if name in names}


def write_inputs(path: Path, stamps: Mapping[str, Stamp], images: pl.DataFrame) -> None:
    """Write the `stamps` and `images` of a cohort for `Earlier.at` to read."""
    rows = pl.DataFrame([(kind, *of_file, None) for kind, of_file in stamps.items()], _SCHEMA, orient="row")
    pl.concat([rows, images.with_columns(kind=pl.lit(_IMAGE)).select(*_SCHEMA)]).write_parquet(path)


def link_or_copy(path: Path, to: Path) -> None:
    """Make a hard link to a file or, on a file system without hard links, copy it."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
