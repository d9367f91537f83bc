"""The entangled kind of hospital, in which the evidence of the modalities does not simply add up.

Factors are correlated, some phenotypes need a product of a factor of the EHR and one of the image, the errors
of all readings of a stay share a disturbance d, and who has a radiograph depends on what there is to see.
docs/simulator.md gives the equations and the reasons for each constant; no constant may change because of a
model's result.

Given readings, the state x = (f, d) of a stay is normal: D = K + 1 numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri

from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import (
    RELIABILITIES,
    SHARED_NOISE,
    Disease,
    Floats,
    Imaged,
    Kind,
    Modality,
    Patients,
    Readings,
)

_CORRELATION = 0.4  # of two factors of one syndrome
_INDICATION = 0.8  # what a standard deviation of the indication adds to the probit of a radiograph
_N_NODES = 40  # of the quadrature over the log-odds, and over the factor of the image
_N_RELIABILITIES = 4  # at which a reader of the image alone imagines the EHR


@dataclass(frozen=True)
class _Sight:
    """Whether n stays have a radiograph, as evidence: the probability of that is Phi(offset + slope . x).

    Attributes:
        offset: (n,).
        slope: (n, D).
        weight: How likely this case is among several.
    """

    offset: Floats
    slope: Floats
    weight: float = 1.0


@dataclass(frozen=True)
class EntangledDisease(Disease):
    """A disease whose evidence does not simply add up.

    Attributes:
        correlation: Of the factors (K, K).
        pairs: The factors of the EHR and of the image whose product counts, for each phenotype (C, 2).
        products: What the product adds to the log-odds (C,); 0 for a phenotype without one.
    """

    correlation: Floats
    pairs: NDArray[np.intp]
    products: Floats
    kind: ClassVar[Kind] = "entangled"

    @classmethod
    def load(cls) -> Self:
        """Return the model that `definitions/` and docs/simulator.md describe."""
        plain = Disease.load()
        syndrome = read_definitions("factors")["syndrome"].to_numpy()
        correlation = _CORRELATION * (syndrome[:, None] == syndrome)
        np.fill_diagonal(correlation, 1.0)
        groups = plain.seen["ehr"] & ~plain.seen["cxr"], plain.seen["cxr"] & ~plain.seen["ehr"]
        strength = np.stack([np.abs(plain.weights) * group for group in groups], axis=1)  # (C, 2, K)
        pairs, heaviest = strength.argmax(axis=2), strength.max(axis=2)
        needs_both = heaviest.all(axis=1)
        weights = plain.weights.copy()
        weights[np.arange(len(pairs))[:, None], pairs] *= np.where(needs_both, np.sqrt(0.5), 1)[:, None]
        disease = cls(
            factors=plain.factors,
            phenotypes=plain.phenotypes,
            seen=plain.seen,
            acute=plain.acute,
            weights=weights,
            intercepts=np.zeros(len(weights)),
            correlation=correlation,
            pairs=pairs,
            products=np.hypot(*heaviest.T) * np.sqrt(0.5) * needs_both,
        )
        prevalence = read_definitions("prevalence")["prevalence"].to_list()
        return replace(
            disease, intercepts=np.array(list(map(disease._intercept, range(len(pairs)), prevalence)))
        )

    def _intercept(self, phenotype: int, prevalence: float) -> float:
        """Return the intercept that gives a phenotype its prevalence."""
        log_odds, weights = self._quadrature(phenotype, *self._state(), self._sights({}, None))

        def excess(intercept: float) -> float:
            return float(np.average(expit(intercept + log_odds), weights=weights)) - prevalence

        return float(brentq(excess, -50.0, 50.0))

    def draw(self, n_stays: int, generator: np.random.Generator) -> Patients:
        """Return the hidden state of `n_stays` stays."""
        independent = generator.standard_normal((n_stays, len(self.factors)))
        factors = independent @ np.linalg.cholesky(self.correlation).T
        return self._patients(factors, generator.standard_normal(n_stays), generator)

    def log_odds(self, factors: Floats) -> Floats:
        """Return the log-odds of each phenotype (n, C) for factors (n, K)."""
        pairs: Floats = factors[:, self.pairs].prod(axis=2)  # (n, C)
        return super().log_odds(factors) + self.products * pairs

    def severity(self, ehr: Readings) -> Floats:
        """Return how ill each patient is according to the EHR (n,): standard normal at each reliability."""
        severity: Floats = ehr.values[:, self.acute].sum(axis=1) * self._severity_scale(ehr.reliability)
        return severity

    def imaged_share(self, patients: Patients, cxr_rate: float) -> Floats:
        """Return the probability that each stay has a radiograph (n,), `cxr_rate` on average."""
        sight = self._sight(patients.ehr.reliability, patients.severity, cxr_rate)
        share: Floats = ndtr(sight.offset + (sight.slope[:, :-1] * patients.factors).sum(axis=1))
        return share

    def factors_given(self, *readings: Readings) -> tuple[Floats, Floats]:
        """Return the mean and variance (n, K) of the factors given what modalities show of them."""
        mean, covariance = self._state(*readings)
        return mean[:, :-1], np.diagonal(covariance, axis1=1, axis2=2)[:, :-1]

    def probability_given(
        self, readings: Mapping[Modality, Readings], imaged: Imaged | None = None
    ) -> Floats:
        """Return the probability of each phenotype (n, C) given what modalities show, and who is `imaged`."""
        state, sights = self._state(*readings.values()), self._sights(readings, imaged)
        given = []
        for phenotype in range(len(self.phenotypes)):
            log_odds, weights = self._quadrature(phenotype, *state, sights)
            given.append((weights * expit(log_odds)).sum(axis=(1, 2)) / weights.sum(axis=(1, 2)))
        return np.stack(given, axis=1)

    def _state(self, *readings: Readings) -> tuple[Floats, Floats]:
        """Return the mean (n, D) and covariance (n, D, D) of x given readings; n is 1 without any."""
        precision = np.linalg.inv(block_diag(self.correlation, 1.0))[None]
        weighted = np.zeros((1, len(precision[0]), 1))
        for of_modality in readings:
            r = of_modality.reliability[:, None, None]
            seen = of_modality.seen[:, None]
            of_factors, of_disturbance = (
                np.sqrt(r) * np.diag(seen[:, 0]),
                np.sqrt((1 - r) * SHARED_NOISE) * seen,
            )
            loading = np.concatenate([of_factors, of_disturbance], axis=2)  # (n, K, D)
            own = loading.mT / ((1 - r) * (1 - SHARED_NOISE))
            precision = precision + own @ loading
            weighted = weighted + own @ of_modality.values[:, :, None]
        covariance = np.linalg.inv(precision)
        return (covariance @ weighted)[:, :, 0], covariance

    def _severity_scale(self, r: Floats) -> Floats:
        """Return 1 over the standard deviation of the sum of acute readings at reliability r (n,)."""
        n = self.acute.sum()
        of_factors = self.acute @ self.correlation @ self.acute
        scale: Floats = (r * of_factors + (1 - r) * (n * (1 - SHARED_NOISE) + n**2 * SHARED_NOISE)) ** -0.5
        return scale

    def _sight(self, r: Floats, severity: Floats | None, cxr_rate: float) -> _Sight:
        """Return what having a radiograph says, at the EHR's reliability r (n,); severity may be unknown."""
        content = (self.seen["cxr"] & ~self.seen["ehr"]).astype(float)
        content /= np.sqrt(content @ self.correlation @ content)
        each = self._severity_scale(r)
        together = np.sqrt(r) * each * (self.acute @ self.correlation @ content)
        scale = _INDICATION / np.sqrt(2 + 2 * together)
        threshold = np.sqrt(1 + _INDICATION**2) * ndtri(cxr_rate)
        slope = np.append(content, 0.0) * scale[:, None]
        if severity is not None:
            return _Sight(threshold + scale * severity, slope)
        n = self.acute.sum()
        slope[:, :-1] += (scale * each * np.sqrt(r))[:, None] * self.acute
        slope[:, -1] = scale * each * n * np.sqrt((1 - r) * SHARED_NOISE)
        own = scale**2 * each**2 * n * (1 - r) * (1 - SHARED_NOISE)
        return _Sight(threshold / np.sqrt(1 + own), slope / np.sqrt(1 + own)[:, None])

    def _sights(self, readings: Mapping[Modality, Readings], imaged: Imaged | None) -> list[_Sight]:
        """Return the cases of what having a radiograph or none says to a reader of some modalities.

        Without the EHR, its reliability may be any.
        """
        if imaged is None:
            return [_Sight(np.zeros(1), np.zeros((1, len(self.factors) + 1)))]
        sign = np.where(imaged.has_cxr, 1.0, -1.0)
        if "ehr" in readings:
            ehr = readings["ehr"]
            known: Floats | None = self.severity(ehr)
            cases = [(1.0, ehr.reliability, known)]
        else:
            points, likely = leggauss(_N_RELIABILITIES)
            low, high = RELIABILITIES
            every = low + (high - low) * (points + 1) / 2
            cases = [(weight, np.full(1, r), None) for weight, r in zip(likely.tolist(), every, strict=True)]
        sights = [(weight, self._sight(r, severity, imaged.cxr_rate)) for weight, r, severity in cases]
        return [_Sight(sign * one.offset, sign[:, None] * one.slope, weight) for weight, one in sights]

    def _quadrature(
        self, phenotype: int, mean: Floats, covariance: Floats, sights: Sequence[_Sight]
    ) -> tuple[Floats, Floats]:
        """Return a phenotype's log-odds at H times X points and the points' weights, both (n, H, X).

        H are values of the image's factor of the pair, or one of no effect if the phenotype has no product.
        Given this factor, the log-odds are linear in x, so normal; X are their values.
        """
        w = np.append(self.weights[phenotype], 0.0)
        (e, i), product = self.pairs[phenotype], self.products[phenotype]
        nodes, likely = hermegauss(_N_NODES)
        if product:
            h, of_h = nodes, likely[:, None]
            along = covariance[:, i] / np.sqrt(covariance[:, i, i, None])  # (n, D): x per standard deviation
        else:
            h, of_h, along = np.zeros(1), np.ones((1, 1)), np.zeros_like(mean)
        left = covariance - along[:, :, None] * along[:, None, :]  # of x given the factor

        def at(vector: Floats) -> Floats:
            """Return the mean of a linear function of x given the factor, (n, H)."""
            centre, slope = (np.sum(vector * moment, axis=1, keepdims=True) for moment in (mean, along))
            mean_at: Floats = centre + slope * h
            return mean_at

        of_e = np.eye(len(w))[e]
        step = product * at(np.eye(len(w))[i])  # what a unit of the EHR's factor adds to the log-odds (n, H)
        centre = self.intercepts[phenotype] + at(w) + step * at(of_e)
        variance = (left @ w @ w)[:, None] + 2 * step * (left @ w)[:, [e]] + step**2 * left[:, e, [e]]
        deviation = np.sqrt(variance)
        seen: Floats = np.zeros(())
        for sight in sights:
            q = left @ sight.slope[:, :, None]  # (n, D, 1): covariance with x
            with_log_odds = ((q[:, :, 0] @ w)[:, None] + step * q[:, e]) / deviation
            rest = 1 + (sight.slope[:, None, :] @ q)[:, :, 0] - with_log_odds**2
            indicated = (sight.offset[:, None] + at(sight.slope))[:, :, None] + with_log_odds[
                :, :, None
            ] * nodes
            seen = seen + sight.weight * ndtr(indicated / np.sqrt(rest)[:, :, None])
        return centre[:, :, None] + deviation[:, :, None] * nodes, of_h * likely * seen


KINDS: dict[Kind, type[Disease]] = {"independent": Disease, "entangled": EntangledDisease}
"""The model of disease of each kind of hospital."""
