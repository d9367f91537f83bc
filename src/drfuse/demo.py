"""The whole system on a simulated hospital: from raw files to a table that can be held against the truth."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from drfuse.cohort import prepare
from drfuse.errors import InputError
from drfuse.evaluation import Evaluation, TestSet, evaluate, evaluate_test_set
from drfuse.models import CxrResNet, DrFuse, EhrTransformer
from drfuse.run import Predictions, RunFiles
from drfuse.simulate import Truth, oracle, simulate
from drfuse.simulate.oracle import Reader
from drfuse.training import Precision, train

logger = logging.getLogger(__name__)

_IMAGE_SIZE = 64
_BACKBONE = {
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
}
_MODELS: tuple[tuple[str, Reader, Any], ...] = (
    ("EHR Transformer", "ehr", partial(EhrTransformer, dim=128, feedforward=256)),
    ("CXR ResNet", "cxr", partial(CxrResNet, dim=128, cxr_backbone=_BACKBONE)),
    ("DrFuse", "fused", partial(DrFuse, dim=128, feedforward=256, cxr_backbone=_BACKBONE)),
)


@dataclass(frozen=True)
class Contestant:
    """A model of the demo, beside the perfect model of the same modalities.

    Attributes:
        name: What the table calls it.
        run: Its run.
        measured: Its metrics on each test set for which it can predict all stays.
        ceiling: Those of the perfect model.
    """

    name: str
    run: Path
    measured: dict[TestSet, Evaluation]
    ceiling: dict[TestSet, Evaluation]


@dataclass(frozen=True)
class Patient:
    """What DrFuse says of one stay.

    Attributes:
        stay_id: The stay.
        likeliest: A row for each of the likeliest phenotypes: `phenotype`, `probability`, `present` (whether
            the stay has it), the weights `ehr_distinct`, `shared` and `cxr_distinct`, and `cxr_advantage`, by
            how many nats the radiograph tells more than the EHR.
    """

    stay_id: int
    likeliest: pl.DataFrame


@dataclass(frozen=True)
class Demo:
    """What the demo came to."""

    folder: Path
    contestants: list[Contestant]
    patient: Patient


def demo(
    out: Path = Path("drfuse-demo"), stays: int | None = None, fast: bool = False, seed: int = 0
) -> Demo:
    """Simulate a hospital, prepare its cohort, train DrFuse and both unimodal models, and compare them.

    Half of the stays have a radiograph. What `out` already holds is not done again; an interrupted training
    goes on. Everything is small: images of 64 pixels, a ResNet of four blocks.

    Args:
        out: Folder for the simulated hospital, the cohort and the runs.
        stays: ICU stays that can be included: 2000, or 400 with `fast`.
        fast: See every step within a minute or so, with too few stays and epochs to learn much.
        seed: Seed of the simulation and of the trainings.

    Returns:
        The metrics of each model beside the best that is possible, and the modality weights of one patient.

    Raises:
        InputError: If `out` holds something else, or a demo with other options.
    """
    stays = stays or (400 if fast else 2000)
    epochs, patience = (2, 2) if fast else (12, 4)
    out = Path(out)
    hospital, cohort = out / "hospital", out / "cohort"
    simulated: dict[str, Any] = {"stays": stays, "cxr_rate": 0.5, "image_size": _IMAGE_SIZE, "seed": seed}
    if _is_there(hospital / "simulation.json", simulated):
        logger.info("1/4 simulated hospital: %s is there", hospital)
    else:
        logger.info("1/4 simulating a hospital of %s stays", f"{stays:,}")
        simulate(hospital, **simulated)
    if _is_there(cohort / "manifest.json", {"image_size": _IMAGE_SIZE, "seed": seed}):
        logger.info("2/4 cohort: %s is there", cohort)
    else:
        logger.info("2/4 preparing the cohort from its raw files")
        prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=_IMAGE_SIZE, seed=seed)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "patience": patience,
        "lr": 5e-4,
        "batch_size": 32,
        "seed": seed,
    }
    for name, reader, model in _MODELS:
        run = RunFiles(out / "runs" / reader)
        if run.predictions.is_file() and _is_there(run.config, settings):
            logger.info("3/4 %s: %s is there", name, run.folder)
            continue
        logger.info("3/4 training %s", name)
        train(
            cohort,
            run.folder,
            model,
            crop_size=_IMAGE_SIZE,
            augment=False,
            precision=_precision(),
            **settings,
        )
    logger.info("4/4 evaluating, beside the perfect models")
    truth = Truth.read(hospital)
    contestants = [_compare(name, reader, out / "runs" / reader, truth) for name, reader, _ in _MODELS]
    return Demo(
        out, contestants, _first_patient(Predictions.read(contestants[-1].run / "predictions.parquet"), truth)
    )


def _is_there(settings: Path, options: dict[str, Any]) -> bool:
    """Return whether a finished step left its settings, in JSON or YAML.

    Raises:
        InputError: If it was done with other options.
    """
    if not settings.is_file():
        return False
    written = yaml.safe_load(settings.read_text(encoding="utf-8"))
    written = written.get("options", written)
    if other := [name for name, value in options.items() if written.get(name) != value]:
        raise InputError(
            f"{settings.parent} was made with {other[0]} {written.get(other[0])}, not {options[other[0]]}; "
            "name another --out"
        )
    return True


def _precision() -> Precision:
    """Return bfloat16 where the processor computes with it."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    processor = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16-mixed" if processor.get("avx512_bf16") or processor.get("amx_bf16") else "32-true"


def _compare(name: str, reader: Reader, run: Path, truth: Truth) -> Contestant:
    """Evaluate a run and the perfect model of the same modalities on the same stays."""
    test_sets: tuple[TestSet, ...] = ("matched",) if reader == "cxr" else ("matched", "full")
    perfect = oracle(truth, Predictions.read(RunFiles(run).predictions))[reader]
    return Contestant(
        name,
        run,
        measured={test_set: evaluate(run, test_set)[0] for test_set in test_sets},
        ceiling={test_set: evaluate_test_set(perfect, test_set) for test_set in test_sets},
    )


def _first_patient(predictions: Predictions, truth: Truth, n_phenotypes: int = 5) -> Patient:
    """Return what is said of the first test stay with a radiograph."""
    stays = predictions.stays
    row = int(np.flatnonzero((stays["split"] == "test").to_numpy() & stays["has_cxr"].to_numpy())[0])
    stay_id = stays["stay_id"][row]
    likeliest = np.argsort(-predictions.logits[row], kind="stable")[:n_phenotypes]
    if predictions.modality_weights is None:
        raise ValueError("the run has no modality weights; pass one of DrFuse")
    weights = predictions.modality_weights[row, likeliest]
    return Patient(
        stay_id,
        pl.DataFrame(
            {
                "phenotype": [predictions.phenotypes[c] for c in likeliest],
                "probability": 1 / (1 + np.exp(-predictions.logits[row, likeliest])),
                "present": predictions.labels[row, likeliest].astype(bool),
                "ehr_distinct": weights[:, 0],
                "shared": weights[:, 1],
                "cxr_distinct": weights[:, 2],
                "cxr_advantage": truth.of([stay_id]).cxr_advantage[0, likeliest],
            }
        ),
    )
