"""What a cohort leaves out: counted for the manifest, and logged for the user."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from drfuse.errors import InputError

logger = logging.getLogger(__name__)

COUNTS = (
    "rejected_rows",
    "unreadable_images",
    "undated_images",
    "diagnoses",
    "stays_with_unknown",
    "phenotypes_without_positive",
)
"""The keys of `Manifest.warnings`."""


def count_left_out(
    stays: Path,
    labels: Sequence[str],
    rejected_rows: Mapping[str, int],
    unreadable_images: Sequence[str],
    undated_images: int,
    diagnoses: Mapping[str, int],
) -> dict[str, Any]:
    """Return the warnings of the manifest.

    `stays` is the `stays.parquet` with its label columns, `rejected_rows` counts by file, and
    `diagnoses` by `Match`.
    """
    written = pl.scan_parquet(stays, glob=False)
    columns = {"in_hospital_mortality": "in_hospital_mortality", "los": "los"}
    if labels:
        columns = {"phenotypes": labels[0], **columns}
    unknown = [pl.col(column).is_null().sum().alias(target) for target, column in columns.items()]
    occurs = written.select(pl.col(labels).any()).collect().row(0) if labels else ()
    counts = (
        dict(sorted(rejected_rows.items())),
        list(unreadable_images),
        undated_images,
        dict(diagnoses),
        written.select(unknown).collect().row(0, named=True),
        [name for name, found in zip(labels, occurs, strict=True) if not found],
    )
    return dict(zip(COUNTS, counts, strict=True))


def report_left_out(warnings: Mapping[str, Any], strict: bool) -> None:
    """Log the warnings of a manifest.

    Raises:
        InputError: If `strict`, and rows or images were left out.
    """
    problems = [f"{count} rows of {name} do not parse" for name, count in warnings["rejected_rows"].items()]
    if unreadable := warnings["unreadable_images"]:
        problems.append(f"{len(unreadable)} images are missing or unreadable")
    if undated := warnings["undated_images"]:
        problems.append(f"{undated} images have no readable StudyDate and StudyTime")
    if problems and strict:
        raise InputError(f"{'; '.join(problems)}; fix them, or leave out --strict to go on without them")
    for problem in problems:
        logger.warning("%s; left out and counted in manifest.json", problem)
    for target, count in warnings["stays_with_unknown"].items():
        if count:
            logger.warning("%d stays have unknown %s and are left out when predicting it", count, target)
    if unlisted := warnings["diagnoses"].get("not ICD"):
        logger.warning("%d diagnoses are not ICD-9-CM or ICD-10-CM codes and give no label", unlisted)
    if without_positive := warnings["phenotypes_without_positive"]:
        logger.warning("no stay has %s", ", ".join(without_positive))
