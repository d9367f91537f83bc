"""A number with its 95 % interval, and the mean over labels behind every macro average.

docs/statistics.md explains the intervals and reports how often they contain the truth.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtr, stdtrit  # scipy.stats takes 0.4 s to import

Intervals = Literal["half-sampling", "bootstrap"]
"""Bias-corrected intervals from halves of the subjects, or a bootstrap's percentiles as published."""

NORMAL = 1.959964
"""Standard errors between the centre and either end of a normal 95 % interval."""

_CLOSEST = 1e-6  # to 0 and 1, where the log-odds would be infinite
_WIDEST = 4.0  # log-odds to either side; a wider interval is cut off at 0 and 1 instead


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where undefined.

    Attributes:
        value: The measured number; over several seeds, their mean.
        low: Lower end of the interval, which lies around `corrected`.
        high: Upper end.
        bias: By how much `value` is expected to exceed the truth.
    """

    value: float
    low: float
    high: float
    bias: float = 0.0

    @property
    def corrected(self) -> float:
        """The value minus its bias."""
        return self.value - self.bias

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        resampled: ArrayLike,
        intervals: Intervals = "half-sampling",
        bounded: bool = True,
    ) -> "Estimate":
        """Return the mean over S seeds with its interval.

        Args:
            values: Each seed's number on all stays (S,); or one number.
            resampled: The same in each of R resamples (R, S), or (R,) of one number; NaN are left out.
            intervals: How the resamples were drawn. `half-sampling` corrects for bias and includes the
                variance between seeds; `bootstrap` takes the percentiles of the mean, as the published code.
            bounded: Whether the number, and so its interval, lies between 0 and 1.
        """
        found = Spread.of(values, resampled)
        if intervals == "bootstrap":
            bias = found.bias if np.isfinite(found.bias) else 0.0
            return cls(found.value, *found.percentiles, bias)
        return found.estimate(bounded)


@dataclass(frozen=True)
class Spread:
    """How far the mean of S seeds may lie from the truth.

    Attributes:
        value: The mean.
        bias: Mean of the resamples minus the value; 0 without resamples.
        of_stays: Variance of the mean over test sets.
        of_seeds: Additional variance of the mean over trainings; 0 with one seed.
        freedom: Degrees of freedom of both variances together.
        percentiles: The 2.5th and 97.5th of the resampled means.
    """

    value: float
    bias: float
    of_stays: float
    of_seeds: float
    freedom: float
    percentiles: tuple[float, float]

    @classmethod
    def of(cls, values: ArrayLike, resampled: ArrayLike) -> "Spread":
        """Return the spread of values (S,) and their resamples (R, S); undefined resamples are left out."""
        measured, drawn = _vector(values), _matrix(resampled)
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        variance, term = seed_variance(measured, drawn)
        means = drawn.mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (math.nan, math.nan)
        value = float(measured.mean())
        of_stays = float(means.var(ddof=1)) if len(means) > 1 else math.nan
        return cls(
            value=value,
            bias=float(means.mean() - value) if len(means) else 0.0,
            of_stays=of_stays,
            of_seeds=variance,
            freedom=_freedom(of_stays + variance, term),
            percentiles=(float(low), float(high)),
        )

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.of_stays + self.of_seeds)

    @property
    def p(self) -> float:
        """Two-sided p-value of a true value of 0."""
        distance = abs(self.value - self.bias)
        if not self.error > 0:
            return math.nan if math.isnan(self.error) else float(distance == 0)
        return float(2 * stdtr(self.freedom, -distance / self.error))

    def estimate(self, bounded: bool) -> Estimate:
        """Return the value with its bias-corrected interval.

        A bounded number's interval is computed on the log-odds or, if that is too wide, cut off at 0 and 1.
        """
        centre = self.value - self.bias
        margin = float(stdtrit(self.freedom, 0.975)) * self.error
        if not bounded or not margin > 0:
            return Estimate(self.value, centre - margin, centre + margin, self.bias)
        inside = float(np.clip(centre, _CLOSEST, 1 - _CLOSEST))
        log_margin = margin / (inside * (1 - inside))
        if log_margin > _WIDEST:
            low, high = (float(np.clip(centre + side * margin, 0, 1)) for side in (-1, 1))
        else:
            low, high = (float(expit(logit(inside) + side * log_margin)) for side in (-1, 1))
        return Estimate(self.value, low, high, self.bias)


def mean_share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Estimate:
    """Return the mean over C columns of the shares `part` / `whole`, both sums by independent unit (u, C).

    Columns whose whole is 0 are left out. The interval is Wilson's for the effective number of independent
    observations.
    """
    total = whole.sum(axis=0)
    filled = total > 0
    if not filled.any():
        return Estimate(math.nan, math.nan, math.nan)
    part, whole, total = part[:, filled], whole[:, filled], total[filled]
    shares = part.sum(axis=0) / total
    share = float(shares.mean())
    deviation = ((part - shares * whole) / total).mean(axis=1)
    n_units = int((whole > 0).any(axis=1).sum())
    variance = float(deviation @ deviation) * n_units / max(n_units - 1, 1)
    effective = share * (1 - share) / variance if variance > 0 else float(n_units)
    scale = 1 + NORMAL**2 / effective
    centre = (share + NORMAL**2 / (2 * effective)) / scale
    margin = NORMAL / scale * math.sqrt(share * (1 - share) / effective + (NORMAL / (2 * effective)) ** 2)
    return Estimate(share, max(centre - margin, 0.0), min(centre + margin, 1.0))


def seed_variance(values: NDArray[np.float64], resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Return the variance that trainings add to a mean over seeds, and its term in the degrees of freedom.

    The variance is 0 with one seed; the term is Satterthwaite's (Biometrics Bulletin 1946),
    (s^2 / S)^2 / (S - 1). Seeds measured on the same stays differ in quality and in their luck on these
    stays; the variance over stays already includes the luck, so it is subtracted.

    Args:
        values: Each seed's number (S,).
        resampled: The same in each resample (R, S).
    """
    n_seeds = len(values)
    if n_seeds < 2 or len(resampled) < 2:
        return 0.0, 0.0
    between = float(values.var(ddof=1))
    around = resampled - resampled.mean(axis=1, keepdims=True)
    by_chance = float(around.var(axis=0, ddof=1).sum() / (n_seeds - 1))
    return max(0.0, between - by_chance) / n_seeds, (between / n_seeds) ** 2 / (n_seeds - 1)


def difference_spread(ours: tuple[ArrayLike, ArrayLike], theirs: tuple[ArrayLike, ArrayLike]) -> Spread:
    """Return the spread of the difference of two means over seeds, on the same resamples.

    Each system is its numbers (S,) and the same in each resample (R, S); the two may differ in S.
    """
    (mine, mine_drawn), (other, other_drawn) = (
        (_vector(values), _matrix(drawn)) for values, drawn in (ours, theirs)
    )
    means = mine_drawn.mean(axis=1) - other_drawn.mean(axis=1)
    defined = np.isfinite(means)
    stays = Spread.of(mine.mean() - other.mean(), means)
    parts = [seed_variance(mine, mine_drawn[defined]), seed_variance(other, other_drawn[defined])]
    of_seeds, term = (sum(part) for part in zip(*parts, strict=True))
    return replace(stays, of_seeds=of_seeds, freedom=_freedom(stays.of_stays + of_seeds, term))


def _freedom(variance: float, term: float) -> float:
    """Return the degrees of freedom of a variance: at least 1, infinite if no seeds vary."""
    return max(variance**2 / term, 1.0) if term > 0 else math.inf


def macro_of_seeds(
    values: NDArray[np.float64], resampled: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the macro mean of S seeds (S,) and of their resamples (R, S).

    A resample's mean averages the labels' differences from their values on all stays, so that a label that
    the resample lacks does not move it.

    Args:
        values: By seed and label (S, C); NaN for an undefined label.
        resampled: The same in each resample (R, S, C).
    """
    n_seeds, n_labels = values.shape
    means = macro_mean(values)
    moved = macro_mean((resampled - values).reshape(-1, n_labels)).reshape(-1, n_seeds)
    return means, means + moved


def stack_seeds(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any], int]:
    """Return labels and scores with the S seeds side by side, both (n, S C), and S.

    Scores are (S, n, C), or (n, C) of a single seed.
    """
    of_seeds = np.asarray(scores)
    if of_seeds.ndim == 2:
        of_seeds = of_seeds[None]
    return np.tile(np.asarray(labels, np.float64), len(of_seeds)), np.hstack(list(of_seeds)), len(of_seeds)


def macro_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean (R,) of the defined values of (R, C); NaN where none is defined.

    >>> macro_mean(np.array([[0.25, 0.75, np.nan], [np.nan, np.nan, np.nan]]))
    array([0.5, nan])
    """
    defined = np.isfinite(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    return np.atleast_1d(np.asarray(values, np.float64))


def _matrix(resampled: ArrayLike) -> NDArray[np.float64]:
    drawn = np.asarray(resampled, np.float64)
    return drawn[:, None] if drawn.ndim == 1 else drawn
