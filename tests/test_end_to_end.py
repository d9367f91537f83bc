"""Raw files -> cohort -> trained run -> evaluation, and its use on patients, by the command line alone."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from drfuse.cli import main
from drfuse.evaluation import Recalibration
from drfuse.run import Predictions, Run
from tests.mimic import write_hospital

SMALL_RESNET = "{embedding_size: 16, hidden_sizes: [16, 32], depths: [1, 1], layer_type: basic}"


def run_everything(mimic_iv: Path, mimic_cxr: Path, out: Path, *train_options: str) -> None:
    """Prepare, train for an epoch, evaluate on both test sets; then predict, explain a stay, and export."""
    cohort, run = str(out / "cohort"), str(out / "run")
    main(["prepare", "--mimic-iv", str(mimic_iv), "--mimic-cxr", str(mimic_cxr), "--out", cohort])
    main(["train", cohort, "--out", run, "--epochs", "1", *train_options])
    main(["evaluate", run, "--n-resamples", "200"])
    main(["predict", run, cohort, "--out", str(out / "predictions.csv")])
    with_cxr = pl.read_parquet(out / "cohort" / "stays.parquet").filter("has_cxr")
    stay = ["--stay", str(with_cxr["stay_id"][0]), "--most-steps", "32"]
    main(["explain", run, cohort, *stay, "--out", str(out / "explained")])
    main(["export", run, "--out", str(out / "to-share")])


def check_run(out: Path, n_stays: int) -> None:
    """Check that every file that the design names is there and of one piece."""
    assert {path.name for path in (out / "cohort").iterdir()} == {
        "manifest.json",
        "stays.parquet",
        "ehr.npy",
        "cxr.npy",
        "normalization.json",
        "inputs.parquet",
    }
    assert {path.name for path in (out / "run").iterdir()} == {
        "config.yaml",
        "config.json",
        "model.safetensors",
        "predictions.parquet",
        "metrics.json",
        "metrics.csv",
        "recalibration.json",
        "decision_curves.csv",
        "conformal.csv",
        "subgroups.csv",
        "sums.json",
        "checkpoints",
        "logs",
    }
    predictions = pl.read_parquet(out / "run" / "predictions.parquet")
    assert predictions.height == n_stays
    assert np.isfinite(predictions["logits"].to_numpy()).all()
    metrics = json.loads((out / "run" / "metrics.json").read_text())["test"]
    for test_set in ("matched", "full"):
        macro = metrics[test_set]["prauc_macro"]
        assert 0 < macro["value"] <= 1
        assert (macro["low"] is None) == (macro["high"] is None)
        if macro["low"] is not None:  # so small a test set may have no label with enough positives
            assert 0 < macro["low"] <= macro["high"] <= 1


def test_from_synthetic_files_to_a_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mimic_iv, mimic_cxr = write_hospital(tmp_path, n_stays=80, seed=1, image_size=64)
    model = ["--model.dim", "32", "--model.cxr-backbone", SMALL_RESNET, "--crop-size", "64"]
    run_everything(mimic_iv, mimic_cxr, tmp_path, *model)
    check_run(tmp_path, n_stays=80)
    check_use(tmp_path, n_stays=80)
    shown = capsys.readouterr().out
    assert "Who is in" in shown
    assert "full test set" in shown


def check_use(out: Path, n_stays: int) -> None:
    """Check what was made of the run: a prediction of every stay, an explanation, and a folder to hand on."""
    table, written = pl.read_csv(out / "predictions.csv"), Predictions.read(Run(out / "run").predictions)
    assert table.height == n_stays * len(written.phenotypes)
    recalibration = Recalibration.read(out / "run")
    assert recalibration is not None
    expected = dict(zip(written.stays["stay_id"], recalibration.apply(written.logits), strict=True))
    found = table.group_by("stay_id").agg("probability").rows()
    assert all(np.array_equal(of_stay, expected[stay]) for stay, of_stay in found)
    explained = json.loads((out / "explained" / "explanation.json").read_text())
    assert explained["has_cxr"]
    assert explained["image"]["completeness"]["steps"] == 32
    assert (out / "explained" / "radiograph.png").stat().st_size
    assert {path.name for path in (out / "to-share").iterdir()} == {
        "README.md",
        "LICENSE.md",
        "config.json",
        "model.safetensors",
        "recalibration.json",
        "sums.json",
    }


@pytest.mark.slow
def test_from_the_mimic_demo_to_a_patient(shared: Path, tmp_path: Path) -> None:
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else it is emulated, for eight minutes
    precision = ["--precision", "bf16-mixed" if has_bfloat16 else "32-true"]
    run_everything(shared / "mimic-iv-demo", shared / "mimic-cxr-demo", tmp_path, *precision)
    check_run(tmp_path, n_stays=112)
    check_use(tmp_path, n_stays=112)
