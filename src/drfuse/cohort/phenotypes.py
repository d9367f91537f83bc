"""ICD-9 and ICD-10 codes of an admission -> phenotype labels."""

from importlib.resources import as_file, files
from pathlib import Path

import ibis
import ibis.expr.types as ir
import polars as pl
import yaml

from drfuse.errors import InputError, MissingInputError

_SHIPPED = ("phenotype_codes.csv", "phenotype_codes_since_2019.csv")
_CSV_COLUMNS = {"phenotype": pl.String, "icd_version": pl.Int64, "icd_code": pl.String}


def read_phenotypes(path: Path | None = None) -> pl.DataFrame:
    """Return the codes of each phenotype, in file order: `phenotype`, `icd_version` (null: any), `icd_code`.

    Args:
        path: A CSV with those columns, or the YAML form of published benchmarks,
            `name: {use_in_benchmark: bool, codes: [...]}`. Without it, the 25 phenotypes of the paper as HCUP
            CCS categories, with the codes that came into force from October 2019 on.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If it has neither form, or defines no phenotype.
    """
    if path is None:
        with as_file(files("drfuse.cohort") / "definitions") as folder:
            return pl.concat([read_phenotypes(folder / name) for name in _SHIPPED])
    if not path.is_file():
        raise MissingInputError(f"there is no phenotype file {path}; expected CSV or YAML")
    codes = _read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else _read_csv(path)
    if codes.is_empty():
        raise InputError(f"{path} defines no phenotype; expected codes, and in YAML use_in_benchmark: true")
    if codes["phenotype"].str.strip_chars().replace("", None).has_nulls() or codes["icd_code"].has_nulls():
        raise InputError(f"{path} has a code without a phenotype, or a phenotype without a code; give both")
    if odd := [name for name in codes["phenotype"].unique(maintain_order=True) if not name.isprintable()]:
        raise InputError(f"{path} has the phenotype {odd[0]!r}, whose name holds control characters")
    if unknown := set(codes["icd_version"].unique()) - {9, 10, None}:
        raise InputError(f"{path} has the icd_version {unknown.pop()}; expected 9 or 10, or nothing for both")
    normalized = (
        pl.col("icd_code").str.strip_chars().str.replace_all(".", "", literal=True).str.to_uppercase()
    )
    return codes.with_columns(normalized).unique(maintain_order=True)


def select_diagnoses(diagnoses: ir.Table, codes: pl.DataFrame) -> ir.Table:
    """Return the distinct diagnoses whose code is listed, in its normalized spelling: what labels depend on.

    An ICD-10 code that is not listed counts as the longest code of version 10 that it begins with: ICD-10-CM
    divides its codes further every October, and I48.19 was part of I48.1. The codes are literals of the
    query, so that it runs on a database that may only be read.

    Args:
        diagnoses: Rows of `hadm_id`, `icd_code` and `icd_version`.
        codes: The phenotypes (see `read_phenotypes`).
    """
    diagnoses = diagnoses.select("hadm_id", "icd_version", icd_code=_normalized(diagnoses.icd_code))
    listed = diagnoses.icd_code.isin(sorted(set(codes["icd_code"])))
    diagnoses = diagnoses.mutate(icd_code=listed.ifelse(diagnoses.icd_code, _listed_start(diagnoses, codes)))
    return diagnoses.filter(diagnoses.icd_code.notnull()).distinct()


def _listed_start(diagnoses: ir.Table, codes: pl.DataFrame) -> ir.StringColumn:
    """Return the longest listed ICD-10 code that a code begins with, or null."""
    listed = codes.filter(pl.col("icd_version") == 10)["icd_code"].unique()
    starts = ibis.null("string")
    by_length = listed.to_frame().sort(pl.col("icd_code").str.len_chars(), "icd_code")
    for (length,), some in by_length.group_by(pl.col("icd_code").str.len_chars(), maintain_order=True):
        start = diagnoses.icd_code.substr(0, length)
        is_listed = (diagnoses.icd_version == 10) & start.isin(some["icd_code"].to_list())
        starts = is_listed.ifelse(start, starts)
    return starts


def label_admissions(diagnoses: ir.Table, codes: pl.DataFrame) -> ir.Table:
    """Return `hadm_id` and booleans `label_0`, `label_1`, ... for each admission that has any of the codes.

    They stand for the phenotypes in order: a phenotype's own name may be one that an engine cannot take.

    All diagnoses of the admission count, whatever their rank. A code without a version matches in both, and
    then as it is.

    Args:
        diagnoses: Rows of `hadm_id`, `icd_code` and `icd_version`, all of them or those of
            `select_diagnoses`, on an engine that may hold `codes` as a table: the local DuckDB.
        codes: The phenotypes (see `read_phenotypes`).
    """
    table = ibis.memtable(codes)
    diagnoses = select_diagnoses(diagnoses, codes)
    same_version = table.icd_version.isnull() | (table.icd_version == diagnoses.icd_version)
    found = diagnoses.join(table, [diagnoses.icd_code == table.icd_code, same_version])
    names = codes["phenotype"].unique(maintain_order=True)
    labels = {f"label_{c}": (found.phenotype == name).any() for c, name in enumerate(names)}
    return found.group_by("hadm_id").agg(**labels)


def _normalized(code: ir.StringColumn) -> ir.StringColumn:
    return code.strip().replace(".", "").upper()


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, glob=False, schema_overrides=_CSV_COLUMNS).select(*_CSV_COLUMNS)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} is not a CSV with the columns {', '.join(_CSV_COLUMNS)}") from error


def _read_yaml(path: Path) -> pl.DataFrame:
    try:
        # BaseLoader keeps every code a string: a plain 0031 would be the octal number 25
        groups = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        rows = [
            {"phenotype": name, "icd_version": None, "icd_code": code}
            for name, group in groups.items()
            if group["use_in_benchmark"].lower() == "true"
            for code in _strings(group["codes"])
        ]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        form = "name: {use_in_benchmark: true, codes: [...]}"
        raise InputError(f"{path} is not a YAML file of the form {form}") from error
    return pl.DataFrame(rows, schema=_CSV_COLUMNS)


def _strings(values: object) -> list[str]:
    """Return a list of strings as it is.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of codes, got {values!r}")
    return values
