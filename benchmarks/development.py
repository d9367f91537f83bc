"""Hospitals to choose settings on: simulated with other seeds than those that are measured later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drfuse.cohort import prepare
from drfuse.data import Cohort, Subset
from drfuse.errors import InputError
from drfuse.evaluation import macro_mean, prauc_auroc
from drfuse.run import Predictions
from drfuse.simulate import Kind, simulate

BACKBONE: dict[str, Any] = {
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
}
"""The ResNet of all systems that are measured, as in `small.yaml`."""

MEASURED = (0, 1, 2)
"""The seeds of the hospitals that results are reported on: `claims.py` measures all three."""


def development_cohorts(
    out: Path, seeds: Sequence[int], stays: int = 3000, cxr_rate: float = 0.5, image_size: int = 64
) -> list[Cohort]:
    """Return the cohort of each hospital, in a folder of `out` by its seed; what is there is not made again.

    Raises:
        InputError: If no seed is given, a seed is repeated or belongs to a hospital that is measured later,
            or `out` holds a hospital made with other options.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError("expected development hospitals of different seeds")
    if measured := [seed for seed in seeds if seed in MEASURED]:
        raise InputError(f"seed {measured[0]} is a hospital that is measured later; choose a different seed")
    return [make_cohort(out / f"hospital-{seed}", stays, cxr_rate, image_size, seed) for seed in seeds]


def make_cohort(
    folder: Path, stays: int, cxr_rate: float, image_size: int, seed: int, kind: Kind = "independent"
) -> Cohort:
    """Return the cohort of a simulated hospital, both in `folder`; what is there is not made again.

    Raises:
        InputError: If the hospital was made with other options.
    """
    cohort, hospital = folder / "cohort", folder / "hospital"
    if not hospital.exists():
        simulate(hospital, stays, cxr_rate, image_size=image_size, seed=seed, kind=kind)
    made = json.loads((hospital / "simulation.json").read_text(encoding="utf-8"))["options"]
    options = {"stays": stays, "cxr_rate": cxr_rate, "image_size": image_size, "seed": seed, "kind": kind}
    for name, value in options.items():
        if (found := made.get(name, "independent" if name == "kind" else None)) != value:
            raise InputError(
                f"{hospital} was made with {name} {found}, not {value}; choose a different --out"
            )
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=image_size)
    return Cohort.open(cohort)


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
