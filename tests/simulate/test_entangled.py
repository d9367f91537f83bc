"""The entangled hospital against docs/simulator.md, and its perfect readers against drawing by chance."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri
from sklearn.linear_model import LinearRegression

from drfuse.cohort import prepare
from drfuse.demo import _is_done
from drfuse.errors import InputError
from drfuse.run import Predictions
from drfuse.simulate import KINDS, Disease, EntangledDisease, Truth, drawn_signs, oracle, simulate
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Imaged, Modality, Patients, Readings
from drfuse.simulate.imaging import draw_studies
from tests.simulate.samples import Floats, admit_stays
from tests.simulate.test_definitions import rows_below

VIEWS: list[tuple[Modality, ...]] = [("ehr",), ("cxr",), ("ehr", "cxr")]
RATE = 0.4
FARTHEST = 4.5  # standard errors, among some hundred comparisons


@pytest.fixture(scope="module")
def entangled() -> EntangledDisease:
    return EntangledDisease.load()


@pytest.fixture(scope="module")
def drawn(entangled: EntangledDisease) -> Patients:
    return entangled.draw(20_000, np.random.default_rng(0))


def imaged(patients: Patients, seed: int = 1) -> Imaged:
    share = patients.disease.imaged_share(patients, RATE)
    return Imaged(np.random.default_rng(seed).random(len(share)) < share, RATE)


def errors(patients: Patients, readings: Readings) -> Floats:
    """Return the errors (n, seen) of readings: standard normal."""
    r = readings.reliability[:, None]
    return ((readings.values - np.sqrt(r) * patients.factors) / np.sqrt(1 - r))[:, readings.seen]


def indication(patients: Patients) -> Floats:
    """Return h as docs/simulator.md has it, with standard deviations that are measured, not worked out."""
    disease, r = patients.disease, patients.ehr.reliability
    assert np.ptp(r) < 1e-9
    only = disease.seen["cxr"] & ~disease.seen["ehr"]
    severity, content = (
        patients.ehr.values[:, disease.acute].sum(axis=1),
        patients.factors[:, only].sum(axis=1),
    )
    h = severity / severity.std() + content / content.std()
    return np.asarray(h / h.std())


def at_reliability(patients: Patients, r_ehr: float, seed: int = 7) -> Patients:
    """Return the same factors with an EHR of one reliability."""
    r = np.full(len(patients.factors), r_ehr)
    generator = np.random.default_rng(seed)
    ehr = Readings.draw(patients.factors, r, patients.ehr.seen, generator, patients.disturbance)
    return dataclasses.replace(patients, ehr=ehr)


def test_the_page_tells_every_syndrome() -> None:
    factors = read_definitions("factors")
    expected = []
    for syndrome in factors["syndrome"].unique(maintain_order=True):
        shown = [
            ", ".join(factors.filter(syndrome=syndrome, shown_by=by)["factor"])
            for by in ("both", "ehr", "cxr")
        ]
        expected.append(f"| {syndrome} | {' | '.join(shown)} |")
    found = rows_below("| syndrome | shown by both | EHR | image |")
    split = [[sorted(cell.strip().split(", ")) for cell in row.split("|")] for row in (*found, *expected)]
    assert sorted(split[:3]) == sorted(split[3:])


def test_the_page_tells_every_product(entangled: EntangledDisease) -> None:
    names, products = np.array(entangled.factors)[entangled.pairs], entangled.products
    rows = zip(entangled.phenotypes, names, products, strict=True)
    expected = [f"| {name} | {e} | {i} | {v:.2f} |" for name, (e, i), v in rows if v > 0]
    assert rows_below("| phenotype with a product | e (EHR) | i (image) | v |") == expected
    assert len(expected) == 11


def test_a_product_takes_half_of_the_variance_of_its_pair(entangled: EntangledDisease) -> None:
    plain = Disease.load()
    assert entangled.products**2 + (entangled.weights**2).sum(axis=1) == pytest.approx(
        (plain.weights**2).sum(axis=1)
    )
    for c, (e, i) in enumerate(entangled.pairs):
        if entangled.products[c]:
            assert entangled.weights[c, [e, i]] ** 2 == pytest.approx(plain.weights[c, [e, i]] ** 2 / 2)
            assert entangled.products[c] ** 2 == pytest.approx((entangled.weights[c, [e, i]] ** 2).sum())
        else:
            assert np.array_equal(entangled.weights[c], plain.weights[c])


def test_the_log_odds_are_those_of_the_page(drawn: Patients, entangled: EntangledDisease) -> None:
    c, stay = entangled.phenotypes.index("Fluid and electrolyte disorders"), 5
    f = dict(zip(entangled.factors, drawn.factors[stay], strict=True))
    half, v = math.sqrt(0.5), math.sqrt((1.4**2 + 0.4**2) / 2)
    expected = entangled.intercepts[c] + half * (1.4 * f["renal"] + 0.4 * f["effusion"])
    expected += v * f["renal"] * f["effusion"]
    expected += 0.7 * f["glycaemia"] + 0.6 * f["haemodynamic"] + 0.4 * f["neurological"]
    assert drawn.log_odds[stay, c] == pytest.approx(expected)


def test_the_prevalences_are_those_of_the_paper(drawn: Patients) -> None:
    prevalence = read_definitions("prevalence")["prevalence"].to_numpy()
    assert drawn.probability.mean(axis=0) == pytest.approx(prevalence, abs=0.01)
    assert drawn.labels.mean(axis=0) == pytest.approx(prevalence, abs=0.015)
    nothing = dataclasses.replace(drawn, factors=drawn.factors[:2])
    assert nothing.given() == pytest.approx(np.tile(prevalence, (2, 1)), abs=1e-6)


def test_factors_of_a_syndrome_correlate(drawn: Patients) -> None:
    syndrome = read_definitions("factors")["syndrome"].to_numpy()
    expected = np.where(syndrome[:, None] == syndrome, 0.4, 0.0)
    np.fill_diagonal(expected, 1)
    assert np.cov(drawn.factors.T) == pytest.approx(expected, abs=0.05)


def test_the_errors_of_a_stay_share_half_of_their_variance(drawn: Patients) -> None:
    both = np.hstack([errors(drawn, drawn.ehr), errors(drawn, drawn.cxr)])
    expected = np.full((22, 22), 0.5)
    np.fill_diagonal(expected, 1)
    assert np.cov(both.T) == pytest.approx(expected, abs=0.05)
    readings = np.hstack([drawn.ehr.values[:, drawn.ehr.seen], drawn.cxr.values[:, drawn.cxr.seen]])
    assert readings.std(axis=0) == pytest.approx(np.ones(22), abs=0.03)


def test_an_earlier_image_has_the_disturbance_of_its_stay(entangled: EntangledDisease) -> None:
    admitted = admit_stays(entangled, 3000, seed=2)
    generator = np.random.default_rng(0)
    imaging = draw_studies(admitted.hospital.icustays, admitted.patients, 1, "mcar", 64, generator)
    is_earlier = (imaging.metadata["study_id"] % 10 == 1).to_numpy()
    rows = imaging.metadata["row"].to_numpy()[is_earlier]
    r, seen = imaging.readings.reliability[is_earlier, None], entangled.seen["cxr"]
    factors, disturbance = admitted.patients.factors[rows], admitted.patients.disturbance
    assert disturbance is not None
    error = ((imaging.readings.values[is_earlier] - np.sqrt(r) * factors) / np.sqrt(1 - r))[:, seen]
    shared = LinearRegression().fit(disturbance[rows, None], error).coef_
    assert shared == pytest.approx(np.full((11, 1), math.sqrt(0.5)), abs=0.1)


@pytest.mark.parametrize("r", [0.45, 0.95])
def test_who_is_imaged_depends_on_severity_and_on_what_there_is_to_see(drawn: Patients, r: float) -> None:
    patients = at_reliability(drawn, r)
    assert patients.severity.std() == pytest.approx(1, abs=0.02)
    expected = ndtr(math.sqrt(1 + 0.8**2) * ndtri(RATE) + 0.8 * indication(patients))
    assert patients.disease.imaged_share(patients, RATE) == pytest.approx(expected, abs=0.015)
    assert expected.mean() == pytest.approx(RATE, abs=0.01)


@pytest.mark.slow
def test_the_factors_given_are_those_of_regression(drawn: Patients) -> None:
    """The mean given readings is the best linear guess, so it is the regression of factors on readings."""
    few = at_reliability(drawn, 0.6)
    r = np.full(len(few.factors), 0.8)
    cxr = Readings.draw(few.factors, r, few.cxr.seen, np.random.default_rng(5), few.disturbance)
    few = dataclasses.replace(few, cxr=cxr)
    for view in VIEWS:
        readings: list[Readings] = [getattr(few, modality) for modality in view]
        mean, variance = few.disease.factors_given(*readings)
        features = np.hstack([one.values[:, one.seen] for one in readings])
        regressed = LinearRegression().fit(features, few.factors).predict(features)
        assert np.abs(mean - regressed).mean() < 0.02
        assert (few.factors - mean).var(axis=0) == pytest.approx(variance[0], abs=0.03)


def brute_force(
    patients: Patients, stay: int, view: tuple[Modality, ...], has_cxr: bool
) -> tuple[Floats, Floats]:
    """Return the probabilities (C,) of a stay's phenotypes by importance sampling, and their standard errors.

    Factors and disturbance are drawn given the readings, by the conditional covariance of all that is normal,
    and weighted by the probability of the radiograph. An EHR that is not read is drawn, too.
    """
    disease, generator, n = patients.disease, np.random.default_rng(stay), 200_000
    assert isinstance(disease, EntangledDisease)
    prior = np.eye(18)
    prior[:17, :17] = disease.correlation
    loading, noise, values = [], [], []
    for modality in view:
        readings: Readings = getattr(patients, modality)
        r = readings.reliability[stay]
        for k in np.flatnonzero(readings.seen):
            loading.append(math.sqrt(r) * np.eye(18)[k] + math.sqrt((1 - r) / 2) * np.eye(18)[17])
            noise.append((1 - r) / 2)
            values.append(readings.values[stay, k])
    A = np.array(loading)
    gain = prior @ A.T @ np.linalg.inv(A @ prior @ A.T + np.diag(noise))
    x = generator.multivariate_normal(gain @ np.array(values), prior - gain @ A @ prior, n)
    if "ehr" in view:
        r_ehr, ehr = np.full(n, patients.ehr.reliability[stay]), np.tile(patients.ehr.values[stay], (n, 1))
    else:
        r_ehr = generator.uniform(0.4, 0.98, n)
        ehr = Readings.draw(x[:, :17], r_ehr, disease.seen["ehr"], generator, x[:, 17]).values
    sampled = dataclasses.replace(patients, factors=x[:, :17], ehr=Readings(ehr, r_ehr, disease.seen["ehr"]))
    share = disease.imaged_share(sampled, RATE)
    weight = share if has_cxr else 1 - share
    weight = weight[:, None] / weight.sum()
    p = expit(disease.log_odds(x[:, :17]))
    mean = (weight * p).sum(axis=0)
    return mean, np.sqrt((weight**2 * (p - mean) ** 2).sum(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("stay", "has_cxr"), [(3, True), (8, False)])
def test_what_is_given_is_what_sampling_finds(
    drawn: Patients, view: tuple[Modality, ...], stay: int, has_cxr: bool
) -> None:
    one = first(drawn, stay + 1)
    found = one.given(*view, imaged=Imaged(np.full(stay + 1, has_cxr), RATE))[stay]
    expected, error = brute_force(drawn, stay, view, has_cxr)
    assert (np.abs(found - expected) < FARTHEST * error + 5e-4).all()
    assert error.max() < 0.002


def first(patients: Patients, n: int) -> Patients:
    def cut(readings: Readings) -> Readings:
        return Readings(readings.values[:n], readings.reliability[:n], readings.seen)

    return Patients(
        patients.disease,
        patients.factors[:n],
        cut(patients.ehr),
        cut(patients.cxr),
        patients.log_odds[:n],
        patients.labels[:n],
    )


@pytest.fixture(scope="module")
def asked(drawn: Patients) -> tuple[Patients, Imaged, dict[tuple[Modality, ...], Floats]]:
    """Return stays, who of them is imaged, and what their perfect readers say."""
    some = first(drawn, 5000)
    has = imaged(some)
    blocks = [slice(start, start + 500) for start in range(0, 5000, 500)]

    def said(view: tuple[Modality, ...], rows: slice) -> Floats:
        here = Imaged(has.has_cxr[rows], RATE)
        readings = {
            modality: Readings(one.values[rows], one.reliability[rows], one.seen)
            for modality, one in (("ehr", some.ehr), ("cxr", some.cxr))
            if modality in view
        }
        return some.disease.probability_given(readings, here)

    return some, has, {view: np.concatenate([said(view, rows) for rows in blocks]) for view in VIEWS}


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("has_cxr", [True, False])
def test_what_is_given_is_calibrated(
    asked: tuple[Patients, Imaged, dict[tuple[Modality, ...], Floats]],
    view: tuple[Modality, ...],
    has_cxr: bool,
) -> None:
    patients, has, given = asked
    here = has.has_cxr == has_cxr
    labels, p = patients.labels[here], given[view][here]
    for c in range(25):
        for rows in np.array_split(np.argsort(p[:, c]), 10):
            q = p[rows, c]
            excess = (labels[rows, c] - q).sum() / np.sqrt((q * (1 - q)).sum())
            assert abs(excess) < FARTHEST, patients.disease.phenotypes[c]


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS[:2])
def test_both_know_at_least_as_much_as_one(
    asked: tuple[Patients, Imaged, dict[tuple[Modality, ...], Floats]], view: tuple[Modality, ...]
) -> None:
    patients, _, given = asked
    p, both, one = patients.probability, given["ehr", "cxr"], given[view]
    gain = (p * np.log(both / one) + (1 - p) * np.log((1 - both) / (1 - one))).mean(axis=0)
    assert (gain > -0.002).all()
    assert gain.mean() > 0.02
    for c in range(25):  # what both say is, on average over what one knows, what that one says
        for rows in np.array_split(np.argsort(one[:, c]), 10):
            gained = (both - one)[rows, c]
            assert abs(gained.mean()) < FARTHEST * gained.std() / math.sqrt(len(rows)) + 1e-4


@pytest.mark.slow
def test_ignoring_who_is_imaged_is_not_calibrated(
    asked: tuple[Patients, Imaged, dict[tuple[Modality, ...], Floats]],
) -> None:
    patients, has, _ = asked
    few = first(patients, 1000)
    ignorant = few.given("cxr")
    z = []
    for here in (has.has_cxr[:1000], ~has.has_cxr[:1000]):
        p = ignorant[here]
        z.append((few.labels[here] - p).sum() / np.sqrt((p * (1 - p)).sum()))
    assert z[0] > FARTHEST
    assert z[1] < -FARTHEST


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entangled") / "hospital"
    options = {"stays": 30, "cxr_rate": 0.5, "image_size": 32, "seed": 3, "kind": "entangled"}
    simulation = simulate(folder, **options)  # type: ignore[arg-type]
    assert options.items() <= simulation.options.items()
    return folder


def test_a_hospital_says_of_which_kind_it_is(hospital: Path, tmp_path: Path) -> None:
    assert json.loads((hospital / "simulation.json").read_text())["options"]["kind"] == "entangled"
    truth = Truth.read(hospital)
    assert (truth.kind, truth.of(truth.stays["stay_id"][:2]).kind) == ("entangled", "entangled")
    assert isinstance(truth.disease, EntangledDisease)
    for name in ("factors", "phenotypes"):
        assert getattr(truth.disease, name) == getattr(Disease.load(), name)
    simulate(tmp_path / "plain", stays=30, cxr_rate=0.5, image_size=32, seed=3)
    plain = Truth.read(tmp_path / "plain")
    assert (plain.kind, type(plain.disease)) == ("independent", Disease)
    assert set(truth.stays.columns) - set(plain.stays.columns) == {"disturbance"}
    stays = plain.stays.select("subject_id", "stay_id", "has_cxr").with_columns(split=pl.lit("test"))
    logits = np.zeros(plain.labels.shape, np.float32)
    run = Predictions(plain.phenotypes, stays, logits, plain.labels.astype(np.uint8), None)
    oracle(plain, run)
    with pytest.raises(InputError, match=r"other labels.*--kind"):
        oracle(truth, run)
    settings = {folder: folder / "simulation.json" for folder in (hospital, tmp_path / "plain")}
    assert _is_done(settings[hospital], {"stays": 30, "kind": "entangled"})
    assert _is_done(settings[tmp_path / "plain"], {"stays": 30, "kind": "independent"})
    with pytest.raises(InputError, match="was made with kind independent, not entangled"):
        _is_done(settings[tmp_path / "plain"], {"stays": 30, "kind": "entangled"})
    with pytest.raises(InputError, match=r"kind is 'tangled'"):
        simulate(tmp_path / "other", stays=1, kind="tangled")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_truth_of_a_hospital_can_be_worked_out_again(hospital: Path) -> None:
    truth = Truth.read(hospital)
    has_cxr = Imaged(truth.stays["has_cxr"].to_numpy(), 0.5)
    readings: dict[Modality, Readings] = {modality: truth.readings(modality) for modality in ("ehr", "cxr")}
    for name, view in (("given_ehr", VIEWS[0]), ("given_cxr", VIEWS[1]), ("given_both", VIEWS[2])):
        seen = {modality: readings[modality] for modality in view}
        again = truth.disease.probability_given(seen, has_cxr)
        assert getattr(truth, name) == pytest.approx(again, abs=1e-4)
        assert np.abs(again - truth.disease.probability_given(seen)).max() > 0.01
    factors = truth.stays.select(truth.disease.factors).to_numpy().astype(float)
    assert truth.log_odds == pytest.approx(truth.disease.log_odds(factors), abs=1e-4)


@pytest.mark.slow
def test_a_radiograph_by_chance_tells_nothing(tmp_path: Path) -> None:
    simulate(tmp_path / "h", stays=12, cxr_rate=0.5, cxr_missing="mcar", image_size=32, kind="entangled")
    truth = Truth.read(tmp_path / "h")
    ignorant = truth.disease.probability_given({"ehr": truth.readings("ehr")})
    assert truth.given_ehr == pytest.approx(ignorant, abs=1e-4)


@pytest.mark.slow
def test_an_entangled_hospital_can_be_prepared_and_drawn_again(hospital: Path, tmp_path: Path) -> None:
    prepare(hospital / "mimic-iv", tmp_path / "cohort", hospital / "mimic-cxr", image_size=32)
    stays = pl.read_parquet(tmp_path / "cohort/stays.parquet")
    truth = Truth.read(hospital).of(stays["stay_id"])
    assert stays["has_cxr"].equals(truth.stays["has_cxr"])
    assert np.array_equal(stays.select(truth.phenotypes).to_numpy(), truth.labels)
    signs: dict[str, NDArray[np.bool_]] = drawn_signs(hospital, ["effusion"])
    effusion = {
        stay["dicom_id"]: reading
        for stay, reading in zip(stays.iter_rows(named=True), truth.stays["cxr_effusion"], strict=True)
        if stay["has_cxr"]
    }
    area = [signs[name].mean() for name in effusion]
    assert np.corrcoef(area, list(effusion.values()))[0, 1] > 0.6


def test_the_independent_hospital_stays_what_it_was() -> None:
    """The first kind's draws and truth, as they were before there was a second."""
    patients = KINDS["independent"].load().draw(3, np.random.default_rng(0))
    assert patients.disturbance is None
    drawn = (patients.factors, patients.ehr.values, patients.cxr.values, patients.labels, patients.severity)
    given = (patients.given(*view) for view in VIEWS)
    assert [float(numbers.sum()) for numbers in (*drawn, *given)] == pytest.approx(
        [
            6.8072039554757335,
            5.097737095272843,
            -1.4096369251024696,
            22.0,
            0.06083411817043582,
            18.239368919983395,
            14.691856126107353,
            16.357504550615158,
        ],
        rel=1e-12,
    )
