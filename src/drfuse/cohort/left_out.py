"""What a cohort leaves out: counted for the manifest, and logged for the user."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from drfuse.cohort.manifest import Manifest
from drfuse.errors import InputError

logger = logging.getLogger(__name__)

COUNTS = (
    "rejected_rows",
    "unreadable_images",
    "undated_images",
    "diagnoses",
    "stays_with_unknown",
    "phenotypes_without_positive",
    "stays_that_end_before_they_begin",
    "stays_without",
)
"""The keys of `Manifest.warnings`."""
MOST_WITHOUT = {
    "chart events": 0.5,
    "laboratory results": 0.5,
    "radiograph": 0.95,
    "labels": 0.5,
}
"""The share of stays without something above which there is a warning: in MIMIC-IV, almost every stay has
chart events, most have laboratory results and diagnoses, and some an AP radiograph in their window."""


def count_left_out(
    stays: Path,
    labels: Sequence[str],
    rejected_rows: Mapping[str, int],
    unreadable_images: Sequence[str],
    undated_images: int,
    diagnoses: Mapping[str, int],
    backwards: int = 0,
    unobserved: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the warnings of the manifest.

    `stays` is the `stays.parquet` with its label columns, `rejected_rows` counts by file, and
    `diagnoses` by `Match`. `backwards` stays end before they begin. `unobserved` has counts of stays without
    something, by the names in `MOST_WITHOUT`; those without labels are added.
    """
    written = pl.scan_parquet(stays, glob=False)
    columns = {"in_hospital_mortality": "in_hospital_mortality", "los": "los"}
    if labels:
        columns = {"phenotypes": labels[0], **columns}
    unknown = [pl.col(column).is_null().sum().alias(target) for target, column in columns.items()]
    occurs = written.select(pl.col(labels).any()).collect().row(0) if labels else ()
    values = written.select(unknown).collect().row(0, named=True)
    without = dict(unobserved or {})
    if labels:
        without["labels"] = values["phenotypes"]
    counts = (
        dict(sorted(rejected_rows.items())),
        list(unreadable_images),
        undated_images,
        dict(diagnoses),
        values,
        [name for name, found in zip(labels, occurs, strict=True) if not found],
        backwards,
        without,
    )
    return dict(zip(COUNTS, counts, strict=True))


def report_left_out(manifest: Manifest, strict: bool) -> None:
    """Log the warnings of a manifest, and what its cohort lacks.

    Raises:
        InputError: If `strict`, and rows or images were left out.
    """
    warnings = manifest.warnings
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
    if manifest.phenotypes and len(without_positive) == len(manifest.phenotypes):
        logger.warning(
            "no stay has any of the %d phenotypes; check diagnoses_icd and --phenotypes",
            len(without_positive),
        )
    _report_gaps(manifest)


def _report_gaps(manifest: Manifest) -> None:
    """Log what the stays of a cohort lack, if it is much."""
    warnings = manifest.warnings
    if backwards := warnings["stays_that_end_before_they_begin"]:
        logger.warning("%d stays end before they begin, and are left out", backwards)
    n_stays = manifest.flow[-1].stays
    for what, count in warnings["stays_without"].items():
        if count > MOST_WITHOUT[what] * n_stays:
            logger.warning(
                "%d of %d stays (%.0f %%) have no %s; check that the release is complete",
                count,
                n_stays,
                100 * count / n_stays,
                what,
            )
    if empty := [name for name, split in manifest.splits.items() if not split["stays"]]:
        logger.warning(
            "no stay is in the split %s; choose a different --seed or --split-file to train on this cohort",
            " or ".join(empty),
        )
