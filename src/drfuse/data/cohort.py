"""Opens a cohort on disk, memory-mapped."""

import json
import mmap
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse import __version__
from drfuse.arguments import as_annotated
from drfuse.cohort.manifest import Manifest
from drfuse.data.features import EhrFeatures
from drfuse.data.opened import OpenedFiles
from drfuse.errors import InputError, MissingInputError, check_choice
from drfuse.subsets import Split, Subset
from drfuse.sums import changed_file, sha256

if TYPE_CHECKING:
    from drfuse.cohort.patients import Patients

_DAMAGE = (ValueError, OSError, EOFError, OverflowError, RecursionError, SyntaxError, TokenError)
"""What readers of arrays and JSON raise if a file is damaged: the head of an array is a Python literal."""


@dataclass(frozen=True)
class Cohort:
    """A cohort on disk: N stays, H hours, V variables, M radiographs.

    Attributes:
        folder: Where it is.
        manifest: How it was made.
        ehr: Float32 (N, H, V) in physical units, NaN where nothing was observed; memory-mapped.
        cxr: Uint8 (M, size, size), memory-mapped; `stays["cxr_row"]` is the row of each stay, else null.
        normalization: `mean` and `std` of each continuous variable over the training split.
        table: The stays, if they are not those in `stays.parquet`.
        fingerprint: SHA-256 of the manifest that was read, which holds the SHA-256 of every other file; empty
            if there is none.
        opened: Which files were opened (see `check_unchanged`).
    """

    folder: Path
    manifest: Manifest
    ehr: NDArray[np.float32]
    cxr: NDArray[np.uint8]
    normalization: dict[str, dict[str, float]]
    table: pl.DataFrame | None = None
    fingerprint: str = ""
    opened: OpenedFiles | None = None

    @classmethod
    def open(cls, folder: Path, verify: bool = False) -> "Cohort":
        """Return the cohort in `folder`; of its tables, only two columns are read.

        Args:
            folder: The cohort.
            verify: Check every file against its SHA-256 in the manifest. It is read once, and again only
                after its size or times have changed (see `changed_file`).

        Raises:
            MissingInputError: If `folder` is not a cohort, or one of its files is missing.
            InputError: If a file is damaged or replaced meanwhile, or the files do not belong together.
        """
        folder = as_annotated("cohort", folder, Path)
        manifest = Manifest.read(folder)
        opened = OpenedFiles.of(folder, ("manifest.json", *manifest.files))
        fingerprint = sha256(folder / "manifest.json")
        if Manifest.read(folder) != manifest:
            raise InputError(f"{folder} was replaced while it was opened; run the same command again")
        if missing := [name for name in manifest.files if not (folder / name).is_file()]:
            raise MissingInputError(f"{folder} lacks {', '.join(missing)}; run `drfuse prepare` again")
        if verify and (changed := changed_file(folder, manifest.files)) is not None:
            raise InputError(f"{folder}/{changed} is not what `drfuse prepare` wrote; run it again")
        try:
            columns = set(_columns_of(folder / "stays.parquet"))
            ehr = np.load(folder / "ehr.npy", mmap_mode="r")
            cxr = np.load(folder / "cxr.npy", mmap_mode="r")
            normalization = json.loads((folder / "normalization.json").read_text(encoding="utf-8"))
        except (*_DAMAGE, pl.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder} is damaged ({reason}); run `drfuse prepare` again") from error
        needed = {"subject_id", "stay_id", "n_hours", "has_cxr", "cxr_row", "split", *manifest.phenotypes}
        if absent := sorted(needed - columns):
            raise InputError(f"{folder}/stays.parquet lacks {', '.join(absent)}; run `drfuse prepare` again")
        try:
            statistics = as_annotated("its content", normalization, dict[str, dict[str, float]])
            EhrFeatures(manifest.variables, statistics)
        except InputError as error:
            raise InputError(
                f"{folder}/normalization.json is damaged: {error}; run `drfuse prepare` again"
            ) from error
        cohort = cls(folder, manifest, ehr, cxr, normalization, fingerprint=fingerprint, opened=opened)
        n_images, ids = int(cohort.columns("has_cxr")["has_cxr"].sum()), cohort.stay_id
        if ehr.dtype != np.float32 or cxr.dtype != np.uint8 or (ids[1:] < ids[:-1]).any():
            raise InputError(
                f"{folder}: expected float32 values, uint8 images and stays sorted by stay_id; "
                "run `drfuse prepare` again"
            )
        expected = (len(cohort), manifest.options["window_hours"], len(manifest.variables))
        if ehr.shape != expected or len(cxr) != n_images:
            raise InputError(
                f"{folder} holds files of different cohorts: ehr.npy has shape {ehr.shape}, expected "
                f"{expected}; cxr.npy has {len(cxr)} images, expected {n_images}; "
                "run `drfuse prepare` again"
            )
        cohort.check_unchanged()
        return cohort

    def changed_file(self) -> str | None:
        """Return the name of a file that is not the one that was opened; None if there is none."""
        return None if self.opened is None else self.opened.first_changed()

    def check_unchanged(self) -> None:
        """Check that the files are still those that were opened.

        Raises:
            InputError: If one was replaced, changed or deleted.
        """
        if (name := self.changed_file()) is not None:
            raise InputError(
                f"{self.folder}/{name} was replaced while it was in use, so what was computed mixes two "
                "cohorts; run the same command again"
            )

    @classmethod
    def of_patients(
        cls, patients: "Patients", normalization: dict[str, dict[str, float]], **options: Any
    ) -> "Cohort":
        """Return stays that were read from files of single patients, in memory; they have no labels.

        Args:
            patients: The stays.
            normalization: That of the cohort whose model will predict them.
            options: The options of `prepare` that they were read with.
        """
        rows = pl.DataFrame(
            {"stay_id": patients.stay_id, "n_hours": patients.n_hours, "cxr_row": patients.cxr_row}
        )
        rows = rows.with_columns(
            pl.col("cxr_row").replace(-1, None),
            subject_id="stay_id",
            has_cxr=pl.col("cxr_row") >= 0,
            split=pl.lit("test"),
        )
        manifest = Manifest(
            drfuse=__version__,
            sources={},
            options=options,
            flow=[],
            variables=list(patients.variables),
            phenotypes=[],
            splits={},
            warnings={},
            files={},
        )
        return cls(Path("the given patients"), manifest, patients.ehr, patients.cxr, normalization, rows)

    def __len__(self) -> int:
        return len(self.stay_id)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle only the path: another process maps the same files instead of copying them.

        Stays that are in no folder are copied.
        """
        if self.table is not None:
            return Cohort, tuple(getattr(self, field.name) for field in fields(self))
        return _reopen, (self.folder, self.fingerprint)

    @property
    def phenotypes(self) -> list[str]:
        """The names of the labels, in order."""
        return self.manifest.phenotypes

    @property
    def image_size(self) -> int:
        """Side of the stored radiographs, in pixels."""
        return int(self.cxr.shape[-1])

    @cached_property
    def stays(self) -> pl.DataFrame:
        """One row per stay with all columns, ordered by `stay_id`; kept once it was read.

        For a large cohort, `columns` needs less memory.
        """
        return self._read(None)

    def columns(self, *names: str) -> pl.DataFrame:
        """Return columns of the stays, read again each time.

        Raises:
            InputError: If the file is damaged.
        """
        return self._read(list(names))

    @property
    def column_names(self) -> list[str]:
        """The names of all columns of the stays."""
        if self.table is not None:
            return self.table.columns
        return _columns_of(self.folder / "stays.parquet")

    def _read(self, names: list[str] | None) -> pl.DataFrame:
        if self.table is not None:
            return self.table if names is None else self.table.select(names)
        path = self.folder / "stays.parquet"
        try:
            return pl.read_parquet(path, columns=names, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is damaged ({reason}); run `drfuse prepare` again") from error

    @cached_property
    def stay_id(self) -> NDArray[np.int64]:
        """The id of each stay (N,), ascending."""
        return self.columns("stay_id")["stay_id"].cast(pl.Int64).to_numpy()

    @property
    def labels(self) -> NDArray[np.float32]:
        """The labels (N, C): 1 where the admission has the phenotype, NaN where that is unknown."""
        return from_bytes(self.labels_in_bytes)

    @cached_property
    def labels_in_bytes(self) -> NDArray[np.int8]:
        """The same in a quarter of the memory (N, C), -1 where unknown."""
        labels = np.empty((len(self), len(self.phenotypes)), np.int8)
        for c, name in enumerate(self.phenotypes):
            labels[:, c] = self.in_bytes(name)
        return labels

    def in_bytes(self, name: str) -> NDArray[np.int8]:
        """Return a column of yes and no in bytes (N,), -1 where it is unknown."""
        return self.columns(name)[name].cast(pl.Int8).fill_null(-1).to_numpy()

    @cached_property
    def n_hours(self) -> NDArray[np.int64]:
        """Hours of each stay's window (N,), 1 to H."""
        return self.columns("n_hours")["n_hours"].cast(pl.Int64).to_numpy()

    @cached_property
    def cxr_row(self) -> NDArray[np.int64]:
        """The row of each stay's radiograph in `cxr` (N,), -1 where it has none."""
        return self.columns("cxr_row")["cxr_row"].cast(pl.Int64).fill_null(-1).to_numpy()

    @property
    def has_cxr(self) -> NDArray[np.bool_]:
        """Whether each stay has a radiograph (N,)."""
        return self.cxr_row >= 0

    def rows(self, split: Split | None = None, subset: Subset = "full") -> NDArray[np.int64]:
        """Return the rows, in order, of all stays of a split or of those with a radiograph (`matched`).

        None means all splits. `Task.rows` leaves out the stays that a task cannot use.

        Raises:
            InputError: If `split` or `subset` is not one of its choices.
        """
        check_choice("split", split, (*get_args(Split), None))
        check_choice("subset", subset, get_args(Subset))
        if split is None:
            chosen = np.full(len(self), True)
        else:
            chosen = (self.columns("split")["split"] == split).fill_null(False).to_numpy()
        return np.flatnonzero(chosen & self.has_cxr if subset == "matched" else chosen)

    def release(self) -> None:
        """Take what was read of `ehr` and `cxr` out of this process's memory; it can be read again.

        The system would do so once memory is short, but a cluster may end a process that seems to hold more
        than its share.
        """
        for array in (self.ehr, self.cxr):
            pages = getattr(array, "_mmap", None)
            if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)

    def row_of(self, stay_id: int) -> int:
        """Return the row of a stay.

        Raises:
            InputError: If it is not in the cohort.
        """
        row = np.searchsorted(self.stay_id, stay_id)
        if row == len(self) or self.stay_id[row] != stay_id:
            raise InputError(f"{self.folder} has no stay {stay_id}; choose one of its stay_id")
        return int(row)


def _reopen(folder: Path, fingerprint: str) -> Cohort:
    """Return a cohort that another process opened."""
    cohort = Cohort.open(folder)
    if cohort.fingerprint != fingerprint:
        raise InputError(f"{folder} was replaced while it was in use; run the same command again")
    return cohort


def _columns_of(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns, also where the path has brackets."""
    return pl.scan_parquet(path, glob=False).collect_schema().names()


def from_bytes(labels: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return labels as float32, NaN where they are -1.

    >>> from_bytes(np.array([0, 1, -1], np.int8))
    array([ 0.,  1., nan], dtype=float32)
    """
    values = labels.astype(np.float32)
    values[labels < 0] = np.nan
    return values
