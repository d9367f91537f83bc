"""What a cohort was made from, so that only what changed is made again."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from drfuse import __version__
from drfuse.cohort.images import is_readable
from drfuse.cohort.left_out import COUNTS
from drfuse.cohort.manifest import Manifest
from drfuse.cohort.sources import Images, Source, SourceFile
from drfuse.cohort.sources.source import Table
from drfuse.cohort.store import Store, cast_batch, create_from_blocks, read_batches
from drfuse.cohort.timeseries import KINDS_OF_EVENTS
from drfuse.errors import InputError
from drfuse.sums import sha256

INPUTS = "inputs.parquet"
"""The file that lists what a cohort was made from; it is not part of the cohort's content."""
CONTENT = ("cxr.npy", "ehr.npy", "normalization.json", "stays.parquet")
"""The files whose SHA-256 the manifest lists."""

STAMP_SCHEMA = {"file": pl.String, "bytes": pl.Int64, "modified_ns": pl.Int64}
FILES_PER_BLOCK = 16_384
"""How many images' files are listed in memory at a time."""
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
        stamps = list(pool.map(partial(stamp, root=root), paths))
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
    """

    folder: Path
    manifest: Manifest
    stamps: dict[str, Stamp]

    @classmethod
    def at(cls, folder: Path) -> "Earlier | None":
        """Return the cohort in `folder`, or None if there is none that this version of drfuse made."""
        try:
            manifest = Manifest.read(folder)
            files = [block.filter(pl.col("kind") != _IMAGE) for block in _blocks(folder / INPUTS, _SCHEMA)]
            columns = pq.read_schema(folder / "stays.parquet").names
        except (InputError, OSError, pl.exceptions.PolarsError, pa.ArrowException):
            return None
        stamps = {kind: Stamp(*of_file) for block in files for kind, *of_file, _ in block.iter_rows()}
        earlier = cls(folder, manifest, stamps)
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
            and all(
                isinstance(manifest.warnings[name], dict)
                for name in ("rejected_rows", "diagnoses", "stays_without")
            )
            and manifest.warnings["stays_without"].keys() >= set(KINDS_OF_EVENTS)
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

    def images(self) -> Iterator[pl.DataFrame]:
        """Yield the images that were tried in blocks: their stamps, and `cxr_row`, null if not stored."""
        for block in _blocks(self.folder / INPUTS, _SCHEMA):
            yield block.filter(kind=_IMAGE).drop("kind")

    def _images_match_stays(self) -> bool:
        """Return whether `images` and `stays.parquet` agree on which image is in which row of `cxr.npy`."""
        dicom_id = pl.col("file").str.extract(r"([^/\\]+?)(\.[^.]*)?$")
        files = (block.select("cxr_row", dicom_id) for block in self.images())
        stays = _blocks(self.folder / "stays.parquet", {"cxr_row": pl.Int32, "dicom_id": pl.String})
        listed, expected = (
            (row for block in blocks for row in block.drop_nulls("cxr_row").iter_rows())
            for blocks in (files, stays)
        )
        return all(image == of_stay for image, of_stay in zip_longest(listed, expected))

    def is_whole(self, *files: str) -> bool:
        """Return whether some of its files, by default all, are as they were written."""
        sums = self.manifest.files
        try:
            return all(sha256(self.folder / name) == sums.get(name) for name in files or sums)
        except OSError:
            return False

    def _has_the_same_images(self, images: Images, threads: int | None) -> bool:
        """Return whether no image that was tried has changed, and those that were unreadable still are."""
        for block in self.images():
            now = stamp_all([images.root / file for file in block["file"]], images.root, threads)
            unreadable = block.filter(pl.col("cxr_row").is_null())["file"]
            if not now.equals(block.select(*STAMP_SCHEMA)) or any(
                images.may_hold(file) or is_readable(images.root / file, images.root) for file in unreadable
            ):
                return False
        return True

    def rows_by_stamp(self, store: Store) -> ir.Table:
        """Return a table of the store: the row of `cxr.npy`, `earlier_row`, of the image with each stamp."""
        images = create_from_blocks(store, "earlier_images", self.images())
        stored = images.filter(images.cxr_row.notnull())
        return stored.group_by(*STAMP_SCHEMA).agg(earlier_row=stored.cxr_row.min())  # stays may share one

    def stays(self, *columns: str) -> pa.Table:
        """Return columns of its `stays.parquet`."""
        return pq.read_table(self.folder / "stays.parquet", columns=list(columns))

    def labels(self) -> ir.Table:
        """Return the labels of its stays' admissions, in the form of `label_admissions`."""
        names = self.manifest.phenotypes
        labels = self.stays("hadm_id", *names)
        return ibis.memtable(labels.rename_columns(["hadm_id", *(f"label_{c}" for c in range(len(names)))]))

    def rejected_rows(self, files: Sequence[SourceFile], unread: Collection[str]) -> dict[str, int]:
        """Return how many rows of files do not parse, whose tables in the source are not read again."""
        names = {file.name for file in files if file.feeds in unread}
        rejected: dict[str, int] = self.manifest.warnings["rejected_rows"]
        return {name: count for name, count in rejected.items() if name in names}


def write_inputs(path: Path, stamps: Mapping[str, Stamp], images: ir.Table, store: Store) -> None:
    """Write the `stamps` and `images` (see `store_radiographs`) of a cohort for `Earlier.at` to read."""
    rows = pl.DataFrame([(kind, *of_file, None) for kind, of_file in stamps.items()], _SCHEMA, orient="row")
    images = images.order_by("stay_id", "rank").mutate(kind=ibis.literal(_IMAGE)).select(*_SCHEMA)
    table = rows.to_arrow()
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        for batch in read_batches(store, images, FILES_PER_BLOCK):
            writer.write_batch(cast_batch(batch, table.schema))


def _blocks(path: Path, schema: Mapping[str, type[pl.DataType]]) -> Iterator[pl.DataFrame]:
    """Yield columns of a Parquet file, a block of rows at a time."""
    for batch in pq.ParquetFile(path).iter_batches(FILES_PER_BLOCK, columns=list(schema)):
        yield pl.DataFrame(batch).select(*schema).cast(pl.Schema(schema))


def link_or_copy(path: Path, to: Path) -> None:
    """Make a hard link to a file or, on a file system without hard links, copy it."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)
