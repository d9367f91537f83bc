"""Does DrFuse learn what the paper says it does? Measured on simulated hospitals, where the truth is known.

For each seed a hospital of its own is simulated and prepared. DrFuse and both unimodal models are trained on
its full dataset, all with the same settings, and the linear baselines are fitted to it. Then three claims are
held against the truth: that fusion beats each modality, that the modality weights follow the modality that
tells more, and that the representations are disentangled.
`python benchmarks/claims.py --out DIR` takes about an hour on two cores and
goes on where it was interrupted; `docs/claims.md` discusses the tables that it writes to `DIR/claims.md`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.command import command
from drfuse import __version__
from drfuse.data import Cohort
from drfuse.demo import NAMES, learn, run_of
from drfuse.evaluation import compare, evaluate_test_set, resample, seeded_prauc
from drfuse.models import CxrResNet, DrFuse, EhrTransformer, LogisticCxr, LogisticEhr, LogisticLate
from drfuse.reproduce.representations import FOLDS, divergences, probe_origin, represent
from drfuse.run import Predictions
from drfuse.simulate import Disease, Reader, Truth, expected_advantage, factors_given, oracle
from drfuse.subsets import Subset
from drfuse.training import Precision, TrainOptions

BACKBONE: dict[str, Any] = {
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
}
_TRANSFORMER: dict[str, Any] = {"dim": 128, "feedforward": 256, "pooling": "mean-max-last"}
MODELS: dict[Reader, Any] = {
    "ehr": partial(EhrTransformer, **_TRANSFORMER),
    "cxr": partial(CxrResNet, dim=128, cxr_backbone=BACKBONE),
    "fused": partial(DrFuse, **_TRANSFORMER, cxr_backbone=BACKBONE),
}
"""Models of either modality, and of both, by what they read; larger than those of the demo."""

BASELINES: dict[str, Any] = {
    "logistic-ehr": LogisticEhr,
    "logistic-cxr": LogisticCxr,
    "logistic-late": LogisticLate,
}
"""Linear models of either modality, and the mean of both."""

VARIANTS: dict[str, Any] = {
    "no alignment": partial(MODELS["fused"], alignment_weight=0.0),
    "no ranking loss": partial(MODELS["fused"], attention_ranking=False),
    "class losses averaged": partial(MODELS["fused"], class_reduction="mean"),
}
"""DrFuse with one thing changed, trained for the first seed, to find out what a result is owed to."""

REPRESENTATIONS = ("ehr_distinct", "ehr_shared", "shared", "cxr_shared", "cxr_distinct")
GROUPS = ("shared", "EHR-only", "CXR-only")
GAINS: tuple[tuple[str, str, Subset], ...] = (
    ("fused", "ehr", "matched"),
    ("fused", "cxr", "matched"),
    ("fused", "ehr", "full"),
    ("fused", "logistic-late", "matched"),
    ("fused", "logistic-late", "full"),
    ("ehr", "logistic-ehr", "full"),
    ("cxr", "logistic-cxr", "matched"),
)
"""Which run is compared with which, on which test set; those of the linear models only where they lie."""
_FORM = {"divergence": ".1e"}  # of the numbers of a table
Numbers = dict[str, float]


def claims(
    out: Path,
    stays: int = 8000,
    cxr_rate: float = 0.5,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 15,
    patience: int = 15,
    lr: float = 5e-4,
    batch_size: int = 32,
    image_size: int = 64,
    precision: Precision = "bf16-mixed",
    settings: Path | None = None,
    variants: bool = True,
) -> None:
    """Test the paper's claims on simulated hospitals.

    Args:
        out: Folder for the hospitals, cohorts and runs of each seed, `claims.json` and `claims.md`.
        stays: ICU stays of each hospital.
        cxr_rate: Mean share of stays with a radiograph.
        seeds: A hospital, a split and a training each.
        epochs: The most epochs.
        patience: Epochs without a better validation PRAUC before training stops.
        lr: Learning rate.
        batch_size: Stays a batch.
        image_size: Side of the radiographs in pixels.
        precision: Numbers to compute with.
        settings: What `benchmarks/search.py` chose for each system, in place of `lr`.
        variants: Whether to train DrFuse with one thing changed, too, for the first seed.
    """
    options = {name: value for name, value in locals().items() if name != "out"}
    own = _own_settings(settings)
    measured = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        models: dict[Any, Any] = {**MODELS, **BASELINES}
        learn(
            folder,
            {"stays": stays, "cxr_rate": cxr_rate, "image_size": image_size, "seed": seed},
            TrainOptions(
                epochs=epochs,
                patience=patience,
                lr=lr,
                batch_size=batch_size,
                seed=seed,
                precision=precision,
                schedule="cosine",
            ),
            models | (VARIANTS if variants and seed == seeds[0] else {}),
            own,
        )
        measured.append(measure(folder, baselines=tuple(BASELINES)))
    of_variants: dict[str, Any] = {"DrFuse": measured[0]} | {
        name: measure(out / f"seed-{seeds[0]}", name) for name in (VARIANTS if variants else ())
    }
    written = {
        "drfuse": __version__,
        "settings": options | {"own": own},
        "seeds": measured,
        "variants": of_variants,
    }
    (out / "claims.json").write_text(json.dumps(written, indent=2, default=str) + "\n", encoding="utf-8")
    settings_line = f"drfuse {__version__}, {json.dumps(written['settings'], default=str)}"
    report = "\n".join([settings_line, "", tables(measured), variant_table(of_variants)])
    (out / "claims.md").write_text(report, encoding="utf-8")
    print(report)  # noqa: T201


def _own_settings(settings: Path | None) -> dict[str, dict[str, float]]:
    """Return the options of each model that `benchmarks/search.py` chose for its system."""
    if settings is None:
        return {}
    of_systems = yaml.safe_load(settings.read_text(encoding="utf-8"))["settings"]
    systems = {"ehr": "transformer", "cxr": "resnet50", **dict.fromkeys(("fused", *VARIANTS), "drfuse")}
    return {name: of_systems[system] for name, system in systems.items()}


def measure(folder: Path, fused: str = "fused", baselines: Sequence[str] = ()) -> dict[str, Numbers]:
    """Return everything that is measured of the runs that `learn` left in `folder`.

    Args:
        folder: Where they lie.
        fused: Name of the run of DrFuse.
        baselines: Names of the linear models' runs.
    """
    truth = Truth.read(folder / "hospital")
    cohort = Cohort.open(folder / "cohort")
    runs = {reader: run_of(folder, fused if reader == "fused" else reader) for reader in MODELS}
    predictions = {reader: Predictions.read(run.predictions) for reader, run in runs.items()}
    here = truth.of(cohort.stays["stay_id"].to_numpy())
    return {
        "prauc": measure_prauc(predictions, truth) | _measure_baselines(folder, baselines),
        "gain": measure_gain(
            predictions | {name: Predictions.read(run_of(folder, name).predictions) for name in baselines}
        ),
        **measure_weights(predictions["fused"], here),
        **measure_representations(runs["fused"].folder, cohort, here),
    }


def measure_prauc(predictions: Mapping[Any, Predictions], truth: Truth) -> Numbers:
    """Return the macro PRAUC of models, with intervals over subjects, and of the perfect models."""
    perfect = oracle(truth, predictions["fused"])
    numbers: Numbers = {}
    for reader in MODELS:
        for test_on in ("matched", "full") if reader != "cxr" else ("matched",):
            of_model = evaluate_test_set(predictions[reader], test_on)
            of_perfect = evaluate_test_set(perfect[reader], test_on, n_resamples=1)
            numbers |= {
                f"{reader} {test_on}": of_model.prauc_macro.value,
                f"{reader} {test_on} low": of_model.prauc_macro.low,
                f"{reader} {test_on} high": of_model.prauc_macro.high,
                f"perfect {reader} {test_on}": of_perfect.prauc_macro.value,
                f"stays {test_on}": of_model.n_stays,
                f"subjects {test_on}": of_model.n_subjects,
            }
    return numbers


def _measure_baselines(folder: Path, baselines: Sequence[str]) -> Numbers:
    """Return the macro PRAUC of linear models, with intervals over subjects."""
    numbers: Numbers = {}
    for name in baselines:
        predictions = Predictions.read(run_of(folder, name).predictions)
        for test_on in ("matched", "full") if name != "logistic-cxr" else ("matched",):
            estimate = evaluate_test_set(predictions, test_on).prauc_macro
            key = f"{name} {test_on}"
            numbers |= {key: estimate.value, f"{key} low": estimate.low, f"{key} high": estimate.high}
    return numbers


def measure_gain(predictions: Mapping[Any, Predictions], n_resamples: int = 1000) -> Numbers:
    """Return by how much one model's macro PRAUC is higher than another's, with intervals over subjects."""
    numbers: Numbers = {}
    for first, second, test_on in GAINS:
        if not {first, second} <= predictions.keys():
            continue
        rows = predictions[first].rows("test", test_on)
        subjects = predictions[first].stays["subject_id"].to_numpy()[rows]
        labels = predictions[first].labels[rows]
        one, other = (
            seeded_prauc(labels, [predictions[name].logits[rows]], subjects, n_resamples)
            for name in (first, second)
        )
        gain = compare(one, other)
        key = f"{first} {second} {test_on}"
        numbers |= {key: gain.difference, f"{key} low": gain.low, f"{key} high": gain.high}
    return numbers


def measure_weights(fused: Predictions, truth: Truth, n_resamples: int = 200) -> dict[str, Numbers]:
    """Return how DrFuse's weights rank with the radiograph's true advantage, over the matched test stays."""
    if fused.modality_weights is None:
        raise ValueError("the run has no modality weights; pass one of DrFuse")
    rows = fused.rows("test", "matched")
    ehr, _, cxr = np.moveaxis(fused.modality_weights[rows], -1, 0)  # each (n, C)
    advantage, labels = truth.cxr_advantage[rows], truth.labels[rows]
    given_cxr, given_ehr = truth.given_cxr[rows], truth.given_ehr[rows]
    drawn = np.log(np.where(labels, given_cxr / given_ehr, (1 - given_cxr) / (1 - given_ehr)))
    p = truth.given_both[rows]  # in place of the true probability, which no reader can know
    knowable = expected_advantage(p, given_cxr, given_ehr)  # type: ignore[arg-type]  # kept in 32 bits
    by_phenotype = np.array([_rank_correlation(*pair) for pair in zip(cxr.T, advantage.T, strict=True)])
    by_stay = np.array([_rank_correlation(*pair) for pair in zip(cxr, advantage, strict=True)])
    reliability = {name: truth.stays[f"{name}_reliability"].to_numpy()[rows] for name in ("cxr", "ehr")}
    subjects = fused.stays["subject_id"].to_numpy()[rows]
    resampled = [
        _rank_correlation(*(np.repeat(table, counts, axis=0).ravel() for table in (cxr, advantage)))
        for block in resample(subjects, n_resamples, 0)
        for counts in block
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    numbers = {
        "pooled": _rank_correlation(cxr.ravel(), advantage.ravel()),
        "pooled low": float(low),
        "pooled high": float(high),
        "pooled, CXR less EHR weight": _rank_correlation((cxr - ehr).ravel(), advantage.ravel()),
        "pooled, with the labels drawn": _rank_correlation(cxr.ravel(), drawn.ravel()),
        "between phenotypes (means)": _rank_correlation(cxr.mean(axis=0), advantage.mean(axis=0)),
        "within phenotypes (mean)": float(by_phenotype.mean()),
        "within stays (mean)": float(by_stay.mean()),
        "pooled, the most that can be known": _rank_correlation(knowable.ravel(), advantage.ravel()),
        "within phenotypes, the most that can be known": float(
            np.mean([_rank_correlation(*pair) for pair in zip(knowable.T, advantage.T, strict=True)])
        ),
        "a stay's mean weight, image reliability": _rank_correlation(cxr.mean(axis=1), reliability["cxr"]),
        "a stay's mean weight, EHR reliability": _rank_correlation(cxr.mean(axis=1), reliability["ehr"]),
    }
    names = ("EHR-distinct", "shared", "CXR-distinct")
    means = fused.modality_weights[rows].mean(axis=(0, 1)).tolist()
    return {
        "correlation": numbers,
        "by phenotype": dict(zip(fused.phenotypes, by_phenotype.tolist(), strict=True)),
        "mean weight": dict(zip(names, means, strict=True)),
    }


def measure_representations(run: Path, cohort: Cohort, truth: Truth) -> dict[str, Numbers]:
    """Return what linear probes read off DrFuse's representations, and how close the shared ones are.

    Probes are fitted and scored on the matched validation and test stays, which trained nothing, in five
    folds of whole subjects.
    """
    rows = np.concatenate([cohort.rows("validation", "matched"), cohort.rows("test", "matched")])
    h = represent(run, cohort, rows)
    subjects = cohort.stays["subject_id"].to_numpy()[rows]
    seen = Disease.load().seen
    groups = dict(
        zip(
            GROUPS,
            (seen["ehr"] & seen["cxr"], seen["ehr"] & ~seen["cxr"], ~seen["ehr"] & seen["cxr"]),
            strict=True,
        )
    )
    probed = truth.of(cohort.stays["stay_id"].to_numpy()[rows])
    factors = probed.stays.select(Disease.load().factors).to_numpy()
    told = {name: _probe_factors(h[name], factors, subjects) for name in REPRESENTATIONS}
    told |= {f"all that {which} show": best for which, best in _best_possible(probed, factors).items()}
    return {
        "origin": {
            kind: probe_origin(h[f"ehr_{kind}"], h[f"cxr_{kind}"], subjects)
            for kind in ("shared", "distinct")
        },
        "factors": {
            f"{name} -> {group}": float(r2[chosen].mean())
            for name, r2 in told.items()
            for group, chosen in groups.items()
        },
        "reliability": {
            f"{whose}, from {name}": float(_probe_factors(h[name], reliability, subjects)[0])
            for whose, name, reliability in (
                ("record's", "ehr_distinct", probed.stays["ehr_reliability"].to_numpy()[:, None]),
                ("image's", "cxr_distinct", probed.stays["cxr_reliability"].to_numpy()[:, None]),
            )
        },
        "divergence": dict(
            zip(("of a stay", "of two stays"), divergences(h["ehr_shared"], h["cxr_shared"]), strict=True)
        ),
        "probed": {"stays": len(rows), "subjects": len(np.unique(subjects))},
    }


def _probe_factors(h: NDArray[Any], factors: NDArray[Any], subjects: NDArray[Any]) -> NDArray[np.float64]:
    """Return the R2 (K,) of a linear probe for each factor (n, K)."""
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 6), alpha_per_target=True))
    said = cross_val_predict(probe, h, factors, groups=subjects, cv=GroupKFold(FOLDS))
    r2: NDArray[np.float64] = r2_score(factors, said, multioutput="raw_values")
    return r2


def _best_possible(truth: Truth, factors: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the R2 (K,) of the posterior means given the readings of the EHR, of the radiograph, of both."""
    ehr, cxr = truth.readings("ehr"), truth.readings("cxr")
    return {
        name: r2_score(factors, factors_given(*readings)[0], multioutput="raw_values")
        for name, readings in (("EHR", (ehr,)), ("CXR", (cxr,)), ("both", (ehr, cxr)))
    }


def tables(measured: Sequence[Mapping[str, Numbers]]) -> str:
    """Return the measurements of all seeds as Markdown: their mean, and each seed's own."""

    def row(title: str, part: str, key: str) -> str:
        form = _FORM.get(part, ".3f")
        seeds = [
            f"{of[part][key]:{form}}"
            + (
                f" ({of[part][f'{key} low']:{form}}, {of[part][f'{key} high']:{form}})"
                if f"{key} low" in of[part]
                else ""
            )
            for of in measured
        ]
        return f"| {title} | {np.mean([of[part][key] for of in measured]):{form}} | {'; '.join(seeds)} |"

    counts = "; ".join(
        f"{of['prauc']['stays matched']} of {of['prauc']['stays full']} stays, "
        f"{of['prauc']['subjects full']} subjects"
        for of in measured
    )
    lines = [f"Test sets (matched of full): {counts}.", ""]
    lines += ["| macro PRAUC | mean | seeds (95 % interval over subjects) |", "|---|---|---|"]
    for test_on in ("matched", "full"):
        readers = [reader for reader in MODELS if (reader, test_on) != ("cxr", "full")]
        lines += [row(f"{test_on}: {NAMES[reader]}", "prauc", f"{reader} {test_on}") for reader in readers]
        lines += [
            row(f"{test_on}: {name}", "prauc", f"{name} {test_on}")
            for name in BASELINES
            if f"{name} {test_on}" in measured[0]["prauc"]
        ]
        lines += [
            row(f"{test_on}: perfect model of {what}", "prauc", f"perfect {reader} {test_on}")
            for reader, what in zip(MODELS, ("the EHR", "the radiograph", "both"), strict=True)
            if reader in readers
        ]
    lines += ["", "| difference in macro PRAUC | mean | 95 % intervals of the seeds |", "|---|---|---|"]
    for first, second, test_on in GAINS:
        key = f"{first} {second} {test_on}"
        if key in measured[0]["gain"]:
            by = np.mean([of["gain"][key] for of in measured])
            ends = [(of["gain"][f"{key} low"], of["gain"][f"{key} high"]) for of in measured]
            intervals = "; ".join(f"({low:+.3f}, {high:+.3f})" for low, high in ends)
            names = " less ".join(NAMES.get(cast(Reader, name), name) for name in (first, second))
            lines.append(f"| {names}, {test_on} test set | {by:+.3f} | {intervals} |")
    for part, title in (
        ("correlation", "Spearman correlation of the CXR weight with the image's advantage"),
        ("by phenotype", "the same within one phenotype"),
        ("mean weight", "mean modality weight"),
        ("origin", "accuracy of a probe telling EHR from CXR representations"),
        ("divergence", "divergence of the shared representations, share of the largest"),
        ("reliability", "R2 of a probe for a modality's reliability"),
    ):
        lines += ["", f"| {title} | mean | seeds |", "|---|---|---|"]
        keys = [key for key in measured[0][part] if not key.endswith((" low", " high"))]
        lines += [row(key, part, key) for key in keys]
    heads = " | ".join(f"{group} factors" for group in GROUPS)
    probed = "; ".join(f"{of['probed']['stays']} stays" for of in measured)
    lines += ["", f"| mean R2 of a probe ({probed}) from | {heads} |", "|---|---|---|---|"]
    for name in dict.fromkeys(key.split(" -> ")[0] for key in measured[0]["factors"]):
        told = [np.mean([of["factors"][f"{name} -> {group}"] for of in measured]) for group in GROUPS]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in told) + " |")
    return "\n".join(lines) + "\n"


def variant_table(measured: Mapping[str, Mapping[str, Numbers]]) -> str:
    """Return what changes with a variant of DrFuse, as Markdown, a row a number."""
    rows = {
        "macro PRAUC, matched": ("prauc", "fused matched", ".3f"),
        "macro PRAUC, full": ("prauc", "fused full", ".3f"),
        "CXR weight, pooled correlation": ("correlation", "pooled", ".2f"),
        "between phenotypes": ("correlation", "between phenotypes (means)", ".2f"),
        "within phenotypes": ("correlation", "within phenotypes (mean)", ".2f"),
        "mean CXR-distinct weight": ("mean weight", "CXR-distinct", ".2f"),
        "modality told from the shared representations": ("origin", "shared", ".2f"),
        "divergence of a stay's shared representations": ("divergence", "of a stay", ".1e"),
        "divergence of two stays'": ("divergence", "of two stays", ".1e"),
        "shared factors (R2) from `shared`": ("factors", "shared -> shared", ".2f"),
        "EHR-only factors (R2) from `shared`": ("factors", "shared -> EHR-only", ".2f"),
        "image reliability (R2) from `cxr_distinct`": ("reliability", "image's, from cxr_distinct", ".2f"),
    }
    lines = ["| first seed | " + " | ".join(measured) + " |", "|---|" + "---|" * len(measured)]
    for title, (part, key, form) in rows.items():
        values = " | ".join(f"{of[part][key]:{form}}" for of in measured.values())
        lines.append(f"| {title} | {values} |")
    return "\n".join(lines) + "\n"


def _rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(spearmanr(a, b).statistic)


if __name__ == "__main__":
    command(claims)
