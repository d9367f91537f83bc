"""What one run says, held against the truth of its simulated hospital."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drfuse.data import Cohort
from drfuse.data.batch import Modality
from drfuse.evaluation import SeededPrauc, calibration, missing_curve, modality_advantage, seeded_prauc
from drfuse.inference import Predictor
from drfuse.reproduce.representations import FOLDS, probe_origin
from drfuse.run import Predictions, Run
from drfuse.simulate import Disease, Reader, Truth
from drfuse.simulate.entangled import EntangledDisease
from drfuse.subsets import Subset

N_RESAMPLES = 500
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the radiographs that are taken away."""

GROUPS = ("shared", "EHR-only", "CXR-only")
PARTS = ("ehr_shared", "ehr_distinct", "shared", "cxr_shared", "cxr_distinct")
_STAYS_AT_A_TIME = 256

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Measured:
    """What was measured of one run on one hospital.

    Attributes:
        numbers: By part (`prauc`, `missing`, `products`, `weights`, `aligned`, `factors`, `calibration`) and
            name.
        praucs: By test set (`matched`, `gone`, `full`), the macro PRAUC with its resamples, the same
            ones for all runs of a hospital.
    """

    numbers: dict[str, dict[str, float]]
    praucs: dict[str, SeededPrauc] = field(default_factory=dict)


def measure_run(run: Path, hospital: Path, cohort: Cohort, seed: int) -> Measured:
    """Return everything that is measured of a finished run on the cohort of a simulated hospital.

    Args:
        run: The run.
        hospital: The simulated hospital.
        cohort: Its cohort.
        seed: Of the hospital; resamples are drawn with it.
    """
    predictions = Predictions.read(Run(run).predictions)
    truth = Truth.read(hospital).of(predictions.stays["stay_id"].to_numpy())
    matched = predictions.rows("test", "matched")
    praucs = _praucs(predictions, seed)
    numbers = {
        "prauc": {name: float(one.values[0]) for name, one in praucs.items()},
        "missing": _missing(predictions, matched),
        "products": _by_product(praucs["matched"], truth.disease) if "matched" in praucs else {},
        "weights": _weights(predictions, truth, matched),
        "calibration": _calibration(predictions, matched),
        **_representations(run, cohort, hospital),
    }
    return Measured(numbers, praucs)


def measure_perfect(hospital: Path, cohort: Cohort, seed: int) -> dict[str, Measured]:
    """Return the macro PRAUC of perfect readers of the EHR, of the radiograph and of both, by their names."""
    stays = cohort.stays
    truth = Truth.read(hospital).of(stays["stay_id"].to_numpy())
    labels = truth.labels.astype(np.uint8)
    columns = stays.select("subject_id", "stay_id", "split", "has_cxr")
    tested = truth.of(stays["stay_id"].to_numpy()[cohort.rows("test", "matched")])
    found = {}
    readers: Sequence[tuple[str, Reader, Sequence[Modality]]] = (
        ("perfect reader of the EHR", "ehr", ("ehr",)),
        ("perfect reader of the radiograph", "cxr", ("cxr",)),
        ("perfect reader of both", "fused", ("ehr", "cxr")),
    )
    for name, reader, readings in readers:
        logits = logit(truth.read_by(reader))
        gone = logit(truth.read_by("ehr")) if reader != "cxr" else None
        one = Predictions(truth.phenotypes, columns, logits, labels, None, gone)
        praucs = _praucs(one, seed)
        numbers = {
            "prauc": {key: float(of.values[0]) for key, of in praucs.items()},
            "products": _by_product(praucs["matched"], truth.disease),
            "factors": _knowable_factors(tested, *readings),
        }
        found[name] = Measured(numbers, praucs)
    return found


def _knowable_factors(truth: Truth, *modalities: Modality) -> dict[str, float]:
    """Return the R2 of the factors' posterior means given what modalities show, by group of factors."""
    disease = truth.disease
    factors = truth.stays.select(disease.factors).to_numpy()
    means, _ = disease.factors_given(*map(truth.readings, modalities))
    r2 = r2_score(factors, means, multioutput="raw_values")
    return {f"shown -> {group}": float(r2[chosen].mean()) for group, chosen in factor_groups(disease).items()}


def _praucs(predictions: Predictions, seed: int) -> dict[str, SeededPrauc]:
    """Return the macro PRAUC of each test set whose stays are all predicted."""
    found = {}
    test_sets: Sequence[tuple[str, Subset, Floats | None]] = (
        ("matched", "matched", predictions.logits),
        ("gone", "matched", predictions.logits_without_cxr),
        ("full", "full", predictions.logits),
    )
    for name, test_on, logits in test_sets:
        rows = predictions.rows("test", test_on)
        if logits is None or np.isnan(logits[rows]).any():
            continue
        subjects = predictions.stays["subject_id"].to_numpy()[rows]
        found[name] = seeded_prauc(predictions.labels[rows], [logits[rows]], subjects, N_RESAMPLES, seed)
    return found


def _by_product(prauc: SeededPrauc, disease: Disease) -> dict[str, float]:
    """Return the mean PRAUC of the phenotypes that need a product of both modalities, and of the others."""
    if not isinstance(disease, EntangledDisease):
        return {}
    needs_both, of_label = disease.products != 0, prauc.label_values[0]
    return {
        "a product of both modalities": float(np.nanmean(of_label[needs_both])),
        "no product": float(np.nanmean(of_label[~needs_both])),
    }


def _missing(predictions: Predictions, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Return the macro PRAUC of the matched test stays by the share of radiographs taken away."""
    without = predictions.logits_without_cxr
    if without is None or np.isnan(without[rows]).any():
        return {}
    subjects = predictions.stays["subject_id"].to_numpy()[rows]
    measure = partial(missing_curve, shares=SHARES, n_resamples=1)
    points = measure(predictions.labels[rows], predictions.logits[rows], without[rows], subjects)
    return {f"{100 * point.share:.0f} %": point.prauc_macro.value for point in points}


def _weights(predictions: Predictions, truth: Truth, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Return how a run's weights rank with the radiograph's true advantage, over the matched test stays.

    `advantage` is that of the run's own predictions (`modality_advantage`), `own` the CXR weight less the EHR
    weight of a model that has weights, and `knowable` the advantage by the perfect readers' predictions.
    """
    true = truth.cxr_advantage[rows]
    said: dict[str, Floats] = {}
    if (without := predictions.logits_without_cxr) is not None and predictions.logits_without_ehr is not None:
        three = (predictions.logits[rows], without[rows], predictions.logits_without_ehr[rows])
        said["advantage"] = modality_advantage(*three)
    if predictions.modality_weights is not None:
        said["own"] = predictions.modality_weights[rows, :, 2] - predictions.modality_weights[rows, :, 0]
    readers = (truth.given_both[rows], truth.given_ehr[rows], truth.given_cxr[rows])
    said["knowable"] = modality_advantage(*map(logit, readers))
    return {
        f"{name} {key}": value
        for name, one in said.items()
        if np.isfinite(one).all() and one.std() > 0
        for key, value in correlations(one, true).items()
    }


def correlations(said: Floats, true: Floats) -> dict[str, float]:
    """Return Spearman correlations of weights with the truth, both (n, C).

    Over all of them (`pooled`), of the phenotypes' means (`between`), and the mean correlation within a
    phenotype and within a stay.
    """
    within = [_rank_correlation(*pair) for pair in zip(said.T, true.T, strict=True)]
    in_stays = [_rank_correlation(*pair) for pair in zip(said, true, strict=True)]
    return {
        "pooled": _rank_correlation(said.ravel(), true.ravel()),
        "between": _rank_correlation(said.mean(axis=0), true.mean(axis=0)),
        "within phenotypes": float(np.mean(within)),
        "within stays": float(np.mean(in_stays)),
    }


def _calibration(predictions: Predictions, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Return the calibration error of the predictions from both modalities, and from each alone."""
    subjects = predictions.stays["subject_id"].to_numpy()[rows]
    logits = {
        "both": predictions.logits,
        "EHR alone": predictions.logits_without_cxr,
        "radiograph alone": predictions.logits_without_ehr,
    }
    return {
        name: calibration(predictions.labels[rows], expit(one[rows], dtype=np.float64), subjects).error.value
        for name, one in logits.items()
        if one is not None and not np.isnan(one[rows]).any()
    }


def _representations(run: Path, cohort: Cohort, hospital: Path) -> dict[str, dict[str, float]]:
    """Return how aligned and disentangled a run's shared and distinct representations are, if it has them.

    Measured on the matched validation and test stays, which trained nothing; probes are fitted and scored in
    five folds of whole subjects.
    """
    rows = np.concatenate([cohort.rows("validation", "matched"), cohort.rows("test", "matched")])
    batches = [part.tolist() for part in np.array_split(rows, len(rows) // _STAYS_AT_A_TIME + 1)]
    h = Predictor.open(run).represent(cohort, batches)
    if not set(PARTS) <= h.keys():
        return {}
    subjects = cohort.stays["subject_id"].to_numpy()[rows]
    truth = Truth.read(hospital).of(cohort.stays["stay_id"].to_numpy()[rows])
    disease = truth.disease
    factors = truth.stays.select(disease.factors).to_numpy()
    own, others = pair_correlations(h["ehr_shared"], h["cxr_shared"])
    told = {name: probe_factors(h[name], factors, subjects) for name in PARTS}
    groups = factor_groups(disease)
    return {
        "aligned": {
            "own": own,
            "others": others,
            "origin": probe_origin(h["ehr_shared"], h["cxr_shared"], subjects),
        },
        "factors": {
            f"{name} -> {group}": float(r2[chosen].mean())
            for name, r2 in told.items()
            for group, chosen in groups.items()
        },
    }


def factor_groups(disease: Disease) -> Mapping[str, NDArray[np.bool_]]:
    """Return which factors (K,) both modalities show, and which only one does."""
    ehr, cxr = disease.seen["ehr"], disease.seen["cxr"]
    return dict(zip(GROUPS, (ehr & cxr, ehr & ~cxr, ~ehr & cxr), strict=True))


def pair_correlations(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Return the mean correlation of a row of a with the same row of b (n, D), and with another row.

    Dimensions are standardised first, so that neither scale nor a constant counts.
    """
    a, b = (_standardised(_standardised(one).T).T for one in (a, b))
    return float((a * b).mean(axis=1).mean()), float((a * np.roll(b, 1, axis=0)).mean(axis=1).mean())


def _standardised(values: NDArray[Any]) -> Floats:
    centred = values - values.mean(axis=0)
    scaled: Floats = centred / np.maximum(centred.std(axis=0), 1e-12)
    return scaled


def probe_factors(h: NDArray[Any], factors: NDArray[Any], subjects: NDArray[Any]) -> Floats:
    """Return the R2 (K,) of a linear probe of h (n, D) for each factor (n, K)."""
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 6), alpha_per_target=True))
    said = cross_val_predict(probe, h, factors, groups=subjects, cv=GroupKFold(FOLDS))
    r2: Floats = r2_score(factors, said, multioutput="raw_values")
    return r2


def _rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(spearmanr(a, b).statistic)
