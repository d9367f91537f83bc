"""The results of the queries -> the files of a cohort, a block of stays at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend
from numpy.typing import NDArray

from drfuse.cohort.arrays import array_in_order, blocks_of, items_a_block
from drfuse.cohort.manifest import Variable
from drfuse.cohort.moments import Moments
from drfuse.cohort.split import hash_split
from drfuse.cohort.store import count
from drfuse.errors import InputError

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
_STAYS_PER_ROW_GROUP = 65_536
_CELLS_PER_BATCH = 1_000_000


def check_label_names(labels: Sequence[str]) -> None:
    """Check that the labels can be columns of `stays.parquet`.

    Raises:
        InputError: If one has the name of another column.
    """
    taken = {name.casefold() for name in (*_STAY, *_RADIOGRAPH)}
    if unusable := [name for name in labels if name.casefold() in taken]:
        raise InputError(
            f"the phenotype {unusable[0]!r} has the name of a column of stays.parquet; rename it"
        )


def number_stays(
    stays: ir.Table, labels: ir.Table | None, split: pl.DataFrame | None, seed: int, store: Backend
) -> ir.Table:
    """Return the stays with their split, their labels and `row`, their number in the order of `stay_id`.

    The labels of a stay are null if `labels` (see `label_admissions`) lacks its admission; without `labels`,
    the stays have no such columns. Without a `split`
    of each subject, `hash_split` splits.

    Raises:
        InputError: If the split file leaves out a stay.
    """
    if split is None:
        stays = stays.mutate(split=hash_split(stays.subject_id, seed))
    else:
        stays = stays.left_join(ibis.memtable(split), "subject_id").drop("subject_id_right")
    names = [] if labels is None else [name for name in labels.columns if name != "hadm_id"]
    if labels is not None:
        stays = stays.left_join(labels, "hadm_id")
    row = ibis.row_number().over(order_by=stays.stay_id)
    numbered = stays.select(*_STAY, "window_end", *names, row=row).cast({"n_hours": "int16"})
    stays = store.create_table("stays", numbered)
    if missing := count(store, stays.filter(stays.split.isnull())):
        raise InputError(f"the split file leaves out the subjects of {missing} stays; give each a split")
    return stays


def write_stays(path: Path, stays: ir.Table, images: ir.Table, labels: Sequence[str], store: Backend) -> None:
    """Write `stays.parquet` from the stays of `number_stays` and the images of `store_radiographs`."""
    stored = images.filter(images.cxr_row.notnull()).select("stay_id", "dicom_id", "cxr_row")
    stays = stays.left_join(stored, "stay_id").drop("stay_id_right")
    stays = stays.mutate(has_cxr=stays.cxr_row.notnull())
    numbered = [name for name in stays.columns if name.startswith("label_")]
    rows = stays.select("row", *_STAY, *_RADIOGRAPH, *numbered)
    write_rows(path, rows, [*_STAY, *_RADIOGRAPH, *labels], store)


def write_rows(path: Path, stays: ir.Table, names: Sequence[str], store: Backend) -> None:
    """Write a table that `row` numbers as a Parquet file with the columns `names`, a block at a time."""
    schema = stays.drop("row").schema().to_pyarrow()
    schema = pa.schema([field.with_name(name) for name, field in zip(names, schema, strict=True)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in _blocks(store.create_table("rows", stays.order_by("row")), _STAYS_PER_ROW_GROUP, store):
            named = block.drop_columns("row").rename_columns(list(names))
            writer.write_table(named if named.schema == schema else named.cast(schema))


def write_ehr(
    path: Path, stays: ir.Table, hourly: ir.Table, shape: tuple[int, int], store: Backend
) -> Iterator[int]:
    """Write `ehr.npy`: float32 (stays, hours, variables), NaN where nothing was observed.

    In `stays`, `stay_id` and `row` ascend together; `hourly` (see `last_of_each_hour`) is ordered by
    `stay_id`; `shape` is the numbers of hours and variables.

    Yields:
        The number of stays in each block, once it is written.
    """
    with array_in_order(path, shape, np.float32) as append:
        for block in _blocks(stays, items_a_block(shape, np.float32), store, "row, stay_id"):
            ids = np.from_dlpack(block["stay_id"].combine_chunks())  # `to_numpy` would load pandas
            values = np.full((len(ids), *shape), np.nan, np.float32)
            # in `hourly` the rows of these stays are adjacent, so DuckDB skips the others
            observed = store.con.table(hourly.get_name()).filter(f"stay_id BETWEEN {ids[0]} AND {ids[-1]}")
            for cells in observed.select("stay_id, hour, variable, value").to_arrow_reader(_CELLS_PER_BATCH):
                stay, hour, variable, value = map(np.from_dlpack, cells.columns)
                with np.errstate(over="ignore"):
                    value = value.astype(np.float32)
                value[~np.isfinite(value)] = np.nan  # a typing error, too large for float32
                row = np.searchsorted(ids, stay)
                known = ids[row] == stay  # a database may gain stays between two queries
                values[row[known], hour[known], variable[known]] = value[known]
            append(values)
            yield len(ids)


def write_normalization(path: Path, ehr: Path, stays: Path, variables: Sequence[Variable]) -> None:
    """Write the mean and standard deviation of each continuous variable over the training split.

    `ehr` is the `ehr.npy`, `stays` the `stays.parquet`. If a variable is never observed, its mean is its
    normal value; if it never varies, its deviation is 1.
    """
    training = pl.read_parquet(stays, columns=["split"], glob=False)["split"].to_numpy() == "train"

    def blocks() -> Iterator[NDArray[np.float32]]:
        row = 0
        for block in blocks_of(ehr):
            yield block[training[row : row + len(block)]]
            row += len(block)

    found = Moments.of(blocks(), variables)
    statistics = {
        variable.name: {"mean": float(found.mean[i]), "std": float(found.std[i]) or 1.0}
        for i, variable in enumerate(variables)
        if variable.kind == "continuous"
    }
    path.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")


def _blocks(stays: ir.Table, rows: int, store: Backend, columns: str = "*") -> Iterator[pa.Table]:
    """Yield columns of a table, `rows` rows at a time, in the order of `row`."""
    table = store.con.table(stays.get_name())
    ((n_rows,),) = table.count("*").fetchall()
    for start in range(0, n_rows, rows):
        block = table.filter(f"row BETWEEN {start} AND {start + rows - 1}").order("row")
        yield block.select(columns).to_arrow_table()
