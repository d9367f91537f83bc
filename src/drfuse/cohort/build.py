"""Raw tables -> a cohort on disk: the steps of this package in order."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ibis
import ibis.expr.types as ir
import numpy as np
import polars as pl
from ibis.backends.duckdb import Backend
from numpy.lib.format import open_memmap
from rich.progress import Progress

from drfuse import __version__
from drfuse.cohort.manifest import FlowStep, Manifest, sha256
from drfuse.cohort.phenotypes import label_admissions, read_phenotypes
from drfuse.cohort.radiographs import date_studies, image_paths, select_radiographs, store_radiographs
from drfuse.cohort.split import SPLITS, hash_split, read_split_file
from drfuse.cohort.stays import describe_stays, select_stays
from drfuse.cohort.tables import (
    MimicCxr,
    MimicIV,
    checking_gzip,
    count_rejected_rows,
    open_mimic_cxr,
    open_mimic_iv,
    reading,
)
from drfuse.cohort.timeseries import last_of_each_hour, measure
from drfuse.cohort.variables import Preset, Variable, load_variables
from drfuse.errors import InputError, check_choice
from drfuse.files import folder_that_appears

logger = logging.getLogger(__name__)

View = Literal["AP", "PA", "LATERAL", "LL"]

_COLUMNS = (
    "subject_id",
    "hadm_id",
    "stay_id",
    "age",
    "gender",
    "race",
    "admission_type",
    "intime",
    "outtime",
    "los",
    "n_hours",
    "split",
    "in_hospital_mortality",
)
_RADIOGRAPH_COLUMNS = ("has_cxr", "dicom_id", "cxr_row")
_FILES = {"manifest.json", "stays.parquet", "ehr.npy", "cxr.npy", "normalization.json"}
_STAYS_AT_A_TIME = 65_536
_CELLS_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class _Radiographs:
    """What `cxr.npy` holds, as rows of `stay_id`, `dicom_id`, `cxr_row`, and the images it does not hold."""

    rows: pl.DataFrame
    unreadable: list[str]
    n_undated: int = 0


def prepare(
    mimic_iv: Path,
    out: Path,
    mimic_cxr: Path | None = None,
    preset: Preset = "extended",
    window_hours: int = 48,
    image_size: int = 256,
    view: Sequence[View] = ("AP",),
    phenotypes: Path | None = None,
    split_file: Path | None = None,
    seed: int = 0,
    strict: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Turn the raw files of MIMIC-IV and MIMIC-CXR-JPG into a cohort.

    Args:
        mimic_iv: Folder of a MIMIC-IV release, 1.0 to 3.1, or a folder above it.
        out: Folder of the cohort to write. It appears when it is complete.
        mimic_cxr: Folder of a MIMIC-CXR-JPG 2.x release; without it no stay has a radiograph.
        preset: `extended` cleans values and reads all items; `benchmark` repeats the published extraction.
        window_hours: Hours after ICU admission that may be observed.
        image_size: Side of the stored radiographs, in pixels.
        view: ViewPosition of the radiographs that count.
        phenotypes: CSV or YAML file with the label definitions; without it, the paper's 25 phenotypes.
        split_file: CSV (subject_id, split) with train, validation and test; without it, a hash of each
            subject_id splits 7:1:2.
        seed: Key of that hash.
        strict: End with an error where a row cannot be parsed or an image cannot be read, instead of
            leaving it out and counting it.
        overwrite: Replace the cohort that lies at `out`.

    Returns:
        The manifest of the cohort.

    Raises:
        InputError: If input is missing or is not what it should be; then nothing is written.
    """
    for name, value, least, most in (
        ("window_hours", window_hours, 1, 8760),
        ("image_size", image_size, 32, 4096),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}; expected {least} to {most}")
    check_choice("preset", preset, get_args(Preset))
    for position in view:
        check_choice("view", position, get_args(View))
    codes = read_phenotypes(phenotypes)
    names = codes["phenotype"].unique(maintain_order=True).to_list()
    taken = {name.casefold() for name in (*_COLUMNS, *_RADIOGRAPH_COLUMNS)}
    if unusable := [name for name in names if name.casefold() in taken]:
        raise InputError(
            f"the phenotype {unusable[0]!r} has the name of a column of stays.parquet; rename it"
        )
    split = None if split_file is None else read_split_file(split_file)

    with (
        folder_that_appears(Path(out), "cohort", "manifest.json", _FILES, overwrite) as folder,
        _database(folder) as connection,
    ):
        mimic = open_mimic_iv(Path(mimic_iv), connection)
        cxr = None if mimic_cxr is None else open_mimic_cxr(Path(mimic_cxr), connection)
        files = mimic.files + (() if cxr is None else cxr.files)
        with checking_gzip(files), reading(files), Progress(transient=True) as progress:
            steps = progress.add_task("reading stays", total=4)
            flow, candidates = _candidates(mimic, window_hours, connection)
            progress.update(steps, description="reading events", advance=1)
            measurements = connection.create_table("measurements", measure(mimic, candidates, preset))
            hourly = connection.create_table("hourly", last_of_each_hour(measurements, preset))
            stays = _describe_stays(mimic, candidates, hourly, codes, seed, split)
            flow.append(FlowStep("a variable observed in the window", stays.height))
            rejected = count_rejected_rows(connection)
            if stays.is_empty():
                found = ", ".join(f"{step.criterion}: {step.stays}" for step in flow)
                raise InputError(
                    f"{mimic.name} holds no stay that can be included ({found}; rows that do not parse: "
                    f"{sum(rejected.values())}); check that it is a whole release"
                )
            progress.update(steps, description="writing time series", advance=1)
            variables = load_variables()
            _write_ehr(folder, stays, hourly, variables, window_hours, connection)
            progress.update(steps, description="reading radiographs", advance=1)
            radiographs = _write_radiographs(
                folder, stays, candidates, cxr, view, image_size, progress, connection
            )
            rejected |= count_rejected_rows(connection)
            progress.update(steps, description="checking files", advance=1)
        warnings = {
            "rejected_rows": rejected,
            "unreadable_images": radiographs.unreadable,
            "undated_images": radiographs.n_undated,
            "phenotypes_without_positive": [name for name in names if not stays[name].any()],
        }
        _report(warnings, strict)

        stays = _with_radiographs(stays, radiographs).select(*_COLUMNS, *_RADIOGRAPH_COLUMNS, *names)
        stays.write_parquet(folder / "stays.parquet")
        _write_normalization(folder, stays, variables)
        manifest = Manifest(
            drfuse=__version__,
            sources=_describe_sources(mimic, cxr),
            options={
                "preset": preset,
                "window_hours": window_hours,
                "image_size": image_size,
                "view": list(view),
                "phenotypes": None if phenotypes is None else Path(phenotypes).name,
                "split_file": None if split_file is None else Path(split_file).name,
                "seed": seed,
            },
            flow=flow,
            variables=list(variables),
            phenotypes=names,
            splits=_count_splits(stays),
            warnings=warnings,
            files={path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name in _FILES},
        )
        manifest.write(folder)
    return manifest


@contextmanager
def _database(folder: Path) -> Iterator[Backend]:
    """Yield a DuckDB connection that spills into `folder` what memory cannot hold, and is gone afterwards."""
    connection = ibis.duckdb.connect(temp_directory=str(folder / "scratch"))
    connection.raw_sql("SET enable_progress_bar = false")
    connection.raw_sql("SET TimeZone = 'UTC'")  # times with a zone, in Parquet, mean the same everywhere
    try:
        yield connection
    finally:
        connection.disconnect()
        shutil.rmtree(folder / "scratch", ignore_errors=True)


def _candidates(mimic: MimicIV, window_hours: int, connection: Backend) -> tuple[list[FlowStep], ir.Table]:
    """Return the inclusion flow up to what the events decide, and the stays that are left."""
    everyone = connection.create_table("everyone", describe_stays(mimic, window_hours))
    steps = select_stays(everyone)
    flow = [FlowStep(step.criterion, int(step.stays.count().execute())) for step in steps]
    if repeated := flow[0].stays - everyone.stay_id.nunique().execute():
        raise InputError(
            f"{mimic.name} describes {repeated} ICU stays more than once or without stay_id; "
            "expected one row each in icustays, admissions and patients"
        )
    return flow, connection.create_table("candidates", steps[-1].stays)


def _describe_stays(
    mimic: MimicIV,
    candidates: ir.Table,
    hourly: ir.Table,
    codes: pl.DataFrame,
    seed: int,
    split: pl.DataFrame | None,
) -> pl.DataFrame:
    """Return the included stays, ordered by `stay_id`, with their split and labels."""
    stays = candidates.semi_join(hourly, "stay_id")
    stays = stays.mutate(split=hash_split(stays.subject_id, seed))
    labels = label_admissions(mimic.diagnoses.semi_join(candidates, "hadm_id"), codes)
    columns = [name for name in labels.columns if name != "hadm_id"]
    stays = stays.left_join(labels, "hadm_id").order_by("stay_id")
    table: pl.DataFrame = stays.select(*_COLUMNS, *columns).to_polars()
    table = table.with_columns(pl.col(columns).fill_null(False), pl.col("n_hours").cast(pl.Int16))
    table = table.rename(dict(zip(columns, codes["phenotype"].unique(maintain_order=True), strict=True)))
    if split is None:
        return table
    table = table.drop("split").join(split, on="subject_id", how="left", maintain_order="left")
    if missing := table["split"].null_count():
        raise InputError(f"the split file leaves out the subjects of {missing} stays; give each a split")
    return table


def _write_ehr(
    folder: Path,
    stays: pl.DataFrame,
    hourly: ir.Table,
    variables: Sequence[Variable],
    window_hours: int,
    connection: Backend,
) -> None:
    """Write `ehr.npy`: float32 (stays, hours, variables), NaN where nothing was observed."""
    shape = (stays.height, window_hours, len(variables))
    ehr = open_memmap(folder / "ehr.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, stays.height, _STAYS_AT_A_TIME):
        ehr[start : start + _STAYS_AT_A_TIME] = np.nan
    rows = ibis.memtable(stays.select("stay_id").with_row_index("row"))
    cells = hourly.join(rows, "stay_id").select("row", "hour", "value", column="variable")
    connection.create_table("cells", cells)
    for batch in connection.con.table("cells").to_arrow_reader(_CELLS_AT_A_TIME):
        row, hour, column, value = (batch[name].to_numpy() for name in ("row", "hour", "column", "value"))
        ehr[row, hour, column] = value
    ehr.flush()


def _write_radiographs(
    folder: Path,
    stays: pl.DataFrame,
    candidates: ir.Table,
    cxr: MimicCxr | None,
    views: Sequence[str],
    size: int,
    progress: Progress,
    connection: Backend,
) -> _Radiographs:
    """Write `cxr.npy`: uint8 (images, size, size), grey, in the order of the stays."""
    if cxr is None:
        np.save(folder / "cxr.npy", np.empty((0, size, size), np.uint8))
        found = pl.DataFrame(schema={"stay_id": pl.Int64, "dicom_id": pl.String, "cxr_row": pl.Int32})
        return _Radiographs(found, [])
    studied = connection.create_table("studied", date_studies(cxr.metadata))
    n_undated = int(studied.studied_at.isnull().sum().execute() or 0)
    found = select_radiographs(studied, candidates, views).to_polars()
    found = found.filter(pl.col("stay_id").is_in(stays["stay_id"].implode()))
    paths = image_paths(cxr.root, found.select("subject_id", "study_id", "dicom_id").iter_rows())
    stored = store_radiographs(paths, size, folder / "cxr.npy")
    readable = pl.Series(progress.track(stored, total=len(paths), description="decoding"), dtype=pl.Boolean)
    if paths and not readable.any():
        raise InputError(
            f"none of the {len(paths)} radiographs under {cxr.root} can be read, the first expected at "
            f"{paths[0].relative_to(cxr.root)}; leave --mimic-cxr out to go on without them"
        )
    unreadable = found.filter(~readable)["dicom_id"].to_list()
    rows = found.filter(readable).select("stay_id", "dicom_id").with_row_index("cxr_row")
    return _Radiographs(rows.with_columns(pl.col("cxr_row").cast(pl.Int32)), unreadable, n_undated)


def _with_radiographs(stays: pl.DataFrame, radiographs: _Radiographs) -> pl.DataFrame:
    stays = stays.join(radiographs.rows, on="stay_id", how="left", maintain_order="left")
    return stays.with_columns(has_cxr=pl.col("cxr_row").is_not_null())


def _write_normalization(folder: Path, stays: pl.DataFrame, variables: Sequence[Variable]) -> None:
    """Write mean and standard deviation of each continuous variable over the training split's observations.

    One never observed there has its normal value as mean; one that never varied, a deviation of 1.
    """
    ehr = np.load(folder / "ehr.npy", mmap_mode="r")
    rows = np.flatnonzero(stays["split"].to_numpy() == "train")
    n, total, squares = (np.zeros(len(variables)) for _ in range(3))
    normal = np.array([variable.normal for variable in variables])
    for some in np.array_split(rows, max(1, len(rows) // _STAYS_AT_A_TIME)):
        values = ehr[some].astype(np.float64) - normal  # near zero, so that the squares lose no digits
        n += np.isfinite(values).sum(axis=(0, 1))
        total += np.nansum(values, axis=(0, 1))
        squares += np.nansum(values**2, axis=(0, 1))
    mean = total / np.maximum(n, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0))
    statistics = {
        variable.name: {"mean": float(normal[i] + mean[i]), "std": float(deviation[i]) or 1.0}
        for i, variable in enumerate(variables)
        if variable.kind == "continuous"
    }
    (folder / "normalization.json").write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")


def _report(warnings: dict[str, Any], strict: bool) -> None:
    """Warn of what was left out, or refuse to leave it out."""
    problems = [f"{count} rows of {name} do not parse" for name, count in warnings["rejected_rows"].items()]
    if unreadable := warnings["unreadable_images"]:
        problems.append(f"{len(unreadable)} images are missing or unreadable")
    if undated := warnings["undated_images"]:
        problems.append(f"{undated} images have no readable StudyDate and StudyTime")
    if problems and strict:
        raise InputError(f"{'; '.join(problems)}; mend them, or leave --strict out to go on without them")
    for problem in problems:
        logger.warning("%s; left out and counted in manifest.json", problem)
    if never := warnings["phenotypes_without_positive"]:
        logger.warning("no stay has %s", ", ".join(never))


def _describe_sources(mimic: MimicIV, cxr: MimicCxr | None) -> dict[str, Any]:
    releases: dict[str, MimicIV | MimicCxr] = (
        {"mimic_iv": mimic} if cxr is None else {"mimic_iv": mimic, "mimic_cxr": cxr}
    )
    return {
        name: {
            "release": source.release,
            "folder": source.root.name if source.root else mimic.name,
            "files": {
                str(file.path.relative_to(source.root or "/")): file.path.stat().st_size
                for file in source.files
            },
        }
        for name, source in releases.items()
    }


def _count_splits(stays: pl.DataFrame) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        part = stays.filter(pl.col("split") == split)
        counts[split] = {"stays": part.height, "with_cxr": int(part["has_cxr"].sum())}
    return counts
