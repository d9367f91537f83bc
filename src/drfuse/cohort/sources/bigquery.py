"""MIMIC-IV on BigQuery, as PhysioNet hosts it."""

import re
from collections.abc import Iterator
from typing import Self
from urllib.parse import parse_qs, urlsplit

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.common.exceptions import TableNotFound

from drfuse.cohort.sources.mimic_iv import find_mimic_iv
from drfuse.cohort.sources.source import Source, missing_driver
from drfuse.cohort.store import Store
from drfuse.errors import InputError, reason_of

TIME_TYPE = "timestamp('UTC')"
"""BigQuery's time functions need a time zone."""


class BigQuery(Source):
    """A dataset on BigQuery, or a pair of datasets: DATASET_hosp and DATASET_icu.

    `?billing_project=PROJECT` says which project pays for the queries.
    """

    schemes = ("bigquery",)
    form = "bigquery://project/dataset"

    @classmethod
    def open(cls, address: str, store: Store) -> Self:
        """Return the records of a dataset; see `Source.open`."""
        parts = urlsplit(address)
        project, dataset = parts.netloc, parts.path.strip("/")
        if not re.fullmatch(r"[\w.:-]+", project) or not re.fullmatch(r"\w+", dataset):
            raise InputError(
                f"the address of the BigQuery dataset is not of the form {cls.form}; write it in that form"
            )
        try:
            import google.auth
            from google.api_core.exceptions import GoogleAPIError, NotFound
            from google.auth.exceptions import GoogleAuthError

            ibis.bigquery  # noqa: B018 - imports the client
        except ImportError as error:
            raise missing_driver("bigquery") from error
        name = f"bigquery://{project}/{dataset}"
        try:
            scopes = ["https://www.googleapis.com/auth/bigquery"]
            credentials, own_project = google.auth.default(scopes)
            payer = parse_qs(parts.query).get("billing_project", [own_project or project])[0]
            engine = ibis.bigquery.connect(payer, f"{project}.{dataset}", credentials=credentials)
        except (GoogleAPIError, GoogleAuthError) as error:
            raise InputError(
                f"cannot connect to {name}: {reason_of(error)}; log in with "
                "`gcloud auth application-default login`"
            ) from error

        def open_table(table: str, place: str) -> ir.Table:
            try:
                return engine.table(table, database=(project, place))
            except NotFound as error:
                raise TableNotFound(table) from error
            except (GoogleAPIError, GoogleAuthError) as error:
                raise InputError(
                    f"cannot read {name}: {reason_of(error)}; check your rights there"
                ) from error

        tables = find_mimic_iv(name, open_table, (f"{dataset}_{{module}}",), (dataset,), TIME_TYPE)
        errors = (GoogleAPIError, GoogleAuthError)
        return cls(address=name, engine=engine, store=store, errors=errors, **tables)

    def _read(self, expr: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        for batch in self.engine.to_pyarrow_batches(expr):
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)
