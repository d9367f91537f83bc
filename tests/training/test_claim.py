"""A run's folder: what resumes, what is kept, what is restored and what is refused."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.models import EhrLstm, LogisticEhr, MedFuse
from drfuse.run import Predictions, Run
from drfuse.training import FusionTraining, TrainedRun, TrainOptions, train
from drfuse.training.claim import claim
from tests.builders import TINY_BACKBONE
from tests.training.own_model import FirstHour, interrupt_second

Trainer = Callable[..., TrainedRun]


@pytest.fixture
def fit(small_cohort: Path, tmp_path: Path) -> Trainer:
    """Return `train` on the small cohort: a linear model, two epochs, into `tmp_path / "run"`."""
    options = TrainOptions(epochs=2, lr=1e-3, crop_size=32, accelerator="cpu")
    return partial(
        train, small_cohort, out=tmp_path / "run", model=FirstHour, options=options, progress=False
    )


@pytest.fixture
def interrupted(fit: Trainer, tmp_path: Path) -> Run:
    """Return a run that was interrupted after its first epoch."""
    interrupt(fit)
    return Run(tmp_path / "run")


def interrupt(fit: Trainer, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusionTraining, "on_train_epoch_start", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            fit(**options)


CONFIG = {"cohort": "", "model": "", **TrainOptions().written()}


def killed_while_replacing(run: Run) -> Path:
    """Leave a folder as a command does that is killed in the first epoch of a run with --overwrite."""
    replaced = run.folder.with_name(".run.replaced")
    replaced.mkdir(parents=True)
    for folder in (replaced, run.folder):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (replaced / "predictions.parquet").write_bytes(b"earlier PAR1")
    return replaced


@pytest.mark.slow
def test_a_resumed_run_keeps_what_it_started_from(fit: Trainer, tmp_path: Path) -> None:
    start = fit(out=tmp_path / "start", model=partial(EhrLstm, dim=8, lstm_layers=1), epochs=1).folder
    medfuse = partial(MedFuse, dim=8, fusion_dim=8, lstm_layers=1, cxr_backbone=TINY_BACKBONE)
    whole = fit(out=tmp_path / "whole", model=medfuse, init_ehr=start)
    interrupt(fit, model=medfuse, init_ehr=start)
    resumed = fit(model=medfuse)
    config = yaml.safe_load((resumed.folder / "config.yaml").read_text())
    assert config["init_ehr"] == str(start)
    for name in ("config.yaml", "model.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("epochs", [2, 3])
def test_weights_without_a_checkpoint_are_not_replaced_unless_told(fit: Trainer, epochs: int) -> None:
    run = Run(fit().folder)
    run.predictions.unlink()
    shutil.rmtree(run.checkpoints)
    before = run.model.read_bytes()
    with pytest.raises(InputError, match=r"different epochs|has model\.safetensors but no checkpoint"):
        fit(epochs=epochs)
    assert run.model.read_bytes() == before
    assert fit(epochs=epochs, overwrite=True).epochs == epochs


def test_the_weights_of_a_solver_are_not_replaced_by_those_of_other_options(fit: Trainer) -> None:
    run = Run(fit(model=LogisticEhr).folder)
    run.predictions.unlink()
    with pytest.raises(InputError, match="with a different train_on"):
        fit(model=LogisticEhr, train_on="matched")


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, [1], torch.ones(2), {"cohort": "x", "epoch": 0, "state_dict": {}, "val_prauc": 0.5}],
)
def test_another_file_of_torch_is_not_a_checkpoint(fit: Trainer, interrupted: Run, content: Any) -> None:
    torch.save(content, interrupted.last_checkpoint)
    with pytest.raises(InputError, match=r"last\.ckpt is damaged; start the run again with --overwrite"):
        fit()


@pytest.mark.parametrize("name", ["last.ckpt", "best-epoch=0.ckpt"])
def test_a_checkpoint_of_another_model_is_refused(fit: Trainer, interrupted: Run, name: str) -> None:
    checkpoint = torch.load(interrupted.checkpoints / name)
    checkpoint["state_dict"]["model.other"] = checkpoint["state_dict"].pop("model.head.weight")
    torch.save(checkpoint | {"val_prauc": 2.0}, interrupted.checkpoints / name)
    (interrupted.checkpoints / "sums.json").unlink()
    with pytest.raises(InputError, match="has the weights of another model; start the run again with --over"):
        fit()


@pytest.mark.parametrize(
    "content", [None, b"", b"cohort: a\ncoh", b"cohort: a\n", b"\xff\x00", b"cohort: a\ncohort: b\n"]
)
def test_a_run_whose_configuration_is_damaged_can_be_replaced(
    fit: Trainer, interrupted: Run, content: bytes | None
) -> None:
    interrupted.config.unlink()
    if content is not None:
        interrupted.config.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml is missing or damaged, so .* add --overwrite"):
        fit()
    (interrupted.folder / "notes.txt").touch()
    with pytest.raises(InputError, match="holds something that is not a run; choose a different --out"):
        fit(overwrite=True)
    (interrupted.folder / "notes.txt").unlink()
    assert fit(overwrite=True).epochs == 2


def test_a_run_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    replaced = killed_while_replacing(run)
    with pytest.raises(InputError, match="is a finished run"), claim(run, CONFIG, "", overwrite=False):
        pass
    assert run.predictions.read_bytes() == b"earlier PAR1"
    assert not replaced.exists()


def test_a_replaced_run_is_kept_until_it_is_replaced_again(
    fit: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run(fit().folder).predictions.read_bytes()
    interrupt(fit, overwrite=True, seed=1)
    fit(seed=1)
    replaced = Run(tmp_path / ".run.replaced")
    assert f"{replaced.folder} still has the run that this one replaced" in caplog.text
    assert replaced.predictions.read_bytes() == first
    fit(overwrite=True, seed=2)
    assert not replaced.folder.exists()
    assert len(Predictions.read(Run(tmp_path / "run").predictions).stays)


def test_a_folder_below_a_file_is_refused_in_a_sentence(fit: Trainer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file, not a folder; choose a different --out"):
        fit(out=tmp_path / "file" / "below" / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"epochs": 1}}, "options is {'epochs': 1}; expected a TrainOptions"),
        ({"options": None}, "options is None; expected a TrainOptions"),
        (
            {"model": "drfuse.models.NoSuch"},
            "drfuse.models.NoSuch",
        ),
        ({"model": lambda *_: torch.nn.Linear(1, 1)}, "the model is of type Linear; expected a FusionModel"),
        ({"overwrite": "no"}, "overwrite is the text 'no'; expected true or false"),
        ({"accelerator": "tpu"}, "accelerator 'tpu' with precision '32-true': "),
        ({"devices": 4, "batch_size": 3}, "batch_size is 3, the stays of all 4 devices together"),
        ({"devices": 10**6, "batch_size": 10**6}, "--devices is 1000000, but this machine has"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    fit: Trainer, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        fit(**options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_open_cohort_is_not_a_path(small_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cohort is of type Cohort; expected a path"):
        train(Cohort.open(small_cohort), tmp_path / "run", FirstHour)  # type: ignore[arg-type]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_run_has_is_never_deleted(overwrite: bool, tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    (run.folder / "data").mkdir(parents=True)
    files = {
        run.config: yaml.safe_dump(CONFIG),
        run.folder / "thesis.txt": "",
        run.folder / "data/a.csv": "1",
    }
    for path, text in files.items():
        path.write_text(text)
    with pytest.raises(InputError, match="choose a different --out"), claim(run, CONFIG, "", overwrite):
        raise KeyboardInterrupt
    assert {path: path.read_text() for path in files} == files


def test_a_run_with_other_files_resumes_but_is_not_replaced(fit: Trainer, interrupted: Run) -> None:
    (interrupted.folder / "notes.txt").write_text("epoch 1 looks good")
    with pytest.raises(InputError, match=r"holds more than a run \(notes\.txt\)"):
        fit(overwrite=True)
    assert fit().epochs == 2
    assert (interrupted.folder / "notes.txt").read_text() == "epoch 1 looks good"


def test_options_of_the_user_in_the_new_folder_survive_an_interruption(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.config.write_text("# my options\n" + yaml.safe_dump(CONFIG))
    with pytest.raises(KeyboardInterrupt), claim(run, CONFIG, "", overwrite=False):
        raise KeyboardInterrupt
    assert run.config.read_text().startswith("# my options")


def test_the_working_directory_is_not_replaced(
    fit: Trainer, interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(interrupted.folder)
    with pytest.raises(InputError, match="cannot be replaced as a whole"):
        fit(overwrite=True)
