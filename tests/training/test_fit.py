"""From a cohort to a run on disk."""

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from filelock import FileLock
from lightning import Callback, LightningModule
from lightning import Trainer as Lightning
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch.utils.data import get_worker_info

from drfuse.cohort import prepare
from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.data import Batch, Cohort, CohortDataModule, StayDataset, StoredBatch, Task, TaskName
from drfuse.data.summary import summarize_inputs
from drfuse.errors import BusyError, InputError, MissingInputError
from drfuse.files import beside
from drfuse.inference import Predictor
from drfuse.models import (
    DAFT,
    CxrResNet,
    DrFuse,
    EhrLstm,
    EhrTransformer,
    FusionModel,
    FusionOutput,
    LogisticCxr,
    LogisticEhr,
    LogisticLate,
    MedFuse,
    check_contract,
)
from drfuse.models.cxr_encoders import CxrEncoder
from drfuse.run import Predictions, Run, RunFacts
from drfuse.training import FusionTraining, Schedule, TrainedRun, train
from drfuse.training.claim import claim
from drfuse.training.optimizers import cosine
from tests.builders import TINY_BACKBONE
from tests.mimic import write_hospital
from tests.training.own_model import FirstHour, interrupt_second

BACKBONE = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
TINY = partial(DrFuse, dim=16, heads=2, cxr_backbone=BACKBONE)

Trainer = Callable[..., TrainedRun]


@pytest.fixture
def fit(small_cohort: Path, tmp_path: Path) -> Trainer:
    """Return `train` on the small cohort: tiny model, 32 pixels, two epochs, into `tmp_path / "run"`."""
    return partial(
        train,
        small_cohort,
        out=tmp_path / "run",
        model=TINY,
        epochs=2,
        lr=1e-3,
        crop_size=32,
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def finished(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(small_cohort, out, TINY, epochs=3, lr=3e-3, crop_size=32, accelerator="cpu")


def test_a_run_holds_everything_the_design_names(finished: TrainedRun) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.yaml",
        "config.json",
        "model.safetensors",
        "predictions.parquet",
        "recalibration.json",
        "sums.json",
        "checkpoints",
        "logs",
    }
    assert (finished.folder / "checkpoints" / "last.ckpt").is_file()
    assert (finished.folder / "logs" / "version_0" / "metrics.csv").is_file()
    logs = [path.name for path in (finished.folder / "logs").iterdir()]
    assert any(name.startswith("events.out.tfevents") for name in logs), logs


def test_a_loaded_model_predicts_what_the_run_predicted(finished: TrainedRun, small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    data = CohortDataModule(cohort, crop_size=32)
    model = Predictor.open(finished.folder).model
    assert not model.training
    with torch.no_grad():
        output = model(data.on_after_batch_transfer(data.dataset[list(range(len(cohort)))], 0))
    np.testing.assert_allclose(output.logits.numpy(), logits_of(finished), rtol=1e-4, atol=1e-5)


def test_what_is_no_finished_run_has_no_model(finished: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"has no model\.safetensors: it is not a finished run"):
        Predictor.open(tmp_path)
    copied = shutil.copytree(finished.folder, tmp_path / "run")
    (copied / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: .*; train the run again"):
        Predictor.open(copied)
    shutil.copy(finished.folder / "model.safetensors", copied)
    facts = (copied / "config.json").read_text()
    (copied / "config.json").write_text(facts.replace("drfuse.models.drfuse.DrFuse", "elsewhere.Model"))
    with pytest.raises(InputError, match=r"config\.json is damaged: its values are not those"):
        Predictor.open(copied)
    (copied / "config.json").write_text(facts[:100])
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        Predictor.open(copied)
    (copied / "config.json").unlink()
    with pytest.raises(MissingInputError, match="an earlier version of drfuse trained it; train it again"):
        Predictor.open(copied)


def test_the_configuration_names_every_option_defaults_included(
    finished: TrainedRun, small_cohort: Path
) -> None:
    options = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert options["cohort"] == str(small_cohort)
    assert options["model"]["class_path"] == "drfuse.models.drfuse.DrFuse"
    assert options["model"]["init_args"]["dim"] == 16
    assert options["model"]["init_args"]["alignment_weight"] == 1.0
    assert options["model"]["init_args"]["cxr_backbone"] == BACKBONE
    assert (options["lr"], options["patience"], options["seed"]) == (3e-3, 10, 0)


def test_a_run_says_what_its_weights_need_to_predict(finished: TrainedRun, small_cohort: Path) -> None:
    cohort, facts = Cohort.open(small_cohort), RunFacts.read(finished.folder)
    assert facts.cohort == cohort.fingerprint
    assert (facts.label_names, facts.n_features) == (cohort.phenotypes, 59)
    assert (facts.variables, facts.normalization) == (cohort.manifest.variables, cohort.normalization)
    assert (facts.window_hours, facts.image_size, facts.crop_size) == (48, cohort.image_size, 32)
    assert facts.model == yaml.safe_load((finished.folder / "config.yaml").read_text())["model"]


def test_predictions_have_a_row_a_stay_of_every_split(finished: TrainedRun, small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    predictions = Predictions.read(Run(finished.folder).predictions)
    assert predictions.stays["stay_id"].equals(cohort.stays["stay_id"])
    assert set(predictions.stays["split"]) == {"train", "validation", "test"}
    np.testing.assert_array_equal(predictions.labels, cohort.labels)
    assert predictions.modality_weights is not None
    has_cxr = predictions.stays["has_cxr"].to_numpy()
    assert (predictions.modality_weights[~has_cxr][..., 2] == 0).all()
    assert (predictions.modality_weights[has_cxr][..., 2] > 0).all()


def test_predictions_come_from_the_saved_weights(finished: TrainedRun, small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    data = CohortDataModule(cohort, crop_size=32)
    model = TINY(len(data.dataset.features), len(cohort.phenotypes))
    model.load_state_dict(load_file(finished.folder / "model.safetensors"))
    model.eval()
    with torch.no_grad():
        logits = model(data.on_after_batch_transfer(data.dataset[list(range(len(cohort)))], 0)).logits
    predictions = Predictions.read(Run(finished.folder).predictions)
    np.testing.assert_allclose(predictions.logits, logits.numpy(), atol=1e-4)


def test_the_kept_weights_are_those_of_the_best_epoch(finished: TrainedRun) -> None:
    predictions = Predictions.read(Run(finished.folder).predictions)
    rows = (predictions.stays["split"] == "validation").to_numpy()
    labels, logits = predictions.labels[rows], predictions.logits[rows]
    occurs = labels.any(axis=0)
    expected = average_precision_score(labels[:, occurs], logits[:, occurs], average="macro")
    assert finished.val_prauc == pytest.approx(expected, abs=1e-5)


def test_the_seed_decides_the_run(fit: Trainer, tmp_path: Path) -> None:
    runs = [fit(out=tmp_path / name, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    first, again, other = (Predictions.read(Run(run.folder).predictions).logits for run in runs)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def cut(fit: Trainer, epoch: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Train, and die at the start of an epoch."""

    def die(task: FusionTraining) -> None:
        if task.current_epoch == epoch:
            raise RuntimeError("power cut")
        original(task)

    original = FusionTraining.on_train_epoch_start
    with monkeypatch.context() as patch:
        patch.setattr(FusionTraining, "on_train_epoch_start", die)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(**options)


def logits_of(run: TrainedRun) -> np.ndarray:
    return Predictions.read(Run(run.folder).predictions).logits


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    whole = fit(epochs=4, out=tmp_path / "whole", schedule=schedule)
    cut(fit, 2, monkeypatch, epochs=4, schedule=schedule)
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    resumed = fit(epochs=4, schedule=schedule)
    assert (resumed.best_epoch, resumed.val_prauc) == (whole.best_epoch, whole.val_prauc)
    np.testing.assert_array_equal(logits_of(resumed), logits_of(whole))
    for name in ("model.safetensors", "predictions.parquet", "config.yaml"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


class Noted(Callback):
    """The epoch and the stays of each training batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[int]]] = []

    def on_train_batch_start(self, trainer: Lightning, task: Any, batch: Batch, *args: Any) -> None:  # noqa: ARG002
        self.batches.append((trainer.current_epoch, batch.stay_id.tolist()))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_an_interrupted_run_goes_on_with_the_batches_of_its_epoch(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule, num_workers: int
) -> None:
    options: dict[str, Any] = {"model": FirstHour, "epochs": 3, "schedule": schedule}
    whole, resumed = Noted(), Noted()
    fit(out=tmp_path / "whole", callbacks=[whole], **options)
    cut(fit, 2, monkeypatch, num_workers=num_workers, **options)
    fit(num_workers=num_workers, callbacks=[resumed], **options)
    assert resumed.batches == [batch for batch in whole.batches if batch[0] == 2]
    assert len(resumed.batches) > 1


class Rates(Callback):
    """The learning rate of each batch."""

    def __init__(self) -> None:
        self.of_batches: list[float] = []

    def on_train_batch_start(self, trainer: Lightning, *args: Any) -> None:  # noqa: ARG002
        self.of_batches.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_rises_and_falls_over_the_steps_of_all_epochs(
    fit: Trainer, accumulate: int
) -> None:
    rates = Rates()
    fit(epochs=3, lr=0.01, schedule="cosine", accumulate=accumulate, callbacks=[rates])
    n_batches = len(rates.of_batches) // 3
    n_steps = 3 * -(-n_batches // accumulate)
    steps = [epoch * n_steps // 3 + batch // accumulate for epoch in range(3) for batch in range(n_batches)]
    expected = [0.01 * cosine(n_steps, step) for step in steps]
    assert rates.of_batches == pytest.approx(expected)
    assert max(expected) > 0.0095
    assert expected[-1] < 0.002


def test_the_learning_rate_stays_where_nothing_is_said(fit: Trainer) -> None:
    rates = Rates()
    fit(epochs=2, lr=0.01, callbacks=[rates])
    assert set(rates.of_batches) == {0.01}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_after_its_last_epoch_not_its_best(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(fit, 3, monkeypatch, epochs=5, lr=1e-12)  # nothing improves after epoch 0
    started: list[int] = []
    monkeypatch.setattr(
        FusionTraining, "on_train_epoch_start", lambda task: started.append(task.current_epoch)
    )
    fit(epochs=5, lr=1e-12)
    assert started == [3, 4]
    assert len(list((tmp_path / "run" / "logs").glob("version_*/metrics.csv"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_kill_between_two_checkpoints_changes_nothing(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    whole = fit(epochs=4, out=tmp_path / "whole")
    original = Lightning.save_checkpoint

    def die_at_last(trainer: Lightning, path: str | Path, *args: object, **options: object) -> None:
        if "last" in str(path) and trainer.current_epoch == epoch:
            raise RuntimeError("power cut")
        original(trainer, path, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Lightning, "save_checkpoint", die_at_last)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(epochs=4)
    resumed = fit(epochs=4)
    assert (resumed.best_epoch, resumed.val_prauc) == (whole.best_epoch, whole.val_prauc)
    np.testing.assert_array_equal(logits_of(resumed), logits_of(whole))


@pytest.mark.slow
def test_out_may_be_a_link(fit: Trainer, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fit(out=tmp_path / "link", epochs=1)
    fit(out=tmp_path / "link", epochs=1, seed=1, overwrite=True)
    assert Run(tmp_path / "real").predictions.is_file()


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on(fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(epochs=4, out=tmp_path / "whole")
    cut(fit, 2, monkeypatch, epochs=4)
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = fit(epochs=4, out=tmp_path / "moved")
    np.testing.assert_array_equal(logits_of(resumed), logits_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"epochs": 3}, {"epochs": 30, "patience": 2, "lr": 1e-12}])
def test_a_run_cut_before_its_predictions_trains_no_further(
    fit: Trainer, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    first = fit(**options)
    before = Run(first.folder).predictions.read_bytes()
    Run(first.folder).predictions.unlink()
    monkeypatch.setattr("drfuse.training.fit._fit", None)  # training would fail
    assert fit(**options) == first
    assert Run(first.folder).predictions.read_bytes() == before


def test_a_run_that_is_finished_has_its_recalibration(
    fit: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, calls = Run(tmp_path / "run"), list[bool]()

    def interrupted(*_: object) -> None:
        calls.append(run.is_finished)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("drfuse.training.fit.recalibrate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit()
    assert calls == [False]
    assert not run.is_finished
    fit()
    run.check()
    assert {"recalibration.json", "predictions.parquet"} <= json.loads(run.sums.read_text()).keys()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(fit: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut(fit, 1, monkeypatch)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"PK half")
    with pytest.raises(InputError, match=r"last\.ckpt is damaged; start the run again with --overwrite"):
        fit()
    fit(overwrite=True)


def test_a_run_that_fails_at_the_start_leaves_nothing_and_keeps_what_was_there(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(fit, 0, monkeypatch)
    assert not (tmp_path / "run").exists()
    first = fit(epochs=1)
    before = Run(first.folder).predictions.read_bytes()
    with pytest.raises(InputError, match="accelerator 'gpuu'"):
        fit(accelerator="gpuu", overwrite=True)
    cut(fit, 0, monkeypatch, overwrite=True)
    assert Run(first.folder).predictions.read_bytes() == before


def test_a_replaced_run_comes_back_even_after_a_kill(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Run(fit(epochs=1).folder).predictions.read_bytes()
    (tmp_path / "run").rename(tmp_path / ".run.replaced")  # as a command that was killed at once leaves it
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((tmp_path / ".run.replaced" / "config.yaml").read_text())
    cut(fit, 0, monkeypatch, overwrite=True)
    assert Run(tmp_path / "run").predictions.read_bytes() == before


@pytest.mark.slow
def test_two_commands_never_write_one_run(fit: Trainer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(beside(tmp_path / "run", "lock")):
        for unfinished in (".config.yaml.0123456789abcdef.partial", "config.yaml"):
            with pytest.raises(BusyError, match="another command is writing"):
                fit()
            (tmp_path / "run" / unfinished).write_text("cohort: a\nmodel: b\ntrain_on: c\n")
        with pytest.raises(BusyError, match="another command is writing"):
            fit(overwrite=True)


def test_a_command_that_was_killed_at_its_start_is_in_nobodys_way(fit: Trainer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    beside(tmp_path / "run", "lock").touch()
    (tmp_path / "run" / ".config.yaml.0123456789abcdef.partial").write_text("cohort: a\nmo")
    assert Run(fit(epochs=1).folder).predictions.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("model", [FirstHour, LogisticEhr], ids=lambda model: model.__name__)
def test_a_killed_process_that_makes_batches_is_told_in_a_sentence(
    model: type[FusionModel], fit: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = StayDataset.__getitem__

    def die(dataset: StayDataset, rows: list[int]) -> StoredBatch:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory is short
        return make(dataset, rows)

    monkeypatch.setattr(StayDataset, "__getitem__", die)
    with pytest.raises(InputError, match=r"^a process that makes batches was killed, .*lower --num-workers"):
        fit(model=model, num_workers=1)
    assert fit(model=model).val_prauc > 0  # the same command without such processes


def test_a_loss_that_is_not_finite_ends_the_run(fit: Trainer, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the training loss is .* in epoch \d; lower --lr or --weight-decay, or check"
    ):
        fit(lr=1e30, epochs=3)
    assert not (tmp_path / "run" / "predictions.parquet").exists()


class NotFinite(FirstHour):
    """A model whose training loss is NaN."""

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, torch.Tensor]:
        return {"total": super().loss(output, batch)["total"] * (math.nan if self.training else 1)}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_stays_of_a_loss_that_is_not_finite_are_in_a_file(
    fit: Trainer, small_cohort: Path, tmp_path: Path, overwrite: bool
) -> None:
    run, noted = Run(tmp_path / "run"), Noted()
    if overwrite:
        fit(model=FirstHour, epochs=1)
    before = run.predictions.read_bytes() if overwrite else None
    with pytest.raises(InputError, match=r"logarithm of 0; .*run/not_finite\.csv has the stays of the first"):
        fit(model=NotFinite, epochs=1, callbacks=[noted], overwrite=overwrite)
    assert pl.read_csv(run.not_finite)["stay_id"].to_list() == noted.batches[0][1]
    assert (run.predictions.read_bytes() if overwrite else None) == before
    fit(model=FirstHour, epochs=1, overwrite=overwrite)
    assert not run.not_finite.exists()


def test_one_phenotype_is_enough(tmp_path: Path) -> None:
    mimic_iv, _ = write_hospital(tmp_path, n_stays=60)
    every_code = "\n".join(f"any,{version},{code}" for version, code in _codes())
    (tmp_path / "codes.csv").write_text(f"phenotype,icd_version,icd_code\n{every_code}\n")
    prepare(mimic_iv, tmp_path / "cohort", phenotypes=tmp_path / "codes.csv", image_size=32)
    result = train(tmp_path / "cohort", tmp_path / "run", TINY, epochs=1, crop_size=32, accelerator="cpu")
    assert 0 < result.val_prauc <= 1


def _codes() -> list[tuple[int, str]]:
    return read_phenotypes().select("icd_version", "icd_code").rows()


class Tied(FirstHour):
    """Two names for one weight, a path and a tuple among its arguments."""

    def __init__(
        self, n_features: int, n_labels: int, where: Path = Path("here"), sizes: tuple[int, ...] = (1, 2)
    ) -> None:
        super().__init__(n_features, n_labels, scale=float(len(sizes) + len(where.name)))
        self.again = self.head


def test_tied_weights_paths_and_tuples_are_no_obstacle(fit: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(fit, 1, monkeypatch, model=Tied)
    result = fit(model=Tied)
    assert {"head.weight", "again.weight"} <= load_file(result.folder / "model.safetensors").keys()


class WrongShape(FirstHour):
    """One logit too many."""

    def forward(self, batch: Batch) -> FusionOutput:
        return FusionOutput(torch.cat([super().forward(batch).logits, batch.labels[:, :1]], dim=1))


class NoTotal(FirstHour):
    """A loss without its sum."""

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, torch.Tensor]:
        return {"part": super().loss(output, batch)["total"]}


@pytest.mark.parametrize(
    ("model", "complaint"),
    [(WrongShape, r"logits of shape \(2, 26\); expected \(2, 25\)"), (NoTotal, '"total"')],
)
def test_a_model_that_breaks_the_contract_is_told_in_what(
    fit: Trainer, tmp_path: Path, model: type[FusionModel], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        fit(model=model)
    assert not (tmp_path / "run").exists()


def test_training_trains_and_validation_evaluates(fit: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[str, set[bool]] = {"training_step": set(), "validation_step": set()}
    for name, seen in modes.items():
        original = getattr(FusionTraining, name)

        def step(
            task: FusionTraining,
            batch: Batch,
            batch_idx: int,
            original: Any = original,
            seen: set[bool] = seen,
        ) -> Any:
            seen.update(module.training for module in task.model.modules())
            return original(task, batch, batch_idx)

        monkeypatch.setattr(FusionTraining, name, step)
    fit(epochs=2)
    assert modes == {"training_step": {True}, "validation_step": {False}}


class Frozen(FirstHour):
    """A part that is kept in evaluation mode, as a frozen encoder's BatchNorm would be."""

    def __init__(self, n_features: int, n_labels: int) -> None:
        super().__init__(n_features, n_labels)
        self.head.eval()


class FloatPart(FirstHour):
    """A part of the loss that is no tensor."""

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, torch.Tensor]:
        return super().loss(output, batch) | {"part": cast("torch.Tensor", 0.5)}


def test_the_contract_check_leaves_every_modules_mode(small_cohort: Path) -> None:
    data = CohortDataModule(Cohort.open(small_cohort), crop_size=32)
    model = Frozen(len(data.dataset.features), 25)
    check_contract(model, data.example(), 25)
    assert model.training
    assert not model.head.training
    with pytest.raises(InputError, match="dict of scalar tensors"):
        check_contract(FloatPart(len(data.dataset.features), 25), data.example(), 25)


@pytest.mark.slow
def test_a_cohort_without_radiographs_trains(tmp_path: Path) -> None:
    mimic_iv, _ = write_hospital(tmp_path, n_stays=60)
    prepare(mimic_iv, tmp_path / "cohort", image_size=32)
    result = train(tmp_path / "cohort", tmp_path / "run", TINY, epochs=1, crop_size=32, accelerator="cpu")
    assert np.isfinite(logits_of(result)).all()


@pytest.mark.parametrize(
    ("owner", "step"),
    [(FusionTraining, "training_step"), (Predictor, "predict_blocks")],
    ids=["training", "predicting"],
)
def test_an_interruption_is_one(
    fit: Trainer, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(epochs=1)


def test_a_changed_cohort_is_refused(small_cohort: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(small_cohort, tmp_path / "cohort")
    values = np.load(copied / "ehr.npy", mmap_mode="r+")
    values[0, 0, 0] = 1e3
    values.flush()
    with pytest.raises(InputError, match=r"ehr\.npy is not what `drfuse prepare` wrote"):
        train(copied, tmp_path / "run", TINY, crop_size=32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_trains_on_a_gpu(fit: Trainer, precision: str) -> None:
    assert np.isfinite(logits_of(fit(accelerator="gpu", precision=precision))).all()


def test_an_interrupted_run_with_other_options_is_refused(fit: Trainer, tmp_path: Path) -> None:
    fit()
    (tmp_path / "run" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match="interrupted run with a different lr"):
        fit(lr=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_on_another_cohort_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        mimic_iv, mimic_cxr = write_hospital(tmp_path / str(seed), n_stays=80, seed=seed)
        prepare(mimic_iv, tmp_path / "cohort", mimic_cxr, image_size=32, overwrite=seed == 2)
        if seed == 1:
            train(tmp_path / "cohort", tmp_path / "run", TINY, epochs=1, crop_size=32)
            (tmp_path / "run" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match="interrupted run on another cohort"):
        train(tmp_path / "cohort", tmp_path / "run", TINY, epochs=1, crop_size=32)


@pytest.mark.slow
def test_a_finished_run_is_kept_unless_told_otherwise(fit: Trainer) -> None:
    first = fit(epochs=1)
    before = Run(first.folder).predictions.read_bytes()
    with pytest.raises(InputError, match="is a finished run"):
        fit(epochs=1, seed=3)
    assert Run(first.folder).predictions.read_bytes() == before
    fit(epochs=1, seed=3, overwrite=True)
    assert Run(first.folder).predictions.read_bytes() != before


def test_a_folder_that_is_no_run_is_never_touched(fit: Trainer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("theme: dark\n")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds something that is not a run"):
            fit(overwrite=overwrite)
    assert (tmp_path / "run" / "config.yaml").read_text() == "theme: dark\n"


@pytest.mark.slow
def test_training_stops_when_validation_no_longer_improves(fit: Trainer) -> None:
    result = fit(epochs=30, patience=2, lr=1e-12)
    assert result.epochs == 3
    assert result.best_epoch == 0


def test_training_learns(fit: Trainer) -> None:
    def losses(out: Path) -> list[float]:
        lines = (out / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("train/total")
        return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]

    result = fit(model=partial(TINY, dropout=0.0), epochs=12, lr=1e-2, augment=False)
    history = losses(result.folder)
    assert len(history) == 12
    assert history[-1] < 0.9 * history[0]


def test_matched_trains_and_validates_on_stays_with_a_radiograph(fit: Trainer, small_cohort: Path) -> None:
    result = fit(train_on="matched")
    predictions = Predictions.read(Run(result.folder).predictions)
    assert len(predictions.logits) == len(Cohort.open(small_cohort))
    rows = (predictions.stays["split"] == "validation").to_numpy() & predictions.stays["has_cxr"].to_numpy()
    occurs = predictions.labels[rows].any(axis=0)
    expected = average_precision_score(
        predictions.labels[rows][:, occurs], predictions.logits[rows][:, occurs]
    )
    assert result.val_prauc == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("train_on", ["matched", "full"])
def test_validation_may_be_on_other_stays_than_training(
    fit: Trainer, small_cohort: Path, train_on: str
) -> None:
    validate_on = "full" if train_on == "matched" else "matched"
    result = fit(train_on=train_on, validate_on=validate_on)
    predictions = Predictions.read(Run(result.folder).predictions)
    rows = Cohort.open(small_cohort).rows("validation", validate_on)  # type: ignore[arg-type]
    occurs = predictions.labels[rows].any(axis=0)
    labels, logits = predictions.labels[rows][:, occurs], predictions.logits[rows][:, occurs]
    assert result.val_prauc == pytest.approx(average_precision_score(labels, logits), abs=1e-5)
    config = yaml.safe_load(Run(result.folder).config.read_text())
    assert (config["train_on"], config["validate_on"]) == (train_on, validate_on)


@pytest.mark.slow
def test_the_validation_stays_belong_to_a_run(fit: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FusionTraining, "on_train_epoch_start", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            fit(train_on="matched")
    with pytest.raises(
        InputError, match="is an interrupted run with a different validate_on; use the options"
    ):
        fit(train_on="matched", validate_on="full")
    assert fit(train_on="matched", validate_on="matched").epochs == 2  # as it was without the option


@pytest.mark.parametrize(
    ("model", "dropped"), [(partial(CxrResNet, dim=8, cxr_backbone=TINY_BACKBONE), 0), (TINY, 0.5)]
)
def test_a_model_of_radiographs_alone_keeps_them_all(
    fit: Trainer, small_cohort: Path, monkeypatch: pytest.MonkeyPatch, model: Any, dropped: float
) -> None:
    read: list[tuple[int, int]] = []
    step = FusionTraining.training_step
    monkeypatch.setattr(
        FusionTraining,
        "training_step",
        lambda task, batch, at: read.append((len(batch), len(batch.cxr))) or step(task, batch, at),
    )
    fit(model=model, train_on="matched", matched_cxr_dropout=0.5, epochs=1)
    n_stays, n_cxr = map(sum, zip(*read, strict=True))
    assert n_stays == len(Cohort.open(small_cohort).rows("train", "matched"))
    assert n_cxr == pytest.approx((1 - dropped) * n_stays, abs=len(read) / 2)


def test_a_users_own_model_trains(fit: Trainer) -> None:
    result = fit(model=FirstHour)
    assert Predictions.read(Run(result.folder).predictions).modality_weights is None


def test_what_is_said_without_radiographs_is_kept(finished: TrainedRun, small_cohort: Path) -> None:
    cohort = Cohort.open(small_cohort)
    predictions = Predictions.read(Run(finished.folder).predictions)
    without = predictions.logits_without_cxr
    assert without is not None
    np.testing.assert_array_equal(without[~cohort.has_cxr], predictions.logits[~cohort.has_cxr])
    data = CohortDataModule(cohort, crop_size=32)
    batch = data.as_evaluated(data.dataset[list(range(len(cohort)))])
    with torch.no_grad():
        expected = (
            Predictor.open(finished.folder).model(batch.keep_cxr(torch.tensor([], dtype=torch.int64))).logits
        )
    np.testing.assert_allclose(without, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (without[cohort.has_cxr] != predictions.logits[cohort.has_cxr]).any(axis=1).all()


@pytest.fixture(scope="module")
def cohort_with_deaths(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stays of `small_cohort` in another split: some of the validation stays end in death."""
    hospital, cohort = small_cohort.parent, tmp_path_factory.mktemp("deaths") / "cohort"
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=48, seed=7)
    return cohort


@pytest.mark.parametrize(("task", "n_labels"), [("mortality", 1), ("los", 7)])
def test_a_task_predicts_the_stays_that_take_part(
    cohort_with_deaths: Path, tmp_path: Path, task: TaskName, n_labels: int
) -> None:
    cohort = cohort_with_deaths
    result = train(cohort, tmp_path / "run", FirstHour, epochs=1, crop_size=32, accelerator="cpu", task=task)
    of_cohort = Task.of(Cohort.open(cohort), task)
    assert 0 < of_cohort.eligible.sum() < len(of_cohort.eligible)
    predictions = Predictions.read(Run(result.folder).predictions)
    stay_ids = Cohort.open(cohort).stays["stay_id"].to_numpy()[of_cohort.eligible]
    assert predictions.stays["stay_id"].to_list() == stay_ids.tolist()
    assert predictions.logits.shape == (len(stay_ids), n_labels)
    np.testing.assert_array_equal(predictions.labels, of_cohort.labels[of_cohort.eligible])
    assert predictions.phenotypes == of_cohort.label_names
    facts, rows = RunFacts.read(result.folder), of_cohort.rows("train")
    assert facts.task == task
    assert facts.inputs == summarize_inputs(of_cohort.cohort, rows)
    assert facts.inputs != summarize_inputs(of_cohort.cohort, of_cohort.cohort.rows("train"))
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["task"] == task
    assert Predictor.open(result.folder).model.head.out_features == n_labels


def test_an_interrupted_run_of_another_task_is_refused(fit: Trainer) -> None:
    Run(fit(model=FirstHour, epochs=1).folder).predictions.unlink()
    with pytest.raises(InputError, match="interrupted run with a different task; use the"):
        fit(model=FirstHour, epochs=1, task="los")


ENCODER = {"dim": 8, "cxr_backbone": TINY_BACKBONE}
MEDFUSE = partial(MedFuse, **ENCODER, fusion_dim=8, lstm_layers=1)


@pytest.fixture(scope="module")
def unimodal(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run of each modality alone."""
    models: dict[str, Callable[[int, int], FusionModel]] = {
        "ehr": partial(EhrLstm, dim=8, lstm_layers=1),
        "cxr": partial(CxrResNet, **ENCODER),
    }
    folder = tmp_path_factory.mktemp("unimodal")
    for name, model in models.items():
        train(small_cohort, folder / name, model, epochs=1, lr=1e-2, crop_size=32, accelerator="cpu", seed=1)
    return {name: folder / name for name in models}


def encoder_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(getattr(Predictor.open(run).model, name).named_parameters())


@pytest.mark.slow
def test_encoders_start_from_those_of_unimodal_runs(
    fit: Trainer, unimodal: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unimodal["ehr"].parent)
    from_them = fit(model=MEDFUSE, epochs=1, lr=1e-12, init_ehr=Path("ehr"), init_cxr=Path("cxr"))
    by_chance = fit(model=MEDFUSE, epochs=1, lr=1e-12, out=tmp_path / "other")
    for modality, run in unimodal.items():
        trained = encoder_of(run, "encoder")
        started, other = (encoder_of(one.folder, f"{modality}_encoder") for one in (from_them, by_chance))
        assert started.keys() == trained.keys()
        for name, weights in trained.items():
            torch.testing.assert_close(started[name], weights)
        assert any((other[name] - weights).abs().max() > 1e-2 for name, weights in trained.items())
    options = yaml.safe_load((from_them.folder / "config.yaml").read_text())
    assert (options["init_ehr"], options["init_cxr"]) == (str(unimodal["ehr"]), str(unimodal["cxr"]))


def test_what_cannot_start_from_a_run_says_why(
    fit: Trainer, unimodal: dict[str, Path], finished: TrainedRun, tmp_path: Path
) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("FirstHour has 0 ehr encoders", {"model": FirstHour, "init_ehr": unimodal["ehr"]}),
        ("DrFuse has 2 cxr encoders", {"init_cxr": unimodal["cxr"]}),
        ("run is not a run of a unimodal model", {"model": MEDFUSE, "init_ehr": finished.folder}),
        (r"\(CxrResNet\) is not built like the ehr enc", {"model": MEDFUSE, "init_ehr": unimodal["cxr"]}),
        ("not built like", {"model": partial(MEDFUSE, dim=4), "init_cxr": unimodal["cxr"]}),
        (r"has no model\.safetensors", {"model": MEDFUSE, "init_cxr": tmp_path}),
    ]
    for complaint, options in wrong:
        with pytest.raises(InputError, match=complaint) as error:
            fit(**options)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


def test_encoders_do_not_start_from_a_run_on_another_cohort(
    small_cohort: Path, unimodal: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(small_cohort, tmp_path / "other")
    with (other / "manifest.json").open("a") as manifest:
        manifest.write("\n")
    with pytest.raises(InputError, match=r"--init-ehr: .* was trained on another cohort"):
        train(other, tmp_path / "run", MEDFUSE, crop_size=32, init_ehr=unimodal["ehr"])
    assert not (tmp_path / "run").exists()


def test_a_model_of_radiographs_alone_says_nothing_without_them(unimodal: dict[str, Path]) -> None:
    predictions = Predictions.read(Run(unimodal["cxr"]).predictions)
    assert predictions.logits_without_cxr is not None
    assert np.isnan(predictions.logits_without_cxr).all()
    assert (np.isfinite(predictions.logits).all(axis=1) == predictions.stays["has_cxr"].to_numpy()).all()


class Epochs(Callback):
    """Notes which epochs ended."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_epoch_end(self, trainer: Lightning, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.seen.append(trainer.current_epoch)


@pytest.mark.parametrize("progress", [True, False])
def test_callbacks_are_called_and_progress_is_shown_if_asked(
    fit: Trainer, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    callback = Epochs()
    fit(model=FirstHour, callbacks=[callback], progress=progress)
    assert callback.seen == [0, 1]
    assert ("Epoch 1" in capsys.readouterr().out) == progress


@pytest.mark.slow
def test_a_validation_split_without_positives_is_refused(tmp_path: Path) -> None:
    mimic_iv, _ = write_hospital(tmp_path, n_stays=60)
    codes = tmp_path / "codes.csv"
    codes.write_text("phenotype,icd_version,icd_code\nnever seen,10,Z9999\n")
    prepare(mimic_iv, tmp_path / "cohort", phenotypes=codes)
    with pytest.raises(InputError, match="no label occurs in the validation split"):
        train(tmp_path / "cohort", tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_bfloat16_trains(fit: Trainer) -> None:
    result = fit(epochs=1, precision="bf16-mixed")
    logits = Predictions.read(Run(result.folder).predictions).logits
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_medfuse_trains_in_bfloat16_on_any_processor(fit: Trainer) -> None:
    medfuse = partial(MedFuse, dim=8, fusion_dim=12, cxr_backbone=TINY_BACKBONE)
    logits = logits_of(fit(model=medfuse, epochs=1, precision="bf16-mixed"))
    assert np.isfinite(logits).all()
    assert not np.array_equal(logits, torch.tensor(logits).bfloat16().float().numpy())


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_emulated_bfloat16_is_told(
    fit: Trainer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    has_kernels: bool,
) -> None:
    kernels = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: has_kernels)
    monkeypatch.setattr("drfuse.training.trainer.torch.ops.mkldnn", kernels)
    fit(model=FirstHour, epochs=1, precision=precision)
    assert ("emulates bfloat16" in caplog.text) == (precision == "bf16-mixed" and not has_kernels)


class NoKernel(FirstHour):
    """A model with a layer that the processor has not in half precision."""

    def forward(self, batch: Batch) -> FusionOutput:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor. Run workload with ONEDNN_VERBOSE")
        return super().forward(batch)


def test_a_model_without_kernels_in_half_precision_is_refused_in_a_sentence(fit: Trainer) -> None:
    with pytest.raises(InputError, match=r"NoKernel does not run with --precision bf16-mixed .* choose 32-"):
        fit(model=NoKernel, precision="bf16-mixed")
    fit(model=NoKernel, epochs=1)


@pytest.mark.parametrize("n_components", [10**12, 10**17])
def test_a_model_that_does_not_fit_in_memory_is_refused_in_a_sentence(
    fit: Trainer, tmp_path: Path, n_components: int
) -> None:
    with pytest.raises(InputError, match="do not fit in memory; choose smaller sizes"):
        fit(model=partial(LogisticCxr, n_components=n_components))
    assert not (tmp_path / "run").exists()


def test_float16_on_a_processor_is_refused_rather_than_replaced(fit: Trainer) -> None:
    with pytest.raises(InputError, match="--precision 16-mixed needs a GPU"):
        fit(precision="16-mixed")


@pytest.mark.parametrize(("model", "told"), [(FirstHour, True), (TINY, False)])
def test_logits_in_half_precision_are_told(
    fit: Trainer, caplog: pytest.LogCaptureFixture, model: Any, told: bool
) -> None:
    fit(model=model, epochs=1, precision="bf16-mixed")
    assert ("the logits of FirstHour are rounded to half precision" in caplog.text) == told


def weights_of(run: TrainedRun) -> dict[str, torch.Tensor]:
    return load_file(Run(run.folder).model)


def test_batches_add_up_to_the_step_of_a_larger_one(fit: Trainer, tmp_path: Path, small_cohort: Path) -> None:
    n_stays = len(Cohort.open(small_cohort).rows("train"))
    assert 8 < n_stays % 24 < 16  # the last group is not complete, and neither is its last batch
    options: dict[str, Any] = {"model": FirstHour, "lr": 1e-2, "epochs": 2}
    whole = fit(out=tmp_path / "whole", batch_size=24, **options)
    parts = fit(out=tmp_path / "parts", batch_size=8, accumulate=3, **options)
    single = fit(out=tmp_path / "single", batch_size=8, **options)
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], weight, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(weights_of(single)[name], weight, rtol=1e-2, atol=1e-4)


class SeesImages(EhrTransformer):
    """The same, but images are read for it: it does not say that it needs none."""


def test_a_model_of_the_ehr_alone_has_no_radiograph_read(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    pixels = StayDataset.pixels
    monkeypatch.setattr(StayDataset, "pixels", lambda data, rows: read.extend(rows) or pixels(data, rows))
    options: dict[str, Any] = {"augment": False, "epochs": 2}
    small: dict[str, Any] = {"dim": 8, "heads": 2, "feedforward": 16}
    blind = fit(out=tmp_path / "blind", model=partial(EhrTransformer, **small), **options)
    assert not read
    seeing = fit(out=tmp_path / "seeing", model=partial(SeesImages, **small), **options)
    assert read
    np.testing.assert_allclose(logits_of(blind), logits_of(seeing), rtol=1e-5, atol=1e-6)
    first, second = (Predictions.read(Run(run.folder).predictions) for run in (blind, seeing))
    assert first.stays.equals(second.stays)  # has_cxr is the cohort's


@pytest.mark.slow
def test_recomputed_activations_change_no_result(fit: Trainer, tmp_path: Path) -> None:
    plain, again = (fit(out=tmp_path / str(on), checkpoint_activations=on) for on in (False, True))
    np.testing.assert_array_equal(logits_of(plain), logits_of(again))
    assert all(torch.equal(weights_of(again)[name], weight) for name, weight in weights_of(plain).items())


def test_recomputed_activations_are_not_compiled(fit: Trainer) -> None:
    with pytest.raises(InputError, match="--compile does not work with --checkpoint-activations"):
        fit(compile=True, checkpoint_activations=True)


@pytest.mark.slow
def test_frozen_backbones_read_each_radiograph_once(
    fit: Trainer, small_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[int] = []
    pool = CxrEncoder.pool
    monkeypatch.setattr(CxrEncoder, "pool", lambda model, cxr: images.append(len(cxr)) or pool(model, cxr))
    result = fit(freeze_cxr=True, epochs=3)
    n_images = len(Cohort.open(small_cohort).cxr)
    assert sum(images) == 2 * n_images + 2  # two backbones; one image each when the contract is checked
    torch.manual_seed(0)
    fresh, trained = TINY(59, 25).state_dict(), Predictor.open(result.folder).model
    moved = {name for name in fresh if not trained.state_dict()[name].equal(fresh[name])}
    assert moved >= {"cxr_shared_encoder.project.weight", "ehr_encoder.project.weight"}
    assert not [name for name in moved if ".backbone." in name]
    data = CohortDataModule(Cohort.open(small_cohort), crop_size=32)
    with torch.no_grad():  # from the pixels
        logits = trained(data.on_after_batch_transfer(data.dataset[list(range(80))], 0)).logits
    np.testing.assert_allclose(logits.numpy(), logits_of(result), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_freezes_the_backbones_of_its_checkpoint(
    fit: Trainer, unimodal: dict[str, Path], monkeypatch: pytest.MonkeyPatch, small_cohort: Path
) -> None:
    cut(fit, 1, monkeypatch, model=MEDFUSE, freeze_cxr=True, epochs=2, init_cxr=unimodal["cxr"])
    result = fit(model=MEDFUSE, freeze_cxr=True, epochs=2)  # the checkpoint has what came of init_cxr
    trained = Predictor.open(result.folder).model
    data = CohortDataModule(Cohort.open(small_cohort), crop_size=32)
    with torch.no_grad():  # from the pixels
        logits = trained(data.on_after_batch_transfer(data.dataset[list(range(80))], 0)).logits
    np.testing.assert_allclose(logits.numpy(), logits_of(result), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [FirstHour, partial(DAFT, dim=16, heads=2, cxr_backbone=BACKBONE)])
def test_what_cannot_be_frozen_is_refused(
    fit: Trainer, tmp_path: Path, model: Callable[[int, int], FusionModel]
) -> None:
    with pytest.raises(InputError, match=r"--freeze-cxr: .* has no encoder of radiographs"):
        fit(model=model, freeze_cxr=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_how_an_interrupted_run_is_computed_may_change(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(epochs=3, out=tmp_path / "whole")
    cut(fit, 1, monkeypatch, epochs=3)
    np.testing.assert_array_equal(logits_of(fit(epochs=3, checkpoint_activations=True)), logits_of(whole))


def test_who_only_looks_at_a_run_keeps_nobody_from_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    looking = FileLock(beside(run.folder, "lock"), thread_local=False)
    looking.acquire()
    threading.Timer(0.2, looking.release).start()
    with claim(run, {"cohort": "", "model": "", "train_on": ""}, "", overwrite=False) as checkpoint:
        assert checkpoint is None


# --- models that a solver fits ------------------------------------------------------------------------------

LINEAR: dict[str, Callable[..., FusionModel]] = {
    "ehr": LogisticEhr,
    "cxr": partial(LogisticCxr, n_components=5, side=16),
    "late": partial(LogisticLate, n_components=5, side=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LINEAR)
def test_a_fitted_model_makes_a_run_like_any_other(fit: Trainer, small_cohort: Path, kind: str) -> None:
    result = fit(model=LINEAR[kind], epochs=7)
    assert (result.best_epoch, result.epochs) == (0, 1)
    cohort, saved = Cohort.open(small_cohort), Predictions.read(Run(result.folder).predictions)
    model, data = Predictor.open(result.folder).model, CohortDataModule(cohort, crop_size=32)
    batch = data.as_evaluated(data.dataset[list(range(len(cohort)))])
    with torch.no_grad():
        seen = model(batch).logits
        blind = model(batch.keep_cxr(torch.empty(0, dtype=torch.int64))).logits
    np.testing.assert_allclose(saved.logits, seen, rtol=1e-4, atol=1e-5)
    assert saved.logits_without_cxr is not None
    np.testing.assert_allclose(saved.logits_without_cxr, blind, rtol=1e-4, atol=1e-5)
    told = np.isfinite(saved.logits).all(axis=1)
    np.testing.assert_array_equal(told, cohort.has_cxr if kind == "cxr" else np.ones(len(cohort), bool))
    rows = saved.rows("validation") & told
    labels = saved.labels[rows]
    occurs = labels.any(axis=0)
    expected = average_precision_score(labels[:, occurs], saved.logits[rows][:, occurs], average="macro")
    assert result.val_prauc == pytest.approx(expected)
    assert RunFacts.read(result.folder).val_prauc_macro == pytest.approx(expected)


@pytest.mark.slow
def test_options_of_gradient_steps_change_nothing_about_a_fitted_model(fit: Trainer, tmp_path: Path) -> None:
    first = fit(model=LINEAR["late"], train_on="matched")
    others: dict[str, Any] = {
        "epochs": 5,
        "lr": 0.1,
        "seed": 3,
        "precision": "bf16-mixed",
        "matched_cxr_dropout": 1.0,
        "cxr_share": 0.3,
        "accumulate": 2,
        "augment": False,
    }
    second = fit(out=tmp_path / "second", model=LINEAR["late"], train_on="matched", **others)
    one, two = (load_file(Run(run.folder).model) for run in (first, second))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
    np.testing.assert_array_equal(logits_of(first), logits_of(second))


@pytest.mark.slow
def test_matched_and_full_fit_other_stays(fit: Trainer, tmp_path: Path) -> None:
    runs = {
        (kind, train_on): load_file(
            Run(fit(out=tmp_path / f"{kind}-{train_on}", model=LINEAR[kind], train_on=train_on).folder).model
        )
        for kind in ("ehr", "cxr")
        for train_on in ("matched", "full")
    }
    name = "head.linear.weight"
    assert not torch.equal(runs["ehr", "matched"][name], runs["ehr", "full"][name])
    torch.testing.assert_close(runs["cxr", "matched"][name], runs["cxr", "full"][name])  # only those with one


@pytest.mark.slow
def test_a_fit_that_was_interrupted_starts_again(fit: Trainer) -> None:
    result = fit(model=LINEAR["ehr"])
    expected = logits_of(result)
    Run(result.folder).predictions.unlink()
    np.testing.assert_array_equal(logits_of(fit(model=LINEAR["ehr"])), expected)


def test_a_fitted_model_without_a_validation_prauc_says_why(
    fit: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogisticEhr, "fit", lambda model, _: model.head.linear.bias.data.fill_(np.nan))
    with pytest.raises(InputError, match="LogisticEhr has no validation PRAUC"):
        fit(model=LINEAR["ehr"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("task", "n_labels"), [("mortality", 1), ("los", 7)])
def test_a_fitted_model_predicts_other_tasks(
    cohort_with_deaths: Path, tmp_path: Path, task: TaskName, n_labels: int
) -> None:
    out = tmp_path / "run"
    logits = logits_of(train(cohort_with_deaths, out, LINEAR["late"], crop_size=32, task=task))
    assert logits.shape[1] == n_labels
    assert np.isfinite(logits).all()  # los has classes that no training stay is in


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fitted_model_predicts_on_a_gpu(fit: Trainer, tmp_path: Path) -> None:
    on_cpu = logits_of(fit(model=LINEAR["late"]))
    on_gpu = logits_of(fit(out=tmp_path / "gpu", model=LINEAR["late"], accelerator="gpu"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3)
