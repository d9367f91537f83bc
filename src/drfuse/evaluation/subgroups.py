"""How well each group of patients is predicted: macro PRAUC, AUROC and true positive rate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, macro_of_seeds, stack_seeds
from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import Counts, mask_interval, original_and_resamples, too_few

UNKNOWN = "unknown"
FEW = 50
"""With fewer positive labels, a group's numbers say little."""
_AGE_BANDS = {18: "18-44", 45: "45-64", 65: "65-79", 80: "80+"}  # by their youngest age


@dataclass(frozen=True)
class GroupMetrics:
    """How well the stays of one group are predicted.

    Attributes:
        attribute: What patients are grouped by, such as `age`.
        group: The group's name.
        n_stays: Number of stays.
        n_positive: Number of positives, of all labels together.
        few: Whether the median label has so few positives (under 50) that the numbers say little.
        auroc_macro: Mean AUROC over the labels of which the group has a positive and a negative.
        auroc_gap: Mean difference in AUROC from all other stays, over the labels that both have.
        prauc_macro: Mean PRAUC over the labels that the group has. It rises with prevalence, so it cannot
            rank groups of different prevalence. In small groups it is too high by its `bias`.
        tpr_macro: Mean true positive rate over the labels that the group has.
        tpr_gap: Mean difference in true positive rate from all other stays, over the labels that both have;
            below 0, the group's patients are missed more often.
    """

    attribute: str
    group: str
    n_stays: int
    n_positive: int
    few: bool
    auroc_macro: Estimate
    auroc_gap: Estimate
    prauc_macro: Estimate
    tpr_macro: Estimate
    tpr_gap: Estimate


@dataclass(frozen=True)
class Subgroups:
    """How well groups of patients are predicted.

    Attributes:
        specificity: The specificity at which true positive rates are measured.
        tpr_macro: Mean true positive rate of all stays, over the labels.
        groups: The groups, attribute by attribute.
    """

    specificity: float
    tpr_macro: Estimate
    groups: list[GroupMetrics]


def groups_of(stays: pl.DataFrame) -> pl.DataFrame:
    """Return the group of each stay by `age`, `sex`, `race` and `admission`, in the order of the stays.

    Reads `age` (years), `gender`, `race` and `admission_type` as in `stays.parquet`. Nulls, and values that
    fit no group in `definitions/groups.csv`, are `unknown`.

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
    intervals: Intervals = "half-sampling",
) -> Subgroups:
    """Return how well each group of stays is predicted, with 95 % intervals.

    A label's threshold is the lowest score with at least the share `specificity` of all stays' negatives at
    or below it; all groups share it, and each resample has its own. Gaps compare a group with all other
    stays, because a total that includes the group would hide part of the gap. The gap of the true positive
    rate is equal opportunity (Hardt et al., NeurIPS 2016). All groups are measured on the same resamples.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C), higher for likelier; or those of S seeds (S, n, C), whose results are averaged.
        attributes: The group of each stay, one column per attribute, as `groups_of` returns them.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        specificity: Above 0, up to 1.
        intervals: How to draw the resamples.

    Raises:
        InputError: If `specificity` is out of range.
    """
    if not 0 < specificity <= 1:
        raise InputError(f"specificity is {specificity}; expected a number above 0, up to 1")
    labels, units = np.asarray(labels), np.asarray(units)
    present, given, n_seeds = stack_seeds(labels, scores)
    blocks = original_and_resamples(units, n_resamples, seed, intervals)
    members = list(_members(attributes))
    membership = np.zeros((len(members) + 1, len(present)))
    for g, (_, _, rows) in enumerate(members):
        membership[g, rows] = 1
    membership[-1] = 1  # all stays
    detected, positives = _detected(present, given, membership, blocks, specificity)

    def estimate(found: NDArray[np.float64], few: NDArray[np.bool_], bounded: bool = True) -> Estimate:
        """Return the macro mean of values on all stays, followed by those in each resample (1 + R, S C)."""
        of_seeds = found.reshape(len(found), n_seeds, -1)
        macro = macro_of_seeds(of_seeds[0], of_seeds[1:])
        return mask_interval(Estimate.of(*macro, intervals, bounded), few)

    groups = []
    for g, (attribute, group, rows) in enumerate(members):
        others = np.flatnonzero(membership[g] == 0)
        prauc, auroc = _measure(present, given, rows, blocks)
        _, auroc_of_others = _measure(present, given, others, blocks)
        rate = _ratio(detected[g], positives[g])
        rate_of_others = _ratio(detected[-1] - detected[g], positives[-1] - positives[g])
        n_positive = labels[rows].sum(axis=0)
        few, few_others = (too_few(labels[some], units[some]) for some in (rows, others))
        groups.append(
            GroupMetrics(
                attribute=attribute,
                group=group,
                n_stays=len(rows),
                n_positive=int(n_positive.sum()),
                few=bool(np.median(n_positive) < FEW),
                auroc_macro=estimate(auroc, few),
                auroc_gap=estimate(auroc - auroc_of_others, few | few_others, bounded=False),
                prauc_macro=estimate(prauc, few),
                tpr_macro=estimate(rate, few),
                tpr_gap=estimate(rate - rate_of_others, few | few_others, bounded=False),
            )
        )
    of_all = estimate(_ratio(detected[-1], positives[-1]), too_few(labels, units))
    return Subgroups(specificity, of_all, groups)


def _members(attributes: pl.DataFrame) -> Iterator[tuple[str, str, NDArray[np.intp]]]:
    """Yield the attribute, name and rows of each group that is not empty."""
    for attribute in attributes.columns:
        of_stays = attributes[attribute]
        for group in of_stays.unique().sort():
            yield attribute, str(group), np.flatnonzero((of_stays == group).to_numpy())


def _measure(
    labels: NDArray[np.float64], scores: NDArray[Any], rows: NDArray[np.intp], blocks: Sequence[Counts]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC and AUROC of the given rows in each resample, both (R, C)."""
    return prauc_auroc(labels[rows], scores[rows], [block.T[rows].T for block in blocks])


def _detected(
    labels: NDArray[np.float64],
    scores: NDArray[Any],
    membership: NDArray[np.float64],
    blocks: Sequence[Counts],
    specificity: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the positives above the threshold, and all positives, by group, resample and label (G, R, C).

    `membership` (G, n) is 1 where a row belongs to a group.
    """
    n_drawn, n_labels = sum(map(len, blocks)), labels.shape[1]
    detected, positives = np.empty((2, len(membership), n_drawn, n_labels))
    for c in range(n_labels):
        negative, positive = np.flatnonzero(labels[:, c] == 0), np.flatnonzero(labels[:, c] == 1)
        negative = negative[np.argsort(scores[negative, c])]
        start = 0
        for block in blocks:
            at = slice(start, start := start + len(block))
            below = np.cumsum(block[:, negative], axis=1, dtype=np.int64)
            threshold = np.full(len(block), -np.inf)
            if len(negative):
                enough = below >= specificity * below[:, -1:] - 1e-9
                threshold = np.where(below[:, -1] > 0, scores[negative[enough.argmax(axis=1)], c], -np.inf)
            drawn = block[:, positive].astype(np.float64)
            positives[:, at, c] = membership[:, positive] @ drawn.T
            above = drawn * (scores[positive, c] > threshold[:, None])
            detected[:, at, c] = membership[:, positive] @ above.T
    return detected, positives


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
