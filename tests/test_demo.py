"""The demo: every step, continued where it stopped, and held against the truth."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from drfuse import demo as module
from drfuse.cli import main
from drfuse.demo import Demo, demo
from drfuse.errors import InputError, MissingInputError
from drfuse.run import Predictions
from drfuse.simulate import Truth, simulate
from tests.report.test_page import Parsed

pytestmark = pytest.mark.slow  # a whole demo, or trained runs

STAYS = 120


def test_it_writes_hospital_cohort_and_three_runs(small_demo: Demo) -> None:
    assert {path.name for path in small_demo.folder.iterdir() if not path.name.startswith(".")} == {
        "hospital",
        "cohort",
        "runs",
        "report.html",
    }
    assert [contestant.run.name for contestant in small_demo.contestants] == ["ehr", "cxr", "fused"]
    assert all((one.run / "metrics.json").is_file() for one in small_demo.contestants)


def test_the_image_model_has_no_full_test_set_and_the_others_both(small_demo: Demo) -> None:
    ehr, cxr, fused = small_demo.contestants
    assert set(cxr.measured) == set(cxr.ceiling) == {"matched"}
    assert set(ehr.measured) == set(fused.ceiling) == {"matched", "full"}


def test_the_perfect_models_are_measured_on_the_same_stays(small_demo: Demo) -> None:
    for contestant in small_demo.contestants:
        for test_set, measured in contestant.measured.items():
            ceiling = contestant.ceiling[test_set]
            assert measured.n_stays == ceiling.n_stays
            assert measured.n_positive == ceiling.n_positive
            assert measured.prauc_macro.value < ceiling.prauc_macro.value


def test_the_patient_is_a_test_stay_with_a_radiograph_and_its_likeliest_phenotypes(small_demo: Demo) -> None:
    predictions = Predictions.read(small_demo.contestants[-1].run / "predictions.parquet")
    row = predictions.stays["stay_id"].to_list().index(small_demo.patient.stay_id)
    assert predictions.stays["split"][row] == "test"
    assert predictions.stays["has_cxr"][row]
    likeliest = small_demo.patient.likeliest
    explained = small_demo.explanation
    assert explained.stay_id == small_demo.patient.stay_id
    best = sorted(zip(explained.probabilities["both"], explained.phenotypes, strict=True), reverse=True)[:5]
    assert likeliest["phenotype"].to_list() == [name for _, name in best]
    np.testing.assert_allclose(likeliest["probability"], [probability for probability, _ in best], atol=1e-5)
    weights = likeliest.select("ehr_distinct", "shared", "cxr_distinct").to_numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    truth = Truth.read(small_demo.folder / "hospital").of([small_demo.patient.stay_id])
    columns = [truth.phenotypes.index(name) for name in likeliest["phenotype"]]
    assert likeliest["present"].to_list() == truth.labels[0, columns].tolist()
    np.testing.assert_array_equal(likeliest["cxr_advantage"], truth.cxr_advantage[0, columns])


def test_the_page_has_every_model_the_patient_and_its_pictures(small_demo: Demo) -> None:
    page = Parsed(small_demo.report.read_text(encoding="utf-8"))
    shown = {section["id"] for section in page.all("section")}
    assert shown >= {"comparison", "probabilities", "weights", "modalities", "record", "radiograph"}
    assert len(page.all("svg")) == 6
    text = " ".join(page.text)
    for one in small_demo.contestants:
        assert f"{one.measured['matched'].prauc_macro.value:.3f}" in text
        assert f"{one.ceiling['matched'].prauc_macro.value:.3f}" in text
    for row in small_demo.patient.likeliest.iter_rows(named=True):
        assert row["phenotype"] in text


def test_again_it_does_nothing_that_is_done(
    small_demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("simulate", "prepare", "train"):
        monkeypatch.setattr(module, step, lambda *_, **__: pytest.fail("done again"))
    main(["demo", "--out", str(small_demo.folder), "--stays", str(STAYS), "--fast"])
    table = capsys.readouterr().out
    for said in ("EHR Transformer", "CXR ResNet", "DrFuse", "shared", str(small_demo.folder / "runs")):
        assert said in table


def test_another_demo_does_not_mix_with_it(small_demo: Demo) -> None:
    with pytest.raises(
        InputError, match=r"hospital was made with stays 120, not 121; choose a different --out"
    ):
        demo(small_demo.folder, stays=121, fast=True)
    with pytest.raises(InputError, match=r"seed 0, not 1"):
        demo(small_demo.folder, stays=STAYS, fast=True, seed=1)
    with pytest.raises(InputError, match=r"runs/ehr was made with epochs 2, not 10"):
        demo(small_demo.folder, stays=STAYS)


def test_what_was_made_of_other_input_is_refused(small_demo: Demo, tmp_path: Path) -> None:
    out = shutil.copytree(small_demo.folder, tmp_path / "out")
    simulate(out / "hospital", STAYS, 0.5, image_size=64, seed=1, overwrite=True)
    settings = out / "hospital" / "simulation.json"
    settings.write_text(settings.read_text().replace('"seed": 1', '"seed": 0'))
    with pytest.raises(InputError, match=r"cohort was not made from .*hospital; delete it, or choose"):
        demo(out, stays=STAYS, fast=True)
    shutil.rmtree(out / "cohort")
    with pytest.raises(InputError, match=r"runs/ehr was not trained on .*cohort; delete it, or choose"):
        demo(out, stays=STAYS, fast=True)


def test_something_else_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hospital" / "mimic-iv").mkdir(parents=True)
    with pytest.raises(InputError, match=r"hospital has no simulation\.json; delete it, or choose"):
        demo(tmp_path, fast=True)


def test_too_few_stays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stays is 0; expected at least 100"):
        demo(tmp_path / "out", stays=0)
    assert not (tmp_path / "out").exists()


def test_only_what_is_missing_is_done(
    small_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(small_demo.folder, tmp_path / "out")
    (out / "runs" / "cxr" / "predictions.parquet").unlink()
    trained: list[Path] = []
    monkeypatch.setattr(module, "train", lambda _, run, *__, **___: trained.append(run))
    with pytest.raises(MissingInputError):  # what should have been trained is not there to be evaluated
        demo(out, stays=STAYS, fast=True)
    assert trained == [out / "runs" / "cxr"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("hospital/simulation.json", ""),
        ("hospital/simulation.json", "{}"),
        ("cohort/manifest.json", '{"options": '),
        ("runs/ehr/config.yaml", "a: ["),
    ],
)
def test_damaged_settings_are_named(small_demo: Demo, tmp_path: Path, settings: str, text: str) -> None:
    out = shutil.copytree(small_demo.folder, tmp_path / "out")
    (out / settings).write_text(text)
    with pytest.raises(InputError, match=rf"{settings} is damaged; delete "):
        demo(out, stays=STAYS, fast=True)


def test_a_damaged_run_is_named(small_demo: Demo, tmp_path: Path) -> None:
    out = shutil.copytree(small_demo.folder, tmp_path / "out")
    (out / "runs" / "ehr" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged.*: delete .*runs/ehr"):
        demo(out, stays=STAYS, fast=True)
