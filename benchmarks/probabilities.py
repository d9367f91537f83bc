"""Are recalibrated probabilities better, and do net benefit and prediction sets keep what they promise?

`python -m benchmarks.probabilities --out docs/probabilities.md` draws validation and test splits from a
simulated hospital whose truth is known (see `benchmarks.coverage`). The system is overconfident, and reads
the half of the stays that have a radiograph better.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss

from benchmarks.command import command
from benchmarks.coverage import Floats, Population, Tally
from benchmarks.results import markdown_table
from drfuse.evaluation import (
    ConformalSets,
    calibration,
    decision_curves,
    fit_recalibration,
    measure_sets,
    subgroups,
)
from drfuse.evaluation.recalibration import Method
from drfuse.files import write_whole
from drfuse.logs import tracked
from drfuse.run import Predictions
from drfuse.subsets import Split

_SIZES = ((200, 410), (410, 820), (1070, 2136))  # stays of the validation and the test split
_THRESHOLDS = (0.1, 0.2, 0.5)
_RELIABILITY = {True: 0.52, False: 0.32}  # of readings with and without radiograph
_OVERCONFIDENCE = 1.5  # every logit is too large by this factor


@dataclass(frozen=True)
class Hospital:
    """A population, and what a system says of it.

    Attributes:
        people: The population.
        logits: The system's logits (N, C).
        has_cxr: Whether a stay has a radiograph (N,).
    """

    people: Population
    logits: NDArray[np.float32]
    has_cxr: NDArray[np.bool_]

    @classmethod
    def draw(cls, n_stays: int) -> "Hospital":
        """Return a hospital of so many stays of clustered subjects."""
        people = Population.draw(n_stays, clustered=True)
        has_cxr = np.random.default_rng(0).random(n_stays) < 0.5
        read = {known: people.read(reliability, 1) for known, reliability in _RELIABILITY.items()}
        logits = _OVERCONFIDENCE * np.where(has_cxr[:, None], read[True], read[False])
        return cls(people, np.asarray(logits, np.float32), has_cxr)

    def predictions(self, rows: NDArray[np.int64], split: Split) -> Predictions:
        """Return the predictions of some stays, all of one split."""
        stays = pl.DataFrame(
            {"subject_id": self.people.subjects[rows], "stay_id": rows, "has_cxr": self.has_cxr[rows]}
        ).with_columns(split=pl.lit(split))
        names = [str(c) for c in range(self.logits.shape[1])]
        return Predictions(names, stays, self.logits[rows], self.people.labels[rows].astype(np.uint8), None)

    def net_benefit(self) -> Floats:
        """Return the true net benefit by threshold and label (T, C)."""
        given, positive = expit(self.logits.astype(np.float64)), self.people.labels
        return np.array(
            [
                ((given >= t) & positive).mean(axis=0) - ((given >= t) & ~positive).mean(axis=0) * t / (1 - t)
                for t in _THRESHOLDS
            ]
        )

    def fpr_gap(self) -> float:
        """Return the true gap in false positive rate of stays with a radiograph, at a specificity of 0.9."""
        gaps = []
        for z, positive in zip(self.logits.T, self.people.labels.T, strict=True):
            flagged = z > np.quantile(z[~positive], 0.9)
            rates = [flagged[rows & ~positive].mean() for rows in (self.has_cxr, ~self.has_cxr)]
            gaps.append(rates[0] - rates[1])
        return float(np.mean(gaps))


def probabilities(
    out: Path | None = None, sets: int = 100, population: int = 100_000, resamples: int = 1000
) -> str:
    """Measure recalibration, net benefit and prediction sets on splits of a simulated hospital.

    Args:
        out: File for the table, as Markdown.
        sets: Pairs of a validation and a test split of each size.
        population: Stays that the truth is measured on.
        resamples: Resamples behind an interval.
    """
    hospital = Hospital.draw(population)
    columns = {
        f"{n_validation:,} + {n_test:,}": _means(hospital, n_validation, n_test, sets, resamples)
        for n_validation, n_test in _SIZES
    }
    names = list(dict.fromkeys(name for found in columns.values() for name in found))
    rows: list[Mapping[str, str | float | None]] = [
        {"mean over the splits": name} | {size: found.get(name) for size, found in columns.items()}
        for name in names
    ]
    text = f"{sets} splits of each size, validation + test stays\n\n{markdown_table(rows)}"
    if out is not None:
        write_whole(out, text + "\n")
    return text


def _means(hospital: Hospital, n_validation: int, n_test: int, sets: int, resamples: int) -> dict[str, float]:
    """Return the mean of each measure over so many splits."""
    net_benefit, fpr_gap = hospital.net_benefit(), hospital.fpr_gap()
    tally, methods = Tally(), Counter[str]()
    n_stays = n_validation + n_test
    for k, rows in enumerate(tracked(hospital.people.test_sets(n_stays, sets), f"{n_stays} stays", sets)):
        subjects = hospital.people.subjects[rows]
        start = int(
            np.flatnonzero(subjects == subjects[n_validation])[0]
        )  # of the test split's first subject
        validation = hospital.predictions(rows[:start], "validation")
        test, units = hospital.predictions(rows[start:], "test"), subjects[start:]
        if (fitted := fit_recalibration(validation)) is None:
            continue
        methods[fitted.method] += 1
        raw, mapped = expit(test.logits.astype(np.float64)), fitted.apply(test.logits)
        for name, given in (("raw", raw), ("recalibrated", mapped)):
            tally.note(f"calibration error, {name}", calibration(test.labels, given, units, 1).error.value)
            loss = log_loss(test.labels.ravel(), given.ravel(), labels=[0, 1])
            tally.note(f"log loss, {name}", float(loss))
        curves = decision_curves(test.labels, raw, test.phenotypes, units, resamples, k, _THRESHOLDS)
        for point, truth in zip(curves.macro, net_benefit, strict=True):
            at = f"at {point.threshold:.0%}, held by its interval"
            tally.add(f"macro net benefit {at}", point.net_benefit, float(truth.mean()))
        for curve, of_label in zip(curves.by_label.values(), net_benefit.T, strict=True):
            for point, truth in zip(curve, of_label, strict=True):
                at = f"at {point.threshold:.0%}, held by its interval"
                tally.add(f"net benefit of one label {at}", point.net_benefit, float(truth))
        with_cxr = pl.DataFrame({"has_cxr": test.stays["has_cxr"].cast(pl.String)})
        _, group = subgroups(test.labels, test.logits, with_cxr, units, resamples, k).groups
        tally.add("FPR gap by radiograph, held by its interval", group.fpr_gap, fpr_gap)
        _add_sets(tally, validation, test, units)
    chosen = {f"chosen: {method}": methods[method] / sets for method in get_args(Method)}
    return chosen | {name: float(np.mean(found)) for name, found in tally.hits.items()}


def _add_sets(tally: Tally, validation: Predictions, test: Predictions, units: NDArray[np.int64]) -> None:
    """Note the coverage of prediction sets that promise 90 %, the mean over the labels."""
    held_out = validation.stays["has_cxr"].to_numpy()
    sets = ConformalSets.learn(validation.labels, validation.logits, held_out)
    has_cxr = test.stays["has_cxr"].to_numpy()
    found = measure_sets(sets, test.labels, test.logits, has_cxr, test.phenotypes, units)
    for one in found.measured:
        if one.phenotype == "macro":
            for share in ("positives", "negatives", "decisive"):
                tally.note(f"sets, {one.stays}: {share}", getattr(one, share).value)


if __name__ == "__main__":
    command(probabilities)
