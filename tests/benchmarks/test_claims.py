"""The benchmark measures what it says, on inputs small enough to check."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from benchmarks import claims
from benchmarks.claims import measure, measure_gain, measure_weights, tables, variant_table
from drfuse.data import Cohort
from drfuse.demo import Demo, learn, run_of
from drfuse.evaluation import evaluate_test_set
from drfuse.run import Predictions
from drfuse.simulate import Truth
from drfuse.training import TrainOptions


@pytest.fixture(scope="module")
def measured(small_demo: Demo) -> dict[str, dict[str, float]]:
    return measure(small_demo.folder)


@pytest.mark.slow
def test_everything_is_measured_and_shown(measured: dict[str, dict[str, float]]) -> None:
    report = tables([measured, measured]) + variant_table({"DrFuse": measured})
    assert "nan" not in report
    for said in ("perfect model of both", "within phenotypes", "CXR-only factors", "Shock", "divergence"):
        assert said in report


@pytest.mark.slow
def test_the_macro_prauc_is_that_of_the_demo(measured: dict[str, dict[str, float]], small_demo: Demo) -> None:
    for contestant, reader in zip(small_demo.contestants, ("ehr", "cxr", "fused"), strict=True):
        for test_set, one in contestant.measured.items():
            assert measured["prauc"][f"{reader} {test_set}"] == one.prauc_macro.value
            perfect = contestant.ceiling[test_set].prauc_macro.value
            assert measured["prauc"][f"perfect {reader} {test_set}"] == perfect


@pytest.mark.slow
def test_a_linear_model_is_trained_and_measured_as_the_others_are(small_demo: Demo, tmp_path: Path) -> None:
    for name in ("hospital", "cohort"):
        (tmp_path / name).symlink_to(small_demo.folder / name)
    made = json.loads((tmp_path / "hospital" / "simulation.json").read_text())["options"]
    simulated = {name: made[name] for name in ("stays", "cxr_rate", "image_size", "seed")}
    name = "logistic-ehr"
    learn(tmp_path, simulated, TrainOptions(), {name: claims.BASELINES[name]})
    found = claims._measure_baselines(tmp_path, [name])
    predictions = Predictions.read(run_of(tmp_path, name).predictions)
    for test_set in ("matched", "full"):
        expected = evaluate_test_set(predictions, test_set).prauc_macro
        key = f"{name} {test_set}"
        assert (found[key], found[f"{key} low"]) == (expected.value, expected.low)


@pytest.mark.slow
def test_the_pooled_correlation_is_spearman_s(
    measured: dict[str, dict[str, float]], small_demo: Demo
) -> None:
    fused = Predictions.read(run_of(small_demo.folder, "fused").predictions)
    cohort = Cohort.open(small_demo.folder / "cohort")
    truth = Truth.read(small_demo.folder / "hospital").of(cohort.stays["stay_id"].to_numpy())
    rows = cohort.rows("test", "matched")
    assert fused.modality_weights is not None
    ranks = [rankdata(x) for x in (fused.modality_weights[rows, :, 2], truth.cxr_advantage[rows])]
    expected = np.corrcoef(*(rank.ravel() for rank in ranks))[0, 1]
    assert measured["correlation"]["pooled"] == pytest.approx(expected)
    assert measured["correlation"]["pooled low"] < expected < measured["correlation"]["pooled high"]


@pytest.mark.slow
def test_weights_that_are_the_truth_correlate_perfectly(small_demo: Demo) -> None:
    fused = Predictions.read(run_of(small_demo.folder, "fused").predictions)
    truth = Truth.read(small_demo.folder / "hospital").of(fused.stays["stay_id"].to_numpy())
    cxr = 1 / (1 + np.exp(-truth.cxr_advantage))
    weights: Any = np.stack([1 - cxr, np.zeros_like(cxr), cxr], axis=-1)  # as exact as the truth
    knowing = Predictions(fused.phenotypes, fused.stays, fused.logits, fused.labels, weights)
    found = measure_weights(knowing, truth, n_resamples=3)["correlation"]
    for key in ("pooled", "pooled, CXR less EHR weight", "within phenotypes (mean)", "within stays (mean)"):
        assert found[key] == pytest.approx(1, abs=1e-6)
    assert found["pooled, with the labels drawn"] < 0.9


@pytest.mark.slow
def test_a_model_gains_nothing_over_itself(small_demo: Demo) -> None:
    fused = Predictions.read(run_of(small_demo.folder, "fused").predictions)
    assert set(measure_gain(dict.fromkeys(("ehr", "cxr", "fused"), fused), 20).values()) == {0.0}


def test_a_factor_that_is_in_a_representation_is_read_off() -> None:
    generator = np.random.default_rng(0)
    h = generator.standard_normal((400, 5))
    factors = np.column_stack([h @ [1, 2, 0, 0, -1], generator.standard_normal(400)])
    r2 = claims._probe_factors(h, factors, np.arange(400) // 2)
    assert r2[0] > 0.99
    assert r2[1] < 0.05


def test_each_model_gets_what_was_chosen_for_its_system(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "settings: {transformer: {lr: 1.0}, resnet50: {lr: 2.0}, drfuse: {lr: 3.0}, mmtm: {lr: 4.0}}"
    )
    own = claims._own_settings(file)
    assert own.keys() == {*claims.MODELS, *claims.VARIANTS}
    assert {name: options["lr"] for name, options in own.items() if name in claims.MODELS} == {
        "ehr": 1.0,
        "cxr": 2.0,
        "fused": 3.0,
    }
    assert {own[name]["lr"] for name in claims.VARIANTS} == {3.0}
