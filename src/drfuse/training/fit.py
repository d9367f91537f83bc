"""A cohort and a model -> a run on disk: fit, resume, keep the best weights, predict every stay."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file, save_file

from drfuse import __version__
from drfuse.data import Cohort, CohortDataModule
from drfuse.data.loader import explain_killed_workers
from drfuse.errors import InputError
from drfuse.files import atomic_file
from drfuse.inference import Predictor
from drfuse.models import DrFuse, FittedModel, FittingData, FusionModel, check_contract
from drfuse.run import Predictions, RunFacts, RunFiles
from drfuse.training.checkpoints import checkpoint_callbacks, is_done, load_best, load_checkpoint
from drfuse.training.claim import claim
from drfuse.training.distributed import Ranks, start_ranks
from drfuse.training.metrics import MacroPrauc
from drfuse.training.module import FusionTraining
from drfuse.training.network import arrange, describe_model, freeze_cxr, make_network, start_from
from drfuse.training.options import DEFAULTS, TrainOptions
from drfuse.training.trainer import check_alone, check_kernels, interruptible, make_trainer

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
    options: TrainOptions = DEFAULTS,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
    **changes: Any,
) -> TrainedRun:
    """Train a model on a cohort, keep its best weights, and predict every stay.

    A run that was interrupted goes on after its last complete epoch when it is started again with the same
    options. A `FittedModel` has no epochs: its own `fit` is called once.

    Args:
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder of the run to write.
        model: Class of the model, by its import path. It takes the numbers of features and labels first; its
            other arguments are options of their own (--model.help CLASS).
        options: How it is trained.
        overwrite: Replace the run that lies at `out`.
        progress: Whether to show progress bars.
        callbacks: What else Lightning is to call while it trains.
        changes: Options by name, in place of those in `options`: `train(cohort, out, epochs=3)`.

    Returns:
        Where the run lies, and its best epoch.

    Raises:
        InputError: If the cohort or an option cannot be used, or another run lies at `out`.
    """
    options = options.changed(**changes)
    ranks = Ranks.of_environment(options.devices, options.nodes)
    if ranks is None and (options.devices or 1) > 1:
        given = {
            "cohort": cohort,
            "out": out,
            "model": model,
            "options": options,
            "overwrite": overwrite,
            "progress": progress,
            "callbacks": callbacks,
        }
        return start_ranks(train, given, options.devices or 1)
    ranks = ranks or Ranks()
    ranks.join()
    opened = Cohort.open(Path(cohort).resolve(), verify=ranks.is_first)
    data = data_module(opened, options, ranks)
    labels, label_names = data.dataset.task.labels, data.dataset.task.label_names
    if not labels[data.validation_rows].any():
        raise InputError(
            f"no label occurs in the validation split of {cohort}, so no epoch is better than another; "
            "prepare a larger cohort, or one with another --seed or --split-file"
        )
    L.seed_everything(options.seed, workers=True, verbose=False)
    network = make_network(model, len(data.dataset.features), len(label_names))
    data.read_only(network.reads)
    check_contract(network, data.example(), len(label_names))
    for modality, unimodal in (("ehr", options.init_ehr), ("cxr", options.init_cxr)):
        if unimodal is not None:
            start_from(network, modality, unimodal, opened.fingerprint)
    check_alone(ranks, compile=options.compile, freeze_cxr=options.freeze_cxr)
    arrange(network, options)
    fusion = FusionTraining(network, options, opened.fingerprint, ranks)

    run = RunFiles(Path(out).resolve())
    trainer = make_trainer(
        ranks,
        options.accelerator,
        options.precision,
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        callbacks=[*checkpoint_callbacks(run, options.patience), *callbacks],
        logger=[CSVLogger(run.folder, run.logs.name), TensorBoardLogger(run.folder, run.logs.name, "")],
        enable_progress_bar=progress,
    )
    if not options.compile:
        check_kernels(network, data, trainer)
    config = {"cohort": str(opened.folder), "model": describe_model(network), **options.written()}
    if ranks.is_alone:  # whatever torchrun or srun was asked for
        config |= {"devices": None, "nodes": None}
    with ExitStack() as held:
        with ranks.abort_peers_on_error():
            checkpoint = None  # the folder is the first process's, which the others follow
            if ranks.is_first:
                checkpoint = held.enter_context(claim(run, config, opened.fingerprint, overwrite))
            done = checkpoint is not None and is_done(checkpoint, options.epochs, options.patience)
        resumes, done = ranks.share((checkpoint is not None, done))
        if options.freeze_cxr:
            freeze_cxr(fusion, data, trainer.strategy.root_device, run if resumes else None)
        if not done and not isinstance(network, FittedModel):
            _fit(trainer, fusion, data, run.last_checkpoint if resumes else None)
        with ranks.abort_peers_on_error():
            result = _save_best(run, fusion, data) if ranks.is_first else None
        result = ranks.share(result)
        network.load_state_dict(load_file(run.model))  # which all processes see
        predictor = Predictor(network.eval(), RunFacts.read(run.folder)).to(trainer.strategy.root_device)
        rows = np.array_split(data.rows, ranks.size)[ranks.rank]
        shown = progress and ranks.is_first
        parts = ranks.gather(predictor.predict(opened, rows, options.num_workers, shown))
        if ranks.is_first:
            Predictions.concatenate(parts).write(run.predictions)
    return result


def data_module(cohort: Cohort, options: TrainOptions, ranks: Ranks | None = None) -> CohortDataModule:
    """Return what makes the batches of a training, or of this process's part of one.

    Raises:
        InputError: If the cohort cannot be used with the options.
    """
    ranks = ranks or Ranks()
    return CohortDataModule(
        cohort,
        options.train_on,
        options.batch_size,
        options.matched_cxr_dropout,
        options.crop_size,
        options.augment,
        options.num_workers,
        options.seed,
        options.task,
        options.cxr_share,
        ranks.rank,
        ranks.size,
        options.validated_on,
        options.accumulate,
    )


def _fit(trainer: L.Trainer, task: FusionTraining, data: CohortDataModule, checkpoint: Path | None) -> None:
    """Train to the end, or raise."""
    with interruptible(trainer):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _save_best(run: RunFiles, fusion: FusionTraining, data: CohortDataModule) -> TrainedRun:
    """Give a model the weights that its training came to, and save them."""
    if isinstance(fusion.model, FittedModel):
        with explain_killed_workers():
            return _solve(run, fusion.model, data, fusion.options)
    return _keep_best(run, fusion, data)


def _solve(run: RunFiles, network: FittedModel, data: CohortDataModule, options: TrainOptions) -> TrainedRun:
    """Fit a model in one call, and save its weights.

    Raises:
        InputError: If it has no PRAUC on the validation split.
    """
    validation = data.batches(data.validation_rows)
    network.fit(FittingData(data.batches(data.train_rows), validation, data.dataset.features.values_of))
    network.eval()
    prauc = MacroPrauc()
    with torch.no_grad():
        for batch in validation:
            prauc.update(network(batch).logits, batch.labels)
    result = TrainedRun(run.folder, 0, prauc.compute().item(), 1)
    if not math.isfinite(result.val_prauc):
        raise InputError(
            f"{type(network).__name__} has no validation PRAUC: fewer than two training stays have a "
            "radiograph, or no validation stay that it predicts has a positive; prepare a larger cohort"
        )
    _save_model(run, network, data, options, result)
    return result


def _keep_best(run: RunFiles, fusion: FusionTraining, data: CohortDataModule) -> TrainedRun:
    """Load the weights of a run's best epoch, and save them.

    Raises:
        InputError: If there are none.
    """
    n_epochs = load_checkpoint(run, run.last_checkpoint.name)["epoch"] + 1
    kept = load_best(run)
    fusion.load_state_dict(kept["state_dict"])
    result = TrainedRun(run.folder, kept["epoch"], kept["val_prauc"], n_epochs)
    _save_model(run, fusion.model, data, fusion.options, result)
    return result


def _save_model(
    run: RunFiles, network: FusionModel, data: CohortDataModule, options: TrainOptions, result: TrainedRun
) -> None:
    cohort = data.dataset.cohort
    RunFacts(
        drfuse=__version__,
        cohort=cohort.fingerprint,
        model=describe_model(network),
        n_features=len(data.dataset.features),
        task=data.dataset.task.name,
        label_names=data.dataset.task.label_names,
        variables=cohort.manifest.variables,
        normalization=cohort.normalization,
        window_hours=cohort.manifest.options["window_hours"],
        image_size=cohort.image_size,
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        precision=options.precision,
        best_epoch=result.best_epoch,
        val_prauc_macro=result.val_prauc,
    ).write(run.facts)
    weights = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_file(run.model) as beside:
        save_file(weights, beside)
