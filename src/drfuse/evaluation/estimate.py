"""A number with its bootstrap interval, and the mean over phenotypes that every macro average takes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.float64]) -> "Estimate":
        """Return a number with the percentile interval of its resampled values (R,); NaN are left out."""
        defined = resampled[np.isfinite(resampled)]
        low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (math.nan, math.nan)
        return cls(float(value), float(low), float(high))


def beside_each_other(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.floating[Any]]]:
    """Return labels and scores (n, C), or (n, S C) of both if the scores are those of S seeds (S, n, C).

    A mean over the columns then is the mean over the seeds of the mean over the labels.
    """
    of_seeds = np.asarray(scores)
    if of_seeds.ndim == 2:
        of_seeds = of_seeds[None]
    return np.tile(np.asarray(labels, np.float64), len(of_seeds)), np.hstack(list(of_seeds))


def macro_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean (R,) of values (R, C) over those that are defined; NaN where none is.

    >>> macro_mean(np.array([[0.25, 0.75, np.nan], [np.nan, np.nan, np.nan]]))
    array([0.5, nan])
    """
    defined = np.isfinite(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
