"""Samples of the simulated hospital that several test files read."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import prepare
from drfuse.simulate import simulate
from drfuse.simulate.disease import Disease, Patients
from tests.mimic import write_tables
from tests.simulate.samples import Admitted, Recorded, Simulated, admit_stays, record_stays


@pytest.fixture(scope="session")
def disease() -> Disease:
    return Disease.load()


@pytest.fixture(scope="session")
def patients(disease: Disease) -> Patients:
    return disease.draw(20_000, np.random.default_rng(0))


@pytest.fixture(scope="session")
def admitted(disease: Disease) -> Admitted:
    return admit_stays(disease, 4000, seed=7)


@pytest.fixture(scope="session")
def recorded(disease: Disease) -> Recorded:
    return record_stays(admit_stays(disease, 1500, seed=8), seed=8)


@pytest.fixture(scope="session")
def clean(disease: Disease) -> Recorded:
    """Return stays whose record is reliable."""
    return record_stays(admit_stays(disease, 2500, seed=9, reliability=(0.85, 0.98)), seed=9)


@pytest.fixture(scope="session")
def clean_cohort(clean: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prepared cohort of the clean stays, without radiographs."""
    folder = tmp_path_factory.mktemp("clean")
    hospital = clean.admitted.hospital
    tables = {
        "hosp/patients": hospital.patients.with_columns(pl.col("dod").cast(pl.String)),
        "hosp/admissions": hospital.admissions,
        "hosp/diagnoses_icd": hospital.diagnoses,
        "hosp/labevents": clean.labs,
        "icu/icustays": hospital.icustays,
        "icu/chartevents": clean.chart,
    }
    prepare(write_tables(tables, folder / "mimic-iv", ".parquet"), folder / "cohort")
    return folder / "cohort"


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """Return a hospital of 150 stays that can be included; read it, do not change it."""
    folder = tmp_path_factory.mktemp("simulated")
    simulation = simulate(folder / "hospital", stays=150, cxr_rate=0.5, image_size=64, seed=3)
    mimic_iv, mimic_cxr = folder / "hospital/mimic-iv", folder / "hospital/mimic-cxr"
    manifest = prepare(mimic_iv, folder / "cohort", mimic_cxr, image_size=64)
    return Simulated(folder / "hospital", simulation, folder / "cohort", manifest)
