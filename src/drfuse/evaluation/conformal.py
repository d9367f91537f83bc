"""Conformal prediction sets: for each label absent, present, both or neither, with promised coverage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, mean_share
from drfuse.evaluation.resampling import MIN_UNITS, mask_interval, number_units

COVERAGE = 0.9
"""The share of stays whose set is to contain their outcome."""


@dataclass(frozen=True)
class Limits:
    """Which outcomes a prediction set contains, by the logit.

    Attributes:
        absent_up_to: The set contains absence up to this logit, by label (C,); infinite if always.
        present_from: The set contains presence from this logit on, by label (C,); minus infinity if always.
    """

    absent_up_to: list[float]
    present_from: list[float]

    @classmethod
    def learn(cls, labels: NDArray[Any], logits: NDArray[np.float64], coverage: float) -> "Limits":
        """Return the limits of held-out stays, from labels and logits (n, C)."""
        columns = list(zip(labels.T, logits.T, strict=True))
        return cls(
            absent_up_to=[-_outlier(-z[y == 0], 1 - coverage) for y, z in columns],
            present_from=[_outlier(z[y == 1], 1 - coverage) for y, z in columns],
        )


@dataclass(frozen=True)
class ConformalSets:
    """Which outcomes the prediction set of a stay contains, with or without radiograph.

    Attributes:
        coverage: The promised coverage: of the stays with each label and of those without it, among stays
            with a radiograph and among stays without.
        with_cxr: The limits of stays with a radiograph.
        without_cxr: The limits of stays without.
    """

    coverage: float
    with_cxr: Limits
    without_cxr: Limits

    @classmethod
    def learn(
        cls, labels: ArrayLike, logits: ArrayLike, has_cxr: ArrayLike, coverage: float = COVERAGE
    ) -> "ConformalSets":
        """Return the sets of held-out stays, those of the validation split.

        Held-out stays are compared by kind: same outcome, and all with or all without a radiograph. A set
        leaves an outcome out if the stay's logit would be among the share 1 - `coverage` of that kind that
        fits the outcome worst (Mondrian, or label-conditional, split conformal prediction: Vovk et al.,
        Algorithmic Learning in a Random World 2005, Section 4.5). With fewer than `coverage` /
        (1 - `coverage`) stays of a kind, 9 at 90 %, every set contains its outcome.

        Args:
            labels: (n, C), 0 or 1.
            logits: (n, C), or any scores that rise with the probability.
            has_cxr: Whether each stay has a radiograph (n,).
            coverage: Above 0 and below 1.

        Raises:
            InputError: If `coverage` is out of range.
        """
        if not 0 < coverage < 1:
            raise InputError(f"coverage is {coverage}; expected a number above 0 and below 1")
        known, given, seen = np.asarray(labels), np.asarray(logits, np.float64), np.asarray(has_cxr, bool)
        with_cxr, without_cxr = (Limits.learn(known[rows], given[rows], coverage) for rows in (seen, ~seen))
        return cls(coverage, with_cxr, without_cxr)

    def contain(self, logits: ArrayLike, has_cxr: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether the sets contain absence, and whether presence, both (N, C).

        `logits` are (N, C), `has_cxr` (N,).
        """
        given, seen = np.asarray(logits), np.asarray(has_cxr, bool)[:, None]
        return (
            given <= np.where(seen, self.with_cxr.absent_up_to, self.without_cxr.absent_up_to),
            given >= np.where(seen, self.with_cxr.present_from, self.without_cxr.present_from),
        )


@dataclass(frozen=True)
class SetCoverage:
    """How often prediction sets contain the outcome, of one label or the mean over the labels.

    Attributes:
        stays: `all`, or `without CXR`.
        phenotype: The label, or `macro`.
        n_positive: Stays with the label; of all labels together for `macro`.
        n_negative: Stays without it.
        positives: Share of the stays with the label whose set contains presence.
        negatives: Share of the stays without the label whose set contains absence.
        decisive: Share of the stays whose set contains one outcome alone.
        undecided: Share of the stays whose set contains both; the other sets are empty.
    """

    stays: str
    phenotype: str
    n_positive: int
    n_negative: int
    positives: Estimate
    negatives: Estimate
    decisive: Estimate
    undecided: Estimate


@dataclass(frozen=True)
class Conformal:
    """Prediction sets, and their coverage on a test set.

    Attributes:
        sets: The sets.
        measured: Their coverage: of all stays, then of those without a radiograph, label by label after the
            mean over the labels.
    """

    sets: ConformalSets
    measured: list[SetCoverage]


def measure_sets(
    sets: ConformalSets,
    labels: ArrayLike,
    logits: ArrayLike,
    has_cxr: ArrayLike,
    names: Sequence[str],
    units: ArrayLike,
) -> Conformal:
    """Return the coverage of prediction sets, with 95 % intervals over units in closed form.

    Intervals are Wilson's for the effective number of independent stays. They say how far the coverage on
    this test set may lie from that on all stays to come; that the sets were learned from a finite validation
    split is not in them (docs/statistics.md). Labels and sums of fewer than 5 units have no interval.

    Args:
        sets: The sets, learned from other stays.
        labels: (n, C), 0 or 1.
        logits: (n, C).
        has_cxr: Whether each stay has a radiograph (n,).
        names: The C names.
        units: The unit of each stay (n,): the subject.
    """
    present, without = np.asarray(labels) == 1, ~np.asarray(has_cxr, bool)
    absence, presence = sets.contain(logits, has_cxr)
    unit_of_row, n_units = number_units(units)
    measured = []
    for stays, rows in (("all", np.ones(len(present), bool)), ("without CXR", without)):
        if not rows.any():
            continue
        at = (np.ones(rows.sum()), (unit_of_row[rows], np.arange(rows.sum())))
        add_up = csr_array(at, shape=(n_units, rows.sum()))
        y, has_absence, has_presence = present[rows], absence[rows], presence[rows]
        shares = {
            "positives": (y & has_presence, y),
            "negatives": (~y & has_absence, ~y),
            "decisive": (has_absence ^ has_presence, np.ones_like(y)),
            "undecided": (has_absence & has_presence, np.ones_like(y)),
        }
        sums = {
            name: (add_up @ part.astype(np.float64), add_up @ whole.astype(np.float64))
            for name, (part, whole) in shares.items()
        }
        chosen = {"macro": slice(None)} | {name: slice(c, c + 1) for c, name in enumerate(names)}
        measured += [
            SetCoverage(
                stays=stays,
                phenotype=name,
                n_positive=int(y[:, columns].sum()),
                n_negative=int((~y[:, columns]).sum()),
                **{
                    share: _share(part[:, columns], whole[:, columns])
                    for share, (part, whole) in sums.items()
                },
            )
            for name, columns in chosen.items()
        ]
    return Conformal(sets, measured)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Estimate:
    """Return a mean share from sums by unit and label (u, C); no interval from fewer than 5 units of each."""
    return mask_interval(mean_share(part, whole), (whole > 0).sum(axis=0) < MIN_UNITS)


def _outlier(scores: NDArray[Any], share: float) -> float:
    """Return the k-th lowest of scores (m,), where k is `share` of m + 1, rounded down; -inf if k is 0."""
    rank = int(np.floor(share * (len(scores) + 1) + 1e-9))
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank else -np.inf
