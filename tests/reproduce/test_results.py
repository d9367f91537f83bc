"""The files of finished runs, read only if they belong to the cohort and the task."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drfuse.data import Cohort, Task
from drfuse.evaluation import Recalibration
from drfuse.reproduce.results import Cell, Results
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Predictions, Run, RunFacts
from drfuse.training import train
from drfuse.training.matrix import specify
from drfuse.training.options import TrainOptions
from tests.reproduce.samples import only
from tests.training.own_model import FirstHour

Damage = Callable[[Run, Predictions], None]


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "run"
    return train(small_cohort, out, FirstHour, epochs=1, crop_size=32, accelerator="cpu").folder


def read(small_cohort: Path, folder: Path) -> tuple[Results, list[str]]:
    cohort = Cohort.open(small_cohort)
    spec = specify(cohort, folder, "the run", {"class_path": "drfuse.models.DrFuse"}, TrainOptions())
    system = paper_systems()["drfuse"]
    cells = {Cell(system.name, "full", 0): replace(spec, folder=folder)}
    return Results.read(cohort, Task.of(cohort), [system], cells, 20)


def of_another_cohort(run: Run, _: Predictions) -> None:
    replace(RunFacts.read(run.folder), cohort="0" * 64).write(run.facts)


def with_other_labels(run: Run, _: Predictions) -> None:
    facts = RunFacts.read(run.folder)
    replace(facts, label_names=facts.label_names[::-1]).write(run.facts)


def of_other_labels(run: Run, predictions: Predictions) -> None:
    replace(predictions, phenotypes=predictions.phenotypes[::-1]).write(run.predictions)


def of_the_training_split(run: Run, predictions: Predictions) -> None:
    predictions.of_split("train").write(run.predictions)


def of_half_of_the_stays(run: Run, predictions: Predictions) -> None:
    only(predictions, np.arange(len(predictions.stays)) % 2 == 0).write(run.predictions)


def of_other_outcomes(run: Run, predictions: Predictions) -> None:
    replace(predictions, labels=1 - predictions.labels).write(run.predictions)


def of_fewer_labels(run: Run, predictions: Predictions) -> None:
    replace(predictions, logits=predictions.logits[:, 1:]).write(run.predictions)


DAMAGE: list[Damage] = [
    of_another_cohort,
    with_other_labels,
    of_other_labels,
    of_the_training_split,
    of_half_of_the_stays,
    of_other_outcomes,
    of_fewer_labels,
]


def test_predictions_of_the_cohort_are_read(run: Path, small_cohort: Path) -> None:
    results, damaged = read(small_cohort, run)
    assert not damaged
    (predictions,) = results.predictions["drfuse", "full"]
    assert set(predictions.stays["split"]) == {"test"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_predictions_of_something_else_are_refused(
    run: Path, small_cohort: Path, tmp_path: Path, damage: Damage
) -> None:
    copied = Run(shutil.copytree(run, tmp_path / "run"))
    copied.sums.unlink()
    damage(copied, Predictions.read(copied.predictions))
    results, (complaint,) = read(small_cohort, copied.folder)
    assert not results.cells
    shape = damage is of_fewer_labels
    expected = "holds no .*: logits has the shape" if shape else "its files are not all of the cohort"
    assert re.match(f"the run is damaged: .*{expected}", complaint)
    assert complaint.endswith(f"remove {copied.folder}, and the same command trains it again")


def test_a_run_of_an_earlier_version_learns_its_recalibration_now(
    small_cohort: Path, run: Path, tmp_path: Path
) -> None:
    earlier = shutil.copytree(run, tmp_path / "run")
    stored = Recalibration.read(run)
    Run(earlier).recalibration.unlink()
    for folder in (run, earlier):
        results, damaged = read(small_cohort, folder)
        assert damaged == []
        assert results.recalibrations(paper_systems()["drfuse"], "full") == [stored]
        assert results.recalibrations(paper_systems()["drfuse"], "matched") == []
    assert not Run(earlier).recalibration.exists()
    Run(earlier).recalibration.write_text("{}")
    _, (message,) = read(small_cohort, earlier)
    assert "recalibration.json is damaged" in message
