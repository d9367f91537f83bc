"""Draws stays of a simulated hospital from its parts, and measures what was drawn."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.cohort import Manifest
from drfuse.simulate import Simulation
from drfuse.simulate.disease import Disease, Patients, Readings
from drfuse.simulate.hospital import Census, Hospital, admit
from drfuse.simulate.record import draw_events

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Admitted:
    """Stays that were admitted, with their hidden state."""

    census: Census
    patients: Patients
    hospital: Hospital


@dataclass(frozen=True)
class Recorded:
    """Stays with what was charted and measured."""

    admitted: Admitted
    chart: pl.DataFrame
    labs: pl.DataFrame

    @property
    def icustays(self) -> pl.DataFrame:
        return self.admitted.hospital.icustays

    @property
    def patients(self) -> Patients:
        return self.admitted.patients


@dataclass(frozen=True)
class Simulated:
    """A simulated hospital on disk, and the cohort that was prepared from it."""

    folder: Path
    simulation: Simulation
    cohort: Path
    manifest: Manifest

    @property
    def stays(self) -> pl.DataFrame:
        """The cohort's stays."""
        return pl.read_parquet(self.cohort / "stays.parquet")


def admit_stays(
    disease: Disease, n_eligible: int, seed: int, reliability: tuple[float, float] | None = None
) -> Admitted:
    """Return so many stays that can be included and those that come with them.

    Args:
        disease: The model.
        n_eligible: How many can be included.
        seed: Of all that is random.
        reliability: Bounds of both modalities' reliability, where they are not to be the model's own.
    """
    generator = np.random.default_rng(seed)
    census = Census.draw(n_eligible, generator)
    if reliability is None:
        patients = disease.draw(len(census), generator)
    else:
        factors = generator.standard_normal((len(census), len(disease.factors)))
        r = generator.uniform(*reliability, (2, len(census)))
        patients = Patients(
            disease=disease,
            factors=factors,
            ehr=Readings.draw(factors, r[0], disease.seen["ehr"], generator),
            cxr=Readings.draw(factors, r[1], disease.seen["cxr"], generator),
            log_odds=disease.intercepts + factors @ disease.weights.T,
            labels=np.zeros((len(census), len(disease.phenotypes)), bool),
        )
    return Admitted(census, patients, admit(census, patients, seed, 0, generator))


def record_stays(admitted: Admitted, seed: int) -> Recorded:
    chart, labs = draw_events(admitted.hospital.icustays, admitted.patients, np.random.default_rng((seed, 1)))
    return Recorded(admitted, chart, labs)


def study_times(metadata: pl.DataFrame) -> list[datetime]:
    """Return when each image was taken, as StudyDate and StudyTime say it."""
    times = []
    for day, clock in metadata.select("StudyDate", "StudyTime").iter_rows():
        whole, _, fraction = f"{clock:010.3f}".partition(".")
        times.append(datetime.strptime(f"{day} {whole}.{fraction}", "%Y%m%d %H%M%S.%f"))
    return times


def slopes(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the least-squares coefficients of y (n,) over x (n, k), intercept first, and standard errors."""
    design = np.column_stack([np.ones(len(y)), x])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    residual = y - design @ coefficients
    variance = residual @ residual / (len(y) - design.shape[1])
    return coefficients, np.sqrt(variance * np.diag(inverse))


def held_out_r2(features: Floats, targets: Floats, penalty: float) -> Floats:
    """Return how much of each target (n, k) ridge regression on the features explains in the last third."""
    split = len(features) * 2 // 3
    mean, deviation = features[:split].mean(axis=0), features[:split].std(axis=0)
    x = (features - mean) / np.where(deviation > 0, deviation, 1)
    centre = targets[:split].mean(axis=0)
    gram = x[:split].T @ x[:split] + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:split].T @ (targets[:split] - centre))
    missed = targets[split:] - (centre + x[split:] @ weights)
    r2: Floats = 1 - (missed**2).mean(axis=0) / targets[split:].var(axis=0)
    return r2
