"""The benchmark measures what it says, on inputs small enough to check."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from benchmarks.claim_tables import OURS, figures, fusion_table, gain, report
from benchmarks.claims import ABLATIONS, SYSTEMS, claims
from benchmarks.truths import (
    PARTS,
    Measured,
    _by_product,
    correlations,
    factor_groups,
    measure_perfect,
    measure_run,
    pair_correlations,
    probe_factors,
)
from drfuse.data import Cohort
from drfuse.demo import Demo, run_of
from drfuse.errors import InputError
from drfuse.evaluation import evaluate_test_set, seeded_prauc
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Predictions
from drfuse.simulate import KINDS, Truth
from drfuse.simulate.entangled import EntangledDisease

TITLES = {"drfuse": "DrFuse", "late-fusion": "late fusion", OURS: "additive evidence"}


def made_up(seed: int, gain: float = 0.0) -> Measured:
    """Return numbers of a run that was never trained; all of a seed are of the same stays."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((200, 3)) < 0.4).astype(np.uint8)
    scores = generator.normal(size=labels.shape) + labels + gain * labels
    praucs = {
        name: seeded_prauc(labels, [scores], np.arange(200), 50, seed) for name in ("matched", "gone", "full")
    }
    parts = {
        "prauc": {name: float(one.values[0]) for name, one in praucs.items()},
        "missing": {f"{share} %": 0.5 for share in (0, 25, 50, 75, 100)},
        "weights": {
            f"{said} {key}": 0.1
            for said in ("advantage", "own", "knowable")
            for key in ("pooled", "between", "within phenotypes", "within stays")
        },
        "products": {"a product of both modalities": 0.4, "no product": 0.5},
        "calibration": {"both": 0.01, "EHR alone": 0.02, "radiograph alone": 0.03},
        "aligned": {"own": 0.5, "others": 0.0, "origin": 0.9},
        "factors": {
            f"{part} -> {group}": 0.3
            for part in (*PARTS, "shown")
            for group in ("shared", "EHR-only", "CXR-only")
        },
    }
    return Measured(parts, praucs)


@pytest.fixture
def measured() -> dict[str, list[dict[str, Measured]]]:
    def hospital(seed: int) -> dict[str, Measured]:
        better = {name: made_up(seed, 0.5 if name == OURS else 0.0) for name in TITLES}
        return better | {"perfect reader of both": made_up(seed, 1.0)}

    first = hospital(0) | {name: made_up(0) for name in ABLATIONS}
    return {kind: [first, hospital(1), hospital(2)] for kind in KINDS}


def test_every_number_is_shown(measured: dict[str, list[dict[str, Measured]]], tmp_path: Path) -> None:
    text = report(measured, TITLES, {name: name for name in ABLATIONS})
    assert "nan" not in text
    for said in (
        "Entangled hospitals",
        "perfect reader",
        "late fusion",
        "CLUB",
        "within phenotypes",
        "corrected",
    ):
        assert said in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(widths) >= 3
    figures(measured, TITLES, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"claims-{what}.{kind}" for what in ("missing", "weights") for kind in ("svg", "png")
    }


def test_one_hospital_is_enough(measured: dict[str, list[dict[str, Measured]]]) -> None:
    del measured["independent"][1:], measured["entangled"][1:]
    del measured["independent"][0]["disentangled by CLUB"].numbers["weights"]
    text = report(measured, TITLES, {name: name for name in ABLATIONS})
    gains = text[text.index("additive evidence less, matched") :].partition("\n\n")[0]
    assert len(gains.splitlines()) == 2 + len(TITLES) - 1
    assert "| disentangled by CLUB |" in text
    assert "–" in text


def test_a_hospital_that_chose_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed 101 is not of a hospital that is measured"):
        claims(tmp_path, tmp_path / "small.yaml", seeds=(0, 101))


def test_a_gain_is_paired_by_hospital(measured: dict[str, list[dict[str, Measured]]]) -> None:
    hospitals = measured["independent"]
    same = gain(hospitals, "drfuse", "late-fusion", "matched")
    assert same is not None
    assert same.value == 0
    better = gain(hospitals, OURS, "drfuse", "matched")
    assert better is not None
    of_hospitals = [
        one[OURS].numbers["prauc"]["matched"] - one["drfuse"].numbers["prauc"]["matched"] for one in hospitals
    ]
    assert better.value == pytest.approx(np.mean(of_hospitals))
    assert better.p < 0.05


def test_every_fusion_is_held_against_what_does_not_fuse(
    measured: dict[str, list[dict[str, Measured]]],
) -> None:
    hospitals = measured["independent"]
    head, _, *rows, _ = fusion_table(hospitals, TITLES)
    assert head.endswith("| late fusion |")
    assert [row.split("|")[1].strip() for row in rows] == ["DrFuse", "additive evidence"]
    for row, name in zip(rows, ("drfuse", OURS), strict=True):
        spread = gain(hospitals, name, "late-fusion", "matched")
        assert spread is not None
        assert f"| {spread.estimate(bounded=False).value:+.3f} (" in row


def test_correlations_are_spearman_s() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=(50, 4)) + np.arange(4)
    assert list(correlations(np.exp(true), true).values()) == pytest.approx([1] * 4)
    said = generator.normal(size=true.shape)
    found = correlations(said, true)
    assert found["pooled"] == pytest.approx(spearmanr(said.ravel(), true.ravel()).statistic)
    within = [spearmanr(said[:, c], true[:, c]).statistic for c in range(4)]
    assert found["within phenotypes"] == pytest.approx(np.mean(within))


def test_pairs_correlate_whatever_their_scale() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 300, 40))
    own, others = pair_correlations(a, 1e-4 * a + 7)
    assert own == pytest.approx(1)
    assert abs(others) < 0.05
    assert abs(pair_correlations(a, b)[0]) < 0.05


def test_a_factor_that_is_in_a_representation_is_read_off() -> None:
    generator = np.random.default_rng(0)
    h = generator.standard_normal((400, 5))
    factors = np.column_stack([h @ [1, 2, 0, 0, -1], generator.standard_normal(400)])
    r2 = probe_factors(h, factors, np.arange(400) // 2)
    assert r2[0] > 0.99
    assert r2[1] < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_every_factor_is_in_one_group(kind: str) -> None:
    groups = factor_groups(KINDS[kind].load())
    assert (np.sum(list(groups.values()), axis=0) == 1).all()


def test_every_ablation_changes_an_argument_of_additive_evidence() -> None:
    assert set(SYSTEMS) <= paper_systems().keys()
    known = paper_systems()[OURS].with_arguments({name: None for one in ABLATIONS.values() for name in one})
    assert set(known["init_args"]) == {name for one in ABLATIONS.values() for name in one}


@pytest.mark.slow
def test_a_run_is_measured_as_evaluate_and_the_truth_say(small_demo: Demo) -> None:
    folder, run = small_demo.folder, run_of(small_demo.folder, "fused").folder
    cohort = Cohort.open(folder / "cohort")
    found = measure_run(run, folder / "hospital", cohort, seed=0).numbers
    predictions = Predictions.read(run / "predictions.parquet")
    for test_set in ("matched", "full"):
        expected = evaluate_test_set(predictions, test_set).prauc_macro.value
        assert found["prauc"][test_set] == pytest.approx(expected)
    assert found["missing"]["100 %"] == pytest.approx(found["prauc"]["gone"])
    rows = predictions.rows("test", "matched")
    truth = Truth.read(folder / "hospital").of(predictions.stays["stay_id"].to_numpy())
    assert predictions.modality_weights is not None
    own = predictions.modality_weights[rows, :, 2] - predictions.modality_weights[rows, :, 0]
    pooled = spearmanr(own.ravel(), truth.cxr_advantage[rows].ravel()).statistic
    assert found["weights"]["own pooled"] == pytest.approx(pooled)
    assert set(found["calibration"]) == {"both", "EHR alone", "radiograph alone"}
    readers = measure_perfect(folder / "hospital", cohort, seed=0)
    both, ehr = (readers[f"perfect reader of {what}"].numbers["prauc"] for what in ("both", "the EHR"))
    assert both["matched"] > ehr["matched"] == both["gone"]


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    settings = {
        "model_args": {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": "resnet18"},
        "epochs": 1,
        "crop_size": 32,
        "settings": {"drfuse": {"lr": 1e-3}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    options = {"stays": 150, "image_size": 32, "seeds": (0,), "kinds": ("entangled",), "ablations": False}
    systems = ("logistic-ehr", "drfuse", OURS)
    out = tmp_path / "out"
    text = claims(out, tmp_path / "small.yaml", systems=systems, **options)  # type: ignore[arg-type]
    assert (out / "claims.md").read_text() == text
    assert json.loads((out / "claims.json").read_text())["entangled"][0].keys() >= set(systems)
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/runs/*/model.safetensors")}
    assert len(trained) == len(systems)
    assert claims(out, tmp_path / "small.yaml", systems=systems, **options) == text  # type: ignore[arg-type]
    assert trained == {path: path.stat().st_mtime_ns for path in trained}


def test_phenotypes_with_a_product_are_told_from_the_others() -> None:
    disease = EntangledDisease.load()
    labels = (np.random.default_rng(0).random((300, len(disease.phenotypes))) < 0.3).astype(np.uint8)
    prauc = seeded_prauc(labels, [np.where(labels, 1.0, 0.0)], np.arange(300), 10, 0)
    assert _by_product(prauc, disease) == {"a product of both modalities": 1.0, "no product": 1.0}
    needs_both = disease.products != 0
    one_sided = seeded_prauc(labels, [np.where(needs_both, 1 - labels, labels)], np.arange(300), 10, 0)
    found = _by_product(one_sided, disease)
    assert found["a product of both modalities"] < found["no product"] == 1.0
    assert _by_product(prauc, KINDS["independent"].load()) == {}
