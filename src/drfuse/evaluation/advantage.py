"""Which modality tells more about each stay and label, by a model's own predictions."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from drfuse.errors import InputError


def modality_advantage(
    logits: ArrayLike, logits_without_cxr: ArrayLike, logits_without_ehr: ArrayLike
) -> NDArray[np.float64]:
    """Return how much more the radiograph tells than the EHR, in nats: the posterior advantage.

    With p the probability of a label by both modalities, p_C by the radiograph alone, p_E by the EHR alone,
    A = p log(p_C / p_E) + (1 - p) log((1 - p_C) / (1 - p_E)): the gain in log-likelihood that the model
    itself expects when p_C takes the place of p_E. It is defined for every model, with attention or without.
    Values above 0 favour the radiograph; NaN where one of the three is.

    Args:
        logits: By both modalities (...).
        logits_without_cxr: With the radiograph taken away (...).
        logits_without_ehr: With the EHR taken away (...).

    Raises:
        InputError: If the shapes differ.

    >>> modality_advantage([2.0, -2.0], [0.0, -2.0], [2.0, 0.0]).round(3)
    array([ 0.328, -0.328])
    """
    both, ehr, cxr = (np.asarray(one, np.float64) for one in (logits, logits_without_cxr, logits_without_ehr))
    if not both.shape == ehr.shape == cxr.shape:
        raise InputError(
            f"the logits have shapes {both.shape}, {ehr.shape} and {cxr.shape}; expected equal ones"
        )
    p = expit(both)
    present, absent = log_expit(cxr) - log_expit(ehr), log_expit(-cxr) - log_expit(-ehr)
    advantage: NDArray[np.float64] = p * present + (1 - p) * absent
    return advantage
