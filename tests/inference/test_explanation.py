"""What is said about one stay: four evaluations, Shapley values, and attributions or why there are none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drfuse.data import Cohort, StayDataset
from drfuse.data.augmentation import CxrTransform
from drfuse.data.loader import EvaluationBatches
from drfuse.demo import Demo, run_of
from drfuse.errors import InputError
from drfuse.inference import Predictor, explain_stay
from drfuse.inference.explanation import GIVEN, shapley_values
from drfuse.models import FittingData, LogisticEhr, LogisticLate
from drfuse.run import Run

pytestmark = pytest.mark.slow  # a whole demo, or trained runs


@pytest.fixture(scope="module")
def cohort(small_demo: Demo) -> Cohort:
    return Cohort.open(small_demo.folder / "cohort")


@pytest.fixture(scope="module")
def fused(small_demo: Demo) -> Predictor:
    return Predictor.open(run_of(small_demo.folder, "fused").folder)


def first_row(cohort: Cohort, has_cxr: bool) -> int:
    return int(np.flatnonzero(cohort.has_cxr == has_cxr)[0])


def test_the_four_evaluations_are_those_of_the_run(
    small_demo: Demo, fused: Predictor, cohort: Cohort
) -> None:
    row = first_row(cohort, has_cxr=True)
    found = explain_stay(fused, cohort, row)
    written = Run(run_of(small_demo.folder, "fused").folder).read_predictions()
    (at,) = np.flatnonzero(written.stays["stay_id"].to_numpy() == found.stay_id)
    assert written.logits_without_cxr is not None
    assert written.modality_weights is not None
    np.testing.assert_allclose(found.logits["both"], written.logits[at], atol=1e-4)
    np.testing.assert_allclose(found.logits["ehr"], written.logits_without_cxr[at], atol=1e-4)
    assert found.modality_weights is not None
    np.testing.assert_allclose(found.modality_weights, written.modality_weights[at], atol=1e-4)
    assert fused.recalibration is not None
    likely = fused.recalibration.apply(written.logits[at][None])[0]
    np.testing.assert_allclose(found.probabilities["both"], likely, atol=1e-4)
    assert found.phenotype == found.phenotypes[int(likely.argmax())]
    assert len({float(found.logits[given][0]) for given in GIVEN}) == 4


def test_a_mean_record_is_the_same_for_every_stay(fused: Predictor, cohort: Cohort) -> None:
    rows = np.flatnonzero((cohort.n_hours == 48) & ~cohort.has_cxr)[:2].tolist()
    one, other = (explain_stay(fused, cohort, row, most_steps=4).logits for row in rows)
    np.testing.assert_allclose(one["neither"], other["neither"], atol=1e-5)
    assert np.abs(one["both"] - other["both"]).max() > 1e-3


def test_a_stay_without_a_radiograph_owes_everything_to_its_record(fused: Predictor, cohort: Cohort) -> None:
    found = explain_stay(fused, cohort, first_row(cohort, has_cxr=False), "Shock")
    assert not found.has_cxr
    assert found.cxr is None
    assert found.image is None
    assert found.modality_weights is not None
    assert not found.modality_weights[:, 2].any()
    np.testing.assert_array_equal(found.shapley[:, 1], 0)
    np.testing.assert_allclose(found.shapley[:, 0], found.logits["both"] - found.logits["neither"], atol=1e-5)
    assert "no radiograph" in found.notes[0]
    json.dumps(found.as_json(), allow_nan=False)


def test_attributions_explain_the_difference_that_the_evaluations_show(
    fused: Predictor, cohort: Cohort
) -> None:
    row = first_row(cohort, has_cxr=True)
    found = explain_stay(fused, cohort, row, "Shock", cxr_method="integrated-gradients-grey")
    c = found.phenotypes.index("Shock")
    n_hours = int(cohort.n_hours[row])
    assert found.record is not None
    assert found.image is not None
    assert found.image.completeness is not None
    assert found.cxr is not None
    assert found.record.hours.shape == found.values.shape == (n_hours, len(found.variables))
    difference = found.logits["both"][c] - found.logits["cxr"][c]
    assert found.record.completeness.difference == pytest.approx(difference, abs=1e-4)
    assert found.record.hours.sum() == pytest.approx(difference, abs=0.05 * max(abs(difference), 0.1))
    assert found.image.pixels.shape == found.cxr.shape == (64, 64)
    assert found.image.completeness.is_met
    stored = cohort.cxr[cohort.cxr_row[row]]
    np.testing.assert_allclose(found.cxr * 255, stored, atol=0.01)
    np.testing.assert_array_equal(found.values, cohort.ehr[row, :n_hours])
    assert found.notes == []


@pytest.mark.parametrize("seed", range(3))
def test_shapley_values_are_efficient_and_symmetric(seed: int) -> None:
    generator = np.random.default_rng(seed)
    game: Any = {given: generator.normal(size=7) for given in GIVEN}
    swapped: Any = game | {"ehr": game["cxr"], "cxr": game["ehr"]}
    found = shapley_values(game)
    np.testing.assert_allclose(found.sum(axis=1), game["both"] - game["neither"])
    np.testing.assert_allclose(shapley_values(swapped), found[:, ::-1])
    alike: Any = game | {"cxr": game["ehr"]}
    np.testing.assert_allclose(*shapley_values(alike).T)
    idle: Any = game | {"both": game["ehr"], "cxr": game["neither"]}
    assert not shapley_values(idle)[:, 1].any()


def test_a_model_of_one_modality_says_what_it_does_not_read(small_demo: Demo, cohort: Cohort) -> None:
    row = first_row(cohort, has_cxr=True)
    ehr = explain_stay(Predictor.open(run_of(small_demo.folder, "ehr").folder), cohort, row)
    assert ehr.notes == ["EhrTransformer does not read radiographs."]
    assert ehr.modality_weights is None
    assert ehr.image is None
    assert not ehr.shapley[:, 1].any()
    cxr = explain_stay(Predictor.open(run_of(small_demo.folder, "cxr").folder), cohort, row)
    assert cxr.record is None
    assert cxr.image is not None
    assert np.isnan(cxr.shapley).all()
    assert any("no Shapley values" in note for note in cxr.notes)
    assert cxr.as_json()["phenotypes"][0]["shapley"] == {"ehr": None, "cxr": None}


def test_a_prediction_that_is_not_made_is_not_explained(small_demo: Demo, cohort: Cohort) -> None:
    predictor = Predictor.open(run_of(small_demo.folder, "cxr").folder)
    with pytest.raises(InputError, match=r"CxrResNet makes no prediction for stay .* no radiograph; choose"):
        explain_stay(predictor, cohort, first_row(cohort, has_cxr=False))


@pytest.mark.parametrize("kind", [LogisticEhr, LogisticLate])
def test_a_model_whose_gradient_is_not_finite_is_explained_by_occlusion(
    fused: Predictor, cohort: Cohort, kind: Any
) -> None:
    facts = fused.facts
    dataset = StayDataset(cohort)
    rows = [list(range(start, start + 20)) for start in (0, 20)]
    batches = list(EvaluationBatches(dataset, CxrTransform(facts.crop_size), rows))
    model = kind(facts.n_features, len(facts.label_names))
    model.fit(FittingData(batches[:1], batches[1:], dataset.features.values_of))
    row = first_row(cohort, has_cxr=True)
    found = explain_stay(Predictor(model.eval(), facts), cohort, row)
    assert found.record is not None
    assert found.record.method == "occlusion"
    assert np.isfinite(found.record.hours).all()
    assert "integrated-gradients is not possible" in found.notes[0]
    assert kind.__name__ in found.notes[0]
    if kind is LogisticLate:
        assert found.image is not None
        assert found.image.completeness is not None
        assert found.image.completeness.is_met
        cam = explain_stay(Predictor(model.eval(), facts), cohort, row, cxr_method="grad-cam")
        assert cam.image is None
        assert "grad-cam is not possible: LogisticLate has no backbone" in cam.notes[1]


def test_incomplete_attributions_carry_a_warning(
    fused: Predictor, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drfuse.inference.attributions.MOST_MISSING", -1.0)
    found = explain_stay(fused, cohort, first_row(cohort, has_cxr=True), most_steps=2)
    assert len(found.notes) == 2
    for note, what in zip(found.notes, ("record", "radiograph"), strict=True):
        assert f"The attributions of the {what} add up to" in note
        assert "After 2 steps the gap is" in note


def test_rows_and_phenotypes_that_are_not_there_are_refused(fused: Predictor, cohort: Cohort) -> None:
    with pytest.raises(InputError, match=r"phenotype is 'gout'; expected one of Acute and"):
        explain_stay(fused, cohort, 0, "gout")
    with pytest.raises(InputError, match=r"row is -1; .* has rows 0 to"):
        explain_stay(fused, cohort, -1)


def test_an_explanation_is_json_without_holes(fused: Predictor, cohort: Cohort, tmp_path: Path) -> None:
    found = explain_stay(fused, cohort, first_row(cohort, has_cxr=True))
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    (shown,) = [one for one in stored["phenotypes"] if one["name"] == found.phenotype]
    c = found.phenotypes.index(found.phenotype)
    assert shown["probabilities"]["both"] == pytest.approx(found.probabilities["both"][c], rel=1e-4)
    assert sum(shown["modality_weights"].values()) == pytest.approx(1, abs=1e-4)
    assert np.shape(stored["record"]["hours"]) == found.values.shape
    assert stored["values"][0][0] is None or np.isfinite(stored["values"][0][0])
    assert stored["record"]["completeness"]["share"] == found.record.completeness.share
    assert not torch.is_inference_mode_enabled()
    assert replace(found).as_json() == found.as_json()
