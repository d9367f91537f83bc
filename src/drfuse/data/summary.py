"""What was measured of stays: how often each variable was observed, its mean and its deviation."""

import numpy as np
from numpy.typing import NDArray

from drfuse.cohort.arrays import items_a_block
from drfuse.data.cohort import Cohort

InputSummary = dict[str, dict[str, float | None]]
"""By variable: `observed`, the share of hours with a value; `mean` and `std` of the values, None if there are
none."""


def summarize_inputs(cohort: Cohort, rows: NDArray[np.int64]) -> InputSummary:
    """Return what was measured of some stays in the hours of their windows."""
    variables = cohort.manifest.variables
    normal = np.array([variable.normal for variable in variables], np.float32)
    n, total, squares = (np.zeros(len(variables)) for _ in range(3))
    for start in range(0, len(rows), block := items_a_block(cohort.ehr.shape[1:], np.float32)):
        values = (cohort.ehr[rows[start : start + block]] - normal).astype(np.float64)
        n += np.isfinite(values).sum(axis=(0, 1))
        total += np.nansum(values, axis=(0, 1))
        squares += np.nansum(values**2, axis=(0, 1))
    cohort.release()
    mean = total / np.maximum(n, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0))
    n_hours = max(1, int(cohort.n_hours[rows].sum()))
    return {
        variable.name: {
            "observed": float(n[v] / n_hours),
            "mean": float(variable.normal + mean[v]) if n[v] else None,
            "std": float(deviation[v]) if n[v] else None,
        }
        for v, variable in enumerate(variables)
    }
