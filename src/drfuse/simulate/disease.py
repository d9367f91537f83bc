"""The model of disease: a stay's factors, what each modality shows of them, and the phenotypes they cause.

A stay has K independent standard-normal factors f. A modality of reliability r shows a factor that it sees as
the reading z = sqrt(r) f + sqrt(1 - r) e, with its own error e; all of its data are made from its readings
and chance. So what a perfect reader can know is known exactly: f given z is normal with mean sqrt(r) z and
variance 1 - r.

`Disease` is the independent kind of hospital, and what `drfuse.simulate.entangled` overrides for the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from drfuse.simulate.definitions import read_definitions

Floats = NDArray[np.float64]
Modality = Literal["ehr", "cxr"]
Kind = Literal["independent", "entangled"]
"""Of hospital: whether readings are independent given the factors. docs/simulator.md describes both."""

_NODES, _WEIGHTS = hermegauss(40)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
RELIABILITIES = (0.4, 0.98)
"""The lowest and the highest; all between them are equally likely."""
SHARED_NOISE = 0.5
"""The share of the variance of an error that is the stay's disturbance, where there is one."""
_SLOPE = 1.0  # what a standard deviation of severity adds to the log-odds of a radiograph


@dataclass(frozen=True)
class Disease:
    """How factors make phenotypes: K factors, C phenotypes.

    Attributes:
        factors: The K names.
        phenotypes: The C names, in the order of the cohort's labels.
        seen: Whether each modality shows each factor (K,).
        acute: Whether each factor is part of the severity (K,).
        weights: What a standard deviation of each factor adds to each phenotype's log-odds (C, K).
        intercepts: Log-odds of a stay whose factors are all 0 (C,), chosen to give the prevalences.
    """

    factors: tuple[str, ...]
    phenotypes: tuple[str, ...]
    seen: dict[Modality, NDArray[np.bool_]]
    acute: NDArray[np.bool_]
    weights: Floats
    intercepts: Floats
    kind: ClassVar[Kind] = "independent"

    @classmethod
    def load(cls) -> Self:
        """Return the model that `definitions/` describes."""
        factors, prevalence = read_definitions("factors"), read_definitions("prevalence")
        names, phenotypes = factors["factor"].to_list(), prevalence["phenotype"].to_list()
        weights = np.zeros((len(phenotypes), len(names)))
        for phenotype, factor, weight in read_definitions("log_odds").iter_rows():
            weights[phenotypes.index(phenotype), names.index(factor)] = weight
        deviations = np.hypot.reduce(weights, axis=1).tolist()
        return cls(
            factors=tuple(names),
            phenotypes=tuple(phenotypes),
            seen={
                modality: factors["shown_by"].is_in(["both", modality]).to_numpy()
                for modality in get_args(Modality)
            },
            acute=factors["acute"].cast(bool).to_numpy(),
            weights=weights,
            intercepts=np.array(list(map(intercept_for, prevalence["prevalence"], deviations))),
        )

    def draw(self, n_stays: int, generator: np.random.Generator) -> "Patients":
        """Return the hidden state of `n_stays` stays."""
        return self._patients(generator.standard_normal((n_stays, len(self.factors))), None, generator)

    def _patients(
        self, factors: Floats, disturbance: Floats | None, generator: np.random.Generator
    ) -> "Patients":
        """Return stays with these factors (n, K): their reliabilities, readings and labels."""
        reliability = generator.uniform(*RELIABILITIES, (len(factors), 2))
        log_odds = self.log_odds(factors)
        return Patients(
            disease=self,
            factors=factors,
            ehr=Readings.draw(factors, reliability[:, 0], self.seen["ehr"], generator, disturbance),
            cxr=Readings.draw(factors, reliability[:, 1], self.seen["cxr"], generator, disturbance),
            log_odds=log_odds,
            labels=generator.random(log_odds.shape) < expit(log_odds),
            disturbance=disturbance,
        )

    def log_odds(self, factors: Floats) -> Floats:
        """Return the log-odds of each phenotype (n, C) for factors (n, K)."""
        log_odds: Floats = self.intercepts + factors @ self.weights.T
        return log_odds

    def severity(self, ehr: "Readings") -> Floats:
        """Return how ill each patient is according to the EHR (n,): standard normal."""
        acute = self.acute & self.seen["ehr"]
        total: Floats = ehr.values[:, acute].sum(axis=1) / np.sqrt(acute.sum())
        return total

    def imaged_share(self, patients: "Patients", cxr_rate: float) -> Floats:
        """Return the probability that each stay has a radiograph (n,), `cxr_rate` on average."""
        share: Floats = expit(intercept_for(cxr_rate, _SLOPE) + _SLOPE * patients.severity)
        return share

    def factors_given(self, *readings: "Readings") -> tuple[Floats, Floats]:
        """Return the mean and variance (n, K) of the factors given what modalities show of them."""
        return factors_given(*readings)

    def probability_given(
        self,
        readings: Mapping[Modality, "Readings"],
        imaged: "Imaged | None" = None,  # noqa: ARG002
    ) -> Floats:
        """Return the probability of each phenotype (n, C) given what modalities show.

        In the independent hospital, `imaged` changes nothing: its perfect readers do not ask who has a
        radiograph.
        """
        given = self.factors_given(*readings.values())
        mean, variance = (np.broadcast_to(moment, moment.shape or len(self.factors)) for moment in given)
        return expected_probability(
            self.intercepts + mean @ self.weights.T, np.sqrt(variance @ self.weights.T**2)
        )


@dataclass(frozen=True)
class Imaged:
    """Who of n stays has a radiograph, where that tells something about the patient.

    Attributes:
        has_cxr: Whether each stay has one (n,).
        cxr_rate: The mean share of stays with one, between 0 and 1.
    """

    has_cxr: NDArray[np.bool_]
    cxr_rate: float


@dataclass(frozen=True)
class Readings:
    """What one modality shows of the factors of n stays.

    Attributes:
        values: The readings (n, K); 0 for a factor that the modality does not show.
        reliability: r of each stay (n,).
        seen: Whether the modality shows each factor (K,).
    """

    values: Floats
    reliability: Floats
    seen: NDArray[np.bool_]

    @classmethod
    def draw(
        cls,
        factors: Floats,
        reliability: Floats,
        seen: NDArray[np.bool_],
        generator: np.random.Generator,
        disturbance: Floats | None = None,
    ) -> "Readings":
        """Return readings of factors (n, K) at reliabilities (n,).

        A `disturbance` (n,) is a part, `SHARED_NOISE`, of the variance of each error of its stay.
        """
        r = reliability[:, None]
        error = generator.standard_normal(factors.shape)
        if disturbance is not None:
            error = np.sqrt(1 - SHARED_NOISE) * error + np.sqrt(SHARED_NOISE) * disturbance[:, None]
        values = np.sqrt(r) * factors + np.sqrt(1 - r) * error
        return cls(values * seen, reliability, seen)


@dataclass(frozen=True)
class Patients:
    """The hidden state of n stays, and what can be known about their phenotypes.

    Attributes:
        disease: The model that they are drawn from.
        factors: (n, K).
        ehr: What the EHR shows.
        cxr: What a radiograph shows, or would show.
        log_odds: Of each phenotype (n, C).
        labels: Whether each stay has each phenotype (n, C).
        disturbance: What the errors of all readings of a stay share (n,); None in an independent hospital.
    """

    disease: Disease
    factors: Floats
    ehr: Readings
    cxr: Readings
    log_odds: Floats
    labels: NDArray[np.bool_]
    disturbance: Floats | None = None

    @cached_property
    def severity(self) -> Floats:
        """How ill each patient is according to the EHR (n,): standard normal.

        It is made from readings, not from the factors, so that a length of stay, a death or a radiograph that
        depends on it tells no more about the patient than the EHR does.
        """
        return self.disease.severity(self.ehr)

    @property
    def probability(self) -> Floats:
        """The probability of each phenotype given all factors (n, C)."""
        probability: Floats = expit(self.log_odds)
        return probability

    def given(self, *modalities: Modality, imaged: Imaged | None = None) -> Floats:
        """Return the probability of each phenotype given everything that these modalities show (n, C).

        The reader also knows who has a radiograph, where `imaged` says that this tells something.
        """
        readings: dict[Modality, Readings] = {modality: getattr(self, modality) for modality in modalities}
        given = self.disease.probability_given(readings, imaged)
        return np.broadcast_to(given, (len(self.factors), given.shape[-1]))


def factors_given(*readings: Readings) -> tuple[Floats, Floats]:
    """Return the mean and variance (n, K) of the factors given what modalities show of them.

    A modality of reliability r adds r / (1 - r) to the prior's precision of 1. Without any modality, the
    result is the prior: 0 and 1.
    """
    precision, weighted = np.ones(()), np.zeros(())
    for of_modality in readings:
        r = of_modality.reliability[:, None]
        precision = precision + of_modality.seen * r / (1 - r)
        weighted = weighted + of_modality.values * np.sqrt(r) / (1 - r)
    return weighted / precision, 1 / precision


def expected_probability(mean: Floats, deviation: Floats) -> Floats:
    """Return the mean of sigmoid(L) for normal L, by Gauss-Hermite quadrature; exact to about 1e-5.

    >>> float(expected_probability(np.zeros(1), np.ones(1))[0].round(6))
    0.5
    """
    probability: Floats = expit(mean[..., None] + deviation[..., None] * _NODES) @ _WEIGHTS
    return probability


def expected_advantage(probability: Floats, given_cxr: Floats, given_ehr: Floats) -> Floats:
    """Return by how much better the image predicts a phenotype than the EHR does, in nats.

    That is the expected log-likelihood of the label given the image minus that given the EHR, if the label's
    true probability is `probability`.
    """
    present = probability * np.log(given_cxr / given_ehr)
    absent = (1 - probability) * np.log((1 - given_cxr) / (1 - given_ehr))
    return present + absent


def intercept_for(prevalence: float, deviation: float) -> float:
    """Return b such that sigmoid(b + deviation * Z), with standard-normal Z, has mean `prevalence`.

    Raises:
        ValueError: If the prevalence is not between 0 and 1.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence of {prevalence} has no log-odds; expected one between 0 and 1")
    spread = deviation * _NODES

    def excess(intercept: float) -> float:
        return float(expit(intercept + spread) @ _WEIGHTS) - prevalence

    return float(brentq(excess, -50.0, 50.0))
