"""How often does an interval that a report shows contain the truth, and how often does a test err?

`python -m benchmarks.coverage --out docs/coverage.md` draws test sets from simulated hospitals whose truth is
known: the model of disease of `drfuse simulate`, read with noise, as a population of many stays. What a
system reaches on that population is the truth; intervals are made from test sets of a few hundred to some
thousand stays. Subjects have several stays that resemble each other where a row says clustered.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.command import command
from benchmarks.results import markdown_table
from drfuse.evaluation import (
    Estimate,
    calibration,
    compare,
    macro_prauc,
    missing_curve,
    prauc_auroc,
    resample,
    seeded_prauc,
    subgroups,
)
from drfuse.evaluation.estimate import macro_of_seeds
from drfuse.evaluation.resampling import too_few
from drfuse.files import write_whole
from drfuse.logs import tracked
from drfuse.simulate.disease import Disease

Floats = NDArray[np.float64]
_READ = 0.42  # how reliable a system's reading of the factors is: macro PRAUC of about 0.4
_SETS_OF_TRAININGS = 12  # test sets that trainings of one system are compared on


@dataclass
class Tally:
    """How often intervals contain the truth, by their name."""

    hits: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, estimate: Estimate, truth: float) -> None:
        """Count one interval; one that is not given does not count."""
        if not math.isnan(estimate.low) and not math.isnan(truth):
            within = estimate.low - 1e-12 <= truth <= estimate.high + 1e-12
            self.hits.setdefault(name, []).append(float(within))

    def note(self, name: str, value: float) -> None:
        """Keep a number whose mean is shown."""
        self.hits.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Population:
    """Many stays of a simulated hospital.

    Attributes:
        subjects: The subject of each stay (N,), in order.
        factors: Their hidden state (N, K).
        labels: Boolean (N, C).
        probability: The true probabilities (N, C).
    """

    subjects: NDArray[np.int64]
    factors: Floats
    labels: NDArray[np.bool_]
    probability: Floats

    @classmethod
    def draw(cls, n_stays: int, clustered: bool, seed: int = 0) -> "Population":
        """Return so many stays; of clustered subjects, 60 % of the variance of a factor is the subject's."""
        disease, generator = Disease.load(), np.random.default_rng(seed)
        sizes = generator.choice([1, 2, 3, 4, 6], size=n_stays, p=[0.65, 0.18, 0.09, 0.05, 0.03])
        subjects = np.repeat(np.arange(n_stays), sizes if clustered else 1)[:n_stays]
        shared = 0.6 if clustered else 0.0
        own = generator.standard_normal((n_stays, len(disease.factors)))
        factors = np.sqrt(1 - shared) * own
        factors += np.sqrt(shared) * generator.standard_normal(own.shape)[subjects]
        probability = expit(disease.intercepts + factors @ disease.weights.T)
        return cls(subjects, factors, generator.random(probability.shape) < probability, probability)

    def read(self, reliability: float, seed: int) -> NDArray[np.float32]:
        """Return the logits (N, C) of a system that reads the factors with an error of its own."""
        noise = np.random.default_rng(seed).standard_normal(self.factors.shape)
        readings = np.sqrt(reliability) * self.factors + np.sqrt(1 - reliability) * noise
        disease = Disease.load()
        logits = disease.intercepts + np.sqrt(reliability) * readings @ disease.weights.T
        return np.asarray(logits, np.float32)

    @cached_property
    def first_stay(self) -> NDArray[np.int64]:
        """The first stay of each subject, and the number of stays behind the last."""
        return np.append(np.flatnonzero(np.diff(self.subjects, prepend=-1)), len(self.subjects))

    def test_sets(self, n_stays: int, n_sets: int) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of so many test sets of whole subjects, about `n_stays` each."""
        sizes = np.diff(self.first_stay)
        for seed in range(n_sets):
            order = np.random.default_rng((n_stays, seed)).permutation(len(sizes))
            chosen = order[: np.searchsorted(np.cumsum(sizes[order]), n_stays) + 1]
            yield np.concatenate([np.arange(*self.first_stay[[i, i + 1]]) for i in chosen])


def coverage(
    out: Path | None = None,
    sets: int = 300,
    largest_sets: int = 100,
    population: int = 300_000,
    resamples: int = 1000,
    trainings: int = 40,
    macro_alone: bool = False,
) -> str:
    """Measure how often intervals contain the truth and tests err.

    Args:
        out: File for the tables, as Markdown.
        sets: Test sets of each row; trainings are compared on 12 at most.
        largest_sets: Test sets of 11,914 stays.
        population: Stays that the truth is measured on.
        resamples: Resamples behind an interval.
        trainings: Trainings of one system, whose comparison finds nothing but chance.
        macro_alone: Measure the macro PRAUC and nothing else, for which there can be many more test sets.
    """
    sizes = [(300, False, sets), (820, False, sets), (820, True, sets), (2136, True, sets)]
    sizes += [(11914, True, largest_sets)] if largest_sets else []
    rows: list[dict[str, str | float | None]] = []
    for n_stays, clustered, n_sets in sizes:
        people = Population.draw(population, clustered)
        tally = _intervals(people, n_stays, n_sets, resamples, macro_alone)
        title = f"{n_stays:,}{', clustered' if clustered else ''}"
        rows.append({"test stays": title, "sets": n_sets, **_means(tally)})
    names = [name for name in rows[0] if name not in ("test stays", "sets")]
    transposed: list[Mapping[str, str | float | None]] = [
        {"share of intervals that hold the truth": name} | {str(row["test stays"]): row[name] for row in rows}
        for name in names
    ]
    test_sets = min(sets, _SETS_OF_TRAININGS)
    tests = (
        []
        if macro_alone
        else [
            _tests(size, trainings, resamples // 2, spread, test_sets)
            for spread in (0.1, 0.3)
            for size in (820, 2136)
        ]
    )
    parts = [
        f"**Intervals**: {sets} test sets ({largest_sets} of 11,914 stays), {resamples} resamples each",
        markdown_table(transposed),
    ]
    if tests:
        parts.append(f"**Tests**: {trainings} trainings of one system, compared with each other at p < 0.05")
        parts.append(markdown_table(tests))
    text = "\n\n".join(parts)
    if out is not None:
        write_whole(out, text + "\n")
    return text


def _means(tally: Tally) -> dict[str, float]:
    return {name: round(float(np.mean(found)), 4) + 0.0 for name, found in tally.hits.items()}


def _intervals(
    people: Population, n_stays: int, n_sets: int, resamples: int, macro_alone: bool = False
) -> Tally:
    """Count how often each interval that a report shows contains the truth."""
    logits, weaker = people.read(_READ, 1), people.read(_READ - 0.05, 2)
    labels, tally = people.labels, Tally()
    (prauc,), (auroc,) = prauc_auroc(labels, logits)
    weaker_prauc = prauc_auroc(labels, weaker)[0][0]
    # groups: a fifth of the subjects, whom the system reads worse
    group = np.where(people.subjects % 5 == 0, "fifth", "others")
    fifth = group == "fifth"
    scores = np.where(fifth[:, None], weaker, logits)
    true_group, true_rest = (
        [found[0].mean() for found in prauc_auroc(labels[rows], scores[rows])] for rows in (fifth, ~fifth)
    )
    thresholds = [np.quantile(scores[~labels[:, c], c], 0.9) for c in range(labels.shape[1])]
    rates = [
        np.mean([(scores[rows & labels[:, c], c] > thresholds[c]).mean() for c in range(labels.shape[1])])
        for rows in (fifth, ~fifth)
    ]
    given = {
        "calibrated": people.probability,
        "overconfident": expit(1.3 * np.log(people.probability / (1 - people.probability))),
    }
    true_error = {name: _true_error(one, people.probability) for name, one in given.items()}
    true_brier = float(np.mean((given["overconfident"] - labels) ** 2))
    shares = _true_shares(given["overconfident"], people.probability)
    for k, rows in enumerate(tracked(people.test_sets(n_stays, n_sets), f"{n_stays} stays", n_sets)):
        y, units, seed = labels[rows], people.subjects[rows], k
        found = seeded_prauc(y, [logits[rows]], units, resamples, seed)
        tally.note("bias of macro PRAUC", found.mean.value - float(prauc.mean()))
        percentile = macro_prauc(y, logits[rows], units, resamples, seed, "bootstrap")
        tally.add("macro PRAUC, bootstrap percentiles", percentile, float(prauc.mean()))
        tally.add("macro PRAUC", found.mean, float(prauc.mean()))
        tally.note("bias left in macro PRAUC", found.mean.corrected - float(prauc.mean()))
        if macro_alone:
            continue
        _add_auroc(tally, y, logits[rows], units, resamples, seed, auroc)
        for c in range(len(prauc)):
            tally.add("PRAUC of one label", found.of_label(c).mean, float(prauc[c]))
        other = seeded_prauc(y, [weaker[rows]], units, resamples, seed)
        difference = compare(found, other)
        tally.add(
            "difference of two models",
            Estimate(difference.difference, difference.low, difference.high),
            float(prauc.mean() - weaker_prauc.mean()),
        )
        curve = missing_curve(y, logits[rows], weaker[rows], units, [1.0], n_resamples=resamples, seed=seed)
        tally.add("missing radiographs, all taken", curve[0].prauc_macro, float(weaker_prauc.mean()))
        measured = subgroups(
            y, scores[rows], pl.DataFrame({"group": group[rows]}), units, resamples, seed
        ).groups[0]
        tally.add("group of a fifth: AUROC", measured.auroc_macro, true_group[1])
        tally.add("group of a fifth: AUROC gap", measured.auroc_gap, true_group[1] - true_rest[1])
        tally.add("group of a fifth: PRAUC", measured.prauc_macro, true_group[0])
        tally.add("group of a fifth: TPR", measured.tpr_macro, float(rates[0]))
        tally.add("group of a fifth: TPR gap", measured.tpr_gap, float(rates[0] - rates[1]))
        for name, probabilities in given.items():
            one = calibration(y, probabilities[rows], units, 2)
            tally.add(f"calibration error, {name}", one.error, true_error[name])
        tally.add("Brier score", one.brier, true_brier)
        for place, bin_ in enumerate(one.reliability):
            tally.add("reliability curve, a point", bin_.observed, shares[place])
    return tally


def _add_auroc(
    tally: Tally,
    labels: NDArray[np.bool_],
    logits: NDArray[np.float32],
    units: NDArray[np.int64],
    resamples: int,
    seed: int,
    truth: Floats,
) -> None:
    values = prauc_auroc(labels, logits)[1]
    drawn = prauc_auroc(labels, logits, resample(units, resamples, seed, "half-sampling"))[1]
    tally.add("macro AUROC", Estimate.of(*macro_of_seeds(values, drawn[:, None])), float(truth.mean()))
    for c in np.flatnonzero(~too_few(labels, units)):
        tally.add("AUROC of one label", Estimate.of(values[0, c], drawn[:, c]), float(truth[c]))


def _true_error(given: Floats, probability: Floats, n_bins: int = 10) -> float:
    """Return the root of the mean squared calibration error of a population."""
    total = 0.0
    for column, truly in zip(given.T, probability.T, strict=True):
        bins = np.minimum((column * n_bins).astype(int), n_bins - 1)
        off = np.bincount(bins, column - truly, n_bins)
        total += float((off**2 / np.maximum(np.bincount(bins, minlength=n_bins), 1)).sum())
    return math.sqrt(total / given.size)


def _true_shares(given: Floats, probability: Floats, n_bins: int = 10) -> Floats:
    bins = np.minimum((given * n_bins).astype(int), n_bins - 1).ravel()
    shares: Floats = np.bincount(bins, probability.ravel(), n_bins) / np.bincount(bins, minlength=n_bins)
    return shares


def _tests(
    n_stays: int, trainings: int, resamples: int, spread: float, n_sets: int
) -> dict[str, str | float | None]:
    """Return how often trainings of one system differ at p < 0.05, by the seeds of each side.

    A training weighs what it reads of the factors by weights of its own, off by `spread` in log-odds.
    """
    people = Population.draw(100_000, clustered=True, seed=7)
    disease = Disease.load()
    readings = np.sqrt(_READ) * people.factors
    readings += np.sqrt(1 - _READ) * np.random.default_rng(3).standard_normal(readings.shape)
    found: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for k, rows in enumerate(people.test_sets(n_stays, n_sets)):
        generator = np.random.default_rng((k, 99))
        scores = []
        for _ in range(trainings):
            weights = disease.weights + spread * generator.standard_normal(disease.weights.shape)
            scores.append((disease.intercepts + readings[rows] @ weights.T).astype(np.float32))
        y, units = people.labels[rows], people.subjects[rows]
        for n_seeds in found:
            systems = [
                seeded_prauc(y, scores[start : start + n_seeds], units, resamples, k)
                for start in range(0, trainings - n_seeds + 1, n_seeds)
            ]
            found[n_seeds] += [
                compare(one, other).p for one, other in zip(systems[::2], systems[1::2], strict=False)
            ]
    shares = {f"{n} seed{'s' * (n > 1)} each": float(np.mean(np.array(p) < 0.05)) for n, p in found.items()}
    return {"test stays": f"{n_stays:,}", "spread of weights": spread, **shares, "pairs": len(found[3])}


if __name__ == "__main__":
    command(coverage)
