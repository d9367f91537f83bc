"""What models say of stays, as a table with a row for each stay and phenotype."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from drfuse.data import Cohort
from drfuse.evaluation import Recalibration
from drfuse.inference.predictor import Outputs

Floats = NDArray[np.float64]

FIRST_COLUMNS = ["stay_id", "phenotype", "probability"]
"""The columns that a table of predictions begins with."""

_WEIGHTS = ("weight_ehr", "weight_shared", "weight_cxr")


def prediction_table(
    cohort: Cohort,
    label_names: Sequence[str],
    outputs: Sequence[Outputs],
    recalibrations: Sequence[Recalibration | None],
) -> pl.DataFrame:
    """Return what R runs say of the same N stays, a row for each stay and each of the C labels.

    Args:
        cohort: The cohort of the stays.
        label_names: The C labels.
        outputs: What each run says (R).
        recalibrations: The recalibration of each run (R); None for one without.

    Returns:
        The columns `stay_id`, `phenotype`, `probability` (the mean over the runs, null if one of them makes
        no prediction), `low` and `high` (the least and the greatest of the runs), `probability_without_cxr`
        (the mean with the radiograph taken away), `weight_ehr`, `weight_shared`, `weight_cxr` (the mean
        modality weights, null if a run's model has none), `has_cxr`, and `unobserved` (the variables without
        a value in the window, separated by semicolons).
    """
    rows, n_labels = outputs[0].rows, len(label_names)
    by_run = np.stack(
        [probabilities(one.logits, of) for one, of in zip(outputs, recalibrations, strict=True)]
    )
    blind = [
        probabilities(one.logits_without_cxr, of) for one, of in zip(outputs, recalibrations, strict=True)
    ]
    weights = [one.modality_weights for one in outputs if one.modality_weights is not None]
    mean = (
        np.mean(weights, axis=0) if len(weights) == len(outputs) else np.full((*by_run[0].shape, 3), np.nan)
    )
    columns: dict[str, Floats] = {
        "probability": by_run.mean(axis=0),
        "low": by_run.min(axis=0),
        "high": by_run.max(axis=0),
        "probability_without_cxr": np.mean(blind, axis=0),
        **{name: mean[:, :, m] for m, name in enumerate(_WEIGHTS)},
    }
    stays = pl.DataFrame(
        {
            "stay_id": cohort.stay_id[rows],
            "has_cxr": cohort.has_cxr[rows],
            "unobserved": _unobserved(cohort, rows),
        }
    )
    repeated = stays[np.repeat(np.arange(len(rows)), n_labels)]
    return repeated.select(
        "stay_id",
        phenotype=pl.Series(np.tile(np.array(label_names, object), len(rows)), dtype=pl.String),
        **{name: pl.Series(values.ravel(), nan_to_null=True) for name, values in columns.items()},
        has_cxr="has_cxr",
        unobserved="unobserved",
    )


def probabilities(logits: NDArray[np.float32], recalibration: Recalibration | None) -> Floats:
    """Return probabilities (N, C) of logits (N, C), recalibrated if the run has learned how; NaN stay NaN."""
    return expit(logits, dtype=np.float64) if recalibration is None else recalibration.apply(logits)


def _unobserved(cohort: Cohort, rows: NDArray[np.int64]) -> list[str]:
    """Return the variables of each stay that were never observed, separated by semicolons."""
    observed = ~np.isnan(cohort.ehr[rows]).all(axis=1)  # (N, V)
    patterns, which = np.unique(observed, axis=0, return_inverse=True)
    names = np.array([variable.name for variable in cohort.manifest.variables], object)
    spelled = np.array(["; ".join(names[~pattern]) for pattern in patterns], object)
    return list(spelled[which.ravel()])
