"""What training one run is: fit or resume, keep the best weights, predict every stay."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file

from drfuse import __version__
from drfuse.data import Cohort, CohortDataModule
from drfuse.data.leakage import check_leakage
from drfuse.data.loader import explain_killed_workers
from drfuse.data.summary import summarize_inputs
from drfuse.errors import InputError
from drfuse.evaluation.recalibration import recalibrate
from drfuse.files import beside
from drfuse.inference import Predictor
from drfuse.logs import hide_lightning
from drfuse.models import FittedModel, FittingData, FusionModel
from drfuse.models.hub import describe_model, save_weights
from drfuse.run import Predictions, Run, RunFacts, predictions_file
from drfuse.training.checkpoints import (
    checkpoint_callbacks,
    complete_epochs,
    is_done,
    load_best,
    load_checkpoint,
    restore_weights,
)
from drfuse.training.claim import claim
from drfuse.training.distributed import Ranks, check_devices, start_ranks
from drfuse.training.interruption import StopAtSignal
from drfuse.training.metrics import MacroPrauc
from drfuse.training.module import FusionTraining
from drfuse.training.network import (
    arrange,
    freeze_cxr,
    make_network,
    start_from,
    try_network,
)
from drfuse.training.optimizers import try_optimizer
from drfuse.training.options import TrainOptions
from drfuse.training.train import TrainedRun
from drfuse.training.trainer import check_kernels, interruptible, make_trainer

logger = logging.getLogger(__name__)


def fit_run(
    cohort: Path,
    out: Path,
    model: Callable[[int, int], FusionModel],
    options: TrainOptions,
    overwrite: bool,
    progress: bool,
    callbacks: Sequence[Any],
) -> TrainedRun:
    """Train one run; see `train`."""
    hide_lightning()
    ranks = Ranks.of_environment(options.devices, options.nodes)
    if ranks is None and (options.devices or 1) > 1:
        check_devices(options.devices or 1, options.accelerator)
        in_rank = partial(fit_run, cohort, out, model, options, overwrite, progress, callbacks)
        return start_ranks(in_rank, {}, options.devices or 1)
    ranks = ranks or Ranks()
    ranks.join()
    opened = Cohort.open(cohort.resolve(), verify=ranks.is_first)
    if ranks.is_first:
        check_leakage(opened)
    data = data_module(opened, options, ranks)
    L.seed_everything(options.seed, workers=True, verbose=False)
    n_features, n_labels = len(data.dataset.features), len(data.dataset.task.label_names)
    network = make_network(model, n_features, n_labels, options.freeze_cxr)
    try_network(network, data)
    start_from(network, options, opened.fingerprint)
    for option, is_on in (("--compile", options.compile), ("--freeze-cxr", options.freeze_cxr)):
        if is_on and not ranks.is_alone:
            raise InputError(f"{option} works on one device; leave it or --devices out")
    arrange(network, options)
    run = Run(out.resolve())
    fusion = FusionTraining(network, options, opened.fingerprint, ranks, run.not_finite)
    trainer = make_trainer(
        ranks,
        options.accelerator,
        options.precision,
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        callbacks=[
            *checkpoint_callbacks(run, options.patience),
            *callbacks,
            StopAtSignal(run.last_checkpoint, ranks),
        ],
        logger=[CSVLogger(run.folder, run.logs.name), TensorBoardLogger(run.folder, run.logs.name, "")],
        enable_progress_bar=progress,
    )
    if not options.compile:
        check_kernels(network, data, trainer)
    if not (is_fitted := isinstance(network, FittedModel)):
        try_optimizer(options, network, trainer.strategy.root_device)
    config = {"cohort": str(opened.folder), "model": describe_model(network), **options.written()}
    config |= {"devices": None, "nodes": None} if ranks.is_alone else {}  # even under torchrun or srun
    with ExitStack() as claims:
        with ranks.abort_peers_on_error():
            checkpoint = None  # only the first process reads and writes it
            if ranks.is_first:
                checkpoint = claims.enter_context(
                    claim(run, config, opened.fingerprint, overwrite, not is_fitted)
                )
            if checkpoint is not None:
                restore_weights(fusion, checkpoint, run.last_checkpoint)
            done = checkpoint is not None and is_done(checkpoint, options.epochs, options.patience)
        resumes, done = ranks.share((checkpoint is not None, done))
        if options.freeze_cxr:
            freeze_cxr(network, data, trainer.strategy.root_device)
        if not done and not is_fitted:
            _fit(trainer, fusion, data, run.last_checkpoint if resumes else None)
        with ranks.abort_peers_on_error(), explain_killed_workers():
            result = _save_best(run, fusion, data) if ranks.is_first else None
        result = ranks.share(result)
        network.load_state_dict(load_file(run.model))  # in every process
        predictor = Predictor(network.eval(), run.read_facts()).to(trainer.strategy.root_device)
        _write_predictions(run, predictor, data, ranks, progress and ranks.is_first)
    return result


def data_module(cohort: Cohort, options: TrainOptions, ranks: Ranks | None = None) -> CohortDataModule:
    """Return the data module of a training, or of this process's part of it.

    Raises:
        InputError: If the cohort cannot be used with the options.
    """
    ranks = ranks or Ranks()
    data = CohortDataModule(
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
    if not data.dataset.task.labels_of(data.validation_rows).any():
        raise InputError(
            f"no label occurs in the validation split of {cohort.folder}, so no best epoch can be chosen; "
            "prepare a larger cohort, or one with a different --seed or --split-file"
        )
    return data


def _fit(trainer: L.Trainer, fusion: FusionTraining, data: CohortDataModule, checkpoint: Path | None) -> None:
    with interruptible(trainer):
        trainer.fit(fusion, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _save_best(run: Run, fusion: FusionTraining, data: CohortDataModule) -> TrainedRun:
    """Load the weights of the best epoch, or fit a model that has no epochs; then save the model.

    Raises:
        InputError: If no epoch has a validation PRAUC, the fitted model has none, or the cohort was replaced.
    """
    network, dataset, options = fusion.model, data.dataset, fusion.options
    dataset.cohort.check_unchanged()
    manifest = dataset.cohort.manifest
    if isinstance(network, FittedModel):
        result = TrainedRun(run.folder, 0, _fit_in_one_call(network, data), 1)
    else:
        n_epochs = complete_epochs(load_checkpoint(run.last_checkpoint))
        best = load_best(run)
        restore_weights(fusion, best, run.checkpoints)
        result = TrainedRun(run.folder, best["epoch"], best["val_prauc"], n_epochs)
    for earlier in (run.sums, run.recalibration):  # of other weights, if this run was finished before
        earlier.unlink(missing_ok=True)
    RunFacts(
        drfuse=__version__,
        cohort=dataset.cohort.fingerprint,
        model=describe_model(network, self_contained=True),
        n_features=len(dataset.features),
        task=dataset.task.name,
        label_names=dataset.task.label_names,
        variables=manifest.variables,
        normalization=dataset.cohort.normalization,
        window_hours=manifest.options["window_hours"],
        image_size=dataset.cohort.image_size,
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        precision=options.precision,
        best_epoch=result.best_epoch,
        val_prauc_macro=result.val_prauc,
        cohort_summary=manifest.summary,
        inputs=summarize_inputs(dataset.cohort, dataset.task.rows("train")),
        **{name: manifest.options.get(name) for name in ("preset", "before_hours", "view")},
    ).write(run.facts)
    save_weights(network, run.model)
    return result


def _write_predictions(
    run: Run, predictor: Predictor, data: CohortDataModule, ranks: Ranks, progress: bool
) -> None:
    """Write the predictions of every stay; several processes write a part each, which the first one joins.

    The file finishes the run, so its recalibration and its sums are there before it appears.
    """

    def finish(predictions: Path) -> None:
        recalibrate(run, predictions)
        run.write_sums(predictions)

    part = run.predictions if ranks.is_alone else beside(run.predictions, f"part-{ranks.rank}")
    rows = np.array_split(data.rows, ranks.size)[ranks.rank]
    with predictions_file(part, finish if ranks.is_alone else None) as append:
        for block in predictor.predict_blocks(data.dataset.cohort, rows, data.num_workers, progress):
            append(block)
    parts = ranks.gather(part)
    if ranks.is_first and not ranks.is_alone:
        Predictions.join(parts, run.predictions, finish)


def _fit_in_one_call(network: FittedModel, data: CohortDataModule) -> float:
    """Fit a model, and return its macro PRAUC on the validation split."""
    validation = data.batches(data.validation_rows)
    network.fit(FittingData(data.batches(data.train_rows), validation, data.dataset.features.values_of))
    network.eval()
    metric = MacroPrauc()
    with torch.no_grad():
        for batch in validation:
            metric.update(network(batch).logits, batch.labels)
    prauc = metric.compute().item()
    if not math.isfinite(prauc):
        raise InputError(
            f"{type(network).__name__} has no validation PRAUC: it needs two training stays with a "
            "radiograph, and a positive label among the validation stays that it predicts; prepare a larger "
            "cohort"
        )
    return prauc
