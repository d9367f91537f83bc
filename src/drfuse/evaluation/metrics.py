"""The metrics of `drfuse evaluate`: to add one, write a function here and decorate it with `@metric`.

It then appears in `metrics.json`, `metrics.csv` and, if there is room, the terminal's table, with intervals,
for every label and as the mean over the labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import Counts, Resamples

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """Labels and logits of n stays, and how often each stay counts in R resamples.

    Attributes:
        labels: (n, C), 0 or 1.
        logits: (n, C), without NaN.
        blocks: How often each stay counts, in blocks (r, n) that add up to R resamples and can be iterated
            repeatedly. In the first resample, each counts once.
    """

    labels: NDArray[np.uint8]
    logits: NDArray[np.floating[Any]]
    blocks: Sequence[Counts] | Resamples

    @cached_property
    def prauc_auroc(self) -> tuple[Floats, Floats]:
        """PRAUC and AUROC, both (R, C); one pass over the ranked stays gives both."""
        return prauc_auroc(self.labels, self.logits, self.blocks)


@dataclass(frozen=True)
class Metric:
    """A measure of how well a label is predicted.

    Attributes:
        title: Its title in tables.
        measure: Returns it for each resample and label (R, C); NaN where undefined.
        bounded: Whether it, and so its interval, lies between 0 and 1.
    """

    title: str
    measure: Callable[[Resampled], Floats]
    bounded: bool


METRICS: dict[str, Metric] = {}
"""The metrics by the name of their function, in the order of the files and tables."""


def metric(
    title: str, bounded: bool = True
) -> Callable[[Callable[[Resampled], Floats]], Callable[[Resampled], Floats]]:
    """Decorate a function as a metric; its name is the metric's name in `metrics.json` and `metrics.csv`."""

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
