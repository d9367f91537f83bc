"""Raw records -> a cohort on disk: all steps of this package, in order."""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

import ibis
import polars as pl

from drfuse import __version__
from drfuse.cohort.assembly import (
    check_label_names,
    number_stays,
    write_ehr,
    write_normalization,
    write_stays,
)
from drfuse.cohort.left_out import count_left_out, report_left_out
from drfuse.cohort.manifest import FlowStep, Manifest
from drfuse.cohort.phenotypes import Labels, find_labels, phenotype_names, read_phenotypes
from drfuse.cohort.radiographs import find_radiographs, find_unreadable, store_radiographs
from drfuse.cohort.reuse import CONTENT, INPUTS, PARTS, Earlier, Inputs, link_or_copy, write_inputs
from drfuse.cohort.sources import Source, open_source
from drfuse.cohort.split import count_splits, read_split_file
from drfuse.cohort.stays import find_candidates, require_observation
from drfuse.cohort.store import count, explain_errors, open_store, spill_folder
from drfuse.cohort.timeseries import KINDS_OF_EVENTS, count_unobserved, last_of_each_hour, measure
from drfuse.cohort.variables import Preset, load_variables
from drfuse.errors import InputError, check_choice
from drfuse.files import atomic_folder, recover_interrupted_write
from drfuse.logs import progress_bars
from drfuse.sums import sha256

logger = logging.getLogger(__name__)

View = Literal["AP", "PA", "LATERAL", "LL"]


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
    labels: bool = True,
) -> Manifest:
    """Make a cohort from MIMIC-IV and MIMIC-CXR-JPG.

    If `out` is already the cohort of the same files and options, nothing is done. A cohort that replaces an
    older one reuses what still holds: the time series and the labels if their tables and options are
    unchanged, and each decoded radiograph whose file is unchanged.

    Args:
        mimic_iv: Folder of a MIMIC-IV release, 1.0 to 3.1, or a folder above it; or the address of a database
            with its tables: `duckdb:///FILE`, `postgresql://USER@HOST/DATABASE`,
            `bigquery://PROJECT/DATASET` or `spark://HOST:PORT/FOLDER`. The database runs the queries and is
            only read.
        out: Folder of the cohort to write. It appears when it is complete.
        mimic_cxr: Folder of a MIMIC-CXR-JPG 2.x release; without it, no stay has a radiograph.
        preset: `extended` cleans values and reads all items; `benchmark` repeats the published extraction.
        window_hours: Hours after ICU admission that may be observed.
        image_size: Side of the stored radiographs, in pixels.
        view: ViewPosition of the radiographs that count.
        phenotypes: CSV or YAML file with the label definitions; without it, the paper's 25 phenotypes.
        split_file: CSV (subject_id, split) with train, validation and test; without it, a hash of each
            subject_id splits 7:1:2.
        seed: Key of that hash.
        strict: Stop with an error if a row cannot be parsed or an image cannot be read, instead of leaving it
            out and counting it.
        overwrite: Replace the cohort at `out`.
        threads: Cores to use; without it, all.
        memory_limit: Memory for queries, such as 2GiB; what does not fit goes to `temp_dir`. The whole
            command takes about 1 GiB more.
        temp_dir: Folder for what does not fit in memory; without it, one beside `out`.
        before_hours: Hours before ICU admission from which height and weight count too, in hour 0, as in the
            MIMIC code repository. The preset `benchmark` reads nothing from before.
        labels: Read the diagnoses; a cohort without labels can be predicted by a trained model, not trained
            on.

    Returns:
        The manifest of the cohort.

    Raises:
        InputError: If an input is missing or is not what it should be; nothing is written then.
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
        **({} if labels else {"labels": False}),
    }
    if phenotypes is not None and not labels:
        raise InputError("phenotypes defines labels, and labels is false; leave one of them out")
    codes = read_phenotypes(phenotypes) if labels else None
    check_label_names(phenotype_names(codes))
    split = None if split_file is None else read_split_file(split_file)
    contents = {*CONTENT, "manifest.json", INPUTS}
    recover_interrupted_write(Path(out))
    with (
        open_store(threads, memory_limit) as store,
        closing(open_source(mimic_iv, store, mimic_cxr)) as source,
    ):
        inputs = Inputs.of(source, {"phenotypes": phenotypes, "split": split_file}, options)
        earlier = Earlier.at(Path(out))
        if earlier is not None and earlier.is_current(inputs, threads):
            logger.info("%s is already the cohort of these files and options", out)
            report_left_out(earlier.manifest, strict)
            return earlier.manifest
        with (
            atomic_folder(Path(out), "cohort", "manifest.json", contents, overwrite) as folder,
            spill_folder(store, Path(out), temp_dir),
            explain_errors([file.path for file in source.files]),
        ):
            return _write_cohort(folder, inputs, codes, split, earlier, strict, threads)


def _write_cohort(
    folder: Path,
    inputs: Inputs,
    codes: pl.DataFrame | None,
    split: pl.DataFrame | None,
    earlier: Earlier | None,
    strict: bool,
    threads: int | None,
) -> Manifest:
    """Write the files of a cohort, reusing what still holds of an earlier one."""
    source, options = inputs.source, inputs.options
    store, variables, names = source.store, load_variables(), phenotype_names(codes)
    series, labelled, imaged = (
        earlier if earlier is not None and earlier.still_holds(part, inputs) else None for part in PARTS
    )
    reused = ({"events"} if series else set()) | ({"diagnoses"} if labelled else set())
    ehr, stays_file = folder / "ehr.npy", folder / "stays.parquet"
    with progress_bars() as progress:
        bar = progress.add_task("reading stays", total=None)
        source.check_typed_tables(reused | ({"diagnoses"} if codes is None else set()))
        candidates = find_candidates(source, options["window_hours"])
        if series is None:
            progress.update(bar, description="reading events")
            measured = measure(source, candidates.queryable, options["preset"], options["before_hours"])
            last = last_of_each_hour(measured, options["preset"])
            hourly = source.materialize(last, "hourly", order_by="stay_id")
            included = require_observation(candidates.stored, hourly.filter(hourly.in_window))
            unobserved = count_unobserved(hourly, store)
        else:
            included = require_observation(candidates.stored, ibis.memtable(series.stays("stay_id")))
            unobserved = {kind: series.manifest.warnings["stays_without"][kind] for kind in KINDS_OF_EVENTS}
        progress.update(bar, description="reading diagnoses")
        if codes is None:
            labels = Labels(None, {})
        elif labelled is None:
            labels = find_labels(source, candidates.queryable, codes)
        else:
            labels = Labels(labelled.labels(), labelled.manifest.warnings["diagnoses"])
        stays = number_stays(included.stays, labels.table, split, options["seed"], store)
        flow = [*candidates.flow, FlowStep(included.criterion, count(store, stays))]
        _refuse_empty(source, flow)
        progress.update(bar, description="writing time series", total=flow[-1].stays)
        if series is None:
            for n in write_ehr(ehr, stays, hourly, (options["window_hours"], len(variables)), store):
                progress.advance(bar, n)
        else:
            link_or_copy(series.folder / ehr.name, ehr)
        progress.update(bar, description="reading radiographs", total=None)
        found, undated = find_radiographs(source, stays, options["view"])
        images = store_radiographs(
            found, source, options["image_size"], imaged, folder / "cxr.npy", threads, progress
        )
        progress.update(bar, description="checking files")
    write_stays(stays_file, stays, images, names, store)
    before = {} if earlier is None else earlier.rejected_rows(source.files, reused)
    splits = count_splits(stays_file)
    if source.images is not None:
        unobserved["radiograph"] = sum(split["stays"] - split["with_cxr"] for split in splits.values())
    warnings = count_left_out(
        stays_file,
        names,
        store.rejected_rows | before,
        find_unreadable(images, store),
        undated,
        labels.n_diagnoses,
        candidates.n_backwards,
        unobserved,
    )
    write_normalization(folder / "normalization.json", ehr, stays_file, variables)
    write_inputs(folder / INPUTS, inputs.stamps, images, store)
    manifest = Manifest(
        drfuse=__version__,
        sources=source.describe(),
        options=options,
        flow=flow,
        variables=list(variables),
        phenotypes=names,
        splits=splits,
        warnings=warnings,
        files={name: sha256(folder / name) for name in CONTENT},
    )
    report_left_out(manifest, strict)
    manifest.write(folder)
    return manifest


def _refuse_empty(source: Source, flow: Sequence[FlowStep]) -> None:
    """Raise InputError if no stay is left at the end of the flow."""
    if flow[-1].stays == 0:
        found = ", ".join(f"{step.criterion}: {step.stays}" for step in flow)
        raise InputError(
            f"{source.address} has no stay that can be included ({found}; rows that do not parse: "
            f"{sum(source.store.rejected_rows.values())}); check that the release is complete"
        )
