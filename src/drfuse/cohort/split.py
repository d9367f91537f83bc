"""Train, validation and test splits by subject; a subject keeps its split when the cohort grows."""

from pathlib import Path

import ibis
import ibis.expr.types as ir
import polars as pl

from drfuse.errors import InputError, MissingInputError, without_data

SPLITS = ("train", "validation", "test")
_SYNONYMS = {"val": "validation", "valid": "validation", "dev": "validation"}


def hash_split(subject_id: ir.IntegerColumn, seed: int) -> ir.StringValue:
    """Return each subject's split, 7:1:2, which depends on the subject and the seed alone.

    It is the SHA-256 of "seed:subject_id", read as a fraction of its range: the first 7 tenths are `train`,
    the next tenth `validation`, the rest `test`. Any engine or language can repeat it.
    """
    digest = (ibis.literal(f"{seed}:") + subject_id.cast("string")).hexdigest("sha256")
    first_digits = digest.substr(0, 13)
    train, validation = (f"{int(share * 16**13):013x}" for share in (0.7, 0.8))
    return ibis.cases(
        (first_digits < train, "train"), (first_digits < validation, "validation"), else_="test"
    )


def read_split_file(path: Path) -> pl.DataFrame:
    """Return the rows (`subject_id`, `split`) of a split file.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If a column is missing, a split has another name, or a subject is in two splits.
    """
    if not path.is_file():
        raise MissingInputError(f"there is no split file {path}; expected a CSV with subject_id and split")
    try:
        rows = pl.read_csv(path, glob=False, schema_overrides={"subject_id": pl.Int64, "split": pl.String})
        rows = rows.select("subject_id", "split").unique()
        rows = rows.filter(~pl.all_horizontal(pl.all().is_null()))  # a blank line
    except (pl.exceptions.PolarsError, OSError) as error:
        without_data(error)
        raise InputError(
            f"{path} is not a CSV with whole numbers in subject_id and names in split; write it in that form"
        ) from error
    rows = rows.with_columns(pl.col("split").str.strip_chars().str.to_lowercase().replace(_SYNONYMS)).unique()
    if unknown := len(set(rows["split"].unique()) - set(SPLITS)):
        raise InputError(
            f"{path} has {unknown} splits of another name; expected {', '.join(SPLITS)} in the column split"
        )
    if repeated := rows.height - rows["subject_id"].n_unique():
        raise InputError(f"{path} puts {repeated} subjects into more than one split; give each subject one")
    return rows


def count_splits(stays: Path) -> dict[str, dict[str, int]]:
    """Return the number of stays, and of stays with a radiograph, of each split in a `stays.parquet`."""
    rows = pl.scan_parquet(stays, glob=False).group_by("split")
    counted = rows.agg(stays=pl.len(), with_cxr=pl.col("has_cxr").sum()).collect()
    found = {row.pop("split"): row for row in counted.iter_rows(named=True)}
    return {split: found.get(split, {"stays": 0, "with_cxr": 0}) for split in SPLITS}
