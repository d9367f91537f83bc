"""The benchmark of explanations measures what it says."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.explanations import (
    SIGNS,
    carriers,
    chance_of_a_hit,
    explanations,
    map_scores,
    mean_over_factors,
)
from drfuse.cohort.variables import load_variables
from drfuse.simulate import Disease


def test_carriers_are_the_variables_that_a_factor_moves_most() -> None:
    found, disease = carriers(), Disease.load()
    assert list(found) == [f for f, seen in zip(disease.factors, disease.seen["ehr"], strict=True) if seen]
    assert set().union(*found.values()) <= {variable.name for variable in load_variables()}
    assert found["inflammation"] == {"temperature"}  # the heart rate follows by half of what stays differ
    assert found["vascular_stiffness"] == {
        "systolic_blood_pressure",
        "diastolic_blood_pressure",
    }  # not the mean
    assert "mean_blood_pressure" in found["haemodynamic"]
    assert "weight" in found["congestion"]  # over the window
    assert found["rhythm"] == {"heart_rate"}
    assert set(SIGNS) <= {f for f, seen in zip(disease.factors, disease.seen["cxr"], strict=True) if seen}


@pytest.mark.parametrize(("carrying", "top"), [(1, 1), (2, 3), (4, 3), (17, 1)])
def test_chance_is_what_random_rankings_reach(carrying: int, top: int) -> None:
    generator = np.random.default_rng(0)
    ranks = generator.random((20_000, 17)).argsort(axis=1)
    hit = (ranks[:, :top] < carrying).any(axis=1).mean()
    assert chance_of_a_hit(17, carrying, top) == pytest.approx(hit, abs=0.015)


def test_a_map_scores_what_lies_in_the_region() -> None:
    region = np.zeros((10, 10), bool)
    region[:1, :4] = True
    pixels = np.zeros((10, 10))
    pixels[0, :3], pixels[9, :2] = [-5.0, 4.0, 3.0], [2.0, 2.0]
    assert map_scores(pixels, region) == {"point": 1.0, "top 5 %": 0.6, "mass": 0.75}
    assert map_scores(np.zeros((10, 10)), ~region)["mass"] == 0
    best = map_scores(region.astype(float), region)  # smaller than the top 5 %
    assert best == {"point": 1.0, "top 5 %": 0.8, "mass": 1.0}


def test_the_mean_gives_every_factor_the_same_weight_and_an_interval_over_stays() -> None:
    values = np.array([1.0] * 90 + [0.0] * 10)
    factors = np.array(["common"] * 90 + ["rare"] * 10)
    found = mean_over_factors(values, factors, np.arange(100), 200)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    generator = np.random.default_rng(0)
    values = generator.random(100).round()
    found = mean_over_factors(values, np.zeros(100), np.arange(100), 2000)
    error = 1.96 * values.std() / 10
    assert found.low == pytest.approx(values.mean() - error, abs=0.02)
    assert found.high == pytest.approx(values.mean() + error, abs=0.02)
    together = mean_over_factors(values, np.zeros(100), np.arange(100) // 50, 500)
    assert together.high - together.low != pytest.approx(2 * error, abs=0.02)  # two units say little


@pytest.mark.slow  # simulates, prepares and trains
def test_everything_is_measured_and_shown(tmp_path: Path) -> None:
    report = explanations(tmp_path, seeds=(4,), stays=150, epochs=1, stays_per_factor=2, n_resamples=20)
    shown = report.markdown()
    assert "nan" not in shown
    assert "not measured" not in shown
    for said in (
        "grad-cam, last stage",
        "occlusion",
        "untrained network",
        "Shock",
        "best possible",
    ):
        assert said in shown
    assert (tmp_path / "explanations.json").is_file()
