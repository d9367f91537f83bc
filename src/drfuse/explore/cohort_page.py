"""Who is in a cohort: counts for the page's drawings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.cohort.arrays import items_a_block
from drfuse.data.cohort import Cohort

_MOST_YEARS = 40  # that have a bar each; more are put together


@dataclass(frozen=True)
class Bar:
    """A bar of a drawing: its name, a count, and the count as a share of what the drawing compares with."""

    name: str
    count: int
    share: float


@dataclass(frozen=True)
class CohortPage:
    """What the page of a cohort shows.

    Attributes:
        flow: By criterion, the stays that are left, and how many it left out.
        splits: By split, stays and those with a radiograph.
        ages: Stays by ten years of age; their share is of the largest bar, also of the next two.
        sexes: Stays by sex.
        years: Stays by year of admission, or by several.
        labels: Stays by label, the most frequent first; their share is of the stays whose label is known.
        observed: By variable, the share of the stays with a value in each hour of the window (H).
        n_hours: H.
    """

    flow: list[tuple[str, int, int]]
    splits: list[Bar]
    ages: list[Bar]
    sexes: list[Bar]
    years: list[Bar]
    labels: list[Bar]
    observed: list[tuple[str, NDArray[np.float64]]]
    n_hours: int

    @classmethod
    def of(cls, cohort: Cohort) -> "CohortPage":
        """Return the counts of a cohort; its hourly values are read once."""
        steps = cohort.manifest.flow
        before = [steps[0].stays, *(step.stays for step in steps)]
        labels = cohort.labels_in_bytes
        known = np.maximum((labels >= 0).sum(axis=0), 1)
        positive = (labels == 1).sum(axis=0)
        prevalence = [
            Bar(name, int(n), float(n / of))
            for name, n, of in zip(cohort.phenotypes, positive, known, strict=True)
        ]
        names = [variable.name.replace("_", " ") for variable in cohort.manifest.variables]
        return cls(
            flow=[
                (step.criterion, step.stays, n - step.stays) for step, n in zip(steps, before, strict=False)
            ],
            splits=[
                Bar(name, of["stays"], of["with_cxr"] / max(of["stays"], 1))
                for name, of in cohort.manifest.splits.items()
            ],
            ages=_binned(cohort, pl.col("age") // 10 * 10, "age", "{} to {}", 10),
            sexes=_bars(_counts(cohort, pl.col("gender"), "gender")),
            years=_years(cohort),
            labels=sorted(prevalence, key=lambda bar: -bar.share),
            observed=list(zip(names, _observed(cohort).T, strict=True)),
            n_hours=cohort.ehr.shape[1],
        )


def _counts(cohort: Cohort, of: pl.Expr, column: str) -> list[tuple[Any, int]]:
    """Return how many stays have each value, in order; nothing if the cohort lacks the column."""
    if column not in cohort.column_names:
        return []
    found = cohort.columns(column).group_by(of.alias("value")).len().sort("value", nulls_last=True)
    return [(value, count) for value, count in found.iter_rows()]


def _binned(cohort: Cohort, of: pl.Expr, column: str, form: str, width: int) -> list[Bar]:
    counts = _counts(cohort, of, column)
    return _bars([(form.format(low, low + width - 1) if low is not None else None, n) for low, n in counts])


def _years(cohort: Cohort) -> list[Bar]:
    year = pl.col("intime").dt.year()
    years = [value for value, _ in _counts(cohort, year, "intime") if value is not None]
    width = next(w for w in (1, 5, 10, 50, 1000) if len(years) < 2 or years[-1] - years[0] < w * _MOST_YEARS)
    return _binned(cohort, year // width * width, "intime", "{}" if width == 1 else "{} to {}", width)


def _bars(counts: Sequence[tuple[Any, int]]) -> list[Bar]:
    largest = max((count for _, count in counts), default=1)
    return [Bar("unknown" if name is None else str(name), n, n / largest) for name, n in counts]


def _observed(cohort: Cohort) -> NDArray[np.float64]:
    """Return the share of stays with a value (H, V), of those whose window has the hour."""
    n_hours, n_variables = cohort.ehr.shape[1:]
    found = np.zeros((n_hours, n_variables), np.int64)
    block = items_a_block(cohort.ehr.shape[1:], np.float32)
    for start in range(0, len(cohort), block):
        found += np.isfinite(cohort.ehr[start : start + block]).sum(axis=0)
    cohort.release()
    present = (cohort.n_hours[:, None] > np.arange(n_hours)).sum(axis=0)
    shares: NDArray[np.float64] = found / np.maximum(present, 1)[:, None]
    return shares
