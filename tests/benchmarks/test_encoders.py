"""The encoders' benchmark trains what it says, and measures on stays that trained nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score

from benchmarks import encoders as benchmark
from benchmarks.encoders import _pooled, _pooled_numbers, encoders
from drfuse.run import Predictions, Run
from tests.builders import make_batch


def test_hours_are_pooled_up_to_the_stay_s_last_one() -> None:
    ehr = torch.tensor([[[1.0], [5.0], [3.0]], [[2.0], [7.0], [0.0]]])
    batch = replace(make_batch((), (3, 1)), ehr=ehr)
    pooled = _pooled(batch, ("mean", "maximum", "last"))
    assert pooled.tolist() == [[3.0, 5.0, 3.0], [2.0, 2.0, 2.0]]


def test_categories_are_pooled_as_numbers() -> None:
    # two categories 3 and 4, one-hot, and whether the variable was observed
    ehr = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    batch = replace(make_batch((), (3,)), ehr=ehr)
    pooled = _pooled_numbers(batch, torch.tensor([[3.0], [4.0], [0.0]]))
    torch.testing.assert_close(pooled, torch.tensor([[11 / 3, 4.0, 2 / 3]]))


@pytest.mark.slow
def test_every_trial_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ehr: dict[str, Any] = {
        "linear": ("LogisticEhr", {}, {}),
        "Transformer": ("EhrTransformer", {"dim": 8, "heads": 2}, {}),
    }
    monkeypatch.setattr(benchmark, "EHR_TRIALS", ehr)
    monkeypatch.setattr(benchmark, "CXR_TRIALS", {"components": ("LogisticCxr", {"n_components": 5}, {})})
    text = encoders(tmp_path, hospitals=(101,), stays=150, image_size=32, epochs=1)
    pooled = ("mean over the hours", "mean and last hour", "mean, maximum and last hour")
    for title in (*ehr, "components", *pooled):
        assert text.count(f"| {title} |") == 1
    for run, title in (("logisticehr-full-0-*", "linear"), ("logisticcxr-matched-0-*", "components")):
        (folder,) = (tmp_path / "runs").glob(run)
        said = Predictions.read(Run(folder).predictions)
        rows = said.rows("test", "full" if title == "linear" else "matched")
        labels = said.labels[rows]
        occurs = labels.any(axis=0)
        prauc = average_precision_score(labels[:, occurs], said.logits[rows][:, occurs])
        assert f"| {title} | {prauc:.3f} | {prauc:.3f} |" in text
    assert (tmp_path / "encoders.md").read_text() == text + "\n"
