"""Prepares a new model for training: first weights, memory layout and frozen parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from drfuse.errors import InputError
from drfuse.imports import describe_error
from drfuse.inference import Predictor
from drfuse.models import FusionModel, check_contract
from drfuse.training.options import TrainOptions

if TYPE_CHECKING:
    from drfuse.data import CohortDataModule


def make_network(
    model: Callable[[int, int], FusionModel], n_features: int, n_labels: int, freeze_cxr: bool
) -> FusionModel:
    """Return a new model.

    Raises:
        InputError: If it cannot be made, or has no CXR encoder that can be frozen.
    """
    within = (model, getattr(model, "func", None), *getattr(model, "args", ()))  # of a partial
    name = next((one.__name__ for one in within if isinstance(one, type)), "the model")
    with _explained(name):
        network = model(n_features, n_labels)
    if not isinstance(network, FusionModel):
        raise InputError(f"the model is of type {type(network).__name__}; expected a FusionModel")
    if freeze_cxr and not network.shared_encoders().cxr:
        raise InputError(
            f"--freeze-cxr: {type(network).__name__} has no encoder of radiographs that can be frozen; "
            "choose a model that reads radiographs only through a CxrEncoder"
        )
    return network


def try_network(network: FusionModel, data: "CohortDataModule") -> None:
    """Check the contract of a model on one batch; `data` then has only what the model reads.

    Raises:
        InputError: If the model breaks the contract, or raises an error.
    """
    data.read_only(network.reads)
    with _explained(type(network).__name__):
        check_contract(network, data.example(), len(data.dataset.task.label_names))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn any error of a model into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a model may raise anything
        # on a CPU, PyTorch has no special class for this error
        if any(problem in str(error) for problem in ("allocate memory", "size calculation overflowed")):
            raise InputError(
                "the weights of this model do not fit in memory; choose smaller sizes in its options"
            ) from error
        raise InputError(f"{name} raised {describe_error(error)}; fix the model or its arguments") from error


def start_from(network: FusionModel, options: TrainOptions, cohort: str) -> None:
    """Load the encoders of the runs that a new model starts from.

    Raises:
        InputError: If one of them cannot be loaded.
    """
    for modality, run in (("ehr", options.init_ehr), ("cxr", options.init_cxr)):
        if run is not None:
            _start_encoder(network, modality, run, cohort)


def _start_encoder(network: FusionModel, modality: str, run: Path, cohort: str) -> None:
    """Load the encoder of a trained unimodal model into a new model's encoder of the same modality.

    Raises:
        InputError: If the run was trained on a cohort with a different fingerprint, or one of the models has
            no single encoder of the modality, or the encoders differ in shape.
    """
    predictor = Predictor.open(run)
    if predictor.facts.cohort != cohort:
        raise InputError(
            f"--init-{modality}: {run} was trained on another cohort, perhaps on patients in this one's test "
            "split; train it on this cohort"
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
            f"{modality} encoder of {name}; give both models the same sizes"
        ) from error


def arrange(network: FusionModel, options: TrainOptions) -> None:
    """Set a model's memory layout, and compile it or recompute its activations as the options say."""
    from drfuse.models.execution import compile_encoders, recompute_activations

    if options.precision != "32-true":  # faster in half precision; in float32 some narrow convolutions crash
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.checkpoint_activations:
        recompute_activations(network)
    if options.compile:
        compile_encoders(network)


def freeze_cxr(network: FusionModel, data: "CohortDataModule", device: torch.device) -> None:
    """Freeze the CXR backbones and store their output for every radiograph of the cohort.

    Batches then hold no pixels.

    Raises:
        InputError: If the cohort has no radiograph.
    """
    if not len(data.dataset.cohort.cxr):
        raise InputError("--freeze-cxr: the cohort has no radiograph; leave the option out")
    network.to(device)
    for encoder in network.shared_encoders().cxr:
        encoder.freeze(data.every_cxr())
    data.read_only(network.reads, cxr_pixels=False)
