"""DrFuse's four representations of a stay, and measures of how they relate."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.inference import Predictor
from drfuse.models.losses import LN_2, jensen_shannon

logger = logging.getLogger(__name__)

FIGURE3 = {
    "ehr_shared": "EHR shared",
    "cxr_shared": "CXR shared",
    "ehr_distinct": "EHR distinct",
    "cxr_distinct": "CXR distinct",
}
"""The representations in Figure 3, and their names there."""

FOLDS = 5
_STAYS_AT_A_TIME = 256

Representation = NDArray[np.float32]


def represent(run: Path, cohort: Cohort, rows: NDArray[np.int64]) -> dict[str, Representation]:
    """Return by name what the DrFuse model of a finished run makes of n stays with a radiograph, each (n, D).

    Args:
        run: The run's folder.
        cohort: The cohort.
        rows: The stays' rows in the cohort (n,).

    Raises:
        InputError: If the run's model is not DrFuse.
    """
    batches = [part.tolist() for part in np.array_split(rows, len(rows) // _STAYS_AT_A_TIME + 1)]
    h = Predictor.open(run).represent(cohort, batches)
    if missing := sorted(FIGURE3.keys() - h.keys()):
        raise InputError(f"the model of {run} has no representation {missing[0]}; expected a run of DrFuse")
    return h


def probe_origin(ehr: Representation, cxr: Representation, subjects: NDArray[Any]) -> float:
    """Return how often a linear probe guesses right from which modality a representation (n, D) comes.

    Cross-validated over folds of whole subjects; 0.5 is chance. NaN with fewer subjects than folds.
    """
    if (n_subjects := len(np.unique(subjects))) < FOLDS:
        logger.warning("a probe needs at least %d subjects, got %d; its accuracy is NaN", FOLDS, n_subjects)
        return math.nan
    x, y = np.concatenate([ehr, cxr]), np.repeat([0, 1], len(ehr))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    guessed = cross_val_predict(probe, x, y, groups=np.tile(subjects, 2), cv=GroupKFold(FOLDS))
    return float((guessed == y).mean())


def divergences(ehr: Representation, cxr: Representation) -> tuple[float, float]:
    """Return the divergence (Eq. 1) of the two shared representations of one stay, and of different stays.

    Each is a mean over stays, as a share of the largest possible, D ln 2.
    """
    largest = ehr.shape[1] * LN_2
    own = jensen_shannon(torch.from_numpy(ehr), torch.from_numpy(cxr)).mean()
    another = jensen_shannon(torch.from_numpy(ehr), torch.from_numpy(np.roll(cxr, 1, axis=0))).mean()
    return float(own) / largest, float(another) / largest


def cosine(a: Representation, b: Representation) -> float:
    """Return the mean absolute cosine of two representations of the same stays, which Eq. 4 minimizes."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.abs((a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)).mean())
