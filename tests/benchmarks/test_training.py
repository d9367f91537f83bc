"""The benchmark measures real steps and epochs, and says whether each target is met."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.training import (
    Section,
    Step,
    _peak_mib,
    floor_step,
    in_turns,
    make_batch,
    make_task,
    n_images_of,
    training,
    training_step,
)
from drfuse.data import Batch
from drfuse.models import DrFuse
from drfuse.training import FusionTraining
from tests.builders import TINY_BACKBONE


def tiny(n_features: int, n_labels: int) -> DrFuse:
    return DrFuse(n_features, n_labels, dim=8, heads=2, feedforward=16, cxr_backbone=TINY_BACKBONE)


@pytest.mark.parametrize(("batch_size", "n_images"), [(16, 3), (64, 12), (11, 2), (1, 1)])
def test_a_batch_is_that_of_the_paper_s_setting(batch_size: int, n_images: int) -> None:
    assert n_images_of(batch_size) == n_images
    batch = make_batch(batch_size, n_images, 16)
    assert batch.ehr.shape == (batch_size, 48, 59)
    assert batch.labels.shape == (batch_size, 25)
    assert batch.cxr.shape == (n_images, 1, 16, 16)
    assert batch.has_cxr.sum() == n_images


def moved_by(step: Callable[[FusionTraining, Batch], Step]) -> set[str]:
    task, batch = make_task(tiny), make_batch(4, 2, 16)
    before = {name: weight.clone() for name, weight in task.model.named_parameters()}
    step(task, batch)()
    return {name for name, weight in task.model.named_parameters() if not weight.equal(before[name])}


def test_the_step_trains_everything_and_the_floor_its_bare_networks() -> None:
    names = {name for name, _ in tiny(59, 25).named_parameters()}
    assert moved_by(lambda task, batch: training_step(task, [batch])) == names
    bare = {name for name in names if name.startswith("ehr_encoder") or ".backbone." in name}
    assert moved_by(floor_step) == bare


def test_steps_take_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []
    waits: list[int] = []
    seconds = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, lambda: waits.append(1)
    )
    assert order == ["a", "b"] * 3
    assert len(waits) == 12
    assert seconds.keys() == {"a", "b"}


@pytest.mark.slow
def test_the_tables_say_what_was_measured(monkeypatch: pytest.MonkeyPatch, small_cohort: Path) -> None:
    monkeypatch.setattr("benchmarks.training.make_cohort", lambda *_: small_cohort)
    monkeypatch.setattr("benchmarks.training.DrFuse", partial(DrFuse, dim=8, heads=2, feedforward=16))
    sections: list[Section] = ["steps", "options", "compile", "epoch", "prediction"]
    report = training(sections, batch_sizes=(16,), crop_size=28, backbone=TINY_BACKBONE, repeats=1)
    tables = report.markdown()
    assert [target.at_least or target.at_most for target in report.targets] == [0.95, 4, 0.95, 8, 1.05]
    for title in ("A training step", "Options:", "--compile:", "An epoch: 4 steps and", "Prediction,"):
        assert f"**{title}" in tables
    for name in ("| fp32 |", "| bf16, channels_last |"):
        line = next(line for line in tables.split("**Prediction")[1].splitlines() if line.startswith(name))
        assert line.split("|")[-2].strip() == "1"  # each backbone encodes each image once
    epoch = tables.split("**An epoch")[1].split("**Prediction")[0]
    shares = [line.split("|")[3] for line in epoch.splitlines() if line.count("|") == 4]
    parts = [float(share) for share in shares if share.strip().replace(".", "").isdigit()][1:]
    assert sum(parts) == pytest.approx(1, abs=0.01)


def test_peak_memory_grows_with_what_is_held() -> None:
    before, peak = _peak_mib(tiny, 16, 16, "32-true", False, 64, 0)
    assert 0 < before <= peak
