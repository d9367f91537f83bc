"""Raw tables -> a cohort on disk: the steps of this package in order."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

import duckdb
import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
from ibis.backends.duckdb import Backend
from rich.progress import Progress

from drfuse import __version__
from drfuse.cohort.assembly import write_ehr, write_normalization, write_stays
from drfuse.cohort.databases import arrow_schema, stream
from drfuse.cohort.manifest import FlowStep, Manifest, sha256
from drfuse.cohort.phenotypes import (
    Match,
    count_matches,
    label_admissions,
    match_diagnoses,
    read_phenotypes,
)
from drfuse.cohort.radiographs import ImageFolder, Stored, date_studies, select_radiographs, store_radiographs
from drfuse.cohort.reuse import INPUTS, STAMP_SCHEMA, Earlier, Stamp, stamp, stamp_all, write_inputs
from drfuse.cohort.split import SPLITS, hash_split, read_split_file
from drfuse.cohort.stays import describe_stays, select_stays
from drfuse.cohort.tables import (
    MimicCxr,
    MimicIV,
    SourceFile,
    checking_gzip,
    count_rejected_rows,
    open_mimic_cxr,
    open_mimic_iv,
    reading,
)
from drfuse.cohort.timeseries import last_of_each_hour, measure
from drfuse.cohort.variables import Preset, load_variables
from drfuse.errors import InputError, check_choice
from drfuse.files import atomic_folder, recover_interrupted_write

logger = logging.getLogger(__name__)

View = Literal["AP", "PA", "LATERAL", "LL"]

_STAY = (
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
_RADIOGRAPH = ("has_cxr", "dicom_id", "cxr_row")
_IMAGE_IDS = ("stay_id", "subject_id", "study_id", "dicom_id")
_SIMULATION = "simulation.json"  # beside records that `drfuse simulate` wrote
_ROWS_AT_A_TIME = 100_000
_FILES = {"manifest.json", "stays.parquet", "ehr.npy", "cxr.npy", "normalization.json", INPUTS}


def prepare(
    mimic_iv: str | Path,
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
    threads: int | None = None,
    memory_limit: str = "2GiB",
    temp_dir: Path | None = None,
    before_hours: int = 6,
) -> Manifest:
    """Turn the raw files of MIMIC-IV and MIMIC-CXR-JPG into a cohort.

    Nothing is done if `out` already is the cohort of the same files and options. A cohort that is replaced
    gives the new one what still holds: time series and labels if neither their tables nor their options
    changed, and each decoded radiograph whose file is the same.

    Args:
        mimic_iv: Folder of a MIMIC-IV release, 1.0 to 3.1, or a folder above it; or the address of a database
            with its tables (`duckdb:///FILE`, `postgresql://USER@HOST/DATABASE`,
            `bigquery://PROJECT/DATASET`, `spark://HOST:PORT/FOLDER`), where the events are then read and
            nothing is written.
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
        threads: Cores to use; without it, all.
        memory_limit: What queries may hold in memory, such as 2GiB; what is more goes to `temp_dir`. The
            whole command takes about 1 GiB beside it.
        temp_dir: Folder for what does not fit in memory; without it, beside `out`.
        before_hours: Hours before ICU admission from which height and weight count too, in hour 0, as the
            MIMIC code repository takes them. The preset `benchmark` takes nothing from before.

    Returns:
        The manifest of the cohort.

    Raises:
        InputError: If input is missing or is not what it should be; then nothing is written.
    """
    for name, value, least, most in (
        ("window_hours", window_hours, 1, 8760),
        ("image_size", image_size, 32, 4096),
        ("before_hours", before_hours, 0, 168),
        ("threads", 1 if threads is None else threads, 1, 1024),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}; expected {least} to {most}")
    check_choice("preset", preset, get_args(Preset))
    for position in view:
        check_choice("view", position, get_args(View))
    options = {
        "preset": preset,
        "window_hours": window_hours,
        "before_hours": before_hours if preset == "extended" else 0,
        "image_size": image_size,
        "view": list(view),
        "phenotypes": None if phenotypes is None else Path(phenotypes).name,
        "split_file": None if split_file is None else Path(split_file).name,
        "seed": seed,
    }
    codes = _read_codes(phenotypes)
    split = None if split_file is None else read_split_file(split_file)
    recover_interrupted_write(Path(out))
    with _database(threads, memory_limit) as store, _records(mimic_iv, store) as mimic:
        cxr = None if mimic_cxr is None else open_mimic_cxr(Path(mimic_cxr), store)
        tables = _stamps(mimic, cxr, {"phenotypes": phenotypes, "split": split_file})
        order = _Order(mimic, cxr, codes, split, options, tables, strict, threads)
        earlier = Earlier.at(Path(out))
        if earlier is not None and _is_current(earlier, order):
            logger.info("%s already is the cohort of these files and options", out)
            _report(earlier.manifest.warnings, strict)
            return earlier.manifest
        with (
            atomic_folder(Path(out), "cohort", "manifest.json", _FILES, overwrite) as folder,
            _spilling(store, Path(out), temp_dir),
            reading(order.files),
        ):
            return _write_cohort(folder, order, earlier, store)


@dataclass(frozen=True)
class _Order:
    """What a cohort is to be made of, looked up and checked.

    Attributes:
        mimic: The records.
        cxr: The radiographs, if there are to be any.
        codes: The codes of each phenotype.
        split: The split of each subject; None splits by a hash.
        options: The options that decide the content.
        tables: The stamp of each file but images, by kind.
        strict: Whether to refuse what cannot be read.
        threads: Cores to use; None for all.
    """

    mimic: MimicIV
    cxr: MimicCxr | None
    codes: pl.DataFrame
    split: pl.DataFrame | None
    options: dict[str, Any]
    tables: dict[str, Stamp]
    strict: bool
    threads: int | None

    @property
    def files(self) -> list[SourceFile]:
        """The files of the tables."""
        return [*self.mimic.files, *(() if self.cxr is None else self.cxr.files)]

    @property
    def phenotypes(self) -> list[str]:
        """The names of the labels, in order."""
        names: list[str] = self.codes["phenotype"].unique(maintain_order=True).to_list()
        return names


def _write_cohort(folder: Path, order: _Order, earlier: Earlier | None, store: Backend) -> Manifest:
    """Write the files of a cohort, with what still holds of an earlier one."""
    mimic, cxr, options = order.mimic, order.cxr, order.options
    series, labelled, imaged = (
        earlier if earlier is not None and earlier.still_holds(part, order.tables, options) else None
        for part in ("series", "labels", "images")
    )
    unread = {"chartevents", "labevents"} if series else set()
    unread |= {"diagnoses_icd"} if labelled else set()
    files = [file for file in order.files if file.table not in unread]
    ehr, variables = folder / "ehr.npy", load_variables()
    with checking_gzip(files), Progress(transient=True) as progress:
        bar = progress.add_task("reading stays", total=None)
        flow, candidates, there = _candidates(mimic, options["window_hours"], store)
        if series is None:
            progress.update(bar, description="reading events")
            last = last_of_each_hour(
                measure(mimic, there, options["preset"], options["before_hours"]), options["preset"]
            )
            hourly = _materialize(last, "hourly", mimic, store, order_by="stay_id")
            candidates = candidates.semi_join(hourly.filter(hourly.in_window), "stay_id")
        else:
            candidates = candidates.semi_join(ibis.memtable(series.stays("stay_id")), "stay_id")
        progress.update(bar, description="reading diagnoses")
        labels, diagnoses = _labels(mimic, there, order.codes, labelled, store)
        stays = _describe(candidates, labels, order, store)
        flow.append(FlowStep("a variable observed in the window", _count(stays)))
        rejected = count_rejected_rows(store)
        if flow[-1].stays == 0:
            found = ", ".join(f"{step.criterion}: {step.stays}" for step in flow)
            raise InputError(
                f"{mimic.name} holds no stay that can be included ({found}; rows that do not parse: "
                f"{sum(rejected.values())}); check that it is a whole release"
            )
        progress.update(bar, description="writing time series", total=flow[-1].stays)
        if series is None:
            for n in write_ehr(ehr, stays, hourly, (options["window_hours"], len(variables)), store):
                progress.advance(bar, n)
        else:
            _link_or_copy(series.folder / ehr.name, ehr)
        progress.update(bar, description="reading radiographs", total=None)
        images, undated = _find_radiographs(stays, cxr, options["view"], store)
        images = _store_radiographs(images, order, imaged, folder / "cxr.npy", progress)
        rejected |= count_rejected_rows(store)
        progress.update(bar, description="checking files")
    described = folder / "stays.parquet"
    columns = (*_STAY, *_RADIOGRAPH, *order.phenotypes)
    write_stays(described, _with_radiographs(stays, images), columns, store)
    written = pl.scan_parquet(described, glob=False)
    if earlier is not None:
        before: dict[str, int] = earlier.manifest.warnings["rejected_rows"]
        skipped = {file.path.name for file in mimic.files if file.table in unread}
        rejected |= {name: count for name, count in before.items() if name in skipped}
    unreadable = images.filter(pl.col("cxr_row").is_null())
    warnings = {
        "rejected_rows": dict(sorted(rejected.items())),
        "unreadable_images": unreadable["dicom_id"].unique(maintain_order=True).to_list(),
        "undated_images": undated,
        "diagnoses": diagnoses,
        "stays_with_unknown": _count_unknown(written, order.phenotypes[0]),
        "phenotypes_without_positive": _labels_without_positives(written, order.phenotypes),
    }
    _report(warnings, order.strict)
    write_normalization(folder / "normalization.json", ehr, described, variables)
    write_inputs(folder / INPUTS, order.tables, images)
    manifest = Manifest(
        drfuse=__version__,
        sources=_describe_sources(mimic, cxr),
        options=options,
        flow=flow,
        variables=list(variables),
        phenotypes=order.phenotypes,
        splits=_count_splits(written),
        warnings=warnings,
        files={name: sha256(folder / name) for name in sorted(_FILES - {"manifest.json", INPUTS})},
    )
    manifest.write(folder)
    return manifest


def _read_codes(phenotypes: Path | None) -> pl.DataFrame:
    """Return the codes of the phenotypes (see `read_phenotypes`).

    Raises:
        InputError: If a phenotype cannot be a column beside the others.
    """
    codes = read_phenotypes(phenotypes)
    taken = {name.casefold() for name in (*_STAY, *_RADIOGRAPH)}
    if unusable := [
        name for name in codes["phenotype"].unique(maintain_order=True) if name.casefold() in taken
    ]:
        raise InputError(
            f"the phenotype {unusable[0]!r} has the name of a column of stays.parquet; rename it"
        )
    return codes


@contextmanager
def _database(threads: int | None, memory_limit: str) -> Iterator[Backend]:
    """Yield a DuckDB connection in memory, which runs the queries and holds their answers.

    Raises:
        InputError: If the limit is not an amount of memory.
    """
    store = ibis.duckdb.connect()
    try:
        store.raw_sql("SET enable_progress_bar = false")
        store.raw_sql("SET TimeZone = 'UTC'")  # times with a zone, in Parquet, mean the same everywhere
        if threads is not None:
            store.raw_sql(f"SET threads = {threads}")
        try:
            if not re.match(r"\d*\.?\d*[1-9]", memory_limit):  # none, or less
                raise duckdb.InvalidInputException(memory_limit)
            store.con.execute("SET memory_limit = $1", [memory_limit])
        except duckdb.Error as error:
            raise InputError(f"memory_limit is {memory_limit!r}; expected an amount such as 2GiB") from error
        yield store
    finally:
        store.disconnect()


@contextmanager
def _records(mimic_iv: str | Path, store: Backend) -> Iterator[MimicIV]:
    """Yield the records, and end the connection to their database; a Spark session may be others' too."""
    mimic = open_mimic_iv(mimic_iv, store)
    try:
        yield mimic
    finally:
        if mimic.engine is not store and mimic.engine.name != "pyspark":
            mimic.engine.disconnect()


@contextmanager
def _spilling(store: Backend, out: Path, temp_dir: Path | None) -> Iterator[None]:
    """Give a database a folder for what does not fit in memory, until this ends, and the database with it.

    It has a name of its own for each `out`, so that what a killed command left is found again.
    """
    out = out.resolve()
    name = hashlib.sha256(str(out).encode()).hexdigest()[:8]
    scratch = (out.parent if temp_dir is None else Path(temp_dir).resolve()) / f".{out.name}-{name}.scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {scratch.parent}: {error}; choose a different --temp-dir"
        ) from error
    store.con.execute("SET temp_directory = $1", [str(scratch)])
    try:
        yield
    finally:
        store.disconnect()
        shutil.rmtree(scratch, ignore_errors=True)


def _stamps(mimic: MimicIV, cxr: MimicCxr | None, definitions: Mapping[str, Path | None]) -> dict[str, Stamp]:
    """Return the stamps of all files but images."""
    sources = (
        [(mimic.root, mimic.files)] if cxr is None else [(mimic.root, mimic.files), (cxr.root, cxr.files)]
    )
    stamps = {file.table: stamp(file.path, root) for root, files in sources for file in files if root}
    named = {kind: Path(path) for kind, path in definitions.items() if path is not None}
    return stamps | {kind: stamp(path, path.parent) for kind, path in named.items()}


def _is_current(earlier: Earlier, order: _Order) -> bool:
    """Return whether a cohort is what was ordered, and undamaged."""
    if not earlier.is_made_of(order.tables, order.options):
        return False
    images_hold = order.cxr is None or earlier.has_the_same_images(order.cxr.root, order.threads)
    return images_hold and earlier.is_whole()


def _candidates(
    mimic: MimicIV, window_hours: int, store: Backend
) -> tuple[list[FlowStep], ir.Table, ir.Table]:
    """Return the inclusion flow up to what the events decide, and the stays that are left.

    Those are a table of the local database, and an expression of the engine on which the records lie.
    """
    described = describe_stays(mimic, window_hours)
    everyone = _materialize(described, "everyone", mimic, store)
    steps = select_stays(everyone)
    counts = [step.stays.aggregate(n=step.stays.count(), step=i) for i, step in enumerate(steps)]
    counts.append(everyone.aggregate(n=everyone.stay_id.nunique(), step=len(steps)))
    *counted, distinct = _fetch(ibis.union(*counts).order_by("step"))["n"].to_pylist()
    flow = [FlowStep(step.criterion, n) for step, n in zip(steps, counted, strict=True)]
    if repeated := flow[0].stays - distinct:
        raise InputError(
            f"{mimic.name} describes {repeated} ICU stays more than once or without stay_id; "
            "expected one row each in icustays, admissions and patients"
        )
    candidates = store.create_table("candidates", steps[-1].stays)
    there = candidates if mimic.engine is store else select_stays(described)[-1].stays
    return flow, candidates, there


def _link_or_copy(path: Path, to: Path) -> None:
    """Give a file another name, or copy it where a file can have one name only."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def _materialize(
    expr: ir.Table, name: str, mimic: MimicIV, store: Backend, order_by: str | None = None
) -> ir.Table:
    """Return the answer of the records' engine as a table of the local database, in order if one is named."""
    if mimic.engine is store:
        return store.create_table(name, expr if order_by is None else expr.order_by(order_by))
    store.con.register("answer", arrow_schema(expr).empty_table())
    store.raw_sql(f"CREATE TABLE {name} AS FROM answer")
    for batch in stream(expr, _ROWS_AT_A_TIME):  # waited for here, where an interruption is noticed
        store.con.register("answer", pa.Table.from_batches([batch]))
        store.raw_sql(f"INSERT INTO {name} FROM answer")
    store.con.unregister("answer")
    if order_by is not None:
        store.raw_sql(f"CREATE TABLE {name}_in_order AS FROM {name} ORDER BY {order_by}")
        store.raw_sql(f"DROP TABLE {name}")
        return store.table(f"{name}_in_order")
    return store.table(name)


def _labels(
    mimic: MimicIV, candidates: ir.Table, codes: pl.DataFrame, earlier: Earlier | None, store: Backend
) -> tuple[ir.Table, dict[str, int]]:
    """Return the labels of admissions and how many diagnoses of each kind (see `Match`) they have.

    The labels are `hadm_id` and `label_0`, `label_1`, ...; they may be those of an earlier cohort. Admissions
    whose labels are unknown have no row, or nulls.
    """
    if earlier is None:
        diagnoses = mimic.diagnoses.semi_join(candidates, "hadm_id")
        matched = _materialize(match_diagnoses(diagnoses, codes), "diagnoses", mimic, store)
        counted = {row["match"]: row["n_diagnoses"] for row in _fetch(count_matches(matched)).to_pylist()}
        return label_admissions(matched, codes), {kind: int(counted.get(kind, 0)) for kind in get_args(Match)}
    names = earlier.manifest.phenotypes
    labels = earlier.stays("hadm_id", *names)
    labels = labels.rename_columns(["hadm_id", *(f"label_{c}" for c in range(len(names)))])
    return ibis.memtable(labels), earlier.manifest.warnings["diagnoses"]


def _describe(stays: ir.Table, labels: ir.Table, order: _Order, store: Backend) -> ir.Table:
    """Return the included stays, numbered by `row` in the order of `stay_id`, with their split and labels.

    Raises:
        InputError: If the split file leaves out a stay.
    """
    if order.split is None:
        stays = stays.mutate(split=hash_split(stays.subject_id, order.options["seed"]))
    else:
        stays = stays.left_join(ibis.memtable(order.split), "subject_id").drop("subject_id_right")
    names = [name for name in labels.columns if name != "hadm_id"]  # null where they are unknown
    stays = stays.left_join(labels, "hadm_id")
    stays = store.create_table(
        "stays",
        stays.select(
            *_STAY,
            "window_end",
            *names,
            row=ibis.row_number().over(order_by=stays.stay_id),
        ).cast({"n_hours": "int16"}),
    )
    if missing := _count(stays.filter(stays.split.isnull())):
        raise InputError(f"the split file leaves out the subjects of {missing} stays; give each a split")
    return stays


def _find_radiographs(
    stays: ir.Table, cxr: MimicCxr | None, views: Sequence[str], store: Backend
) -> tuple[pl.DataFrame, int]:
    """Return the ids of each stay's radiographs (see `select_radiographs`), and how many have no date."""
    if cxr is None:
        return pl.DataFrame(schema={**dict.fromkeys(_IMAGE_IDS, pl.Int64), "dicom_id": pl.String}), 0
    studied = store.create_table("studied", date_studies(cxr.metadata))
    found = pl.from_arrow(_fetch(select_radiographs(studied, stays, views).select(*_IMAGE_IDS)))
    return cast(pl.DataFrame, found), _count(studied.filter(studied.studied_at.isnull()))


def _store_radiographs(
    found: pl.DataFrame, order: _Order, earlier: Earlier | None, out: Path, progress: Progress
) -> pl.DataFrame:
    """Write `cxr.npy`: uint8 (images, size, size), grey, in the order of the stays.

    Args:
        found: The images that each stay may take, the first readable one of which it gets.
        order: Where they lie, and their size.
        earlier: A cohort that has images of this size.
        out: The file.
        progress: Where to show it.

    Returns:
        The images that were tried, with the columns of `Earlier.images`: of each stay those that cannot be
        read, and the one that it got.

    Raises:
        InputError: If there are images, and none can be read.
    """
    cxr, threads = order.cxr, order.threads
    stamps, paths = pl.DataFrame(schema=STAMP_SCHEMA), list[Path]()
    if cxr is not None:
        folder = ImageFolder.open(cxr.root)
        paths = [folder.path(*ids) for ids in found.select("subject_id", "study_id", "dicom_id").iter_rows()]
        stamps = stamp_all(paths, cxr.root, threads)
    rows = pl.Series("earlier", [None] * len(paths), pl.Int32) if earlier is None else earlier.rows_of(stamps)
    stored = None if earlier is None else earlier.folder / "cxr.npy"
    images = iter(
        path if row is None or stored is None else Stored(stored, row)
        for path, row in zip(paths, rows, strict=True)
    )
    stays = found.group_by("stay_id", maintain_order=True).len("n")
    candidates = (list(islice(images, n)) for n in stays["n"])
    places = store_radiographs(candidates, order.options["image_size"], out, threads)
    place = pl.Series(progress.track(places, total=stays.height, description="decoding"), dtype=pl.Int64)
    if cxr is not None and paths and place.null_count() == len(place):
        raise InputError(
            f"none of the {len(paths)} radiographs under {cxr.root} can be read, the first expected at "
            f"{paths[0].relative_to(cxr.root)}; leave --mimic-cxr out to go on without them"
        )
    stays = stays.with_columns(last=place, cxr_row=place.is_not_null().cast(pl.Int32).cum_sum() - 1)
    ranked = pl.concat([found, stamps, rows.to_frame("earlier")], how="horizontal").with_columns(
        place=pl.int_range(pl.len()).over("stay_id")
    )
    tried = ranked.join(stays, "stay_id", maintain_order="left").filter(
        pl.col("place") <= pl.col("last").fill_null(pl.col("n"))
    )
    if n_known := tried.height - tried["earlier"].null_count():
        n_new = tried.height - n_known
        logger.info("%d of %d radiographs were decoded, the others before", n_new, tried.height)
    got = pl.col("place") == pl.col("last").fill_null(-1)
    return tried.select(*found.columns, *stamps.columns, cxr_row=pl.when(got).then("cxr_row"))


def _with_radiographs(stays: ir.Table, images: pl.DataFrame) -> ir.Table:
    """Return the stays with the radiograph of each, in the order of the columns of stays.parquet."""
    stored = images.filter(pl.col("cxr_row").is_not_null()).select("stay_id", "dicom_id", "cxr_row")
    stays = stays.left_join(ibis.memtable(stored), "stay_id").drop("stay_id_right")
    stays = stays.mutate(has_cxr=stays.cxr_row.notnull())
    labels = [name for name in stays.columns if name.startswith("label_")]
    return stays.select("row", *_STAY, *_RADIOGRAPH, *labels)


def _report(warnings: dict[str, Any], strict: bool) -> None:
    """Warn of what was left out, or refuse to leave it out."""
    problems = [f"{count} rows of {name} do not parse" for name, count in warnings["rejected_rows"].items()]
    if unreadable := warnings["unreadable_images"]:
        problems.append(f"{len(unreadable)} images are missing or unreadable")
    if undated := warnings["undated_images"]:
        problems.append(f"{undated} images have no readable StudyDate and StudyTime")
    if problems and strict:
        raise InputError(f"{'; '.join(problems)}; fix them, or leave --strict out to go on without them")
    for problem in problems:
        logger.warning("%s; left out and counted in manifest.json", problem)
    for what, count in warnings["stays_with_unknown"].items():
        if count:
            logger.warning("%d stays have unknown %s and take no part in predicting that", count, what)
    if unreadable := warnings["diagnoses"]["not ICD"]:
        logger.warning("%d diagnoses are in neither ICD-9-CM nor ICD-10-CM and give no label", unreadable)
    if never := warnings["phenotypes_without_positive"]:
        logger.warning("no stay has %s", ", ".join(never))


def _describe_sources(mimic: MimicIV, cxr: MimicCxr | None) -> dict[str, Any]:
    sources = {"mimic_iv": (mimic.release, mimic.name, mimic.root, mimic.files)}
    if cxr is not None:
        sources["mimic_cxr"] = (cxr.release, cxr.root.name, cxr.root, cxr.files)
    return {
        key: {
            "release": release,
            "folder": name if root is None else root.name,
            **({"simulated": True} if root and (root.parent / _SIMULATION).is_file() else {}),
            "files": {str(file.path.relative_to(root)): file.path.stat().st_size for file in files if root},
        }
        for key, (release, name, root, files) in sources.items()
    }


def _count_splits(stays: pl.LazyFrame) -> dict[str, dict[str, int]]:
    """Return the number of stays, and of stays with a radiograph, of each split."""
    counted = stays.group_by("split").agg(stays=pl.len(), with_cxr=pl.col("has_cxr").sum()).collect()
    found = {row.pop("split"): row for row in counted.iter_rows(named=True)}
    return {split: found.get(split, {"stays": 0, "with_cxr": 0}) for split in SPLITS}


def _count_unknown(stays: pl.LazyFrame, phenotype: str) -> dict[str, int]:
    """Return how many stays lack what each task is about; those take no part in it."""
    columns = {"phenotypes": phenotype, "in_hospital_mortality": "in_hospital_mortality", "los": "los"}
    unknown = [pl.col(column).is_null().sum().alias(what) for what, column in columns.items()]
    return stays.select(unknown).collect().row(0, named=True)


def _labels_without_positives(stays: pl.LazyFrame, phenotypes: Sequence[str]) -> list[str]:
    """Return the phenotypes that no stay has."""
    occurs = stays.select(pl.col(phenotypes).any()).collect().row(0)
    return [name for name, found in zip(phenotypes, occurs, strict=True) if not found]


def _count(table: ir.Table) -> int:
    return int(_fetch(table.aggregate(n=table.count()))["n"][0].as_py())


def _fetch(expr: ir.Table) -> pa.Table:
    """Return the answer of a query that is small."""
    return pa.Table.from_batches(stream(expr, _ROWS_AT_A_TIME), arrow_schema(expr))
