"""Hospitals to choose settings on: simulated with other seeds than the one that is measured later."""

from collections.abc import Sequence
from pathlib import Path

from drfuse.cohort import prepare
from drfuse.data import Subset
from drfuse.errors import InputError
from drfuse.evaluation import macro_mean, prauc_auroc
from drfuse.run import Predictions
from drfuse.simulate import simulate

MEASURED = 0
"""The seed of the hospital that results are reported on."""


def development_cohort(
    out: Path, seed: int, stays: int = 3000, cxr_rate: float = 0.5, image_size: int = 64
) -> Path:
    """Return the cohort of a hospital, in a folder of `out` by its seed; made where it is not there yet.

    Raises:
        InputError: If the seed is that of the hospital that is measured.
    """
    if seed == MEASURED:
        raise InputError(f"seed {MEASURED} is the hospital that is measured later; choose others")
    folder = out / f"hospital-{seed}"
    cohort, hospital = folder / "cohort", folder / "hospital"
    if not (hospital / "truth.parquet").is_file():
        simulate(hospital, stays, cxr_rate, image_size=image_size, seed=seed, overwrite=hospital.exists())
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=image_size)
    return cohort


def unseen_prauc(runs: Sequence[Predictions], test_on: Subset = "matched") -> list[float]:
    """Return each run's macro PRAUC on its hospital's test split.

    On a development hospital that split serves as a second validation split, twice as large as the one that
    chose the epoch, and unseen by that choice.
    """
    praucs = []
    for run in runs:
        rows = run.rows("test", test_on)
        prauc, _ = prauc_auroc(run.labels[rows], run.logits[rows])
        praucs.append(float(macro_mean(prauc)[0]))
    return praucs
