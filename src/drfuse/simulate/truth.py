"""The truth about a simulated hospital, and what perfect models predict from it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from drfuse.errors import InputError, MissingInputError
from drfuse.evaluation import prauc_auroc
from drfuse.run import Predictions
from drfuse.simulate.disease import (
    Disease,
    Imaged,
    Kind,
    Modality,
    Patients,
    Readings,
    expected_advantage,
)
from drfuse.simulate.entangled import KINDS

TRUTH = "truth.parquet"
Reader = Literal["fused", "ehr", "cxr"]
"""A perfect model that reads all data of a stay, its EHR alone, or its radiograph alone."""

_ARRAYS = ("log_odds", "probability", "given_both", "given_ehr", "given_cxr", "cxr_advantage")


@dataclass(frozen=True)
class Truth:
    """What is known about N simulated stays and C phenotypes.

    Attributes:
        phenotypes: The C names.
        stays: One row per stay: its ids, `eligible` (the inclusion rules keep it), `has_cxr`,
            `ehr_reliability`, `cxr_reliability`, each factor by its name, and its readings as `ehr_NAME` and
            `cxr_NAME`.
        labels: Whether each stay has each phenotype, boolean (N, C).
        log_odds: The true log-odds (N, C).
        probability: The probability given all factors (N, C).
        given_both: The probability given everything that EHR and radiograph can show (N, C).
        given_ehr: The probability given everything that the EHR can show (N, C).
        given_cxr: The probability given everything that a radiograph can show (N, C), even if there is none.
        cxr_advantage: What `expected_advantage` returns, in nats (N, C); positive if the radiograph predicts
            the phenotype better than the EHR.
        kind: Of hospital. In an entangled one, all that is given includes whether there is a radiograph, and
            `stays` also has `disturbance`.
    """

    phenotypes: list[str]
    stays: pl.DataFrame
    labels: NDArray[np.bool_]
    log_odds: NDArray[np.float32]
    probability: NDArray[np.float32]
    given_both: NDArray[np.float32]
    given_ehr: NDArray[np.float32]
    given_cxr: NDArray[np.float32]
    cxr_advantage: NDArray[np.float32]
    kind: Kind = Disease.kind

    @classmethod
    def read(cls, folder: Path) -> "Truth":
        """Return the truth about the hospital that `drfuse simulate` wrote into `folder`.

        Raises:
            MissingInputError: If there is no such file.
            InputError: If the file is damaged.
        """
        path = Path(folder) / TRUTH
        if not path.is_file():
            raise MissingInputError(f"{folder} has no {TRUTH}; choose a folder that `drfuse simulate` wrote")
        try:
            table = pl.read_parquet(path, glob=False)
            metadata = pq.read_metadata(path).metadata or {}
            phenotypes = json.loads(metadata[b"phenotypes"])
            kind = KINDS[metadata[b"kind"].decode()].kind if b"kind" in metadata else Disease.kind
            labels = table["labels"].to_numpy().astype(bool)
            arrays = {name: table[name].to_numpy() for name in _ARRAYS}
            return cls(phenotypes, table.drop("labels", *_ARRAYS), labels, **arrays, kind=kind)
        except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); simulate the hospital again") from error

    def of(self, stay_ids: ArrayLike) -> "Truth":
        """Return the truth about some stays, in their order.

        Raises:
            InputError: If a stay is not in this hospital.
        """
        ids = self.stays["stay_id"].to_numpy()
        order = np.argsort(ids)
        wanted = np.asarray(stay_ids)
        rows = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
        if unknown := int((ids[rows] != wanted).sum()):
            raise InputError(
                f"{unknown} of {len(wanted)} stays are not in this simulated hospital; choose the one that "
                "the cohort was prepared from"
            )
        arrays = {name: getattr(self, name)[rows] for name in ("labels", *_ARRAYS)}
        return dataclasses.replace(self, stays=self.stays[rows], **arrays)

    @property
    def disease(self) -> Disease:
        """The model that the stays were drawn from."""
        return KINDS[self.kind].load()

    def readings(self, modality: Modality) -> Readings:
        """Return what a modality shows of the factors of the stays."""
        disease = self.disease
        seen = disease.seen[modality]
        shown = [
            self.stays[f"{modality}_{name}"].to_numpy() if visible else np.zeros(self.stays.height)
            for name, visible in zip(disease.factors, seen, strict=True)
        ]
        reliability = self.stays[f"{modality}_reliability"].to_numpy().astype(np.float64)
        return Readings(np.column_stack(shown).astype(np.float64), reliability, seen)

    def read_by(self, reader: Reader) -> NDArray[np.float32]:
        """Return the probabilities (N, C) that a perfect model gives.

        Without a radiograph, `fused` is `given_ehr` and `cxr` is NaN.
        """
        if reader == "ehr":
            return self.given_ehr
        has_cxr = self.stays["has_cxr"].to_numpy()[:, None]
        if reader == "fused":
            return np.where(has_cxr, self.given_both, self.given_ehr)
        return np.where(has_cxr, self.given_cxr, np.float32(np.nan))


def ceilings(truth: Truth) -> pl.DataFrame:
    """Return the PRAUC of the perfect models on the stays of `truth`, one row per phenotype.

    The columns are `phenotype`, `fused`, `ehr` and `cxr`. The last counts only stays with a radiograph, so
    compare it with the others only on those stays (`Truth.of`).
    """
    columns = {}
    for reader in get_args(Reader):
        scores = truth.read_by(reader)
        predicted = ~np.isnan(scores).any(axis=1)
        columns[reader] = prauc_auroc(truth.labels[predicted], scores[predicted])[0][0]
    return pl.DataFrame({"phenotype": truth.phenotypes, **columns})


def oracle(truth: Truth, run: Predictions) -> dict[Reader, Predictions]:
    """Return the predictions of perfect models for the stays of a run, in the form of a run's own.

    The truth covers 48 hours and their last AP radiograph, so the run's cohort must have the default window
    and view.

    Raises:
        InputError: If the run is not of this hospital, or has other phenotypes, labels, radiographs or views.
    """
    if run.phenotypes != truth.phenotypes:
        raise InputError(
            "the run has other phenotypes than the simulated hospital; prepare its cohort without "
            "--phenotypes"
        )
    here = truth.of(run.stays["stay_id"].to_numpy())
    if not np.array_equal(run.labels, here.labels):
        raise InputError(
            "the run has other labels than the simulated hospital; choose the one, of the same --kind and "
            "--seed, that the cohort was prepared from"
        )
    if (run.stays["has_cxr"] & ~here.stays["has_cxr"]).any():
        raise InputError(
            "the run has radiographs of another window or view than the truth; prepare its cohort with the "
            "default --window-hours and --view"
        )
    here = dataclasses.replace(here, stays=here.stays.with_columns(run.stays["has_cxr"]))
    return {
        reader: Predictions(run.phenotypes, run.stays, logit(here.read_by(reader)), run.labels, None)
        for reader in get_args(Reader)
    }


def describe_truth(
    icustays: pl.DataFrame,
    patients: Patients,
    eligible: NDArray[np.bool_],
    has_cxr: NDArray[np.bool_],
    cxr_rate: float | None = None,
) -> pl.DataFrame:
    """Return the rows of `truth.parquet` for some stays; `cxr_rate` is that of `Imaging`."""
    disease = patients.disease
    imaged = None if cxr_rate is None else Imaged(has_cxr, cxr_rate)
    columns: dict[str, NDArray[np.float64]] = dict(zip(disease.factors, patients.factors.T, strict=True))
    for modality, readings in (("ehr", patients.ehr), ("cxr", patients.cxr)):
        columns[f"{modality}_reliability"] = readings.reliability
        names = np.array(disease.factors)[readings.seen]
        columns |= {
            f"{modality}_{name}": readings.values[:, k]
            for name, k in zip(names, np.flatnonzero(readings.seen), strict=True)
        }
    given = {
        "probability": patients.probability,
        "given_both": patients.given("ehr", "cxr", imaged=imaged),
        "given_ehr": patients.given("ehr", imaged=imaged),
        "given_cxr": patients.given("cxr", imaged=imaged),
    }
    if patients.disturbance is not None:
        columns["disturbance"] = patients.disturbance
    advantage = expected_advantage(given["probability"], given["given_cxr"], given["given_ehr"])
    arrays = {"log_odds": patients.log_odds, **given, "cxr_advantage": advantage}
    width = len(disease.phenotypes)
    return icustays.select("subject_id", "hadm_id", "stay_id").with_columns(
        pl.Series("eligible", eligible),
        pl.Series("has_cxr", has_cxr),
        *(pl.Series(name, values, dtype=pl.Float32) for name, values in columns.items()),
        pl.Series("labels", patients.labels.astype(np.uint8), dtype=pl.Array(pl.UInt8, width)),
        *(
            pl.Series(name, values.astype(np.float32), dtype=pl.Array(pl.Float32, width))
            for name, values in arrays.items()
        ),
    )
