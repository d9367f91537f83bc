"""The whole system on a simulated hospital: from raw files to a table with the known truth next to it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from drfuse.cohort import prepare
from drfuse.data import Cohort, EhrFeatures
from drfuse.errors import InputError
from drfuse.evaluation import Evaluation, Recalibration, evaluate, evaluate_test_set
from drfuse.explain import explain
from drfuse.inference import Explanation
from drfuse.inference.table import probabilities
from drfuse.models import CxrResNet, DrFuse, EhrTransformer, FusionModel
from drfuse.models.hub import describe_model
from drfuse.report.demo import write_demo_page
from drfuse.run import Run
from drfuse.simulate import Disease, Reader, Truth, oracle, simulate
from drfuse.subsets import Subset
from drfuse.training import TrainOptions, train
from drfuse.training.options import DEFAULTS

logger = logging.getLogger(__name__)

_BACKBONE = {
    "layer_type": "basic",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
}
_TRANSFORMER: dict[str, Any] = {"dim": 64, "feedforward": 128, "pooling": "mean-max-last"}
_FEWEST_STAYS = 100

_Model = Callable[[int, int], FusionModel]

MODELS: dict[Reader, _Model] = {
    "ehr": partial(EhrTransformer, **_TRANSFORMER),
    "cxr": partial(CxrResNet, dim=64, cxr_backbone=_BACKBONE),
    "fused": partial(DrFuse, **_TRANSFORMER, cxr_backbone=_BACKBONE),
}
"""Small models by what they read."""

NAMES: dict[Reader, str] = {"ehr": "EHR Transformer", "cxr": "CXR ResNet", "fused": "DrFuse"}
READS: dict[Reader, str] = {"ehr": "the record", "cxr": "the radiograph", "fused": "both"}

REPORT = "report.html"


@dataclass(frozen=True)
class Contestant:
    """A model of the demo, and the perfect model of the same modalities.

    Attributes:
        name: Its name in the table.
        reads: What it reads, in words.
        run: Its run.
        measured: Its metrics on each test set whose stays it can all predict.
        ceiling: The metrics of the perfect model.
    """

    name: str
    reads: str
    run: Path
    measured: dict[Subset, Evaluation]
    ceiling: dict[Subset, Evaluation]


@dataclass(frozen=True)
class Patient:
    """DrFuse's prediction for one stay.

    Attributes:
        stay_id: The stay.
        likeliest: One row per phenotype, the likeliest first: `phenotype`, `probability`, `present` (whether
            the stay has it), the weights `ehr_distinct`, `shared` and `cxr_distinct`, and `cxr_advantage`:
            how much more the radiograph tells than the EHR, in nats.
    """

    stay_id: int
    likeliest: pl.DataFrame


@dataclass(frozen=True)
class Demo:
    """The result of the demo.

    Attributes:
        folder: What it wrote.
        contestants: The models, and how well they predict.
        patient: What DrFuse predicts of one of the stays.
        explanation: Why: what `drfuse explain` says of the likeliest phenotype of that stay.
    """

    folder: Path
    contestants: list[Contestant]
    patient: Patient
    explanation: Explanation

    @property
    def report(self) -> Path:
        """The page with all of it."""
        return self.folder / REPORT


def demo(
    out: Path = Path("drfuse-demo"), stays: int | None = None, fast: bool = False, seed: int = 0
) -> Demo:
    """Simulate a hospital, prepare its cohort, train DrFuse and both unimodal models, and compare them.

    Half of the stays have a radiograph. Steps that `out` already holds are skipped; an interrupted training
    resumes. Everything is small: images of 64 pixels, a ResNet of four blocks. Training uses float32:
    networks this small gain nothing from bfloat16, which is slow on processors that lack it. `report.html`
    has the comparison and one patient, with pictures.

    Args:
        out: Folder for the simulated hospital, the cohort and the runs.
        stays: Eligible ICU stays: 2000, or 400 with `fast`.
        fast: Run every step within a minute or so, on too few stays and epochs to learn much.
        seed: Seed of the simulation and of the trainings.

    Returns:
        The metrics of each model and of the best possible one, and the modality weights of one patient.

    Raises:
        InputError: If `out` holds anything else, or a demo with different options.
    """
    if stays is None:
        stays = 400 if fast else 2000
    if stays < _FEWEST_STAYS:
        raise InputError(
            f"stays is {stays}; expected at least {_FEWEST_STAYS}, for a test split with radiographs"
        )
    out = Path(out)
    epochs, patience = (2, 2) if fast else (10, 3)
    learn(
        out,
        {"stays": stays, "cxr_rate": 0.5, "image_size": 64, "seed": seed},
        TrainOptions(epochs=epochs, patience=patience, lr=1e-3, batch_size=32, seed=seed),
        MODELS,
    )
    logger.info("evaluating the models and the perfect ones")
    truth = Truth.read(out / "hospital")
    contestants = [_compare(reader, run_of(out, reader), truth) for reader in MODELS]
    fused = run_of(out, "fused")
    patient = _first_patient(fused, truth)
    explained = explain(fused.folder, out / "cohort", patient.stay_id)
    found = Demo(out, contestants, patient, explained.explanation)
    write_demo_page(found, found.report)
    return found


def run_of(out: Path, model: str) -> Run:
    """Return the run of one of the models that `learn` trained."""
    return Run(out / "runs" / model)


def learn(
    out: Path,
    simulated: dict[str, Any],
    options: TrainOptions,
    models: Mapping[Reader, _Model] | Mapping[str, _Model],
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Simulate a hospital, prepare its cohort and train models on it; finished steps are skipped.

    Args:
        out: Folder for `hospital`, `cohort` and `runs`.
        simulated: Options of `simulate`; its image size and seed are also those of `prepare`.
        options: How all models are trained; this function sets the crop and the augmentation.
        models: The models, by the name of their run.
        own: Options for single models, by the same names; they override those for all.

    Raises:
        InputError: If a step was done with different options.
    """
    hospital, cohort = out / "hospital", out / "cohort"
    prepared = {name: simulated[name] for name in ("image_size", "seed")}
    if _is_done(hospital / "simulation.json", simulated):
        logger.info("the simulated hospital %s exists", hospital)
    else:
        logger.info("simulating a hospital of %s stays", f"{simulated['stays']:,}")
        simulate(hospital, **simulated)
    if _is_done(cohort / "manifest.json", prepared):
        stays = Truth.read(hospital).stays.filter("eligible")["stay_id"].sort()
        if not Cohort.open(cohort).stays["stay_id"].equals(stays):
            raise InputError(f"{cohort} was not made from {hospital}; delete it, or choose a different --out")
        logger.info("the cohort %s exists", cohort)
    else:
        logger.info("preparing the cohort from raw files")
        prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", **prepared)
    opened = Cohort.open(cohort)
    n_features = len(EhrFeatures(opened.manifest.variables, opened.normalization))
    # the simulated chest is always upright
    options = options.changed(crop_size=opened.image_size, augment="shifts")
    deciding = TrainOptions.names("decides")
    for name, model in models.items():
        run = run_of(out, name)
        trained = options.changed(**(own or {}).get(name, {}))
        described = {
            "model": describe_model(model(n_features, len(opened.phenotypes))),
            **{key: value for key, value in trained.written().items() if key in deciding},
        }
        if _is_done(run.config, described) and run.is_finished:
            try:
                trained_on = run.read_facts().cohort
            except InputError as error:
                raise InputError(f"{error}: delete {run.folder} first") from error
            if trained_on != opened.fingerprint:
                raise InputError(
                    f"{run.folder} was not trained on {cohort}; delete it, or choose a different --out"
                )
            logger.info("the run %s exists", run.folder)
        else:
            logger.info("training %s", run.folder)
            train(cohort, run.folder, model, trained)


def _is_done(settings: Path, options: dict[str, Any]) -> bool:
    """Return whether a step has written its settings (JSON or YAML) to its folder.

    Raises:
        InputError: If it was done with different options, or the folder holds something else.
    """
    folder = settings.parent
    if not settings.is_file():
        left = folder.iterdir() if folder.exists() else ()
        if any(not path.name.startswith(".") for path in left):  # a killed command may leave a hidden lock
            raise InputError(f"{folder} has no {settings.name}; delete it, or choose a different --out")
        return False
    try:
        written = yaml.safe_load(settings.read_text(encoding="utf-8"))
        # an option missing from an older run had its default value
        is_hospital = settings.suffix == ".json"
        written = {"kind": Disease.kind} | written["options"] if is_hospital else DEFAULTS.written() | written
        different = [name for name, value in options.items() if written.get(name) != value]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{settings} is damaged; delete {folder}, or choose a different --out") from error
    if different:
        name = different[0]
        raise InputError(
            f"{folder} was made with {name} {written.get(name)}, not {options[name]}; choose a different "
            "--out"
        )
    return True


def _compare(reader: Reader, run: Run, truth: Truth) -> Contestant:
    """Evaluate a run and the perfect model of the same modalities on the same stays."""
    test_sets: tuple[Subset, ...] = ("matched",) if reader == "cxr" else ("matched", "full")
    perfect = oracle(truth, run.read_predictions())[reader]
    return Contestant(
        NAMES[reader],
        READS[reader],
        run.folder,
        measured={test_set: evaluate(run.folder, test_set)[0] for test_set in test_sets},
        ceiling={test_set: evaluate_test_set(perfect, test_set) for test_set in test_sets},
    )


def _first_patient(run: Run, truth: Truth, n_phenotypes: int = 5) -> Patient:
    """Return the prediction for the first test stay with a radiograph, recalibrated as for `explain`."""
    predictions = run.read_predictions()
    stays = predictions.stays
    row = int(np.flatnonzero((stays["split"] == "test").to_numpy() & stays["has_cxr"].to_numpy())[0])
    stay_id = stays["stay_id"][row]
    recalibration = Recalibration.read(run.folder, predictions.phenotypes)
    (probability,) = probabilities(predictions.logits[[row]], recalibration)
    likeliest = np.argsort(-probability, kind="stable")[:n_phenotypes]
    if predictions.modality_weights is None:
        raise ValueError("expected a run with modality weights; pass one of DrFuse")
    weights = predictions.modality_weights[row, likeliest]
    return Patient(
        stay_id,
        pl.DataFrame(
            {
                "phenotype": [predictions.phenotypes[c] for c in likeliest],
                "probability": probability[likeliest],
                "present": predictions.labels[row, likeliest].astype(bool),
                "ehr_distinct": weights[:, 0],
                "shared": weights[:, 1],
                "cxr_distinct": weights[:, 2],
                "cxr_advantage": truth.of([stay_id]).cxr_advantage[0, likeliest],
            }
        ),
    )
