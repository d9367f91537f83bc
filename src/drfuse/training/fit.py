"""A cohort and a model -> a run on disk: fit, resume, keep the best weights, predict every stay."""

import inspect
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import save_file

from drfuse import __version__
from drfuse.data import Cohort, CohortDataModule, Subset
from drfuse.errors import InputError
from drfuse.models import DrFuse, FusionModel, FusionOutput
from drfuse.run import Predictions, RunFiles
from drfuse.training.task import FusionTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What training came to.

    Attributes:
        folder: The run.
        best_epoch: The epoch whose weights were kept, from 0.
        val_prauc: Its macro PRAUC on the validation split.
        epochs: Epochs that were trained.
    """

    folder: Path
    best_epoch: int
    val_prauc: float
    epochs: int


def train(
    cohort: Path,
    out: Path,
    model: Callable[[int, int], FusionModel] = DrFuse,
    train_on: Subset = "full",
    epochs: int = 100,
    patience: int = 10,
    lr: float = 1e-4,
    batch_size: int = 16,
    matched_cxr_dropout: float = 0.3,
    crop_size: int = 224,
    augment: bool = True,
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accelerator: str = "auto",
    num_workers: int = 0,
    overwrite: bool = False,
) -> TrainedRun:
    """Train a model on a cohort, keep its best weights, and predict every stay.

    A run that was interrupted goes on after its last complete epoch when it is started again with the same
    options.

    Args:
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder of the run to write.
        model: Class of the model, by its import path. It takes the numbers of features and labels first; its
            other arguments are options of their own (--model.help CLASS).
        train_on: Train and validate on all stays (`full`), or on those with a radiograph (`matched`).
        epochs: The most epochs to train.
        patience: Stop after this many epochs without a better macro PRAUC on the validation split.
        lr: Learning rate of Adam.
        batch_size: Stays a batch.
        matched_cxr_dropout: With `matched`, the share of radiographs taken away from each training batch.
        crop_size: Side of the centre crop of the radiographs, in pixels.
        augment: Whether training radiographs are flipped, rotated, scaled and shifted at random.
        seed: Seed of the weights, the order of the batches, and everything random in training.
        precision: Numbers to compute with. `bf16-mixed` is about twice as fast where the processor has
            bfloat16; `32-true` repeats bit by bit on a CPU.
        accelerator: `cpu`, `gpu`, or `auto` for the fastest there is.
        num_workers: Processes that make batches; 0 makes them in this one.
        overwrite: Replace the run that lies at `out`.

    Returns:
        Where the run lies, and its best epoch.

    Raises:
        InputError: If the cohort cannot be used, or another run lies at `out`.
    """
    if epochs < 1 or patience < 1 or not lr > 0:
        raise InputError("expected epochs and patience of at least 1 and a learning rate above 0")
    opened = Cohort.open(cohort)
    data = CohortDataModule(
        opened, train_on, batch_size, matched_cxr_dropout, crop_size, augment, num_workers, seed
    )
    if not opened.labels[data.validation_rows].any():
        raise InputError(
            f"no phenotype occurs in the validation split of {cohort}, so no epoch is better than another; "
            "prepare a larger cohort, or one with another --seed or --split-file"
        )
    L.seed_everything(seed, workers=True, verbose=False)
    network = model(len(data.dataset.features), len(opened.phenotypes))
    options: dict[str, Any] = {
        "cohort": str(cohort),
        "model": describe_model(network),
        "train_on": train_on,
        "epochs": epochs,
        "patience": patience,
        "lr": lr,
        "batch_size": batch_size,
        "matched_cxr_dropout": matched_cxr_dropout,
        "crop_size": crop_size,
        "augment": augment,
        "seed": seed,
        "precision": precision,
        "accelerator": accelerator,
        "num_workers": num_workers,
    }
    run = RunFiles(out)
    checkpoint = _claim(run, options, overwrite)

    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = FusionTask(network, len(opened.phenotypes), lr, seed, opened.fingerprint)
    best = ModelCheckpoint(
        run.checkpoints, "best-{epoch}", monitor="val/prauc_macro", mode="max", save_last=True
    )
    stop = EarlyStopping("val/prauc_macro", mode="max", patience=patience, check_finite=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        deterministic="warn",
        callbacks=[best, stop],
        logger=[CSVLogger(out, "logs", ""), TensorBoardLogger(out, "logs", "")],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(kept["state_dict"])
    score = torch.nan if best.best_model_score is None else best.best_model_score.item()
    result = TrainedRun(out, int(kept["epoch"]), score, trainer.current_epoch)
    _save_model(run, network, opened, result)
    _predict(trainer, task, data).write(run.predictions)
    return result


def describe_model(network: FusionModel) -> dict[str, Any]:
    """Return a model's class path and the arguments after the two sizes, defaults included."""
    sizes = list(inspect.signature(type(network)).parameters)[:2]
    arguments = {name: value for name, value in network.init_args.items() if name not in sizes}
    return {"class_path": f"{type(network).__module__}.{type(network).__qualname__}", "init_args": arguments}


def _claim(run: RunFiles, options: dict[str, Any], overwrite: bool) -> Path | None:
    """Write `config.yaml` into the run's folder; return the checkpoint to go on from, if there is one.

    Raises:
        InputError: If the folder holds a finished run, a run with other options, or something else.
    """
    text = yaml.safe_dump(options, sort_keys=False)
    if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
        if not _is_run(run):
            raise InputError(f"{run.folder} holds something that is no run; name another --out")
        if overwrite:
            shutil.rmtree(run.folder)
    if run.config.is_file():
        if run.predictions.is_file():
            raise InputError(f"{run.folder} is a finished run; name another --out, or give --overwrite")
        earlier = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        if changed := sorted(name for name in options if options[name] != earlier.get(name)):
            raise InputError(
                f"{run.folder} is an interrupted run with another {', '.join(changed)}; "
                "start it with the options of its config.yaml, or give --overwrite"
            )
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config.write_text(text, encoding="utf-8")
    last = run.checkpoints / "last.ckpt"
    if last.is_file():
        logger.info("going on from %s", last)
        return last
    return None


def _is_run(run: RunFiles) -> bool:
    """Return whether the folder's `config.yaml` is one of ours."""
    try:
        options = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(options, dict) and {"cohort", "model", "train_on"} <= options.keys()


def _save_model(run: RunFiles, network: FusionModel, cohort: Cohort, result: TrainedRun) -> None:
    sizes = list(network.init_args.values())[:2]
    metadata = {
        "drfuse": __version__,
        "cohort": cohort.fingerprint,
        "phenotypes": json.dumps(cohort.phenotypes),
        "n_features": str(sizes[0]),
        "n_labels": str(sizes[1]),
        "best_epoch": str(result.best_epoch),
        "val_prauc_macro": str(result.val_prauc),
    }
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    beside = run.model.with_name(f".{run.model.name}.partial")
    save_file(weights, beside, metadata)
    beside.rename(run.model)


def _predict(trainer: L.Trainer, task: FusionTask, data: CohortDataModule) -> Predictions:
    """Return the logits, labels and modality weights of every stay of the cohort."""
    cohort = data.dataset.cohort
    outputs: list[FusionOutput] = trainer.predict(task, datamodule=data)  # type: ignore[assignment]
    weights = [output.modality_weights for output in outputs if output.modality_weights is not None]
    return Predictions(
        phenotypes=cohort.phenotypes,
        stays=cohort.stays.select("subject_id", "stay_id", "split", "has_cxr"),
        logits=torch.cat([output.logits for output in outputs]).numpy(),
        labels=cohort.labels.astype("uint8"),
        modality_weights=torch.cat(weights).numpy() if weights else None,
    )
