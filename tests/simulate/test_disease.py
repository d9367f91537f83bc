import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import kstest, norm

from drfuse.evaluation import prauc_auroc
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import (
    Disease,
    Modality,
    Patients,
    Readings,
    expected_advantage,
    expected_probability,
    intercept_for,
)
from tests.simulate.samples import Floats

# Table 3 of the DrFuse paper
PREVALENCE = (
    0.32, 0.07, 0.09, 0.38, 0.24, 0.15, 0.22, 0.11, 0.29, 0.34, 0.12, 0.21, 0.41,
    0.44, 0.45, 0.07, 0.22, 0.17, 0.13, 0.05, 0.10, 0.18, 0.28, 0.22, 0.17,
)  # fmt: skip
SHOWN_BY_BOTH = ("congestion", "respiratory_distress", "inflammation", "vascular_stiffness", "habitus")
VIEWS: list[tuple[Modality, ...]] = [("ehr",), ("cxr",), ("ehr", "cxr")]
FARTHEST = 4.5  # standard errors, among some hundred comparisons


@pytest.fixture(scope="module")
def given(patients: Patients) -> dict[tuple[Modality, ...], Floats]:
    return {view: patients.given(*view) for view in VIEWS}


def deciles(scores: Floats) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the phenotype and the rows of each tenth of the stays in the order of its scores."""
    for c in range(scores.shape[1]):
        for rows in np.array_split(np.argsort(scores[:, c]), 10):
            yield c, rows


def one_stay(
    ehr: tuple[float, float] = (0.0, 0.5), cxr: tuple[float, float] = (0.0, 0.5), factor: float = 0.0
) -> Patients:
    """Return a stay of one factor that both modalities show, each as (reading, reliability)."""
    seen = np.array([True])
    disease = Disease(
        factors=("factor",),
        phenotypes=("phenotype",),
        seen={"ehr": seen, "cxr": seen},
        acute=seen,
        weights=np.array([[1.7]]),
        intercepts=np.array([-0.4]),
    )
    return Patients(
        disease=disease,
        factors=np.array([[factor]]),
        ehr=Readings(np.array([[ehr[0]]]), np.array([ehr[1]]), seen),
        cxr=Readings(np.array([[cxr[0]]]), np.array([cxr[1]]), seen),
        log_odds=np.array([[-0.4 + 1.7 * factor]]),
        labels=np.array([[True]]),
    )


def mean_of_sigmoid(mean: float, deviation: float) -> float:
    if deviation == 0:
        return float(expit(mean))
    integrand = lambda z: expit(mean + deviation * z) * norm.pdf(z)  # noqa: E731
    return float(quad(integrand, -12, 12, epsabs=1e-12, limit=400)[0])


def test_the_prevalences_are_those_of_the_paper(patients: Patients) -> None:
    assert patients.labels.mean(axis=0) == pytest.approx(PREVALENCE, abs=0.015)


def test_the_shipped_prevalences_are_those_of_table_3(shared: Path) -> None:
    tables = json.loads((shared / "reference/paper_tables.json").read_text(encoding="utf-8"))
    published = {row["phenotype"]: row["prevalence"] for row in tables["table3_prauc_by_phenotype"]}
    assert dict(read_definitions("prevalence").iter_rows()) == published
    assert tuple(published.values()) == PREVALENCE


@pytest.mark.parametrize("deviation", [0, 1, 2.7])
@pytest.mark.parametrize("prevalence", [0.05, 0.44, 0.9])
def test_the_intercept_gives_the_prevalence(prevalence: float, deviation: float) -> None:
    z = np.linspace(-10, 10, 200_001)
    average = (expit(intercept_for(prevalence, deviation) + deviation * z) * norm.pdf(z)).sum() * (
        z[1] - z[0]
    )
    assert average == pytest.approx(prevalence, abs=1e-5)


@pytest.mark.parametrize("prevalence", [0, 1, -0.1])
def test_a_prevalence_that_has_no_log_odds_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="no log-odds"):
        intercept_for(prevalence, 1)


@pytest.mark.parametrize(("mean", "deviation"), [(0, 0), (-3, 0.5), (1, 2), (-1, 2.7)])
def test_the_expected_probability_is_the_integral(mean: float, deviation: float) -> None:
    found = expected_probability(np.array([mean], float), np.array([deviation], float))
    assert found == pytest.approx([mean_of_sigmoid(mean, deviation)], abs=3e-6)


def test_the_factors_are_independent_and_standard_normal(patients: Patients) -> None:
    assert patients.factors.shape == (20_000, 17)
    assert patients.factors.mean(axis=0) == pytest.approx(np.zeros(17), abs=0.035)
    assert np.cov(patients.factors.T) == pytest.approx(np.eye(17), abs=0.05)


def test_the_labels_are_independent_given_the_factors(patients: Patients) -> None:
    probability = expit(patients.disease.intercepts + patients.factors @ patients.disease.weights.T)
    residual, variance = patients.labels - probability, probability * (1 - probability)
    standardized = (residual.T @ residual) / np.sqrt(variance.T @ variance)
    assert np.abs(standardized[~np.eye(25, dtype=bool)]).max() < FARTHEST


def test_reliabilities_are_uniform_and_independent(patients: Patients) -> None:
    for readings in (patients.ehr, patients.cxr):
        assert kstest((readings.reliability - 0.4) / 0.58, "uniform").pvalue > 1e-3
    together = np.corrcoef(patients.ehr.reliability, patients.cxr.reliability)
    assert abs(together[0, 1]) < 0.03


@pytest.mark.parametrize("modality", ["ehr", "cxr"])
def test_a_reading_is_standard_normal_whatever_its_reliability(patients: Patients, modality: str) -> None:
    readings: Readings = getattr(patients, modality)
    for rows in np.array_split(np.argsort(readings.reliability), 4):
        for column in readings.values[rows][:, readings.seen].T:
            assert kstest(column, "norm").pvalue > 1e-4


@pytest.mark.parametrize("modality", ["ehr", "cxr"])
def test_a_reading_correlates_with_its_factor_by_the_root_of_the_reliability(
    patients: Patients, modality: str
) -> None:
    readings: Readings = getattr(patients, modality)
    for rows in np.array_split(np.argsort(readings.reliability), 4):
        expected = np.sqrt(readings.reliability[rows]).mean()
        products = (readings.values * patients.factors)[rows][:, readings.seen]
        assert products.mean(axis=0) == pytest.approx(np.full(products.shape[1], expected), abs=0.08)


def test_the_modalities_err_independently(patients: Patients) -> None:
    error = {
        name: readings.values - np.sqrt(readings.reliability)[:, None] * patients.factors
        for name, readings in (("ehr", patients.ehr), ("cxr", patients.cxr))
    }
    for name in SHOWN_BY_BOTH:
        k = patients.disease.factors.index(name)
        assert abs(np.corrcoef(error["ehr"][:, k], error["cxr"][:, k])[0, 1]) < 0.035


def test_a_factor_that_a_modality_does_not_show_reads_0(patients: Patients) -> None:
    shown_by = dict(read_definitions("factors").select("factor", "shown_by").iter_rows())
    for modality, readings in (("ehr", patients.ehr), ("cxr", patients.cxr)):
        for name, column in zip(patients.disease.factors, readings.values.T, strict=True):
            if shown_by[name] in ("both", modality):
                assert np.count_nonzero(column) == len(column), name
            else:
                assert not column.any(), name


def test_both_modalities_show_five_factors(disease: Disease) -> None:
    both = disease.seen["ehr"] & disease.seen["cxr"]
    assert tuple(np.array(disease.factors)[both]) == SHOWN_BY_BOTH
    assert (disease.seen["ehr"] | disease.seen["cxr"]).all()


def test_severity_is_the_standardized_sum_of_what_the_ehr_shows_of_the_acute_factors(
    patients: Patients,
) -> None:
    acute = ("congestion", "respiratory_distress", "inflammation", "renal", "neurological", "haemodynamic")
    columns = [patients.disease.factors.index(name) for name in (*acute, "bleeding")]
    expected = patients.ehr.values[:, columns].sum(axis=1) / math.sqrt(7)
    assert patients.severity == pytest.approx(expected)
    assert patients.severity.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_given_is_calibrated(
    patients: Patients, given: dict[tuple[Modality, ...], Floats], view: tuple[Modality, ...]
) -> None:
    for c, rows in deciles(given[view]):
        p = given[view][rows, c]
        excess = (patients.labels[rows, c] - p).sum() / np.sqrt((p * (1 - p)).sum())
        assert abs(excess) < FARTHEST, patients.disease.phenotypes[c]


@pytest.mark.parametrize("view", VIEWS[:2])
def test_the_mean_of_what_both_give_is_what_one_gives(
    given: dict[tuple[Modality, ...], Floats], view: tuple[Modality, ...]
) -> None:
    for c, rows in deciles(given[view]):
        gained = (given["ehr", "cxr"] - given[view])[rows, c]
        assert abs(gained.mean()) < FARTHEST * gained.std() / math.sqrt(len(rows))


def test_the_mean_of_the_true_probability_is_what_both_give(
    patients: Patients, given: dict[tuple[Modality, ...], Floats]
) -> None:
    for c, rows in deciles(given["ehr", "cxr"]):
        gained = (patients.probability - given["ehr", "cxr"])[rows, c]
        assert abs(gained.mean()) < FARTHEST * gained.std() / math.sqrt(len(rows))


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_given_is_gaussian_conditioning(
    patients: Patients, given: dict[tuple[Modality, ...], Floats], view: tuple[Modality, ...]
) -> None:
    stay, n_factors = 11, len(patients.factors[0])
    loading, noise, observed = [], [], []
    for modality in view:
        readings: Readings = getattr(patients, modality)
        r = readings.reliability[stay]
        for k in np.flatnonzero(readings.seen):
            loading.append(np.sqrt(r) * np.eye(n_factors)[k])
            noise.append(1 - r)
            observed.append(readings.values[stay, k])
    A = np.array(loading)
    gain = A.T @ np.linalg.inv(A @ A.T + np.diag(noise))
    mean, covariance = gain @ np.array(observed), np.eye(n_factors) - gain @ A
    for c, (weights, intercept) in enumerate(
        zip(patients.disease.weights, patients.disease.intercepts, strict=True)
    ):
        deviation = math.sqrt(weights @ covariance @ weights)
        expected = mean_of_sigmoid(intercept + weights @ mean, deviation)
        assert given[view][stay, c] == pytest.approx(expected, abs=5e-6)


def test_nothing_given_is_the_prevalence(patients: Patients) -> None:
    few = dataclasses.replace(patients, factors=patients.factors[:2])
    assert few.given() == pytest.approx(np.tile(PREVALENCE, (2, 1)), abs=1e-6)


def test_two_readings_add_their_precisions() -> None:
    (z1, r1), (z2, r2) = (0.9, 0.6), (-0.4, 0.8)
    precision = 1 + r1 / (1 - r1) + r2 / (1 - r2)
    mean = (z1 * math.sqrt(r1) / (1 - r1) + z2 * math.sqrt(r2) / (1 - r2)) / precision
    r = 1 - 1 / precision
    as_one = one_stay(ehr=(mean / math.sqrt(r), r))
    assert one_stay((z1, r1), (z2, r2)).given("ehr", "cxr") == pytest.approx(as_one.given("ehr"))


def test_a_reading_without_reliability_says_nothing() -> None:
    prevalence = mean_of_sigmoid(-0.4, 1.7)
    assert one_stay(ehr=(2.5, 1e-12)).given("ehr") == pytest.approx(prevalence, abs=1e-5)
    informed = one_stay(cxr=(1.2, 0.7))
    misled = one_stay(ehr=(2.5, 1e-12), cxr=(1.2, 0.7))
    assert misled.given("ehr", "cxr") == pytest.approx(informed.given("cxr"), abs=1e-5)


def test_a_perfect_reading_says_all() -> None:
    stay = one_stay(ehr=(1.3, 1 - 1e-12), cxr=(-2.0, 0.5), factor=1.3)
    assert stay.given("ehr") == pytest.approx(stay.probability, abs=1e-5)
    assert stay.given("ehr", "cxr") == pytest.approx(expit(-0.4 + 1.7 * 1.3), abs=1e-5)


def test_the_fused_ceiling_is_above_those_of_the_modalities(
    patients: Patients, given: dict[tuple[Modality, ...], Floats]
) -> None:
    prauc = {view: prauc_auroc(patients.labels, given[view])[0][0] for view in VIEWS}
    better = (prauc["ehr", "cxr"] > prauc["ehr",]) & (prauc["ehr", "cxr"] > prauc["cxr",])
    assert better.sum() >= 20


@pytest.mark.parametrize(
    ("phenotype", "told_by"),
    [
        ("Conduction disorders", "cxr"),
        ("Chronic obstructive pulmonary disease and bronchiectasis", "cxr"),
        ("Diabetes mellitus with complications", "ehr"),
        ("Acute cerebrovascular disease", "ehr"),
        ("Shock", "ehr"),
    ],
)
def test_a_phenotype_is_told_by_the_modality_that_the_paper_found(
    patients: Patients, given: dict[tuple[Modality, ...], Floats], phenotype: str, told_by: Modality
) -> None:
    c = patients.disease.phenotypes.index(phenotype)
    prauc = {view: prauc_auroc(patients.labels[:, [c]], given[view][:, [c]])[0][0, 0] for view in VIEWS[:2]}
    other: Modality = "ehr" if told_by == "cxr" else "cxr"
    assert prauc[told_by,] > prauc[other,] + 0.1


def test_the_expected_advantage_is_that_worked_by_hand() -> None:
    advantage = expected_advantage(np.array([0.8]), np.array([0.8]), np.array([0.5]))
    assert advantage == pytest.approx([0.8 * math.log(1.6) + 0.2 * math.log(0.4)])
    assert advantage == pytest.approx([0.192745], abs=1e-6)


def test_the_advantage_is_the_images_where_it_is_nearer_to_the_truth() -> None:
    nearer, farther = np.array([0.7, 0.2, 0.5]), np.array([0.4, 0.6, 0.9])
    truth = np.array([0.8, 0.1, 0.5])
    assert (expected_advantage(truth, nearer, farther) > 0).all()
    assert expected_advantage(truth, farther, nearer) == pytest.approx(
        -expected_advantage(truth, nearer, farther)
    )
    assert not expected_advantage(truth, nearer, nearer).any()


def test_the_advantage_is_the_mean_difference_of_log_likelihood(
    patients: Patients, given: dict[tuple[Modality, ...], Floats]
) -> None:
    def log_likelihood(p: Floats) -> Floats:
        return np.where(patients.labels, np.log(p), np.log(1 - p))

    realized = log_likelihood(given["cxr",]) - log_likelihood(given["ehr",])
    expected = expected_advantage(patients.probability, given["cxr",], given["ehr",])
    error = (realized - expected).std(axis=0) / math.sqrt(len(realized))
    assert (np.abs((realized - expected).mean(axis=0)) < FARTHEST * error).all()
