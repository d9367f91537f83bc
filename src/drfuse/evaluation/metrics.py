"""The metrics of `drfuse evaluate`, by name: a new one is a function here, marked with `@metric`.

It is then in `metrics.json`, in `metrics.csv` and, where there is room, in the table of the terminal, each
time with its interval, for every label and as the mean over the labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import Counts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """What n stays are, what is predicted of them, and how often each counts in R resamples.

    Attributes:
        labels: (n, C), 0 or 1.
        logits: (n, C), none of them NaN.
        blocks: How often each stay counts, in blocks (r, n) of R resamples together. The first resample is
            the stays as they are: each counts once.
    """

    labels: NDArray[np.uint8]
    logits: NDArray[np.floating[Any]]
    blocks: Sequence[Counts]

    @cached_property
    def prauc_auroc(self) -> tuple[Floats, Floats]:
        """PRAUC and AUROC, both (R, C): one pass over the ranked stays gives both."""
        return prauc_auroc(self.labels, self.logits, self.blocks)


@dataclass(frozen=True)
class Metric:
    """A number that says how well one label is predicted.

    Attributes:
        title: What tables call it.
        measure: Returns it of each resample and label (R, C); NaN where it is not defined.
        bounded: Whether it lies between 0 and 1, as does its interval then.
    """

    title: str
    measure: Callable[[Resampled], Floats]
    bounded: bool


METRICS: dict[str, Metric] = {}
"""By the name of their function, in the order of the files and tables."""


def metric(
    title: str, bounded: bool = True
) -> Callable[[Callable[[Resampled], Floats]], Callable[[Resampled], Floats]]:
    """Mark a function as a metric; its name is the metric's name in `metrics.json` and `metrics.csv`."""

    def mark(measure: Callable[[Resampled], Floats]) -> Callable[[Resampled], Floats]:
        METRICS[measure.__name__] = Metric(title, measure, bounded)
        return measure

    return mark


@metric("PRAUC")
def prauc(stays: Resampled) -> Floats:
    """Return the area under the precision-recall curve (average precision); NaN without a positive."""
    return stays.prauc_auroc[0]


@metric("AUROC")
def auroc(stays: Resampled) -> Floats:
    """Return the area under the ROC curve; NaN without a positive or without a negative."""
    return stays.prauc_auroc[1]
