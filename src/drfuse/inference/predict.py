"""`drfuse predict`: stays of a cohort, of a hospital's records or of single patients in, a table out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from drfuse.arguments import check_arguments
from drfuse.data import StayDataset, Task
from drfuse.data.loader import split_rows
from drfuse.errors import InputError
from drfuse.escapes import csv_of
from drfuse.files import atomic_file, make_folder
from drfuse.imports import import_class
from drfuse.inference.inputs import open_stays
from drfuse.inference.predictor import Predictor, find_device
from drfuse.inference.table import FIRST_COLUMNS, prediction_table
from drfuse.models import FusionModel

logger = logging.getLogger(__name__)

MOST_SHOWN = 10
"""The largest number of stays whose predictions are shown."""

_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class Predicted:
    """What `predict` did.

    Attributes:
        out: The file that it wrote, if it did.
        n_stays: The number of stays that it predicted.
        runs: The runs.
        methods: How each run's probabilities were recalibrated; None for a run that has not learned how.
        table: The predictions (see `prediction_table`); None if there are more than `MOST_SHOWN` stays.
    """

    out: Path | None
    n_stays: int
    runs: Sequence[Path]
    methods: Sequence[str | None]
    table: pl.DataFrame | None


@check_arguments
def predict(
    run: Path,
    cohort: Path | None = None,
    mimic_iv: str | Path | None = None,
    mimic_cxr: Path | None = None,
    ehr: Path | None = None,
    cxr: Path | None = None,
    out: Path | None = None,
    more_runs: Sequence[Path] = (),
    model: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    num_workers: int = 0,
    temp_dir: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Predicted:
    """Predict stays with one trained run or several.

    The stays come from a cohort, from a hospital's records, or from files of single patients; they need no
    labels. The run alone is enough: its own cohort is not needed. A stay without a radiograph is predicted
    from its record alone.

    Args:
        run: Folder of a run, or one that `drfuse export` wrote.
        cohort: Folder of a cohort with the variables of the training, of any hospital.
        mimic_iv: In place of a cohort, records as `drfuse prepare` takes them; diagnoses may be absent.
        mimic_cxr: The radiographs that belong to them.
        ehr: In place of a cohort, a CSV or Parquet file of measurements with the columns stay_id, hours
            (since ICU admission), variable or itemid, value, and unit if a variable may have several
            (docs/predict.md).
        cxr: The JPEG or PNG file of its only stay, or a folder of files named by their stays.
        out: File to write, .parquet or .csv: a row for each stay and phenotype. Without it, the predictions
            of up to ten stays are only shown.
        more_runs: Further runs with the same labels, such as other seeds; the mean of all runs is predicted,
            with the range over them.
        model: Import path of the runs' model if it is not one of drfuse's; importing it runs its code.
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.
        num_workers: Processes that make batches; 0 makes them in this one.
        temp_dir: Folder for what is read from `mimic_iv`; by default the system's.
        overwrite: Replace `out`.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a run or the stays cannot be read or do not fit together, or `out` exists.
    """
    if model is not None:
        import_class(model, FusionModel)
    if out is not None:
        _check_out(out, overwrite)
    runs = [run, *more_runs]
    predictors = [Predictor.open(one).to(find_device(accelerator)) for one in runs]
    recalibrations = [one.recalibration for one in predictors]
    facts = predictors[0].facts
    for number, (one, other) in enumerate(zip(runs, predictors, strict=True)):
        if other.facts.label_names != facts.label_names:
            raise InputError(f"{one} predicts other labels than {run}; choose runs of the same labels")
        if any(other.facts == earlier.facts for earlier in predictors[:number]):
            raise InputError(f"{one} is the same model as another of the runs; leave it out of --more-runs")
    with open_stays(facts, cohort, mimic_iv, mimic_cxr, ehr, cxr, temp_dir) as stays:
        datasets = [one.dataset(stays, labelled=False) for one in predictors]
        batches = split_rows_known_first(datasets[0], facts.batch_size)
        n_stays = sum(map(len, batches))
        if out is None and n_stays > MOST_SHOWN:
            raise InputError(f"there are {n_stays} stays to predict; choose a file for them with --out")
        tables, n_without = [], 0
        with _file_for_tables(out) as append:
            blocks = zip(
                *(
                    predictor.outputs(dataset, batches, num_workers, progress and predictor is predictors[0])
                    for predictor, dataset in zip(predictors, datasets, strict=True)
                ),
                strict=True,
            )
            for outputs in blocks:
                table = prediction_table(stays, facts.label_names, outputs, recalibrations)
                n_without += table.filter(pl.col("probability").is_null())["stay_id"].n_unique()
                append(table)
                if n_stays <= MOST_SHOWN:
                    tables.append(table)
    if n_without:
        logger.warning(
            "%d of %d stays have no prediction, because a run makes none for them; a model of radiographs "
            "alone needs one",
            n_without,
            n_stays,
        )
    methods = [None if one is None else one.method for one in recalibrations]
    return Predicted(out, n_stays, runs, methods, pl.concat(tables) if tables else None)


def split_rows_known_first(dataset: StayDataset, batch_size: int) -> list[list[int]]:
    """Return the rows to predict in batches: first those with known labels, as at the end of a training.

    A stay's logits depend on its batch by their last bits, so the same batches give the same numbers.

    Raises:
        InputError: If no stay can be predicted.
    """
    task, cohort = dataset.task, dataset.cohort
    known = np.empty(0, np.int64)
    try:
        labelled = Task.of(cohort, task.name)
        if labelled.label_names == task.label_names:
            known = labelled.rows()
    except InputError:  # it has no labels
        pass
    unknown = np.setdiff1d(task.rows(), known)
    if not len(known) + len(unknown):
        raise InputError(f"no stay of {cohort.folder} can be predicted: none is known to outlast the window")
    return [batch for rows in (known, unknown) if len(rows) for batch in split_rows(rows, batch_size)]


def _check_out(out: Path, overwrite: bool) -> None:
    """Raise InputError if `out` may not be written, before anything is read."""
    if out.suffix not in _SUFFIXES:
        raise InputError(f"out is {out}; expected a name that ends in {' or '.join(_SUFFIXES)}")
    if out.is_dir():
        raise InputError(f"{out} is a folder; choose a different --out")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; choose a different --out, or replace it with --overwrite")
    if out.exists() and not _is_of_predictions(out):
        raise InputError(f"{out} is not a table of `drfuse predict`; choose a different --out")
    make_folder(out.resolve().parent)


def _is_of_predictions(out: Path) -> bool:
    """Return whether a file is empty, or begins as a table of predictions does."""
    columns: list[str] = []
    if out.is_file():
        if not out.stat().st_size:
            return True
        with suppress(pa.ArrowException, UnicodeDecodeError), out.open("rb") as file:
            if out.suffix == ".parquet":
                columns = pq.read_schema(file).names
            else:
                columns = file.readline().decode().split(",")
    return columns[: len(FIRST_COLUMNS)] == FIRST_COLUMNS


@contextmanager
def _file_for_tables(out: Path | None) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Yield a function that appends tables to `out`, which appears when the context ends."""
    if out is None:
        yield lambda _: None
        return
    with atomic_file(out) as partial, partial.open("wb") as file:
        writer: pq.ParquetWriter | None = None

        def append(table: pl.DataFrame) -> None:
            nonlocal writer
            if out.suffix == ".csv":
                file.write(csv_of(table, include_header=file.tell() == 0).encode())
                return
            arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(file, arrow.schema, compression="zstd")
            writer.write_table(arrow)

        yield append
        if writer is not None:
            writer.close()
