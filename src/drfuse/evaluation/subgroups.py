"""How well each group of patients is predicted: macro PRAUC, AUROC, true and false positive rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, groupby, product
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, macro_of_seeds, stack_seeds
from drfuse.evaluation.ranking import Ranking, compiled, map_blocks, prauc_auroc_of_groups, rank
from drfuse.evaluation.resampling import LANES, Counts, Resamples, mask_interval, too_few

UNKNOWN = "unknown"
GROUPED_BY = ("age", "gender", "race", "admission_type")
"""The columns of `stays.parquet` that patients are grouped by."""
FEW = 50
"""With fewer positive labels, a group's numbers say little."""
PAIRED = " x "
"""Stands between the names of two attributes."""
Group = tuple[str, str, NDArray[np.intp]]
"""The attribute, name and rows of a group, in ascending order."""
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
        auroc_gap: Mean difference in AUROC from all other stays, over the labels that both have; NaN for a
            pair, as it would take a pass over all other stays for each pair.
        prauc_macro: Mean PRAUC over the labels that the group has. It rises with prevalence, so it cannot
            rank groups of different prevalence. In small groups it is too high by its `bias`.
        tpr_macro: Mean true positive rate over the labels that the group has.
        tpr_gap: Mean difference in true positive rate from all other stays, over the labels that both have;
            below 0, the group's patients are missed more often.
        fpr_macro: Mean false positive rate, at the same thresholds.
        fpr_gap: Mean difference in false positive rate from all other stays; above 0, the group's patients
            are suspected wrongly more often.
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
    fpr_macro: Estimate
    fpr_gap: Estimate

    @property
    def is_pair(self) -> bool:
        """Whether it is of two attributes, such as `sex x race`."""
        return PAIRED in self.attribute


@dataclass(frozen=True)
class Subgroups:
    """How well groups of patients are predicted.

    Attributes:
        specificity: The specificity at which true and false positive rates are measured.
        tpr_macro: Mean true positive rate of all stays, over the labels.
        fpr_macro: Mean false positive rate of all stays: 1 - `specificity`, or less if scores are tied.
        groups: The groups, attribute by attribute, then those of pairs of attributes.
    """

    specificity: float
    tpr_macro: Estimate
    fpr_macro: Estimate
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
    if absent := sorted(set(GROUPED_BY) - set(stays.columns)):
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


def group_by_radiograph(has_cxr: ArrayLike) -> pl.DataFrame:
    """Return the group of each stay (n,) by `has_cxr`; without a column if all or none have a radiograph.

    >>> group_by_radiograph([True, False])["has_cxr"].to_list()
    ['with CXR', 'without CXR']
    """
    known = np.asarray(has_cxr, bool)
    if known.all() or not known.any():
        return pl.DataFrame()
    names = ["with CXR", "without CXR"]
    return pl.DataFrame({"has_cxr": pl.Series(np.where(known, *names), dtype=pl.Enum(names))})


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
    rate is equal opportunity, and with that of the false positive rate equalized odds (Hardt et al., NeurIPS
    2016). All groups are measured on the same resamples.

    Groups of two attributes are measured too, such as women of one race, if they are smaller than either and
    not `few`.

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
    resamples = Resamples.draw(units, n_resamples, seed, intervals)
    return subgroups_in(resamples, labels, scores, attributes, units, specificity, intervals)


def subgroups_in(
    resamples: Resamples,
    labels: ArrayLike,
    scores: ArrayLike,
    attributes: pl.DataFrame,
    units: ArrayLike,
    specificity: float = 0.9,
    intervals: Intervals = "half-sampling",
) -> Subgroups:
    """Return what `subgroups` does, in resamples that were drawn before."""
    if not 0 < specificity <= 1:
        raise InputError(f"specificity is {specificity}; expected a number above 0, up to 1")
    labels, units = np.asarray(labels), np.asarray(units)
    present, given, n_seeds = stack_seeds(labels, scores)
    singles = list(_members(attributes))
    members = [*singles, *_pairs(singles, labels)]
    groups = np.zeros((len(members) + 1, len(present)), bool)
    for g, (_, _, rows) in enumerate(members):
        groups[g, rows] = True
    groups[-1] = True  # all stays
    rankings = rank(present, given)
    wanted = np.concatenate([groups[:-1], ~groups[: len(singles)]])
    distinct, inverse = np.unique(wanted, axis=0, return_inverse=True)  # all who are not women are men
    at = inverse.ravel()
    prauc, auroc = prauc_auroc_of_groups(rankings, distinct, resamples)
    detected, positives, raised, negatives = _flagged(rankings, groups, resamples, specificity)

    def estimate(found: NDArray[np.float64], few: NDArray[np.bool_], bounded: bool = True) -> Estimate:
        """Return the macro mean of values on all stays, followed by those in each resample (1 + R, S C)."""
        of_seeds = found.reshape(len(found), n_seeds, -1)
        macro = macro_of_seeds(of_seeds[0], of_seeds[1:])
        return mask_interval(Estimate.of(*macro, intervals, bounded), few)

    measured = []
    for g, (attribute, group, rows) in enumerate(members):
        others = np.flatnonzero(~groups[g])
        tpr, fpr = _ratio(detected[g], positives[g]), _ratio(raised[g], negatives[g])
        tpr_of_others = _ratio(detected[-1] - detected[g], positives[-1] - positives[g])
        fpr_of_others = _ratio(raised[-1] - raised[g], negatives[-1] - negatives[g])
        own_auroc = auroc[at[g]]
        others_auroc = auroc[at[len(members) + g]] if g < len(singles) else np.full_like(own_auroc, np.nan)
        n_positive = labels[rows].sum(axis=0)
        few, few_others = (too_few(labels[some], units[some]) for some in (rows, others))
        measured.append(
            GroupMetrics(
                attribute=attribute,
                group=group,
                n_stays=len(rows),
                n_positive=int(n_positive.sum()),
                few=_is_few(n_positive),
                auroc_macro=estimate(own_auroc, few),
                auroc_gap=estimate(own_auroc - others_auroc, few | few_others, bounded=False),
                prauc_macro=estimate(prauc[at[g]], few),
                tpr_macro=estimate(tpr, few),
                tpr_gap=estimate(tpr - tpr_of_others, few | few_others, bounded=False),
                fpr_macro=estimate(fpr, few),
                fpr_gap=estimate(fpr - fpr_of_others, few | few_others, bounded=False),
            )
        )
    few = too_few(labels, units)
    return Subgroups(
        specificity,
        tpr_macro=estimate(_ratio(detected[-1], positives[-1]), few),
        fpr_macro=estimate(_ratio(raised[-1], negatives[-1]), few),
        groups=measured,
    )


def _members(attributes: pl.DataFrame) -> Iterator[Group]:
    """Yield each group that is not empty."""
    for attribute in attributes.columns:
        of_stays = attributes[attribute]
        for group in of_stays.unique().sort():
            yield attribute, str(group), np.flatnonzero((of_stays == group).to_numpy())


def _pairs(members: Sequence[Group], labels: NDArray[Any]) -> Iterator[Group]:
    """Yield the groups of two attributes that are smaller than either and not `few`."""
    by_attribute = {attribute: list(found) for attribute, found in groupby(members, itemgetter(0))}
    for first, second in combinations(by_attribute, 2):
        for (_, one, rows), (_, other, others) in product(by_attribute[first], by_attribute[second]):
            both = np.intersect1d(rows, others, assume_unique=True)
            if len(both) < min(len(rows), len(others)) and not _is_few(labels[both].sum(axis=0)):
                yield f"{first}{PAIRED}{second}", f"{one}, {other}", both


def _is_few(n_positive: NDArray[Any]) -> bool:
    """Return whether the median label has too few positives (C,) for a group's numbers to say much."""
    return bool(np.median(n_positive) < FEW)


def _flagged(
    rankings: Sequence[Ranking],
    groups: NDArray[np.bool_],
    resamples: Resamples,
    specificity: float,
) -> NDArray[np.float64]:
    """Return positives above the threshold, all positives, and the same of negatives (4, G, R, C).

    `groups` (G, n) says which rows belong to each group.
    """
    found = map_blocks(_kernel(), rankings, resamples, (len(groups), 4), groups, specificity)
    return np.concatenate(list(found)).transpose(3, 2, 0, 1)


@cache
def _kernel() -> Callable[..., None]:
    """Return `_flag` compiled."""
    return compiled(_flag, np.ones((1, 1), bool), 0.9, np.empty((1, 4, LANES)))


def _flag(  # noqa: PLR0912 - numba compiles one function
    order: NDArray[np.integer[Any]],
    positive: NDArray[np.bool_],
    closes: NDArray[np.bool_],
    counts: Counts,
    groups: NDArray[np.bool_],
    specificity: float,
    found: NDArray[np.float64],
) -> None:
    """Write the counts of `_flagged` of one label into `found` (G, 4, 64), as doubles.

    The threshold of a resample, a column of `counts` (n, 64) in the order of the ranking, is the score of the
    first negative, from the lowest score on, with enough negatives at or below it. Without negatives, all
    positives are above it.
    """
    most = counts.max()
    negatives, below = np.zeros((2, LANES))
    for i in range(len(order)):
        if not positive[i]:
            for lane in range(LANES):
                negatives[lane] += counts[i, lane]
    enough = specificity * negatives - 1e-9
    above = np.where(negatives > 0, -1, len(order))  # so many of the order lie above the threshold
    missing = 0.0  # so many more are needed at least
    seen = False  # whether any negative lies at or below the current score
    for i in range(len(order) - 1, -1, -1):
        if not positive[i]:
            seen = True
            for lane in range(LANES):
                below[lane] += counts[i, lane]
            missing -= most
        if seen and missing <= 0 and (i == 0 or closes[i - 1]):
            missing = np.inf
            for lane in range(LANES):
                if above[lane] < 0:
                    if below[lane] >= enough[lane]:
                        above[lane] = i
                    else:
                        missing = min(missing, enough[lane] - below[lane])
            if missing == np.inf:
                break
    found[:] = 0.0
    for g in range(len(groups)):
        for place in range(len(order)):
            if groups[g, order[place]]:
                kind = 0 if positive[place] else 2
                for lane in range(LANES):
                    drawn = counts[place, lane]
                    found[g, kind, lane] += drawn * (place < above[lane])
                    found[g, kind + 1, lane] += drawn


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
