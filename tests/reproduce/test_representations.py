"""DrFuse's representations: as the model has them, and numbers of arrays whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from drfuse.data import Cohort, CohortDataModule, StayDataset, StoredBatch
from drfuse.errors import InputError
from drfuse.models import DrFuse, FusionModel, LateFusion
from drfuse.models.hub import describe_model
from drfuse.reproduce import representations
from drfuse.reproduce.representations import FIGURE3, cosine, divergences, probe_origin, represent
from drfuse.run import Run, RunFacts
from tests.builders import PHENOTYPES, TINY_BACKBONE, write_cohort

TINY = {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": TINY_BACKBONE}
ROWS = np.array([10, 0, 8, 2, 6])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.open(write_cohort(tmp_path_factory.mktemp("represented") / "cohort"))


def write_run(folder: Path, model: FusionModel, cohort: Cohort, crop_size: int = 8) -> Path:
    """Write as much of a run as it takes to predict."""
    folder.mkdir(exist_ok=True)
    n_features, *_ = model.init_args.values()
    RunFacts(
        drfuse="",
        cohort="",
        model=describe_model(model),
        n_features=n_features,
        task="phenotyping",
        label_names=PHENOTYPES,
        variables=cohort.manifest.variables,
        normalization=cohort.normalization,
        window_hours=cohort.manifest.options["window_hours"],
        image_size=cohort.image_size,
        crop_size=crop_size,
        batch_size=16,
        precision="32-true",
        best_epoch=0,
        val_prauc_macro=0.0,
    ).write(Run(folder).facts)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def make(kind: type[FusionModel], cohort: Cohort) -> FusionModel:
    torch.manual_seed(0)
    n_features = len(CohortDataModule(cohort, crop_size=8).dataset.features)
    return kind(n_features, len(PHENOTYPES), **TINY).eval()


# --- represent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_a_time", [2, 256])
def test_representations_are_the_model_s_own(
    cohort: Cohort, at_a_time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(DrFuse, cohort)
    monkeypatch.setattr(representations, "_STAYS_AT_A_TIME", at_a_time)
    asked: list[int] = []

    def counted(data: StayDataset, rows: list[int]) -> StoredBatch:
        asked.append(len(rows))
        return get(data, rows)

    get = StayDataset.__getitem__
    monkeypatch.setattr(StayDataset, "__getitem__", counted)
    found = represent(write_run(tmp_path / "run", model, cohort), cohort, ROWS)
    assert sum(asked) == len(ROWS)
    assert max(asked) <= at_a_time
    assert set(found) == {*FIGURE3, "shared"}
    data = CohortDataModule(cohort, crop_size=8)
    for place, row in enumerate(ROWS):
        with torch.no_grad():
            one = model(data.on_after_batch_transfer(data.dataset[[int(row)]], 0)).representations
        for name, h in found.items():
            assert h.shape == (5, 8)
            assert h[place] == pytest.approx(one[name][0].numpy(), rel=1e-4, abs=1e-5)


def test_the_crop_is_the_run_s(cohort: Cohort, tmp_path: Path) -> None:
    model = make(DrFuse, cohort)
    small, large = (
        represent(write_run(tmp_path / "run", model, cohort, crop_size), cohort, ROWS)
        for crop_size in (8, 12)
    )
    assert np.array_equal(small["ehr_distinct"], large["ehr_distinct"])
    assert not np.allclose(small["cxr_distinct"], large["cxr_distinct"])


def test_other_models_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make(LateFusion, cohort), cohort)
    with pytest.raises(InputError, match="has no representation cxr_distinct; expected a run of DrFuse"):
        represent(run, cohort, ROWS)


# --- divergences and cosines --------------------------------------------------------------------------------


def test_a_stay_s_representations_do_not_diverge_from_themselves_but_from_another_s() -> None:
    certain = np.array([[99.0, 99.0], [-99.0, -99.0]], np.float32)  # probabilities 1 and 0
    assert divergences(certain, certain) == pytest.approx((0, 1), abs=1e-6)
    assert divergences(certain, -certain) == pytest.approx((1, 0), abs=1e-6)


def test_divergences_are_means_over_stays_and_features() -> None:
    ehr = np.array([[0, 0], [0, 99], [99, -99]], np.float32)
    cxr = np.array([[0, 99], [0, -99], [99, -99]], np.float32)
    # of probabilities 1/2 and 1, with 3/4 between: H(3/4) - H(1/2) / 2; of 1 and 0: ln 2
    half = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2
    own, another = divergences(ehr, cxr)
    assert own == pytest.approx((half + math.log(2)) / 3 / (2 * math.log(2)), rel=1e-5)
    # each with the radiograph of the one before: (0, 0) and (99, -99), (0, 99) twice, (99, -99) and (0, -99)
    assert another == pytest.approx((2 * half + 0 + half) / 3 / (2 * math.log(2)), rel=1e-5)


def test_the_cosine_is_absolute_and_a_mean() -> None:
    a = np.array([[1, 0], [1, 0], [3, 4], [0, 0]], np.float32)
    b = np.array([[0, 2], [-5, 0], [4, 3], [1, 1]], np.float32)
    assert cosine(a, b) == pytest.approx((0 + 1 + 24 / 25 + 0) / 4)


# --- probes -------------------------------------------------------------------------------------------------


def test_a_modality_that_is_told_apart_by_chance_only_is_at_one_half() -> None:
    same, other = np.random.default_rng(0).standard_normal((2, 400, 3))
    assert probe_origin(same, other, np.arange(400)) == pytest.approx(0.5, abs=0.1)
    assert probe_origin(same, other + 9, np.arange(400)) == 1


def test_a_probe_never_sees_a_subject_in_fitting_and_scoring() -> None:
    # a subject's stays are alike: known ones would give the modality away
    generator = np.random.default_rng(0)
    subjects = np.repeat(np.arange(40), 10)
    ehr, cxr = (generator.standard_normal((40, 60)).astype(np.float32)[subjects] for _ in range(2))
    assert probe_origin(ehr, cxr, subjects) < 0.7
    assert probe_origin(ehr, cxr, np.arange(400)) > 0.95


def test_too_few_subjects_for_the_folds_have_no_probe() -> None:
    ehr, cxr = np.random.default_rng(0).standard_normal((2, 12, 3))
    assert math.isnan(probe_origin(ehr, cxr, np.arange(12) % 4))
    assert 0 <= probe_origin(ehr, cxr, np.arange(12) % 5) <= 1
