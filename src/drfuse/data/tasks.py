"""What is predicted of a stay: 25 phenotypes, death in hospital, or the length of the ICU stay."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.choices import TaskName
from drfuse.data.cohort import Cohort, from_bytes
from drfuse.errors import InputError, check_choice
from drfuse.subsets import Split, Subset

_LOS_EDGES = (3, 4, 5, 6, 7, 14)  # days; the classes of CareBench, each including its upper edge
_LOS_NAMES = (
    "up to 3 days",
    *(f"{day} to {day + 1} days" for day in (3, 4, 5, 6)),
    "7 to 14 days",
    "more than 14 days",
)


@dataclass(frozen=True)
class Task:
    """The labels of a cohort's N stays, C for each, and which stays take part.

    Attributes:
        cohort: The cohort.
        name: Which task.
        label_names: The C names, in order.
        labels_in_bytes: The labels in bytes (N, C), 0 or 1; -1 where unknown.
        eligible: Which stays take part (N,): those with known labels. Death and length of stay are predicted
            only for stays still in the ICU when the window ends; for the others the outcome is known by then.
    """

    cohort: Cohort
    name: TaskName
    label_names: list[str]
    labels_in_bytes: NDArray[np.int8]
    eligible: NDArray[np.bool_]

    @classmethod
    def of(cls, cohort: Cohort, name: TaskName = "phenotyping") -> "Task":
        """Return a task of a cohort.

        `los` has seven labels, of which each stay has exactly one: up to 3, 4, 5, 6, 7 and 14 days, and more.
        Models treat them as seven yes-no questions.

        Raises:
            InputError: If the task is unknown, or no stay takes part.
        """
        check_choice("task", name, get_args(TaskName))
        if name == "phenotyping":
            if not cohort.phenotypes:
                raise InputError(f"{cohort.folder} was prepared without labels; prepare it with them")
            known: NDArray[np.bool_] = np.all(cohort.labels_in_bytes >= 0, axis=1)
            if not known.any():
                raise InputError(
                    f"no stay of {cohort.folder} has diagnoses, so there are no labels; prepare it with them"
                )
            return cls(cohort, name, cohort.phenotypes, cohort.labels_in_bytes, known)
        column = "in_hospital_mortality" if name == "mortality" else "los"
        if missing := {column, "los"} - set(cohort.column_names):
            raise InputError(
                f"{cohort.folder}/stays.parquet lacks {min(missing)}; run `drfuse prepare` again"
            )
        days = cohort.columns("los")["los"].cast(pl.Float64).to_numpy()  # NaN where unknown
        if np.isnan(days).all():
            raise InputError(
                f"{cohort.folder} does not say for any stay how long it lasted (los); choose a different "
                "--task"
            )
        outlasts = days > cohort.manifest.options["window_hours"] / 24
        if not outlasts.any():
            raise InputError(
                f"no stay of {cohort.folder} is longer than the window; prepare with fewer --window-hours"
            )
        if name == "mortality":
            labels = cohort.in_bytes(column)[:, None]
            eligible = outlasts & (labels[:, 0] >= 0)
            if not eligible.any():
                raise InputError(
                    f"{cohort.folder} does not say for any stay longer than the window whether the patient "
                    "died; choose a different --task"
                )
            return cls(cohort, name, ["death in hospital"], labels, eligible)
        labels = np.eye(len(_LOS_NAMES), dtype=np.int8)[np.searchsorted(_LOS_EDGES, days, side="left")]
        labels[np.isnan(days)] = -1
        return cls(cohort, name, list(_LOS_NAMES), labels, outlasts)

    @classmethod
    def unlabelled(cls, cohort: Cohort, name: TaskName, label_names: list[str]) -> "Task":
        """Return a task of stays that are only predicted, whose labels are taken as unknown.

        Every stay takes part; where death or the length of stay is predicted, every stay that is not known to
        have ended within the window.
        """
        labels = np.broadcast_to(np.int8(-1), (len(cohort), len(label_names)))
        eligible = np.full(len(cohort), True)
        if name != "phenotyping":
            window = cohort.manifest.options["window_hours"]
            eligible = cohort.n_hours >= window
            if "los" in cohort.column_names:
                eligible &= ~(cohort.columns("los")["los"].cast(pl.Float64).to_numpy() <= window / 24)
        return cls(cohort, name, label_names, labels, eligible)

    @property
    def labels(self) -> NDArray[np.float32]:
        """The labels of all stays, float32 (N, C), 0 or 1; NaN where unknown."""
        return self.labels_of(slice(None))

    def labels_of(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return the labels of some stays, float32 (r, C), 0 or 1; NaN where unknown."""
        return from_bytes(self.labels_in_bytes[rows])

    def rows(self, split: Split | None = None, subset: Subset = "full") -> NDArray[np.int64]:
        """Return the rows of the stays that the task uses, in order (see `Cohort.rows`)."""
        rows = self.cohort.rows(split, subset)
        return rows[self.eligible[rows]]
