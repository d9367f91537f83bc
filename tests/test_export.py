"""A run becomes a folder to hand on, whose card tells what the run knows and nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from drfuse.cli import main
from drfuse.cohort.manifest import Manifest
from drfuse.errors import InputError, MissingInputError
from drfuse.evaluation import evaluate
from drfuse.export import export
from drfuse.inference import Predictor
from drfuse.models import EhrLstm, FusionModel
from drfuse.run import Run
from drfuse.training import train
from tests.builders import left_in, write_cohort

FILES = {"config.json", "model.safetensors", "README.md", "LICENSE.md", "recalibration.json", "sums.json"}
SECTIONS = ["Intended use", "Misuse", "Data", "Training", "Metrics", "Groups of patients", "Calibration"]
SECTIONS += ["Limits", "Use"]
ESTIMATE = {"value": 0.7, "low": 0.6, "high": 0.8, "bias": 0.0}


@pytest.fixture(scope="module")
def measured_run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on MIMIC-shaped tables with its metrics; read it, do not change it."""
    out = tmp_path_factory.mktemp("export") / "run"
    train(small_cohort, out, partial(EhrLstm, dim=8), epochs=1, crop_size=32, accelerator="cpu")
    evaluate(out, n_resamples=20, cohort=small_cohort)
    return out


@pytest.fixture
def run(measured_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that may be changed."""
    return Path(shutil.copytree(measured_run, tmp_path / "run"))


def change_facts(run: Path, **changes: Any) -> None:
    replace(Run(run).read_facts(), **changes).write(Run(run).facts)
    Run(run).sums.unlink(missing_ok=True)


def simulate(run: Path) -> None:
    summary = Run(run).read_facts().cohort_summary
    assert summary is not None
    change_facts(run, cohort_summary=replace(summary, simulated=True))


def change_metrics(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    metrics = json.loads(Run(run).metrics.read_text())
    change(metrics["test"]["full"])
    Run(run).write_metrics(metrics)


def card_of(run: Path, **options: Any) -> ModelCard:
    out = run.with_name("exported")
    return ModelCard.load(export(run, out, overwrite=True, **options).folder / "README.md")


def test_an_exported_folder_holds_the_model_and_no_patient(
    measured_run: Path, small_cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    exported = export(measured_run, out)
    assert set(exported.files) == left_in(out) == FILES
    assert out.stat().st_mode & 0o777 == 0o700
    for name in FILES - {"README.md", "LICENSE.md", "sums.json"}:
        assert (out / name).read_bytes() == (measured_run / name).read_bytes()
    written = " ".join((out / name).read_text() for name in FILES - {"model.safetensors"})
    assert str(small_cohort.parent) not in written
    stays = Run(measured_run).read_predictions().stays
    assert not [one for one in stays["stay_id"].to_list() if str(one) in written]
    expected, found = (Predictor.open(folder).predict(small_cohort) for folder in (measured_run, out))
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert FusionModel.from_pretrained(out).facts == Run(measured_run).read_facts()


def test_the_hub_reads_the_metrics_in_the_front_matter(measured_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    export(measured_run, out)
    text = (out / "README.md").read_text()
    card = ModelCard.load(out / "README.md")
    assert str(card) == text
    name, results = model_index_to_eval_results(metadata_load(out / "README.md")["model-index"])
    assert name == card.data.model_name == "EhrLstm for phenotyping"
    assert results == card.data.eval_results
    found = {(one.dataset_config, one.metric_type): one for one in results}
    stored = Run(measured_run).read_metrics()["test"]
    assert found.keys() == {(test_on, metric) for test_on in stored for metric in ("prauc", "auroc")}
    for (test_on, metric), one in found.items():
        of_file = stored[test_on][f"{metric}_macro"]
        assert one.metric_value == pytest.approx(of_file["value"], abs=1e-6)
        for end in ("low", "high"):
            assert (one.metric_args or {}).get(end) == pytest.approx(of_file[end], abs=1e-6)
        assert (one.dataset_args or {})["n_stays"] == stored[test_on]["n_stays"]


def test_the_card_tells_what_the_run_knows(measured_run: Path, small_cohort: Path, tmp_path: Path) -> None:
    export(measured_run, tmp_path / "exported")
    text = (tmp_path / "exported" / "README.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    manifest, facts = Manifest.read(small_cohort), Run(measured_run).read_facts()
    assert facts.cohort_summary == manifest.summary
    for step in manifest.flow:
        assert f"| {step.criterion} | {step.stays} |" in text
    for split, counts in manifest.splits.items():
        assert f"| {split} | {counts['stays']} | {counts['with_cxr']} |" in text
    full = Run(measured_run).read_metrics()["test"]["full"]
    for one in full["phenotypes"]:
        assert f"| {one['phenotype']} | {one['n_positive']} | " in text
    assert f"| mean of the labels |  | {full['prauc_macro']['value']:.3f} (" in text
    assert f"| Brier score | {full['calibration']['brier']['value']:.3f} (" in text
    assert "the hourly measurements of the first 48 hours.\n" in text  # EhrLstm reads no radiograph
    assert f"epoch 1, whose macro PRAUC on the validation split is {facts.val_prauc_macro:.3f}" in text


def test_groups_are_in_the_card_unless_they_are_small_or_pairs(run: Path) -> None:
    assert (
        "Not measured: it is not known whether" in card_of(run).text
    )  # its groups are of less than 10 stays

    def enlarge(found: dict[str, Any]) -> None:
        one = found["subgroups"]["groups"][0] | {"attribute": "sex"}
        women = one | {"group": "women", "n_stays": 10, "few": True, "auroc_macro": ESTIMATE}
        men = one | {"group": "men", "n_stays": 1234, "few": False}
        found["subgroups"]["groups"] = [women, men, one | {"group": "others", "n_stays": 9}]
        found["subgroups"]["groups"].append(men | {"attribute": "sex x race"})

    change_metrics(run, enlarge)
    text = card_of(run).text
    rows = [line for line in text.splitlines() if line.startswith("| sex")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| sex: women (few positives)", "10"],
        ["| sex: men", "1,234"],
    ]
    assert "| 0.700 (0.600, 0.800) |" in rows[0]
    assert "a specificity of 0.9" in text


# --- who may have it ----------------------------------------------------------------------------------------


def test_weights_trained_on_mimic_may_be_shared_only_through_physionet(run: Path) -> None:
    said = "they may be shared only as a credentialed PhysioNet project"
    card = card_of(run)
    assert said in card.text
    assert said in (run.with_name("exported") / "LICENSE.md").read_text()
    assert card.data.get("license") == "other"
    assert card.data.get("license_name") == "physionet-credentialed-health-data-license-1.5.0"
    assert "Beth Israel" in card.text
    with pytest.raises(InputError, match="--license: weights trained on MIMIC may be shared only as a cred"):
        card_of(run, license="mit")


def test_weights_trained_on_a_simulated_hospital_say_so(run: Path) -> None:
    simulate(run)
    assert card_of(run).data.get("license") is None
    card = card_of(run, license="mit")
    assert card.data.get("license") == "mit"
    assert "trained on a simulated hospital: no patient's data are behind them" in card.text
    assert "PhysioNet" not in card.text
    assert "MIMIC" not in card.text
    assert "is mit." in (run.with_name("exported") / "LICENSE.md").read_text()


def test_a_run_of_an_earlier_version_takes_its_counts_from_its_cohort(
    run: Path, small_cohort: Path, tmp_path: Path
) -> None:
    change_facts(run, cohort_summary=None)
    text = card_of(run).text
    assert "This card does not know the data" in text
    assert "If it was MIMIC, they may be shared only as a credentialed PhysioNet project." in text
    text = card_of(run, cohort=small_cohort).text
    assert f"| all ICU stays | {Manifest.read(small_cohort).flow[0].stays} |" in text
    with pytest.raises(
        InputError, match=r"other is not the cohort that .*run was trained on; choose a differ"
    ):
        card_of(run, cohort=write_cohort(tmp_path / "other"))


# --- what is missing, damaged or hostile --------------------------------------------------------------------


def test_a_run_that_was_not_measured_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (Run(run).metrics, Run(run).recalibration):
        path.unlink()
    card = card_of(run)
    assert "run `drfuse evaluate` first" in caplog.text
    assert card.data.get("eval_results") is None
    assert card.text.count("Not measured") == 3
    assert "The probabilities are not recalibrated." in card.text
    assert left_in(run.with_name("exported")) == FILES - {"recalibration.json"}


def test_names_are_shown_as_they_are(run: Path) -> None:
    name = "a|b <script>alert(1)</script> {{ 7 * 7 }} `x` **y**\n---\n# z"
    facts = Run(run).read_facts()
    model = {"class_path": "m.`{{ 7 }}`</code>.Kind: *x*\n---\n", "init_args": {"a": "</code>`{% raw %}"}}
    change_facts(run, label_names=[name, *facts.label_names[1:]], model=model)
    Run(run).recalibration.unlink()  # it is of other labels
    change_metrics(run, lambda found: found["phenotypes"][0].update(phenotype=name))
    card = card_of(run)
    shown = "| a\\|b &lt;script&gt;alert(1)&lt;/script&gt; {{ 7 \\* 7 }} \\`x\\` \\*\\*y\\*\\* --- \\# z |"
    assert shown in card.text
    assert "<script>" not in str(card)
    assert "49" not in card.text.split("## Data")[0]
    assert "`` m.`{{ 7 }}`</code>.Kind: *x* --- ``" in card.text
    assert len(card.data.get("eval_results")) == 4
    assert [line for line in card.text.splitlines() if line.startswith(("---", "# "))] == [
        line for line in card.text.splitlines() if line.startswith("# Kind: \\*x\\*")
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.clear(),
        lambda found: found.pop("calibration"),
        lambda found: found.pop("phenotypes"),
        lambda found: found.update(prauc_macro="high"),
        lambda found: found["phenotypes"][0].update(prauc="high"),
        lambda found: found.update(n_stays="many"),
        lambda found: found["subgroups"]["groups"][0].pop("n_stays"),
    ],
)
def test_damaged_metrics_are_refused(run: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    change_metrics(run, damage)
    with pytest.raises(InputError, match=r"metrics\.json: its measurements .*; run `drfuse evaluate` again"):
        card_of(run)
    assert left_in(run.parent) == {"run"}


@pytest.mark.parametrize("text", ["{", "[]", '{"test": 3}'])
def test_a_file_without_metrics_is_refused(run: Path, text: str) -> None:
    Run(run).metrics.write_text(text)
    Run(run).sums.unlink()
    with pytest.raises(InputError, match=r"metrics\.json is damaged: .*; run `drfuse evaluate` again"):
        card_of(run)


def test_a_recalibration_that_is_a_link_to_another_file_is_not_handed_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a password")
    Run(run).recalibration.unlink()
    Run(run).recalibration.symlink_to(tmp_path / "secret")
    Run(run).sums.unlink()
    with pytest.raises(InputError, match=r"recalibration\.json is damaged"):
        export(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_nothing_but_an_export_is_replaced(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="is not a finished run"):
        export(tmp_path, tmp_path / "out")
    export(run, tmp_path / "out")
    with pytest.raises(InputError, match="out exists; choose a different --out, or replace it with --overw"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", overwrite=True)
    with pytest.raises(InputError, match="run holds more than a folder of `drfuse export`"):
        export(run, run, overwrite=True)
    assert Run(run).is_finished


def test_the_command_says_what_it_wrote(
    measured_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(measured_run), "--out", str(tmp_path / "out")])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"wrote {tmp_path / 'out'}: " + ", ".join(sorted(FILES))
    assert "only as a credentialed PhysioNet project" in second
