"""A cohort and a model -> a run on disk: fit, resume, keep the best weights, predict every stay."""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from safetensors.torch import save_file

from drfuse import __version__
from drfuse.data import Cohort, CohortDataModule
from drfuse.data.loader import explain_killed_workers
from drfuse.errors import InputError
from drfuse.files import atomic_file
from drfuse.imports import import_path
from drfuse.inference import load
from drfuse.models import DrFuse, FittedModel, FittingData, FusionModel, check_contract
from drfuse.models.execution import compile_encoders, recompute_activations
from drfuse.run import Predictions, RunFacts, RunFiles
from drfuse.training.checkpoints import checkpoint_callbacks, is_done, load_best, load_checkpoint
from drfuse.training.claim import claim
from drfuse.training.distributed import Ranks, start_ranks
from drfuse.training.metrics import MacroPrauc
from drfuse.training.module import FusionTraining
from drfuse.training.options import DEFAULTS, Precision, TrainOptions

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
    network = _make(model, len(data.dataset.features), len(label_names))
    _read_what_is_needed(network, data)
    check_contract(network, data.example(), len(label_names))
    for modality, unimodal in (("ehr", options.init_ehr), ("cxr", options.init_cxr)):
        if unimodal is not None:
            _start_from(network, modality, unimodal, opened.fingerprint)
    _check_alone(ranks, compile=options.compile, freeze_cxr=options.freeze_cxr)
    _arrange(network, options)
    fusion = FusionTraining(network, options, opened.fingerprint, ranks)

    run = RunFiles(Path(out).resolve())
    trainer = _trainer(
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
        _check_kernels(network, data, trainer)
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
            _freeze_cxr(fusion, data, trainer.strategy.root_device, run if resumes else None)
        if not done and not isinstance(network, FittedModel):
            _fit(trainer, fusion, data, run.last_checkpoint if resumes else None)
        with ranks.abort_peers_on_error():
            result = _save_best(run, fusion, data) if ranks.is_first else None
        result = ranks.share(result)
        predictor = load(run.folder).to(trainer.strategy.root_device)
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


def _make(model: Callable[[int, int], FusionModel], n_features: int, n_labels: int) -> FusionModel:
    """Return a new model.

    Raises:
        InputError: If its weights do not fit in memory.
    """
    try:
        return model(n_features, n_labels)
    except RuntimeError as error:  # PyTorch has no class of its own for it on a CPU
        if not any(problem in str(error) for problem in ("allocate memory", "size calculation overflowed")):
            raise
        raise InputError(
            "the weights of this model do not fit in memory; choose smaller sizes in its options"
        ) from error


def describe_model(network: FusionModel) -> dict[str, Any]:
    """Return a model's class path and the arguments after the two sizes, defaults included."""
    sizes = list(inspect.signature(type(network)).parameters)[:2]
    arguments = {name: _plain(value) for name, value in network.init_args.items() if name not in sizes}
    return {"class_path": import_path(type(network)), "init_args": arguments}


def _plain(value: Any) -> Any:
    """Return a value as YAML holds it: tuples are lists, paths are text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read_what_is_needed(network: FusionModel, data: CohortDataModule) -> None:
    """Leave out of the batches what a model does not read."""
    data.read_only(network.reads)


def _trainer(ranks: Ranks, accelerator: str, precision: Precision, **options: Any) -> L.Trainer:
    """Return a trainer.

    Raises:
        InputError: If the accelerator is not there, or does not compute in the precision.
    """
    try:
        trainer = L.Trainer(
            accelerator=accelerator,
            precision=precision,
            **ranks.placement(),
            **options,
            deterministic="warn",
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
        devices_too = "" if ranks.is_alone else f" on {ranks.devices} devices"
        raise InputError(
            f"accelerator {accelerator!r} with precision {precision!r}{devices_too}: {error}"
        ) from error
    if trainer.precision != precision:  # Lightning warns, and takes another
        raise InputError(f"--precision {precision} needs a GPU; choose bf16-mixed or 32-true on a CPU")
    return trainer


def _check_kernels(network: FusionModel, data: CohortDataModule, trainer: L.Trainer) -> None:
    """Run a model once in half precision: not every processor has every layer in it.

    Raises:
        InputError: If one is missing.
    """
    if trainer.precision == "32-true" or trainer.strategy.root_device.type != "cpu":
        return
    has_kernels = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if has_kernels is not None and not has_kernels():
        logger.warning("this processor emulates bfloat16, several times slower than --precision 32-true")
    try:
        with trainer.precision_plugin.forward_context():
            check_contract(network, data.example(), len(data.dataset.task.label_names))
    except RuntimeError as error:
        reason = str(error).split(". ", 1)[0]
        raise InputError(
            f"{type(network).__name__} does not run with --precision {trainer.precision} on this processor "
            f"({reason}); choose 32-true, or make its LSTMs with drfuse.models.precision.Lstm"
        ) from error


def _check_alone(ranks: Ranks, **options: bool) -> None:
    """Refuse options that work on one device.

    Raises:
        InputError: If there are several, and one of these options is on.
    """
    on = [name.replace("_", "-") for name, is_on in options.items() if is_on]
    if on and not ranks.is_alone:
        raise InputError(f"--{on[0]} works on one device; leave it or --devices out")


def _fit(trainer: L.Trainer, task: FusionTraining, data: CohortDataModule, checkpoint: Path | None) -> None:
    """Train to the end, or raise."""
    with _interruptible(trainer):
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


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let a signal end what the trainer does as it ends everything else.

    Raises:
        KeyboardInterrupt: If a signal ended it; Lightning makes an exit, or nothing at all, of that.
        InputError: If a process that makes batches was killed.
    """
    try:
        with explain_killed_workers():
            yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.state.status != TrainerStatus.FINISHED:
        raise KeyboardInterrupt


def _start_from(network: FusionModel, modality: str, run: Path, cohort: str) -> None:
    """Load the encoder of a trained unimodal model into that of a new one.

    Raises:
        InputError: If it was not trained on the cohort with this fingerprint, or a model has no such encoder,
            or one of another shape.
    """
    predictor = load(run)
    if predictor.facts.cohort != cohort:
        raise InputError(
            f"--init-{modality}: {run} was trained on another cohort, perhaps on patients whom this one "
            "tests; train it on this cohort"
        )
    name, unimodal = type(network).__name__, predictor.model
    encoders = getattr(network.shared_encoders(), modality)
    if len(encoders) != 1:
        raise InputError(
            f"--init-{modality}: {name} has {len(encoders)} {modality} encoders that it shares with other "
            "models; choose a model with one, such as MedFuse"
        )
    of_run = unimodal.shared_encoders()
    trained = [*of_run.ehr, *of_run.cxr]
    if len(unimodal.reads) != 1 or len(trained) != 1:
        raise InputError(
            f"--init-{modality}: {run} is not a run of a unimodal model; choose one of EhrLstm, "
            "EhrTransformer or CxrResNet"
        )
    try:
        encoders[0].load_state_dict(trained[0].state_dict())
    except RuntimeError as error:
        raise InputError(
            f"--init-{modality}: the encoder of {run} ({type(unimodal).__name__}) is not built like the "
            f"{modality} encoder of {name}; train it with the same options"
        ) from error


def _arrange(network: FusionModel, options: TrainOptions) -> None:
    """Choose how a model is laid out in memory and run."""
    if options.precision != "32-true":  # measured to pay off there; in float32 some narrow convolutions crash
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.checkpoint_activations:
        recompute_activations(network)
    if options.compile:
        compile_encoders(network)


def _freeze_cxr(
    fusion: FusionTraining, data: CohortDataModule, device: torch.device, interrupted: RunFiles | None
) -> None:
    """Freeze the radiographs' backbones, and keep what they return for every radiograph of the cohort.

    Batches then hold no pixels. An interrupted run goes on with the backbones of its checkpoint, whatever
    the options say now.

    Raises:
        InputError: If the model does not share encoders of radiographs, or the cohort has no radiograph.
    """
    network = fusion.model
    encoders = network.shared_encoders().cxr
    if not encoders:
        raise InputError(
            f"--freeze-cxr: {type(network).__name__} does not read radiographs by encoders that can be "
            "frozen; choose a model whose radiographs pass a CxrEncoder alone"
        )
    if not len(data.dataset.cohort.cxr):
        raise InputError("--freeze-cxr: the cohort has no radiograph; leave the option out")
    if interrupted is not None:
        fusion.load_state_dict(load_checkpoint(interrupted, interrupted.last_checkpoint.name)["state_dict"])
    network.to(device)
    for encoder in encoders:
        encoder.freeze(data.every_cxr())
    data.read_only(network.reads, cxr_pixels=False)


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
