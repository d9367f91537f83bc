"""A cohort and a model -> a run on disk: fit, resume, keep the best weights, predict every stay."""

import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from drfuse import __version__
from drfuse.data import Augmentation, Cohort, CohortDataModule, Subset, TaskName
from drfuse.errors import InputError, MissingInputError, check_choice
from drfuse.files import atomic_file
from drfuse.models import DrFuse, FittedModel, FittingData, FusionModel, check_contract
from drfuse.models.execution import compile_encoders, recompute_activations
from drfuse.run import Predictions, RunFiles
from drfuse.training.claim import claim, load_checkpoint
from drfuse.training.distributed import Ranks, start_ranks
from drfuse.training.task import FusionTask, MacroPrauc, Predicted, Schedule

logger = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

_CANNOT_LOAD = (
    yaml.YAMLError,
    ImportError,
    SyntaxError,  # of a user's own module
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    OSError,
)


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
    validate_on: Subset | None = None,
    epochs: int = 100,
    patience: int = 10,
    lr: float = 1e-4,
    batch_size: int = 16,
    matched_cxr_dropout: float = 0.3,
    crop_size: int = 224,
    augment: Augmentation = True,
    seed: int = 0,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    num_workers: int = 0,
    task: TaskName = "phenotyping",
    init_ehr: Path | None = None,
    init_cxr: Path | None = None,
    accumulate: int = 1,
    cxr_share: float = 1.0,
    freeze_cxr: bool = False,
    compile: bool = False,  # noqa: A002 - the option's name
    checkpoint_activations: bool = False,
    devices: int | None = None,
    nodes: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
    weight_decay: float = 0.0,
    schedule: Schedule = "constant",
) -> TrainedRun:
    """Train a model on a cohort, keep its best weights, and predict every stay.

    A run that was interrupted goes on after its last complete epoch when it is started again with the same
    options. A `FittedModel` has no epochs: its own `fit` is called once.

    Args:
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder of the run to write.
        model: Class of the model, by its import path. It takes the numbers of features and labels first; its
            other arguments are options of their own (--model.help CLASS).
        train_on: Train on all stays (`full`), or on those with a radiograph (`matched`).
        validate_on: Stays of the validation split by which the epoch is chosen: `full` or `matched`, by
            default the same as `train_on`. Published code validates on `full`, whatever it trains on.
        epochs: The most epochs to train.
        patience: Stop after this many epochs without a better macro PRAUC on the validation split.
        lr: Learning rate of Adam.
        batch_size: The most stays a batch, those of all devices together. Batches differ by one stay at most.
        matched_cxr_dropout: With `matched`, the share of radiographs taken away from each training batch. A
            model that reads radiographs alone keeps them all.
        crop_size: Side of the centre crop of the radiographs, in pixels.
        augment: Change training radiographs at random: flip, rotate, scale and shift them (`true`, as
            published), only shift them by up to a sixteenth of the side (`shifts`), or leave them (`false`).
        seed: Seed of the weights, the order of the batches, and everything random in training.
        precision: Numbers to compute with. `bf16-mixed` is faster where the processor has bfloat16; `32-true`
            repeats bit by bit on a CPU.
        accelerator: `cpu`, `gpu`, or `auto` for the fastest there is.
        num_workers: Processes that make batches; 0 makes them in this one.
        task: Predict the phenotypes, death in hospital, or the length of the ICU stay in seven classes.
        init_ehr: Run of a model of the EHR alone, whose encoder's weights this one's EHR encoder starts from.
        init_cxr: Run of a model of the radiograph alone, likewise.
        accumulate: Batches whose gradients are added up for one step of Adam: the step of a batch that many
            times as large, in the memory of one. BatchNorm still sees one at a time.
        cxr_share: Share of each training batch's radiographs that is used at all. Less than 1 is faster; the
            other stays of the batch count as stays without a radiograph.
        freeze_cxr: Train everything but the radiographs' backbones, which should then be pretrained. What
            they give of each radiograph, unaugmented, is computed once, held in the device's memory, and used
            in every epoch.
        compile: Compile the encoders with torch.compile. It takes minutes at the start, and a C++ compiler on
            a CPU, where it gains little. Dropout then draws other numbers.
        checkpoint_activations: Keep less of each forward pass, and compute it again for the gradients: less
            memory, more time, the same results. Does not go with `compile`.
        devices: Train on so many devices of this machine (with `cpu`, processes), each with a part of every
            batch. By default one or, under torchrun or srun, those that it started a process for.
        nodes: Train on so many machines, which all see the cohort and `out`; torchrun or srun has started a
            process for each of their devices, and says by default how many there are.
        overwrite: Replace the run that lies at `out`.
        progress: Whether to show progress bars.
        callbacks: What else Lightning is to call while it trains.
        weight_decay: Share of itself, times `lr`, that every weight loses at each step (AdamW). The paper's
            Adam has none.
        schedule: Keep the learning rate (`constant`, as published), or let it rise over the first tenth
            of `epochs` and then fall to 0 at their end (`cosine`). `patience` may stop a training before.

    Returns:
        Where the run lies, and its best epoch.

    Raises:
        InputError: If the cohort cannot be used, or another run lies at `out`.
    """
    given = dict(locals())
    check_options(epochs, patience, lr, seed, accumulate, weight_decay)
    check_choice("train_on", train_on, get_args(Subset))
    validate_on = validate_on or train_on
    check_choice("validate_on", validate_on, get_args(Subset))
    check_choice("schedule", schedule, get_args(Schedule))
    check_choice("precision", precision, get_args(Precision))
    ranks = Ranks.of_environment(devices, nodes)
    if ranks is None and (devices or 1) > 1:
        return start_ranks(train, given, devices or 1)
    ranks = ranks or Ranks()
    ranks.join()
    opened = Cohort.open(Path(cohort).resolve(), verify=ranks.is_first)
    data = CohortDataModule(
        opened,
        train_on,
        batch_size,
        matched_cxr_dropout,
        crop_size,
        augment,
        num_workers,
        seed,
        task,
        cxr_share,
        ranks.rank,
        ranks.size,
        validate_on,
        accumulate,
    )
    labels, label_names = data.dataset.task.labels, data.dataset.task.label_names
    if not labels[data.validation_rows].any():
        raise InputError(
            f"no label occurs in the validation split of {cohort}, so no epoch is better than another; "
            "prepare a larger cohort, or one with another --seed or --split-file"
        )
    L.seed_everything(seed, workers=True, verbose=False)
    network = model(len(data.dataset.features), len(label_names))
    _read_what_is_needed(network, data)
    check_contract(network, data.example(), len(label_names))
    for modality, unimodal in (("ehr", init_ehr), ("cxr", init_cxr)):
        if unimodal is not None:
            _start_from(network, modality, unimodal, opened.fingerprint)
    _check_alone(ranks, compile=compile, freeze_cxr=freeze_cxr)
    _arrange(network, precision, compile, checkpoint_activations)
    fusion = FusionTask(network, lr, seed, opened.fingerprint, accumulate, ranks, weight_decay, schedule)

    run = RunFiles(Path(out).resolve())
    trainer = _trainer(
        ranks,
        accelerator,
        precision,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[*_callbacks(run, patience), *callbacks],
        logger=[CSVLogger(run.folder, run.logs.name), TensorBoardLogger(run.folder, run.logs.name, "")],
        enable_progress_bar=progress,
    )
    if not compile:
        _check_kernels(network, data, trainer)
    options: dict[str, Any] = {
        "cohort": str(opened.folder),
        "model": describe_model(network),
        "train_on": train_on,
        "validate_on": validate_on,
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
        "task": task,
        "init_ehr": None if init_ehr is None else str(Path(init_ehr).resolve()),
        "init_cxr": None if init_cxr is None else str(Path(init_cxr).resolve()),
        "accumulate": accumulate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "cxr_share": cxr_share,
        "freeze_cxr": freeze_cxr,
        "compile": compile,
        "checkpoint_activations": checkpoint_activations,
        "devices": None if ranks.is_alone else devices,
        "nodes": None if ranks.is_alone else nodes,
    }
    with ExitStack() as held:
        with ranks.abort_peers_on_error():
            checkpoint = None  # the folder is the first process's, which the others follow
            if ranks.is_first:
                checkpoint = held.enter_context(claim(run, options, opened.fingerprint, overwrite))
            is_done = checkpoint is not None and _is_done(checkpoint, epochs, patience)
        resumes, is_done = ranks.share((checkpoint is not None, is_done))
        if freeze_cxr:
            _freeze_cxr(fusion, data, trainer.strategy.root_device, run if resumes else None)
        if not is_done and not isinstance(network, FittedModel):
            _fit(trainer, fusion, data, run.last_checkpoint if resumes else None)
        with ranks.abort_peers_on_error():
            result = _save_best(run, fusion, data) if ranks.is_first else None
        result = ranks.share(result)
        ranks.share_weights(fusion)
        predictions = _predict(trainer, fusion, data)
        if ranks.is_first:
            predictions.write(run.predictions)
    return result


def check_options(
    epochs: int, patience: int, lr: float, seed: int, accumulate: int = 1, weight_decay: float = 0.0
) -> None:
    """Check the ranges of the options.

    Raises:
        InputError: If one is out of range.
    """
    if min(epochs, patience, accumulate) < 1 or not 0 < lr < math.inf or not 0 <= seed < 2**32:
        raise InputError(
            "expected epochs and patience of at least 1, lr above 0, and seed from 0 to 2^32 - 1; "
            "accumulate at least 1"
        )
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay is {weight_decay}; expected a number of at least 0")


def load_model(run: Path) -> FusionModel:
    """Return the model of a finished run with its best weights, in evaluation mode.

    Raises:
        MissingInputError: If `run` is not a finished run.
        InputError: If its files do not fit each other, or the model's class cannot be imported.
    """
    facts = read_facts(run)
    files = RunFiles(Path(run))
    try:
        described = yaml.safe_load(files.config.read_text(encoding="utf-8"))["model"]
        module, name = described["class_path"].rsplit(".", 1)
        kind = getattr(import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, FusionModel)):
            raise TypeError(f"{described['class_path']} is not a FusionModel")
        sizes: tuple[Any, ...] = (facts["n_features"], facts["n_labels"])
        model = kind(*sizes, **described["init_args"])
        model.load_state_dict(load_file(files.model))
    except _CANNOT_LOAD as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model of {run} cannot be loaded: {reason}; train it again") from error
    return model.eval()


def read_facts(run: Path) -> dict[str, Any]:
    """Return what the weights of a finished run say of themselves: cohort, phenotypes, sizes, best epoch.

    Raises:
        MissingInputError: If `run` is not a finished run.
        InputError: If the weights are damaged.
    """
    files = RunFiles(Path(run))
    for path in (files.config, files.model, files.predictions):
        if not path.is_file():
            raise MissingInputError(f"{run} has no {path.name}: it is not a finished run of `drfuse train`")
    try:
        with safe_open(files.model, "pt") as weights:
            facts: dict[str, Any] = json.loads(weights.metadata()["drfuse"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{files.model} is damaged: {error}; train the run again") from error
    return facts


def describe_model(network: FusionModel) -> dict[str, Any]:
    """Return a model's class path and the arguments after the two sizes, defaults included."""
    sizes = list(inspect.signature(type(network)).parameters)[:2]
    arguments = {name: _plain(value) for name, value in network.init_args.items() if name not in sizes}
    return {"class_path": f"{type(network).__module__}.{type(network).__qualname__}", "init_args": arguments}


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


def _callbacks(run: RunFiles, patience: int) -> list[L.Callback]:
    """Return what stops a training, keeps the weights of its best epoch, and all of the last one."""
    best_of: dict[str, Any] = {"monitor": "val/prauc_macro", "mode": "max"}
    return [
        EarlyStopping(**best_of, patience=patience, check_finite=False),
        _BestCheckpoint(
            run.checkpoints, "best-{epoch}", **best_of, save_weights_only=True, enable_version_counter=False
        ),
        ModelCheckpoint(run.checkpoints, run.last_checkpoint.stem, enable_version_counter=False),
    ]


def _rank(checkpoint: dict[str, Any]) -> tuple[float, int]:
    prauc = checkpoint["val_prauc"]
    return (prauc if math.isfinite(prauc) else -math.inf, -checkpoint["epoch"])


def _is_done(checkpoint: dict[str, Any], epochs: int, patience: int) -> bool:
    """Return whether nothing was left to train when a checkpoint was written."""
    waited = next(
        state["wait_count"]
        for key, state in checkpoint["callbacks"].items()
        if key.startswith("EarlyStopping")
    )
    return bool(checkpoint["epoch"] + 1 >= epochs or waited >= patience)


def _fit(trainer: L.Trainer, task: FusionTask, data: CohortDataModule, checkpoint: Path | None) -> None:
    """Train to the end, or raise."""
    with _interruptible(trainer):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _save_best(run: RunFiles, fusion: FusionTask, data: CohortDataModule) -> TrainedRun:
    """Give a model the weights that its training came to, and save them."""
    if isinstance(fusion.model, FittedModel):
        with _needing_batches():
            return _solve(run, fusion.model, data)
    return _keep_best(run, fusion, data)


def _solve(run: RunFiles, network: FittedModel, data: CohortDataModule) -> TrainedRun:
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
    _save_model(run, network, data, result)
    return result


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let a signal end what the trainer does as it ends everything else.

    Raises:
        KeyboardInterrupt: If a signal ended it; Lightning makes an exit, or nothing at all, of that.
        InputError: If a process that makes batches was killed.
    """
    try:
        with _needing_batches():
            yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.state.status != TrainerStatus.FINISHED:
        raise KeyboardInterrupt


@contextmanager
def _needing_batches() -> Iterator[None]:
    """Turn what PyTorch says of a process that makes batches, and was killed, into one sentence.

    Raises:
        InputError: If one was killed.
    """
    try:
        yield
    except RuntimeError as error:  # a signal's handler raises it, wherever the training is
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            "a process that makes batches was killed, perhaps for lack of memory; lower --num-workers (0 "
            "needs none), and the same command goes on after the last complete epoch"
        ) from error


class _BestCheckpoint(ModelCheckpoint):
    """The best epoch's checkpoint, known again in a run that was moved since."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"best_k_models": best, "dirpath": str(self.dirpath)})


def _start_from(network: FusionModel, modality: str, run: Path, cohort: str) -> None:
    """Load the encoder of a trained unimodal model into that of a new one.

    Raises:
        InputError: If it was not trained on the cohort with this fingerprint, or a model has no such encoder,
            or one of another shape.
    """
    if read_facts(run)["cohort"] != cohort:
        raise InputError(
            f"--init-{modality}: {run} was trained on another cohort, perhaps on patients whom this one "
            "tests; train it on this cohort"
        )
    name, unimodal = type(network).__name__, load_model(run)
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


def _arrange(network: FusionModel, precision: Precision, compiled: bool, recomputed: bool) -> None:
    """Choose how a model is laid out in memory and run.

    Raises:
        InputError: If it is to be compiled and recomputed, which torch.compile cannot do.
    """
    if compiled and recomputed:
        raise InputError("--compile does not go with --checkpoint-activations; choose one of them")
    if precision != "32-true":  # measured to pay off there; in float32 some narrow convolutions crash with it
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recomputed:
        recompute_activations(network)
    if compiled:
        compile_encoders(network)


def _freeze_cxr(
    fusion: FusionTask, data: CohortDataModule, device: torch.device, interrupted: RunFiles | None
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


def _keep_best(run: RunFiles, fusion: FusionTask, data: CohortDataModule) -> TrainedRun:
    """Load the weights of a run's best epoch, and save them.

    Raises:
        InputError: If there are none.
    """
    n_epochs = load_checkpoint(run, run.last_checkpoint.name)["epoch"] + 1
    # a kill between two checkpoints may leave two: the better one counts, of equals the earlier
    names = sorted(path.name for path in run.checkpoints.glob("best-*.ckpt"))
    if not names:
        raise InputError(f"{run.folder} has lost its best checkpoint; remove the folder, and train it again")
    kept = max((load_checkpoint(run, name) for name in names), key=_rank)
    if not math.isfinite(kept["val_prauc"]):
        raise InputError(
            f"no epoch of {run.folder} has a validation PRAUC: the model predicts no finite numbers"
        )
    fusion.load_state_dict(kept["state_dict"])
    result = TrainedRun(run.folder, kept["epoch"], kept["val_prauc"], n_epochs)
    _save_model(run, fusion.model, data, result)
    return result


def _save_model(run: RunFiles, network: FusionModel, data: CohortDataModule, result: TrainedRun) -> None:
    sizes = list(network.init_args.values())[:2]
    facts = {
        "drfuse": __version__,
        "cohort": data.dataset.cohort.fingerprint,
        "task": data.dataset.task.name,
        "phenotypes": data.dataset.task.label_names,
        "n_features": sizes[0],
        "n_labels": sizes[1],
        "best_epoch": result.best_epoch,
        "val_prauc_macro": result.val_prauc,
    }
    weights = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic_file(run.model) as beside:
        save_file(weights, beside, {"drfuse": json.dumps(facts)})  # one entry: the order of several is random


def _predict(trainer: L.Trainer, task: FusionTask, data: CohortDataModule) -> Predictions:
    """Return the logits, labels and modality weights of every stay that takes part in the task."""
    rows, of_task = data.rows, data.dataset.task
    with _interruptible(trainer):
        batches: list[Predicted] = trainer.predict(task, datamodule=data)  # type: ignore[assignment]
    weights = [batch.modality_weights for batch in batches if batch.modality_weights is not None]
    return Predictions(
        phenotypes=of_task.label_names,
        stays=data.dataset.cohort.stays.select("subject_id", "stay_id", "split", "has_cxr")[rows],
        logits=torch.cat([batch.logits for batch in batches]).numpy(),
        labels=of_task.labels[rows].astype("uint8"),
        modality_weights=torch.cat(weights).numpy() if weights else None,
        logits_without_cxr=torch.cat([batch.logits_without_cxr for batch in batches]).numpy(),
    )
