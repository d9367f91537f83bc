"""The answers of the queries -> the files of a cohort, a block of stays at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend
from numpy.typing import NDArray

from drfuse.cohort.arrays import array_in_order, blocks_of, items_a_block
from drfuse.cohort.split import SPLITS
from drfuse.cohort.variables import Variable

_STAYS_A_ROW_GROUP = 65_536
_CELLS_AT_A_TIME = 1_000_000


def write_stays(path: Path, stays: ir.Table, names: Sequence[str], store: Backend) -> None:
    """Write `stays.parquet`.

    Args:
        path: The file.
        stays: Its rows, numbered by `row`, and its columns in order after that one.
        names: What the columns are called.
        store: The local database.
    """
    schema = stays.drop("row").schema().to_pyarrow()
    schema = pa.schema([field.with_name(name) for name, field in zip(names, schema, strict=True)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in _blocks(stays, _STAYS_A_ROW_GROUP, store):
            writer.write_table(block.drop_columns("row").rename_columns(list(names)).cast(schema))


def write_ehr(
    path: Path,
    stays: ir.Table,
    hourly: ir.Table,
    variables: Sequence[Variable],
    window_hours: int,
    store: Backend,
) -> Iterator[int]:
    """Write `ehr.npy`: float32 (stays, hours, variables), NaN where nothing was observed.

    Args:
        path: The file.
        stays: `stay_id` and its `row`; both ascend.
        hourly: Rows of `stay_id`, `variable`, `hour` and `value`, ordered by `stay_id`.
        variables: What is on the last axis.
        window_hours: Length of the axis before.
        store: The local database.

    Yields:
        How many stays were written since the last time.
    """
    shape = (window_hours, len(variables))
    names = ibis.memtable({"variable": [v.name for v in variables], "column": range(len(variables))})
    columns = store.create_table("columns", names)
    hourly = hourly.join(columns, "variable").select("stay_id", "hour", "column", "value")
    at_a_time = items_a_block(shape, np.float32)
    with array_in_order(path, shape, np.float32) as append:
        for block in _blocks(stays.select("row", "stay_id"), at_a_time, store):
            ids = block["stay_id"].to_numpy()
            values = np.full((len(ids), *shape), np.nan, np.float32)
            # the rows lie in the order of the stays, so that only those of the block are looked at
            observed = hourly.filter(hourly.stay_id.between(int(ids[0]), int(ids[-1])))
            for cells in store.con.sql(store.compile(observed)).to_arrow_reader(_CELLS_AT_A_TIME):
                stay, hour, column, value = (cells[i].to_numpy() for i in range(4))
                values[np.searchsorted(ids, stay), hour, column] = value
            append(values)
            yield len(ids)


def write_normalization(
    path: Path, ehr: Path, training: NDArray[np.bool_], variables: Sequence[Variable]
) -> None:
    """Write mean and standard deviation of each continuous variable over the training split's observations.

    One never observed there has its normal value as mean; one that never varied, a deviation of 1.

    Args:
        path: The file.
        ehr: The `ehr.npy`.
        training: Whether each stay is in the training split (N,).
        variables: What is on the last axis of `ehr.npy`.
    """
    n, total, squares = (np.zeros(len(variables)) for _ in range(3))
    normal = np.array([variable.normal for variable in variables])
    row = 0
    for block in blocks_of(ehr):
        values = block[training[row : row + len(block)]] - normal  # near zero, so that squares lose no digits
        row += len(block)
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
    path.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")


def in_training(stays: ir.Table) -> NDArray[np.bool_]:
    """Return whether each stay is in the training split (N,), in the order of `row`."""
    training = stays.order_by("row").select(training=stays.split == "train").to_pyarrow()["training"]
    return np.asarray(training, np.bool_)


def count_splits(stays: ir.Table) -> dict[str, dict[str, int]]:
    """Return the number of stays, and of stays with a radiograph, of each split."""
    counted = stays.group_by("split").agg(stays=stays.count(), with_cxr=stays.has_cxr.sum())
    found = {row.pop("split"): row for row in counted.to_pyarrow().to_pylist()}
    return {split: found.get(split, {"stays": 0, "with_cxr": 0}) for split in SPLITS}


def _blocks(table: ir.Table, rows: int, store: Backend) -> Iterator[pa.Table]:
    """Yield a table some rows at a time, in the order of `row`."""
    n_rows = table.count().to_pyarrow().as_py()
    for start in range(0, n_rows, rows):
        block = table.filter(table.row.between(start, start + rows - 1)).order_by("row")
        yield store.con.sql(store.compile(block)).to_arrow_table()
