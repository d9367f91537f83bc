"""How often do explanations point at what truly carries a factor? Measured where that is known.

For each seed a hospital is simulated and a small DrFuse trained on it. A factor is present in a test stay if
its reading there exceeds 1 standard deviation; explained is the phenotype that it moves most. The benchmark
asks whether the variables that carry the factor are among the strongest ones, and whether the map on the
radiograph lies on the sign that was drawn. It asks the same of chance, and of a network with random weights.

`python -m benchmarks.explanations --out DIR` goes on where it was interrupted, and writes the report to
`DIR/explanations.json`, too. Hospitals of other seeds than 0, 1 and 2 serve to choose methods
(`benchmarks.development`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.command import command
from benchmarks.results import Report, Table
from drfuse.data import Batch, Cohort, StayDataset
from drfuse.data.augmentation import CxrTransform
from drfuse.data.loader import EvaluationBatches
from drfuse.demo import MODELS, learn, run_of
from drfuse.evaluation import Estimate, resample
from drfuse.inference import Predictor
from drfuse.inference.attributions import (
    Completeness,
    CxrMethod,
    EhrMethod,
    attribute_image,
    attribute_record,
    occlude_variables,
)
from drfuse.simulate import Disease, Truth, drawn_signs
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Modality
from drfuse.training import TrainOptions

SIGNS = (
    "effusion",
    "sternal_wires",
    "pacing_leads",
    "inflammation",
    "collapse",
    "vascular_stiffness",
)
"""Factors that a radiograph shows in one place; those that change a whole lung or the heart have none."""

_PRESENT = 1.0  # standard deviations
_TOP_SHARE = 0.05  # of the pixels
_NO_METHOD = ("chance", "best possible")
_SHOWN_AS = {
    "coma_depth": ("gcs_eye_opening", "gcs_motor_response", "gcs_verbal_response", "gcs_total"),
    "refill_delay": ("capillary_refill_rate",),
}


def explanations(
    out: Path,
    seeds: Sequence[int] = (0, 1),
    stays: int = 4000,
    image_size: int = 64,
    epochs: int = 8,
    stays_per_factor: int = 25,
    most_steps: int = 128,
    n_resamples: int = 1000,
) -> Report:
    """Measure explanations on simulated hospitals.

    Args:
        out: Folder for the hospital, cohort and run of each seed, and the report.
        seeds: A hospital and a training each.
        stays: ICU stays of each hospital.
        image_size: Side of the radiographs, in pixels.
        epochs: Epochs of a training.
        stays_per_factor: The most test stays of a hospital in which a factor is explained.
        most_steps: The most steps of integrated gradients; those of `drfuse explain` would take hours.
        n_resamples: Resamples of the stays, for the intervals.
    """
    options = TrainOptions(epochs=epochs, patience=epochs, lr=1e-3, schedule="cosine", batch_size=32)
    found: dict[str, list[dict[str, Any]]] = {"record": [], "image": []}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        simulated = {"stays": stays, "cxr_rate": 0.5, "image_size": image_size, "seed": seed}
        learn(folder, simulated, options.changed(seed=seed), {"drfuse": MODELS["fused"]})
        hospital = _Hospital(folder, seed, most_steps)
        found["record"] += hospital.records(stays_per_factor)
        found["image"] += hospital.images(stays_per_factor)
    record, image = (pl.DataFrame(found[part], infer_schema_length=None) for part in ("record", "image"))
    report = Report(
        title="How often explanations point at what truly carries a factor",
        how=(
            f"Simulated hospitals of seeds {', '.join(map(str, seeds))}, {stays:,} stays each, half of them "
            f"with a radiograph of {image_size} pixels; the demo's DrFuse, {epochs} epochs. At most "
            f"{stays_per_factor} test stays of a hospital for each factor. Intervals are 95 % percentiles of "
            "a bootstrap over stays."
        ),
        tables=[
            _means("The record: the carriers are among the strongest variables", record, n_resamples),
            _by_factor("The record, top 3", record, "top 3"),
            _means("The radiograph: the map lies on the sign", image, n_resamples),
            _by_factor("The radiograph, top 5 % of the pixels", image, "top 5 %"),
            _completeness(pl.concat([record, image], how="diagonal")),
        ],
    )
    report.write(out / "explanations.json")
    return report


def carriers() -> dict[str, set[str]]:
    """Return the variables that carry each factor that the EHR shows.

    One standard deviation of the factor moves a carrier by at least one standard deviation of its own:
    between stays for what lasts, from hour to hour for what grows over the window. `rhythm` is in how the
    heart rate varies.
    """
    courses = {row["variable"]: row for row in read_definitions("courses").iter_rows(named=True)}
    effects = {
        (variable, factor): rest for variable, factor, *rest in read_definitions("effects").iter_rows()
    }
    found: dict[str, set[str]] = {name: set() for name, seen in _factors("ehr") if seen}
    for factor, of_factor in found.items():
        for variable, course in courses.items():
            level, trend = effects.get((variable, factor), (0.0, 0.0))
            if abs(level) >= course["between_sd"] or abs(trend) >= course["within_sd"] > 0 < abs(trend):
                of_factor |= set(_SHOWN_AS.get(variable, (variable,)))
        weights = {"systolic_blood_pressure": 1 / 3, "diastolic_blood_pressure": 2 / 3}

        def mean_pressure(of: Mapping[str, float], weights: Mapping[str, float] = weights) -> float:
            return sum(weights[name] * of[name] for name in weights)

        level, trend = (
            mean_pressure({name: effects.get((name, factor), (0.0, 0.0))[kind] for name in weights})
            for kind in (0, 1)
        )
        between, within = (
            float(np.hypot(*(weights[name] * courses[name][kind] for name in weights)))
            for kind in ("between_sd", "within_sd")
        )
        if abs(level) >= between or abs(trend) >= within:
            of_factor.add("mean_blood_pressure")
    found["rhythm"].add("heart_rate")
    return found


def chance_of_a_hit(n_variables: int, n_carriers: int, top: int) -> float:
    """Return how likely one of `top` random variables is a carrier.

    >>> chance_of_a_hit(17, 1, 1) == 1 / 17, round(chance_of_a_hit(17, 2, 3), 3)
    (True, 0.331)
    """
    return 1 - comb(n_variables - n_carriers, top) / comb(n_variables, top)


def map_scores(pixels: NDArray[np.float64], region: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well the size of a map's values (H, W) points at a region (H, W).

    `point`: whether the strongest pixel lies in it; `top 5 %`: the share of the strongest pixels that do;
    `mass`: the share of the sum.

    >>> map_scores(np.array([[0.0, -3.0], [1.0, 0.0]]), np.array([[False, True], [False, False]]))
    {'point': 1.0, 'top 5 %': 1.0, 'mass': 0.75}
    """
    size = np.abs(pixels).ravel()
    order = np.argsort(-size, kind="stable")
    inside = region.ravel()
    top = order[: max(1, round(_TOP_SHARE * size.size))]
    return {
        "point": float(inside[order[0]]),
        "top 5 %": float(inside[top].mean()),
        "mass": float(size[inside].sum() / max(size.sum(), 1e-12)),
    }


def mean_over_factors(
    values: NDArray[np.float64], factors: NDArray[Any], units: NDArray[Any], n_resamples: int
) -> Estimate:
    """Return the mean over factors of the mean of each factor's values (n,), with a bootstrap over units."""
    names, of_row = np.unique(factors, return_inverse=True)
    member = np.eye(len(names))[of_row]  # (n, K)

    def mean(counts: NDArray[Any]) -> NDArray[np.float64]:
        """Return the means (r,) of resamples (r, n); a factor that a resample lacks does not count."""
        n = counts @ member
        total = (counts * values) @ member
        known = n > 0
        of_factor = np.where(known, total / np.maximum(n, 1), 0.0)
        averaged: NDArray[np.float64] = of_factor.sum(axis=1) / known.sum(axis=1)
        return averaged

    resampled = np.concatenate([mean(counts) for counts in resample(units, n_resamples, seed=0)])
    return Estimate.of(mean(np.ones((1, len(values)))), resampled, "bootstrap")


class _Hospital:
    """The run and the test stays of one seed."""

    def __init__(self, folder: Path, seed: int, most_steps: int) -> None:
        self.folder, self.seed, self.most_steps = folder, seed, most_steps
        self.predictor = Predictor.open(run_of(folder, "drfuse").folder)
        torch.manual_seed(seed)
        model = self.predictor.model
        self.untrained = replace(self.predictor, model=type(model)(**model.init_args).eval())
        self.cohort = Cohort.open(folder / "cohort")
        self.dataset: StayDataset = self.predictor.dataset(self.cohort)
        self.transform = CxrTransform(self.predictor.facts.crop_size)
        self.black = float(self.transform(torch.zeros(1, 1, 64, 64)).mean())
        self.truth = Truth.read(folder / "hospital").of(self.cohort.stay_id)
        self.variables = [variable.name for variable in self.predictor.facts.variables]

    def records(self, most: int) -> list[dict[str, Any]]:
        """Return a row for each factor, stay and method: whether a carrier is among the strongest."""
        rows = []
        for factor, of_factor in carriers().items():
            truly = np.isin(self.variables, list(of_factor))
            chance = {f"top {k}": chance_of_a_hit(len(truly), int(truly.sum()), k) for k in (1, 3)}
            for stay, about in self._stays("ehr", factor, most):
                about["carriers"] = ", ".join(sorted(of_factor))
                rows.append(about | {"method": "chance"} | chance)
                for name, predictor, method in (
                    *((one, self.predictor, one) for one in get_args(EhrMethod)),
                    ("integrated-gradients, untrained network", self.untrained, "integrated-gradients"),
                ):
                    start = perf_counter()
                    variables, found = self._attribute_record(predictor, stay, about["label"], method)
                    cost = _cost(found, perf_counter() - start)
                    hit = truly[np.argsort(-np.abs(variables), kind="stable")]
                    scores = {f"top {k}": float(hit[:k].any()) for k in (1, 3)}
                    rows.append(about | {"method": name} | scores | cost)
        return rows

    def images(self, most: int) -> list[dict[str, Any]]:
        """Return a row for each sign, stay and method: how well the map lies on the sign."""
        regions = drawn_signs(self.folder / "hospital", SIGNS)
        dicom_id = self.cohort.columns("dicom_id")["dicom_id"]
        rows = []
        for number, sign in enumerate(SIGNS):
            for stay, about in self._stays("cxr", sign, most):
                region = regions[dicom_id[about["row"]]][number]
                if not region.any():
                    continue
                chance = dict.fromkeys(("point", "top 5 %", "mass"), float(region.mean()))
                rows.append(about | {"method": "chance"} | chance)
                best = map_scores(region.astype(np.float64), region)
                rows.append(about | {"method": "best possible"} | best)
                for name, (predictor, method, least_side) in self._maps().items():
                    own = {} if least_side is None else {"least_side": least_side}
                    own["most_steps"] = self.most_steps
                    start = perf_counter()
                    found = attribute_image(predictor.model, stay, self.black, about["label"], method, **own)
                    cost = _cost(found.completeness, perf_counter() - start)
                    rows.append(about | {"method": name} | map_scores(found.pixels, region) | cost)
        return rows

    def _maps(self) -> dict[str, tuple[Predictor, CxrMethod, int | None]]:
        """Return by name the network, the method, and the fewest cells of a map if not the default."""
        return {
            "grad-cam": (self.predictor, "grad-cam", None),
            "grad-cam, last stage": (self.predictor, "grad-cam", 1),
            "integrated-gradients-black": (self.predictor, "integrated-gradients-black", None),
            "integrated-gradients-grey": (self.predictor, "integrated-gradients-grey", None),
            "integrated-gradients-grey, untrained network": (
                self.untrained,
                "integrated-gradients-grey",
                None,
            ),
        }

    def _attribute_record(
        self, predictor: Predictor, stay: Batch, label: int, method: EhrMethod
    ) -> tuple[NDArray[np.float64], Completeness | None]:
        """Return what each variable contributed (V,), and how well the hours add up if they were computed."""
        features, model = self.dataset.features, predictor.model
        baseline = features.mean_record(stay.ehr.shape[1])
        if method == "occlusion":  # that of each hour would take ten times as long
            return occlude_variables(model, stay, baseline, features.variable_of, label), None
        found = attribute_record(model, stay, baseline, features.variable_of, label, method, self.most_steps)
        return found.variables, found.completeness

    def _stays(self, modality: Modality, factor: str, most: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Yield test stays that show a factor, and what a row of results says about each."""
        weights = {
            phenotype: abs(weight)
            for phenotype, of, weight in read_definitions("log_odds").iter_rows()
            if of == factor
        }
        phenotype = max(weights, key=lambda name: weights[name])
        shown = self.truth.stays[f"{modality}_{factor}"].to_numpy() > _PRESENT
        shown &= (self.cohort.columns("split")["split"] == "test").to_numpy()
        if modality == "cxr":
            shown &= self.cohort.has_cxr
        rows = np.flatnonzero(shown)[:most].tolist()
        batches = EvaluationBatches(self.dataset, self.transform, [[row] for row in rows])
        for row, stay in zip(rows, batches, strict=True):
            yield (
                stay,
                {
                    "unit": f"{self.seed}-{int(stay.stay_id)}",
                    "row": row,
                    "factor": factor,
                    "phenotype": phenotype,
                    "label": self.predictor.facts.label_names.index(phenotype),
                },
            )


def _factors(modality: Modality) -> Iterator[tuple[str, bool]]:
    disease = Disease.load()
    return zip(disease.factors, disease.seen[modality].tolist(), strict=True)


def _cost(of: Completeness | None, seconds: float) -> dict[str, Any]:
    return {"seconds": seconds} | ({} if of is None else {"gap": of.share, "steps": of.steps})


def _measures(rows: pl.DataFrame) -> list[str]:
    return [name for name in ("top 1", "top 3", "point", "top 5 %", "mass") if name in rows.columns]


def _methods(rows: pl.DataFrame) -> list[str]:
    return rows["method"].unique(maintain_order=True).to_list()


def _means(title: str, rows: pl.DataFrame, n_resamples: int) -> Table:
    """Return the mean over factors of every measure, a row for each method."""
    table = []
    for method in _methods(rows):
        of = rows.filter(pl.col("method") == method)
        cells: dict[str, str | float | None] = {"method": method}
        for measure in _measures(rows):
            found = mean_over_factors(
                of[measure].to_numpy(), of["factor"].to_numpy(), of["unit"].to_numpy(), n_resamples
            )
            interval = "" if method in _NO_METHOD else f" ({found.low:.3f}, {found.high:.3f})"
            cells[measure] = f"{found.value:.3f}{interval}"
        seconds = of["seconds"].median()
        cells["median seconds"] = None if method in _NO_METHOD else float(seconds)  # type: ignore[arg-type]
        table.append(cells)
    n, n_stays = rows["factor"].n_unique(), rows["unit"].n_unique()
    explained = rows.filter(pl.col("method") == "chance").height
    note = f"Mean over {n} factors; {explained:,} explanations of {n_stays:,} stays."
    return Table(title, table, note)


def _by_factor(title: str, rows: pl.DataFrame, measure: str) -> Table:
    """Return one measure by factor, a column for each method."""
    shown = [name for name in _methods(rows) if "untrained" not in name]
    table = []
    for (factor,), of in rows.group_by(["factor"], maintain_order=True):
        cells: dict[str, str | float | None] = {"factor": str(factor), "phenotype": of["phenotype"][0]}
        if "carriers" in of.columns:
            cells["carriers"] = of["carriers"][0]
        cells["stays"] = of.filter(pl.col("method") == "chance").height
        for method in shown:
            cells[method] = float(of.filter(pl.col("method") == method)[measure].mean())  # type: ignore[arg-type]
        table.append(cells)
    return Table(title, table)


def _completeness(rows: pl.DataFrame) -> Table:
    """Return how well integrated gradients add up."""
    table: list[dict[str, str | float | None]] = []
    summed = rows.filter(pl.col("steps") > 0, ~pl.col("method").str.contains("untrained"))
    for (method,), of in summed.group_by(["method"], maintain_order=True):
        gap, steps = of["gap"].to_numpy(), of["steps"].to_numpy()
        table.append(
            {
                "method": str(method),
                "explanations": len(gap),
                "median gap": float(np.median(gap)),
                "95th percentile": float(np.quantile(gap, 0.95)),
                "largest": float(gap.max()),
                "share above 5 %": float((gap > 0.05).mean()),
                "median steps": float(np.median(steps)),
                "most steps": float(steps.max()),
            }
        )
    return Table(
        "Completeness of integrated gradients",
        table,
        "The gap is a share of the difference that the attributions explain, of at least 0.1.",
    )


if __name__ == "__main__":
    command(explanations)
