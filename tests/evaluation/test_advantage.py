"""The posterior advantage of one modality over the other."""

import math

import numpy as np
import pytest

from drfuse.errors import InputError
from drfuse.evaluation import modality_advantage
from drfuse.simulate import expected_advantage


def test_it_is_the_formula_of_the_simulator() -> None:
    generator = np.random.default_rng(0)
    p, ehr, cxr = (generator.uniform(0.01, 0.99, (5, 3)) for _ in range(3))
    logits = [np.log(one / (1 - one)) for one in (p, ehr, cxr)]
    np.testing.assert_allclose(modality_advantage(*logits), expected_advantage(p, cxr, ehr))


def test_extreme_logits_stay_finite_and_unknown_ones_nan() -> None:
    found = modality_advantage([800.0, 0.0], [-800.0, 0.0], [800.0, math.nan])
    assert found[0] == pytest.approx(800)
    assert math.isnan(found[1])


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shapes"):
        modality_advantage([0.0, 1.0], [0.0], [0.0, 1.0])
