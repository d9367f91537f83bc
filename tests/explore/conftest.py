from pathlib import Path

import numpy as np
import pytest

from drfuse.data import Cohort, EhrFeatures
from drfuse.explore.opened import Opened, open_folder
from drfuse.models import DrFuse
from drfuse.models.hub import describe_model, save_weights
from drfuse.run import Predictions, Run, RunFacts
from tests.builders import TINY_BACKBONE, write_cohort


def write_run(folder: Path, cohort: Cohort, seed: int, loadable: bool) -> None:
    """Write a finished run that predicts random numbers, with an untrained model."""
    folder.mkdir(parents=True)
    run, names, n = Run(folder), cohort.phenotypes, len(cohort)
    random = np.random.default_rng(seed)
    variables = cohort.manifest.variables
    n_features = len(EhrFeatures(variables, cohort.normalization))
    model = DrFuse(n_features, len(names), dim=8, heads=2, cxr_backbone=TINY_BACKBONE)
    save_weights(model, run.model)
    RunFacts(
        drfuse="0",
        cohort=cohort.fingerprint,
        model=describe_model(model) | ({} if loadable else {"class_path": "somewhere.Model"}),
        n_features=n_features,
        task="phenotyping",
        label_names=names,
        variables=variables,
        normalization=cohort.normalization,
        window_hours=8,
        image_size=12,
        crop_size=12,
        batch_size=4,
        precision="32-true",
        best_epoch=0,
        val_prauc_macro=0.5,
    ).write(run.facts)
    logits = random.normal(size=(2, n, len(names))).astype(np.float32)
    weights = random.dirichlet(np.ones(3), (n, len(names))).astype(np.float32)
    without = np.where(cohort.has_cxr[:, None], logits[1], logits[0])
    Predictions(
        phenotypes=names,
        stays=cohort.columns("subject_id", "stay_id", "split", "has_cxr"),
        logits=logits[0],
        labels=cohort.labels.astype(np.uint8),
        modality_weights=weights,
        logits_without_cxr=without,
    ).write(run.predictions)


@pytest.fixture(scope="session")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return twelve stays, six of them with a radiograph, and two runs: the model of `second` is nobody's."""
    folder = tmp_path_factory.mktemp("explored")
    cohort = Cohort.open(write_cohort(folder / "cohort"))
    for seed, name in enumerate(("first", "second")):
        write_run(folder / "runs" / name, cohort, seed, loadable=name == "first")
    return open_folder(folder)
