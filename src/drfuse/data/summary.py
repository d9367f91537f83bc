"""What was measured of stays: how often each variable was observed, its mean and its deviation."""

import numpy as np
from numpy.typing import NDArray

from drfuse.cohort.arrays import items_a_block
from drfuse.cohort.moments import Moments
from drfuse.data.cohort import Cohort

InputSummary = dict[str, dict[str, float | None]]
"""By variable: `observed`, the share of hours with a value; `mean` and `std` of the values, None if there are
none."""


def summarize_inputs(cohort: Cohort, rows: NDArray[np.int64]) -> InputSummary:
    """Return what was measured of some stays in the hours of their windows."""
    variables = cohort.manifest.variables
    block = items_a_block(cohort.ehr.shape[1:], np.float32)
    blocks = (cohort.ehr[rows[start : start + block]] for start in range(0, len(rows), block))
    found = Moments.of(blocks, variables)
    cohort.release()
    n_hours = max(1, int(cohort.n_hours[rows].sum()))
    return {
        variable.name: {
            "observed": float(found.n[v] / n_hours),
            "mean": float(found.mean[v]) if found.n[v] else None,
            "std": float(found.std[v]) if found.n[v] else None,
        }
        for v, variable in enumerate(variables)
    }
