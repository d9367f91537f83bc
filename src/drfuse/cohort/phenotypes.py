"""ICD-9 and ICD-10 codes of an admission -> phenotype labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Literal, get_args

import ibis
import ibis.expr.types as ir
import polars as pl
import yaml

from drfuse.cohort.sources import Source
from drfuse.cohort.store import fetch
from drfuse.errors import InputError, MissingInputError, without_data

_CSV_COLUMNS = {"phenotype": pl.String, "icd_version": pl.Int64, "icd_code": pl.String}
_SHIPPED = ("phenotype_codes.csv", "phenotype_codes_since_2019.csv")
_INITIALS = {9: f"{digits}EV", 10: ascii_uppercase}
_LONGEST_NAME = 200
_LENGTHS = {9: (3, 5), 10: (3, 7)}

Match = Literal["listed", "start listed", "unlisted", "not ICD"]
"""How a diagnosis matches the definitions.

- `listed`: its code is in a list.
- `start listed`: its code begins with a listed one, so it has the same phenotype.
- `unlisted`: another disease, or a code newer than the lists; these two look the same, because the lists hold
  the phenotypes' codes alone.
- `not ICD`: `icd_version` is neither 9 nor 10, or the code does not look like one of that version.
"""


_IsIn = Callable[[ir.Column, Sequence[str]], ir.BooleanColumn]


@dataclass(frozen=True)
class Labels:
    """The labels of admissions.

    Attributes:
        table: `hadm_id`, `label_0`, `label_1`, ... (see `label_admissions`), for queries of the store; None
            if the cohort has no labels.
        n_diagnoses: The number of diagnoses of each kind (`Match`).
    """

    table: ir.Table | None
    n_diagnoses: dict[str, int]


def find_labels(source: Source, stays: ir.Table, codes: pl.DataFrame) -> Labels:
    """Return the labels of the admissions of `stays`, a table that queries of the source can join.

    Raises:
        MissingInputError: If the source has no diagnoses.
    """
    if source.diagnoses is None:
        raise MissingInputError(
            f"{source.address} lacks the table diagnoses_icd, so stays have no labels; fetch it, or prepare "
            "with --labels false, to predict these stays with a trained model"
        )
    diagnoses = source.diagnoses.semi_join(stays, "hadm_id")
    matched = source.materialize(match_diagnoses(diagnoses, codes, source.is_in), "diagnoses")
    counts = fetch(source.store, count_matches(matched)).to_pylist()
    n_diagnoses = dict.fromkeys(get_args(Match), 0) | {
        row["match"]: int(row["n_diagnoses"]) for row in counts
    }
    return Labels(label_admissions(matched, codes), n_diagnoses)


def phenotype_names(codes: pl.DataFrame | None) -> list[str]:
    """Return the names of the phenotypes, in file order; none without codes."""
    if codes is None:
        return []
    names: list[str] = codes["phenotype"].unique(maintain_order=True).to_list()
    return names


def read_phenotypes(path: Path | None = None) -> pl.DataFrame:
    """Return the codes of each phenotype, in file order.

    The columns are `phenotype`, `icd_version` (null: any), `icd_code`, and `with_longer`: whether longer
    codes that begin with it count too. They do for the shipped ICD-10 codes, because later years split codes:
    this is right for all 219 codes since October 2016 that it applies to. In a user's own file, only the
    listed codes count.

    Args:
        path: A CSV with the first three columns, or the YAML form of published benchmarks,
            `name: {use_in_benchmark: bool, codes: [...]}`. Without it, the 25 phenotypes of the paper as HCUP
            CCS categories, with the codes since 2019 that continue them.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If it has neither form, or defines no phenotype.
    """
    if path is None:
        with as_file(files("drfuse.cohort") / "definitions") as folder:
            shipped = pl.concat([_read(folder / name) for name in _SHIPPED])
        return shipped.with_columns(with_longer=pl.col("icd_version") == 10)
    return _read(path).with_columns(with_longer=False)


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise MissingInputError(f"there is no phenotype file {path}; expected CSV or YAML")
    codes = _read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else _read_csv(path)
    if codes.is_empty():
        raise InputError(f"{path} defines no phenotype; expected codes, and in YAML use_in_benchmark: true")
    if codes["phenotype"].str.strip_chars().replace("", None).has_nulls() or codes["icd_code"].has_nulls():
        raise InputError(f"{path} has a code without a phenotype, or a phenotype without a code; give both")
    for number, name in enumerate(phenotype_names(codes), 1):
        if len(name) > _LONGEST_NAME:
            raise InputError(
                f"the name of phenotype {number} of {path} is longer than {_LONGEST_NAME} characters; "
                "shorten it"
            )
        if not name.isprintable():
            raise InputError(f"the name of phenotype {number} of {path} has control characters; remove them")
    if unknown := len(set(codes["icd_version"].unique()) - {9, 10, None}):
        raise InputError(
            f"{path} has {unknown} values of icd_version other than 9 and 10; expected these, or nothing for "
            "both"
        )
    normalized = (
        pl.col("icd_code").str.strip_chars().str.replace_all(".", "", literal=True).str.to_uppercase()
    )
    return codes.with_columns(normalized).unique(maintain_order=True)


def match_diagnoses(diagnoses: ir.Table, codes: pl.DataFrame, is_in: _IsIn = ir.Column.isin) -> ir.Table:
    """Return the listed codes (see `read_phenotypes`) of each admission: all that its labels depend on.

    The columns are `hadm_id`, `icd_version`, `icd_code` (the listed code: the diagnosis's own or, where
    `with_longer` allows, the longest that it begins with; null if there is none), `match` and `n_diagnoses`.
    Diagnoses without a code are left out. `is_in` is `Source.is_in`.
    """
    spelled = diagnoses.select(
        "hadm_id", "icd_version", code=diagnoses.icd_code.strip().replace(".", "").upper()
    )
    spelled = spelled.filter(spelled.code != "")
    found = spelled.mutate(icd_code=_listed_code(spelled, codes, is_in))
    matched = found.mutate(
        match=ibis.cases(
            (found.icd_code == found.code, "listed"),
            (found.icd_code.notnull(), "start listed"),
            (_is_icd(found) | codes["icd_version"].has_nulls(), "unlisted"),
            else_="not ICD",
        )
    )
    by = ["hadm_id", "icd_version", "icd_code", "match"]
    return matched.group_by(by).agg(n_diagnoses=matched.count())


def label_admissions(matched: ir.Table, codes: pl.DataFrame) -> ir.Table:
    """Return `hadm_id` and booleans `label_0`, `label_1`, ... for each admission whose labels are known.

    They are the phenotypes in order, numbered because not every engine accepts every name. The labels of an
    admission are known if one of its diagnoses looks like an ICD code. All of its diagnoses count, whatever
    their rank. `matched` is the result of `match_diagnoses`, in the store.
    """
    table = ibis.memtable(codes.select("phenotype", "icd_version", "icd_code"))
    known = matched.filter(matched.match != "not ICD")
    same_version = table.icd_version.isnull() | (table.icd_version == known.icd_version)
    found = known.left_join(table, [known.icd_code == table.icd_code, same_version])
    names = phenotype_names(codes)
    labels = {f"label_{c}": (found.phenotype == name).any().fill_null(False) for c, name in enumerate(names)}
    return found.group_by("hadm_id").agg(**labels)


def count_matches(matched: ir.Table) -> ir.Table:
    """Return `match` and `n_diagnoses`: how many diagnoses `match_diagnoses` found of each kind."""
    return matched.group_by("match").agg(n_diagnoses=matched.n_diagnoses.sum())


def _listed_code(diagnoses: ir.Table, codes: pl.DataFrame, is_in: _IsIn) -> ir.StringValue:
    """Return the longest listed code of its version that each `code` equals or, if allowed, begins with."""
    code, version = diagnoses.code, diagnoses.icd_version
    length = pl.when("with_longer").then(pl.col("icd_code").str.len_chars())
    groups = codes.group_by("icd_version", length=length).agg(pl.col("icd_code").unique().sort())
    cases = []
    for of_version, start, listed in groups.sort("length", descending=True, nulls_last=False).iter_rows():
        found = code if start is None else code.substr(0, start)
        is_listed = is_in(found, listed)
        if of_version is not None:
            is_listed &= version == of_version
        if start is not None:
            is_listed &= code.length() <= _LENGTHS[of_version][1]
        cases.append((is_listed, found))
    return ibis.cases(*cases)


def _is_icd(diagnoses: ir.Table) -> ir.BooleanValue:
    """Return whether each `code` looks like an ICD code of its version."""
    code, version = diagnoses.code, diagnoses.icd_version
    looks_right = [
        (version == number)
        & code.substr(0, 1).isin(list(_INITIALS[number]))
        & code.length().between(*_LENGTHS[number])
        for number in _INITIALS
    ]
    return ibis.or_(*looks_right)


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_csv(path, glob=False, schema_overrides=_CSV_COLUMNS).select(*_CSV_COLUMNS)
        return rows.filter(~pl.all_horizontal(pl.all().is_null()))  # a blank line
    except (pl.exceptions.PolarsError, OSError) as error:
        without_data(error)
        columns = ", ".join(_CSV_COLUMNS)
        raise InputError(f"{path} is not a CSV with the columns {columns}; write it in that form") from error


def _read_yaml(path: Path) -> pl.DataFrame:
    try:
        # BaseLoader keeps every code a string: another would read 0031 as the octal number 25
        groups = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        used = {
            name: group["codes"]
            for name, group in groups.items()
            if group["use_in_benchmark"].lower() == "true"
        }
        rows = [(name, None, code) for name, listed in used.items() for code in listed]
        if not all(isinstance(listed, list) for listed in used.values()):
            raise TypeError("codes is not a list")
        if not all(isinstance(code, str) for *_, code in rows):
            raise TypeError("a code is not a string")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        form = "name: {use_in_benchmark: true, codes: [...]}"
        raise InputError(f"{path} is not a YAML file of the form {form}; write it in that form") from None
    return pl.DataFrame(rows, schema=_CSV_COLUMNS, orient="row")
