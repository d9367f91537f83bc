"""The table of stays: filtered, sorted, and read as far as it is scrolled."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self
from urllib.parse import urlencode

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.errors import InputError, check_choice
from drfuse.explore.opened import Floats, Opened, Predicted

_OF_A_STAY = {
    "stay_id": "stay",
    "subject_id": "subject",
    "split": "split",
    "age": "age",
    "gender": "sex",
    "n_hours": "hours",
    "los": "days in ICU",
    "in_hospital_mortality": "died",
    "has_cxr": "radiograph",
}
_OF_A_RUN = {
    "label": "label",
    "present": "has it",
    "probability": "probability",
    "difference": "radiograph adds",
    "error": "error",
}
MOST_ROWS = 500
"""The most rows that one request gets."""


@dataclass(frozen=True)
class View:
    """Which stays are shown, and in which order; it is in the address of a page.

    Attributes:
        run: Name of the run; empty for the first.
        split: Only stays of this split.
        cxr: Only stays with (`yes`) or without (`no`) a radiograph.
        label: The label that the numbers are of; empty for the likeliest one of each stay, or that of the
            largest difference or error if the table is sorted by these.
        present: Only stays that have the label of their row (`yes`), or do not (`no`).
        least: Lowest probability.
        most: Highest probability.
        find: Only the stays of this `stay_id` or `subject_id`.
        sort: A column.
        down: Whether the largest come first (`yes`). Of a difference, the size counts.
    """

    run: str = ""
    split: str = ""
    cxr: str = ""
    label: str = ""
    present: str = ""
    least: float | None = None
    most: float | None = None
    find: str = ""
    sort: str = "stay_id"
    down: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """Return the view of an address, whose other parameters do not count.

        Raises:
            InputError: If a value is not allowed.
        """
        named: dict[str, Any] = {one.name: given[one.name] for one in fields(cls) if given.get(one.name)}
        for name in {"least", "most"} & named.keys():
            number = math.nan
            if re.fullmatch(r"[0-9.eE+-]+", named[name]):
                with suppress(ValueError):
                    number = float(named[name])
            if not 0 <= number <= 1:  # NaN is not, either
                raise InputError(f"{name} is {named[name]!r}; expected a number from 0 to 1")
            named[name] = number
        view = cls(**named)
        check_choice("split", view.split, ("", "train", "validation", "test"))
        check_choice("sort", view.sort, (*_OF_A_STAY, *_OF_A_RUN))
        for name in ("cxr", "present", "down"):
            check_choice(name, getattr(view, name), ("", "yes", "no"))
        return view

    def query(self, **changes: Any) -> str:
        """Return the view, changed, as the query of an address; what is as by default is left out."""
        view = replace(self, **changes)
        return urlencode(
            {one.name: value for one in fields(view) if (value := getattr(view, one.name)) != one.default}
        )


class Stays:
    """The stays of a cohort with what its runs predict, as tables of one `View` each."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        known = opened.cohort.column_names
        self._stays = opened.cohort.columns(*(name for name in _OF_A_STAY if name in known))
        self._ordered = lru_cache(maxsize=16)(self._order)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the table by name, with their titles."""
        of_a_run = {name: _OF_A_RUN[name] for name in (_OF_A_RUN if self._opened.runs else ("present",))}
        of_stay = {name: title for name, title in _OF_A_STAY.items() if name in self._stays.columns}
        return {"stay_id": of_stay["stay_id"]} | of_a_run | of_stay

    def rows(self, view: View) -> NDArray[np.int64]:
        """Return the rows of the cohort that a view shows, in its order.

        Raises:
            InputError: If the run or the label is unknown.
        """
        return self._ordered(view)

    def table(self, view: View, start: int = 0, count: int | None = None) -> pl.DataFrame:
        """Return rows of a view's table, by default all.

        Raises:
            InputError: If the run or the label is unknown.
        """
        rows = self.rows(view)[start:][:count]
        predicted = self._opened.predicted(view.run)
        label = _number_of(view.label, predicted)
        of = _label_of_each(view.sort, predicted)[rows] if label is None else np.full(len(rows), label)
        table = self._stays[rows].with_columns(
            label=pl.Series(np.array(predicted.labels, object)[of], dtype=pl.String),
            present=pl.Series(predicted.truth[rows, of], nan_to_null=True).cast(pl.Boolean),
            **{
                name: pl.Series(values[rows, of], nan_to_null=True)
                for name, values in _numbers(predicted).items()
            },
        )
        if label is None and not predicted.probabilities:
            table = table.with_columns(present=None)
        return table.select(name for name in self.columns if name in table.columns)

    def around(self, view: View, row: int) -> tuple[int | None, int | None, int | None, int]:
        """Return the stays before and after a row, its place from 0, and how many a view shows."""
        rows = self.rows(view)
        (found,) = np.flatnonzero(rows == row)[:1].tolist() or [None]
        if found is None:
            return None, None, None, len(rows)
        ids = self._opened.cohort.stay_id
        before = int(ids[rows[found - 1]]) if found else None
        after = int(ids[rows[found + 1]]) if found + 1 < len(rows) else None
        return before, after, found, len(rows)

    def _order(self, view: View) -> NDArray[np.int64]:
        predicted = self._opened.predicted(view.run)
        label = _number_of(view.label, predicted)
        everyone = np.arange(len(self._stays))
        of = _label_of_each(view.sort, predicted) if label is None else np.full(len(everyone), label)
        numbers = {name: values[everyone, of] for name, values in _numbers(predicted).items()}
        truth = predicted.truth[everyone, of]
        kept = np.full(len(everyone), True)
        if view.split:
            kept &= (self._stays["split"] == view.split).to_numpy()
        if view.cxr:
            kept &= self._opened.cohort.has_cxr == (view.cxr == "yes")
        if view.present and (numbers or label is not None):
            kept &= truth == (view.present == "yes")
        for limit, is_in in ((view.least, np.greater_equal), (view.most, np.less_equal)):
            if limit is not None and numbers:
                kept &= is_in(numbers["probability"], limit)
        if view.find:
            ids = self._stays.select(pl.col("stay_id", "subject_id").cast(pl.String) == view.find.strip())
            kept &= (ids["stay_id"] | ids["subject_id"]).to_numpy()
        if view.sort in numbers:
            key = pl.Series(np.abs(numbers[view.sort]), nan_to_null=True)
        elif view.sort in self._stays.columns:
            key = self._stays[view.sort]
        elif view.sort == "present":
            key = pl.Series(truth, nan_to_null=True)
        else:
            key = pl.Series(np.array(predicted.labels, object)[of], dtype=pl.String)
        sorted_rows = pl.DataFrame({"row": everyone, "key": key}).filter(kept)
        by = sorted_rows.sort("key", descending=view.down == "yes", nulls_last=True, maintain_order=True)
        return by["row"].to_numpy()


@lru_cache(maxsize=4)
def _numbers(predicted: Predicted) -> dict[str, Floats]:
    """Return what is shown of each stay and label (N, C); nothing without a run."""
    p = predicted.probabilities
    if not p:
        return {}
    nothing = np.full_like(p["both"], np.nan)
    return {
        "probability": p["both"],
        "difference": p["both"] - p["ehr"] if "ehr" in p else nothing,
        "error": np.abs(predicted.truth - p["both"]),
    }


@lru_cache(maxsize=8)
def _label_of_each(sort: str, predicted: Predicted) -> NDArray[np.int64]:
    """Return the label of each stay (N,) with the largest number of those sorted by, or probability."""
    numbers = _numbers(predicted)
    if not numbers:
        return np.zeros(len(predicted.truth), np.int64)
    size = np.abs(numbers.get(sort, numbers["probability"]))
    largest: NDArray[np.int64] = np.where(np.isnan(size), -1, size).argmax(axis=1)
    return largest


def _number_of(label: str, predicted: Predicted) -> int | None:
    if not label:
        return None
    check_choice("label", label, predicted.labels)
    return predicted.labels.index(label)
