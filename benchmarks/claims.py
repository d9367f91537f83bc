"""Does DrFuse learn what the paper says it does? Measured on simulated hospitals, where the truth is known.

For each seed a hospital of its own is simulated and prepared, and DrFuse and both unimodal models are trained
on its full dataset, all with the same settings. Then three claims are held against the truth: that fusion
beats each modality, that the modality weights follow the modality that tells more, and that the
representations are disentangled. `python benchmarks/claims.py --out DIR` takes about an hour on two cores and
goes on where it was interrupted; `docs/claims.md` discusses the tables that it writes to `DIR/claims.md`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drfuse.cohort import prepare
from drfuse.data import Cohort, CohortDataModule
from drfuse.evaluation import evaluate, prauc_auroc, resample
from drfuse.models import CxrResNet, DrFuse, EhrTransformer
from drfuse.run import Predictions, RunFiles
from drfuse.simulate import Truth, oracle, simulate
from drfuse.simulate.disease import Disease
from drfuse.training import Precision, load_model, train

BACKBONE = {
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
}
MODELS: dict[str, Any] = {
    "ehr": partial(EhrTransformer, dim=128, feedforward=256),
    "cxr": partial(CxrResNet, dim=128, cxr_backbone=BACKBONE),
    "fused": partial(DrFuse, dim=128, feedforward=256, cxr_backbone=BACKBONE),
}
NAMES = {"ehr": "Transformer (EHR)", "cxr": "ResNet (CXR)", "fused": "DrFuse"}
REPRESENTATIONS = ("ehr_distinct", "ehr_shared", "shared", "cxr_shared", "cxr_distinct")
GROUPS = ("shared", "EHR-only", "CXR-only")
Numbers = dict[str, float]


def claims(
    out: Path,
    stays: int = 8000,
    cxr_rate: float = 0.5,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 15,
    patience: int = 4,
    lr: float = 5e-4,
    batch_size: int = 32,
    image_size: int = 64,
    precision: Precision = "bf16-mixed",
) -> None:
    """Test the paper's claims on simulated hospitals.

    Args:
        out: Folder for the hospitals, cohorts, runs, `claims.json` and `claims.md`.
        stays: ICU stays of each hospital.
        cxr_rate: Mean share of stays with a radiograph.
        seeds: A hospital, a split and a training each.
        epochs: The most epochs.
        patience: Epochs without a better validation PRAUC before training stops.
        lr: Learning rate.
        batch_size: Stays a batch.
        image_size: Side of the radiographs in pixels.
        precision: Numbers to compute with.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    measured = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        hospital, cohort = folder / "hospital", folder / "cohort"
        if not hospital.exists():
            simulate(hospital, stays, cxr_rate, image_size=image_size, seed=seed)
        if not cohort.exists():
            prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=image_size, seed=seed)
        for name, model in MODELS.items():
            if not RunFiles(folder / name).predictions.is_file():
                train(
                    cohort,
                    folder / name,
                    model,
                    epochs=epochs,
                    patience=patience,
                    lr=lr,
                    batch_size=batch_size,
                    crop_size=image_size,
                    augment=False,
                    seed=seed,
                    precision=precision,
                )
        measured.append(measure(folder, Truth.read(hospital)))
        (out / "claims.json").write_text(json.dumps(measured, indent=2) + "\n")
    report = tables(measured)
    (out / "claims.md").write_text(report)
    print(report)  # noqa: T201


def measure(folder: Path, truth: Truth) -> dict[str, Numbers]:
    """Return everything that is measured of the three runs of one seed."""
    predictions = {name: Predictions.read(RunFiles(folder / name).predictions) for name in MODELS}
    opened = Cohort.open(folder / "cohort")
    here = truth.of(opened.stays["stay_id"].to_numpy())
    for name in MODELS:
        evaluate(folder / name, "matched" if name == "cxr" else None)
    return {
        "prauc": measure_prauc(predictions, truth),
        "difference": measure_differences(predictions),
        "weights": measure_weights(predictions["fused"], here),
        **measure_representations(folder / "fused", opened, here),
    }


def measure_prauc(predictions: Mapping[str, Predictions], truth: Truth) -> Numbers:
    """Return the macro PRAUC of models and of perfect models, on both test sets."""
    perfect = oracle(truth, predictions["fused"])
    sources: dict[str, Mapping[str, Predictions]] = {"": predictions, "perfect ": perfect}
    return {
        f"{kind}{name} {test_on}": float(np.nanmean(prauc_auroc(*_test_set(source[name], test_on))[0]))
        for kind, source in sources.items()
        for name in MODELS
        for test_on in ("matched", "full")
        if (name, test_on) != ("cxr", "full")
    }


def measure_differences(predictions: Mapping[str, Predictions], n_resamples: int = 1000) -> Numbers:
    """Return by how much the macro PRAUC of DrFuse is higher, with its interval over resampled subjects."""
    numbers: Numbers = {}
    for test_on in ("matched", "full"):
        subjects = predictions["fused"].stays["subject_id"].to_numpy()[_rows(predictions["fused"], test_on)]
        resampled = {
            name: np.nanmean(
                prauc_auroc(*_test_set(predictions[name], test_on), resample(subjects, n_resamples, 0))[0], 1
            )
            for name in MODELS
            if (name, test_on) != ("cxr", "full")
        }
        for other in resampled.keys() - {"fused"}:
            difference = resampled["fused"] - resampled[other]
            low, high = np.quantile(difference, [0.025, 0.975])
            numbers |= {f"{other} {test_on} low": float(low), f"{other} {test_on} high": float(high)}
    return numbers


def measure_weights(fused: Predictions, truth: Truth) -> Numbers:
    """Return how the CXR weight of the matched test stays ranks with the image's true advantage."""
    rows = _rows(fused, "matched")
    assert fused.modality_weights is not None
    weight, advantage = fused.modality_weights[rows][:, :, 2], truth.cxr_advantage[rows]
    labels, probability = truth.labels[rows], (truth.given_cxr[rows], truth.given_ehr[rows])
    cxr, ehr = (np.where(labels, q, 1 - q) for q in probability)
    by_phenotype = [_rank_correlation(weight[:, c], advantage[:, c]) for c in range(weight.shape[1])]
    reliability = truth.stays["cxr_reliability"].to_numpy()[rows]
    ehr_reliability = truth.stays["ehr_reliability"].to_numpy()[rows]
    numbers = {
        "pooled": _rank_correlation(weight.ravel(), advantage.ravel()),
        "pooled, drawn labels": _rank_correlation(weight.ravel(), np.log(cxr / ehr).ravel()),
        "between phenotypes": _rank_correlation(weight.mean(0), advantage.mean(0)),
        "within phenotypes": float(np.mean(by_phenotype)),
        "within stays": float(
            np.mean([_rank_correlation(*pair) for pair in zip(weight, advantage, strict=True)])
        ),
        "mean weight, image reliability": _rank_correlation(weight.mean(1), reliability),
        "mean weight, EHR reliability": _rank_correlation(weight.mean(1), ehr_reliability),
        "mean EHR-distinct": float(fused.modality_weights[rows][:, :, 0].mean()),
        "mean shared": float(fused.modality_weights[rows][:, :, 1].mean()),
        "mean CXR-distinct": float(weight.mean()),
    }
    return numbers | dict(zip(fused.phenotypes, by_phenotype, strict=True))


def measure_representations(run: Path, cohort: Cohort, truth: Truth) -> dict[str, Numbers]:
    """Return how well linear probes tell modalities and factors from DrFuse's representations.

    Probes are fitted on the matched training stays and scored on the matched test stays.
    """
    rows = {split: cohort.rows(split, "matched") for split in ("train", "test")}
    h = {split: represent(run, cohort, some) for split, some in rows.items()}
    origin = {}
    for kind in ("shared", "distinct"):
        x, y = {}, {}
        for split, of in h.items():
            x[split] = np.concatenate([of[f"ehr_{kind}"], of[f"cxr_{kind}"]])
            y[split] = np.repeat([0, 1], len(rows[split]))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x["train"], y["train"])
        origin[kind] = float(probe.score(x["test"], y["test"]))
    disease = Disease.load()
    seen = disease.seen
    groups = dict(
        zip(
            GROUPS,
            (seen["ehr"] & seen["cxr"], seen["ehr"] & ~seen["cxr"], ~seen["ehr"] & seen["cxr"]),
            strict=True,
        )
    )
    factors = truth.stays.select(disease.factors).to_numpy()
    decoded = {}
    for name in REPRESENTATIONS:
        probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 6)))
        probe.fit(h["train"][name], factors[rows["train"]])
        told = r2_score(factors[rows["test"]], probe.predict(h["test"][name]), multioutput="raw_values")
        decoded |= {f"{name} -> {group}": float(told[chosen].mean()) for group, chosen in groups.items()}
    return {"origin": origin, "factors": decoded}


@torch.no_grad()
def represent(run: Path, cohort: Cohort, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Return DrFuse's representations of stays with a radiograph, each (n, D)."""
    model, data = load_model(run), CohortDataModule(cohort, crop_size=cohort.image_size)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in REPRESENTATIONS}
    for some in np.array_split(rows, max(1, len(rows) // 256)):
        output = model(data.on_after_batch_transfer(data.dataset[some.tolist()], 0))
        for name in REPRESENTATIONS:
            parts[name].append(output.representations[name].numpy())
    return {name: np.concatenate(some) for name, some in parts.items()}


def tables(measured: Sequence[Mapping[str, Numbers]]) -> str:
    """Return the measurements of all seeds as Markdown: mean, and the seeds' own values behind it."""

    def row(title: str, part: str, key: str) -> str:
        values = [of[part][key] for of in measured]
        return f"| {title} | {np.mean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |"

    lines = ["| macro PRAUC | mean | seeds |", "|---|---|---|"]
    for test_on in ("matched", "full"):
        for kind in ("", "perfect "):
            for name, shown in NAMES.items():
                if (name, test_on) != ("cxr", "full"):
                    lines.append(row(f"{test_on}: {kind}{shown}", "prauc", f"{kind}{name} {test_on}"))
    lines += ["", "| DrFuse is better than | by | 95 % intervals of the seeds |", "|---|---|---|"]
    for name, test_on in (("ehr", "matched"), ("cxr", "matched"), ("ehr", "full")):
        gains = [of["prauc"][f"fused {test_on}"] - of["prauc"][f"{name} {test_on}"] for of in measured]
        key = f"{name} {test_on}"
        ends = [(of["difference"][f"{key} low"], of["difference"][f"{key} high"]) for of in measured]
        intervals = ", ".join(f"({low:+.3f}, {high:+.3f})" for low, high in ends)
        lines.append(f"| {NAMES[name]}, {test_on} test set | {np.mean(gains):+.3f} | {intervals} |")
    lines += ["", "| Spearman correlation of the CXR weight | mean | seeds |", "|---|---|---|"]
    lines += [row(key, "weights", key) for key in measured[0]["weights"]]
    lines += ["", "| accuracy of a linear probe telling EHR from CXR | mean | seeds |", "|---|---|---|"]
    lines += [row(f"{kind} representations", "origin", kind) for kind in ("shared", "distinct")]
    heads = " | ".join(f"{group} factors" for group in GROUPS)
    lines += ["", f"| mean R2 of a linear probe for | {heads} |", "|---|---|---|---|"]
    for name in REPRESENTATIONS:
        told = [np.mean([of["factors"][f"{name} -> {group}"] for of in measured]) for group in GROUPS]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in told) + " |")
    return "\n".join(lines) + "\n"


def _rows(predictions: Predictions, test_on: str) -> NDArray[np.bool_]:
    in_test = (predictions.stays["split"] == "test").to_numpy()
    return in_test & predictions.stays["has_cxr"].to_numpy() if test_on == "matched" else in_test


def _test_set(predictions: Predictions, test_on: str) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = _rows(predictions, test_on)
    return predictions.labels[rows], predictions.logits[rows]


def _rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(spearmanr(a, b).statistic)


if __name__ == "__main__":
    auto_cli(claims, as_positional=False)
