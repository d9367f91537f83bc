"""Moments of variables against NumPy's."""

import numpy as np

from drfuse.cohort import load_variables
from drfuse.cohort.moments import Moments


def test_moments_are_those_of_all_observed_values() -> None:
    variables = load_variables()
    values = np.random.default_rng(0).normal(90, 4, (7, 5, len(variables))).astype(np.float32)
    values[:, :, 0] = np.nan
    values[2:4, 1:, 1] = np.nan
    found = Moments.of([values[:3], values[3:3], values[3:]], variables)
    assert found.n[:3].tolist() == [0, 27, 35]
    assert (found.mean[0], found.std[0]) == (variables[0].normal, 0)
    flat = values.reshape(35, -1)[:, 1:].astype(np.float64)
    np.testing.assert_allclose(found.mean[1:], np.nanmean(flat, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std[1:], np.nanstd(flat, axis=0), rtol=1e-9)
