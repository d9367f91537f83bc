"""How often each variable was observed, its mean and its deviation, a block of stays at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drfuse.cohort.manifest import Variable


@dataclass(frozen=True)
class Moments:
    """The observed values of V variables.

    Attributes:
        n: Number of values (V,).
        mean: Their mean (V,); the normal value if there are none.
        std: Their standard deviation (V,); 0 if there are none.
    """

    n: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.float32]], variables: Sequence[Variable]) -> "Moments":
        """Return the moments of blocks of stays (n, H, V), NaN where nothing was observed."""
        normal = np.array([variable.normal for variable in variables])
        n, total, squares = (np.zeros(len(variables)) for _ in range(3))
        for block in blocks:
            values = block - normal  # small numbers, whose squares lose no digits
            n += np.isfinite(values).sum(axis=(0, 1))
            total += np.nansum(values, axis=(0, 1))
            squares += np.nansum(values**2, axis=(0, 1))
        mean = total / np.maximum(n, 1)
        return cls(n, normal + mean, np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0)))
