from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from drfuse.data import Cohort, EhrFeatures
from drfuse.explore.opened import Opened, open_folder
from drfuse.run import Predictions, Run, RunFacts
from tests.builders import write_cohort


def write_run(folder: Path, cohort: Cohort, seed: int = 0) -> Run:
    """Write a finished run that predicts random numbers, without a model that could be loaded."""
    folder.mkdir(parents=True)
    run, names, n = Run(folder), cohort.phenotypes, len(cohort)
    random = np.random.default_rng(seed)
    save_file({"weight": np.zeros(1, np.float32)}, run.model)
    variables = cohort.manifest.variables
    RunFacts(
        drfuse="0",
        cohort=cohort.fingerprint,
        model={"class_path": "somewhere.Model", "init_args": {}},
        n_features=len(EhrFeatures(variables, cohort.normalization)),
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
    return run


@pytest.fixture(scope="session")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return twelve stays, six of them with a radiograph, and two runs."""
    folder = tmp_path_factory.mktemp("explored")
    cohort = Cohort.open(write_cohort(folder / "cohort"))
    for seed, name in enumerate(("first", "second")):
        write_run(folder / "runs" / name, cohort, seed)
    return open_folder(folder)
