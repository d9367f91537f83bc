"""Reads the tables in `definitions/`, which describe the simulated hospital."""

from importlib.resources import files

import polars as pl


def read_definitions(name: str) -> pl.DataFrame:
    """Return a table of `definitions/`; ICD codes stay text.

    >>> read_definitions("prevalence").height
    25
    """
    text = (files("drfuse.simulate") / "definitions" / f"{name}.csv").read_bytes()
    return pl.read_csv(text, schema_overrides={"icd_code": pl.String}, infer_schema_length=None)
