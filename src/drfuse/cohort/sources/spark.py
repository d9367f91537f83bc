"""MIMIC-IV as Parquet files, read by a Spark cluster."""

import os
import re
import sys
from collections.abc import Iterator
from typing import Self

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.common.exceptions import TableNotFound

from drfuse.cohort.sources.mimic_iv import find_mimic_iv
from drfuse.cohort.sources.source import Source, missing_driver
from drfuse.cohort.store import Store
from drfuse.errors import InputError, reason_of


class Spark(Source):
    """A folder of Parquet files in MIMIC-IV's layout, read by a Spark cluster.

    `spark://local[N]/folder` runs on N cores of this machine.
    """

    schemes = ("spark",)
    form = "spark://host:port/folder (spark://local[N]/folder on this machine)"

    @classmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records in a folder that a cluster reads; see `Source.open`."""
        host, _slash, path = address.partition("://")[2].partition("/")
        folder = path if "://" in path else f"/{path}"
        if not host or not path:
            raise InputError(
                "the address of the Spark cluster is not of the form spark://host:port/folder or "
                "spark://local[N]/folder; write it in one of them"
            )
        try:
            from py4j.protocol import Py4JError
            from pyspark.errors import AnalysisException, PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise missing_driver("spark") from error
        local = host.startswith("local")
        builder = SparkSession.builder.appName("drfuse").master(host if local else f"spark://{host}")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.log.level", "ERROR")
        if local:
            builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.ui.enabled", "false")
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # not the PATH's Python
        try:
            engine = ibis.pyspark.connect(builder.getOrCreate())
        except (Py4JError, PySparkException) as error:
            raise InputError(
                f"cannot connect to the Spark cluster {host}: {reason_of(error)}; check the address"
            ) from error

        def open_table(table: str, place: str) -> ir.Table:
            try:
                return engine.read_parquet(f"{folder.rstrip('/')}/{place}")
            except (Py4JError, PySparkException) as error:
                if isinstance(error, AnalysisException) and error.getCondition() == "PATH_NOT_FOUND":
                    raise TableNotFound(table) from error
                raise InputError(
                    f"Spark cannot read {folder}/{place}: {reason_of(error)}; check the files and your "
                    "rights there"
                ) from error

        inner = re.sub(r"//[^/]*@", "//", path)  # without the keys of an object store
        name = f"spark://{host}/{inner}"
        tables = find_mimic_iv(name, open_table, ("{module}/{table}.parquet", "{module}/{table}"))
        errors = (Py4JError, PySparkException)
        return cls(address=name, engine=engine, store=store, errors=errors, **tables)

    def close(self) -> None:
        """Do nothing: other code in this process may use the Spark session."""

    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield one partition at a time, where Ibis would collect them all.

        Each batch is packed into one binary value: Spark cannot iterate over Arrow batches.
        """
        session = self.engine._session
        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows)
        packed = session.sql(self.engine.compile(expr)).mapInArrow(_pack, "batch binary")
        for row in packed.toLocalIterator(prefetchPartitions=True):
            yield from pa.ipc.open_stream(row.batch)


def _pack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        packed = pa.array([sink.getvalue().to_pybytes()], pa.binary())
        yield pa.RecordBatch.from_arrays([packed], names=["batch"])
