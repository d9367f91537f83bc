"""A run predicts with nothing beside it: its own cohort to the bit, and another of the same variables."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from drfuse.cohort import prepare
from drfuse.data import Batch, Cohort
from drfuse.errors import InputError
from drfuse.inference import load
from drfuse.inference.predictor import predict_batch
from drfuse.models import EhrTransformer, FusionModel, FusionOutput
from drfuse.run import Predictions, RunFiles
from drfuse.training import train
from tests.builders import N_FEATURES, N_LABELS, make_batch, take_stays, tiny_drfuse
from tests.training.own_model import FirstHour

TINY = partial(EhrTransformer, dim=8, heads=2, feedforward=16)


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictor") / "run"
    return train(small_cohort, out, FirstHour, epochs=1, crop_size=32, accelerator="cpu").folder


@pytest.fixture(scope="module")
def other_cohort(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same stays in another split, so with another normalization."""
    hospital, cohort = small_cohort.parent, tmp_path_factory.mktemp("other") / "cohort"
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=48, seed=7)
    return cohort


def test_a_run_predicts_its_own_cohort_to_the_bit(run: Path, small_cohort: Path) -> None:
    written = Predictions.read(RunFiles(run).predictions)
    predicted = load(run).predict(Cohort.open(small_cohort))
    assert predicted.stays.equals(written.stays)
    assert predicted.phenotypes == written.phenotypes
    for name in ("logits", "labels", "logits_without_cxr"):
        np.testing.assert_array_equal(getattr(predicted, name), getattr(written, name))


def test_stays_are_predicted_in_the_order_of_their_rows(run: Path, small_cohort: Path) -> None:
    cohort, rows = Cohort.open(small_cohort), np.array([7, 2, 11])
    predicted = load(run).predict(cohort, rows)
    assert predicted.stays["stay_id"].to_list() == cohort.stays["stay_id"].to_numpy()[rows].tolist()
    np.testing.assert_allclose(predicted.logits, load(run).predict(cohort).logits[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [[], [-1], [99_999]])
def test_rows_that_cannot_be_predicted_are_refused(run: Path, small_cohort: Path, rows: list[int]) -> None:
    with pytest.raises(InputError, match=r"rows: expected at least one, each of a stay of .* with known"):
        load(run).predict(Cohort.open(small_cohort), np.array(rows, np.int64))


def test_another_cohort_is_read_with_the_normalization_of_the_run(
    run: Path, small_cohort: Path, other_cohort: Path
) -> None:
    own, other = Cohort.open(small_cohort), Cohort.open(other_cohort)
    assert own.normalization != other.normalization
    expected, found = (load(run).predict(cohort) for cohort in (own, other))
    assert found.stays["stay_id"].equals(expected.stays["stay_id"])  # the same stays of the same hospital
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_run_predicts_with_nothing_beside_it(run: Path, small_cohort: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, moved)
    predicted = load(moved).predict(Cohort.open(small_cohort))
    np.testing.assert_array_equal(predicted.logits, Predictions.read(RunFiles(run).predictions).logits)


@pytest.mark.parametrize(
    ("window_hours", "image_size", "complaint"),
    [
        (24, 48, r"has different hours \(24, not 48\) .*; prepare it with --window-hours"),
        (48, 32, r"has different image size \(32, not 48\) .*; prepare it with --image-size"),
    ],
)
def test_a_cohort_that_does_not_fit_is_refused(
    run: Path, small_cohort: Path, tmp_path: Path, window_hours: int, image_size: int, complaint: str
) -> None:
    prepare(
        small_cohort.parent / "mimic-iv",
        tmp_path / "cohort",
        small_cohort.parent / "mimic-cxr",
        window_hours=window_hours,
        image_size=image_size,
    )
    with pytest.raises(InputError, match=complaint):
        load(run).predict(Cohort.open(tmp_path / "cohort"))


def test_other_labels_are_refused(run: Path, small_cohort: Path, tmp_path: Path) -> None:
    hospital, codes = small_cohort.parent, tmp_path / "codes.csv"
    codes.write_text("phenotype,icd_version,icd_code\nheart failure,10,I50\n")
    prepare(
        hospital / "mimic-iv", tmp_path / "cohort", hospital / "mimic-cxr", image_size=48, phenotypes=codes
    )
    with pytest.raises(InputError, match="has different labels from those"):
        load(run).predict(Cohort.open(tmp_path / "cohort"))


# --- one batch ----------------------------------------------------------------------------------------------


def calls_of(model: FusionModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that notes the stays and radiographs of each batch that the model reads."""
    seen: list[tuple[int, int]] = []
    forward = type(model).forward

    def noting(model: FusionModel, batch: Batch) -> FusionOutput:
        seen.append((len(batch), len(batch.cxr)))
        return forward(model, batch)

    monkeypatch.setattr(type(model), "forward", noting)
    return seen


def test_prediction_reads_each_radiograph_once_and_matched_stays_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = tiny_drfuse().eval(), make_batch(cxr_of=(1, 3))
    with torch.no_grad():
        expected = model(batch).logits
        alone = model(take_stays(batch, [1, 3]).keep_cxr(torch.tensor([], dtype=torch.int64))).logits
        seen = calls_of(model, monkeypatch)
        _, logits, without, _ = predict_batch(model, batch)
    assert seen == [(4, 2), (2, 0)]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(without, torch.stack([expected[0], alone[0], expected[2], alone[1]]))


def test_without_radiographs_nothing_is_predicted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EhrTransformer(N_FEATURES, N_LABELS, dim=8, heads=2, feedforward=16).eval()
    seen = calls_of(model, monkeypatch)
    _, logits, without, _ = predict_batch(model, make_batch(cxr_of=()))
    assert seen == [(4, 0)]
    assert torch.equal(logits, without)
