"""Is everyone served alike? Macro PRAUC, AUROC and sensitivity of groups of patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, beside_each_other, macro_mean
from drfuse.evaluation.metrics import Counts, prauc_auroc, resample

UNKNOWN = "unknown"
FEW = 50
"""Positive labels below which a group's numbers say little."""
_AGE_BANDS = {18: "18-44", 45: "45-64", 65: "65-79", 80: "80+"}  # by the age where each begins


@dataclass(frozen=True)
class GroupMetrics:
    """How well the stays of one group are predicted.

    Attributes:
        attribute: What the group is by: `age`, say.
        group: Its name.
        n_stays: Its stays.
        n_positive: Their positive labels, of all phenotypes together.
        few: Whether the median phenotype has so few of those (under 50) that the numbers say little.
        prauc_macro: Mean PRAUC over the phenotypes that the group has. It rises with their prevalence: groups
            with other prevalences are not to be ranked by it.
        auroc_macro: Mean AUROC over the phenotypes that the group has a positive and a negative of.
        tpr_macro: Mean true positive rate over the phenotypes that the group has.
        tpr_gap: Its mean difference from that of all stays, over the same phenotypes; below 0 the group's
            patients are overlooked more often.
    """

    attribute: str
    group: str
    n_stays: int
    n_positive: int
    few: bool
    prauc_macro: Estimate
    auroc_macro: Estimate
    tpr_macro: Estimate
    tpr_gap: Estimate


@dataclass(frozen=True)
class Subgroups:
    """How well groups of patients are predicted.

    Attributes:
        specificity: At which true positive rates are taken.
        tpr_macro: Mean true positive rate over the phenotypes, of all stays.
        tpr_spread: By attribute, the largest less the smallest `tpr_gap` of its groups; `unknown` and those
            with few positives are left out. NaN with less than two others. It is never negative, so its
            interval lies above 0 even where all are served alike.
        groups: The groups, attribute by attribute.
    """

    specificity: float
    tpr_macro: Estimate
    tpr_spread: dict[str, Estimate]
    groups: list[GroupMetrics]


def groups_of(stays: pl.DataFrame) -> pl.DataFrame:
    """Return the group of each stay by `age`, `sex`, `race` and `admission`, in the order of the stays.

    Nulls, and values that fit no group of `definitions/groups.csv`, are `unknown`.

    Args:
        stays: With `age` (years), `gender`, `race` and `admission_type` as `stays.parquet` has them.

    Raises:
        InputError: If a column is missing.

    >>> groups_of(
    ...     pl.DataFrame({"age": [67], "gender": ["F"], "race": ["ASIAN - KOREAN"], "admission_type": [None]})
    ... ).row(0)
    ('65-79', 'female', 'Asian', 'unknown')
    """
    if absent := sorted({"age", "gender", "race", "admission_type"} - set(stays.columns)):
        raise InputError(f"the stays have no {', '.join(absent)}; prepare the cohort again")
    table = pl.read_csv((files("drfuse.evaluation") / "definitions" / "groups.csv").read_bytes())
    band = pl.lit(UNKNOWN)
    for youngest, name in _AGE_BANDS.items():
        band = pl.when(pl.col("age") >= youngest).then(pl.lit(name)).otherwise(band)
    columns = [band.cast(pl.Enum([*_AGE_BANDS.values(), UNKNOWN])).alias("age")]
    for (attribute,), rules in table.group_by("attribute", maintain_order=True):
        text, found = pl.col(rules["column"][0]).cast(pl.String), pl.lit(UNKNOWN)
        for prefix, group in rules.select("prefix", "group").iter_rows():
            found = pl.when(text.str.starts_with(prefix)).then(pl.lit(group)).otherwise(found)
        names = [*rules["group"].unique(maintain_order=True), UNKNOWN]
        columns.append(found.cast(pl.Enum(names)).alias(str(attribute)))
    return stays.select(columns)


def subgroups(
    labels: ArrayLike,
    scores: ArrayLike,
    attributes: pl.DataFrame,
    units: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    specificity: float = 0.9,
) -> Subgroups:
    """Return how well each group of stays is predicted, with bootstrap intervals.

    A phenotype's threshold is the lowest score that leaves at least the share `specificity` of the negatives
    of all stays at or below it; every group shares it, and the resamples keep it. The gap is that of equal
    opportunity (Hardt et al., NeurIPS 2016): the true positive rate against that of all stays. All groups are
    measured on the same resamples.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C), higher for likelier; or those of S seeds (S, n, C), whose means are measured.
        attributes: The group of each stay, a column an attribute, as `groups_of` returns them.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: How many resamples.
        seed: Seed of the draws.
        specificity: Above 0, up to 1.

    Raises:
        InputError: If `specificity` is not above 0 and up to 1.
    """
    if not 0 < specificity <= 1:
        raise InputError(f"specificity is {specificity}; expected a number above 0, up to 1")
    present, given = beside_each_other(labels, scores)
    caught = present * (given > _thresholds(present, given, specificity))
    once: list[Counts] = [np.ones((1, len(present)), np.uint8)]
    blocks = list(resample(units, n_resamples, seed))
    overall = [_rates(caught, present, counts) for counts in (once, blocks)]
    groups: list[GroupMetrics] = []
    gaps: list[NDArray[np.float64]] = []  # of each group, on the stays as they are and on the resamples
    for attribute, group, rows in _members(attributes):
        measured, resampled = (
            _measure(present[rows], given[rows], caught[rows], [block.T[rows].T for block in counts], rates)
            for counts, rates in zip((once, blocks), overall, strict=True)
        )
        n_positive = np.asarray(labels)[rows].sum(axis=0)
        estimates = [Estimate.of(*pair) for pair in zip(measured[:, 0], resampled, strict=True)]
        few = bool(np.median(n_positive) < FEW)
        one = GroupMetrics(attribute, group, len(rows), int(n_positive.sum()), few, *estimates)
        groups.append(one)
        gaps.append(np.append(measured[-1], resampled[-1]))
    spread = {}
    for attribute in attributes.columns:
        compared = [
            gap
            for one, gap in zip(groups, gaps, strict=True)
            if one.attribute == attribute and one.group != UNKNOWN and not one.few
        ]
        values = np.ptp(compared, axis=0) if len(compared) > 1 else np.array([np.nan])
        spread[attribute] = Estimate.of(values[0], values[1:])
    tpr, tprs = (macro_mean(rates) for rates in overall)
    return Subgroups(specificity, Estimate.of(tpr[0], tprs), spread, groups)


def _members(attributes: pl.DataFrame) -> Iterator[tuple[str, str, NDArray[np.intp]]]:
    """Yield the attribute, the name and the rows of each group that has any."""
    for attribute in attributes.columns:
        of_stays = attributes[attribute]
        for group in of_stays.unique().sort():
            yield attribute, str(group), np.flatnonzero((of_stays == group).to_numpy())


def _thresholds(labels: NDArray[np.float64], scores: NDArray[Any], specificity: float) -> NDArray[np.float64]:
    """Return each phenotype's threshold (C,); without a negative every stay is above it."""
    return np.array(
        [
            np.quantile(negatives, specificity, method="inverted_cdf") if len(negatives) else -np.inf
            for negatives in (scores[labels[:, c] == 0, c] for c in range(labels.shape[1]))
        ]
    )


def _measure(
    labels: NDArray[np.float64],
    scores: NDArray[Any],
    caught: NDArray[np.float64],
    blocks: Sequence[Counts],
    overall: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return macro PRAUC, AUROC, true positive rate and its gap to that of all stays (R, C), as (4, R)."""
    rates = _rates(caught, labels, blocks)
    return np.stack(
        [macro_mean(one) for one in (*prauc_auroc(labels, scores, blocks), rates, rates - overall)]
    )


def _rates(
    caught: NDArray[np.float64], labels: NDArray[np.float64], blocks: Sequence[Counts]
) -> NDArray[np.float64]:
    """Return the true positive rate of each resample and phenotype (R, C); NaN without a positive."""
    weights = (block.astype(np.float64) for block in blocks)
    with np.errstate(invalid="ignore"):
        return np.concatenate([(counts @ caught) / (counts @ labels) for counts in weights])
