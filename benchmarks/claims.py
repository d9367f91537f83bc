"""Does fusion do what the paper promises? Every system, measured on simulated hospitals whose truth is known.

Hospitals of both kinds are simulated, one for each seed, and every system is trained on each with the
settings that `benchmarks/search.py` chose for it on other, independent hospitals. Then its claims are held
against the truth: that fusion beats each modality, that predictions survive a lost radiograph, that the
weights follow the modality that tells more, that the representations are aligned and disentangled, and that
probabilities are calibrated whichever modalities are there.
`python -m benchmarks.claims --out DIR --config-file benchmarks/small.yaml --workers 2` goes on where it was
interrupted, and writes `DIR/claims.json`, `DIR/claims.md` and two figures; `docs/claims.md` discusses them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.claim_tables import figures, report
from benchmarks.command import command
from benchmarks.development import MEASURED, make_cohort
from benchmarks.truths import Measured, measure_perfect, measure_run
from drfuse import __version__
from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.logs import tracked
from drfuse.reproduce.plan import OWN_OPTIONS
from drfuse.reproduce.systems import System, paper_systems
from drfuse.simulate import Kind
from drfuse.training import TrainOptions
from drfuse.training.matrix import RunSpec, specify, spread, train_all

SYSTEMS = (
    "logistic-ehr",
    "logistic-cxr",
    "logistic-late",
    "transformer",
    "resnet50",
    "late-fusion",
    "mmtm",
    "daft",
    "medfuse",
    "medfuse-ii",
    "drfuse",
    "additive-evidence",
)

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "only what is present is trained": {"subsets": "present"},
    "means pooled without precision": {"shared_pooling": "mean"},
    "no alignment": {"alignment": "none"},
    "alignment by InfoNCE": {"alignment": "infonce"},
    "disentangled by cross-covariance": {"disentanglement": "cross-covariance"},
    "disentangled by CLUB": {"disentanglement": "club"},
    "weights by leave-one-out": {"weights": "leave-one-out"},
}
"""Additive evidence with one part changed, trained on the first hospital of each kind."""


def claims(
    out: Path,
    config_file: Path,
    kinds: Sequence[Kind] = ("independent", "entangled"),
    seeds: Sequence[int] = (0, 1, 2),
    stays: int = 3000,
    cxr_rate: float = 0.5,
    image_size: int = 64,
    systems: Sequence[str] = SYSTEMS,
    ablations: bool = True,
    workers: int = 1,
) -> str:
    """Hold what every system learns against the truth.

    Args:
        out: Folder for hospitals, cohorts, runs and results.
        config_file: What all systems share, and `settings`, each system's own: the options of
            `drfuse reproduce`, as in `small.yaml`. Its seeds are left out.
        kinds: Kinds of hospitals.
        seeds: A hospital of each kind, a split and a training for each.
        stays: ICU stays of each hospital.
        cxr_rate: Mean share of stays with a radiograph.
        image_size: Side of the radiographs in pixels.
        systems: The systems of `drfuse reproduce`, by name.
        ablations: Whether to train additive evidence with one part changed, too.
        workers: Runs at a time.

    Returns:
        The tables, as Markdown.

    Raises:
        InputError: If a run failed.
    """
    if unknown := sorted(set(seeds) - set(MEASURED)):
        raise InputError(
            f"seed {unknown[0]} is not of a hospital that is measured ({', '.join(map(str, MEASURED))}): "
            "others may have chosen the settings"
        )
    shared = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    chosen = [paper_systems()[name] for name in systems]
    specs: dict[str, dict[int, dict[str, RunSpec]]] = {kind: {} for kind in kinds}
    cohorts: dict[tuple[str, int], Cohort] = {}
    for kind in kinds:
        for seed in seeds:
            folder = out / f"{kind}-{seed}"
            cohort = make_cohort(folder, stays, cxr_rate, image_size, seed, kind)
            cohorts[kind, seed] = cohort
            specs[kind][seed] = {
                one.name: _specify(one, cohort, folder / "runs", shared, seed) for one in chosen
            }
            if ablations and seed == seeds[0]:
                specs[kind][seed] |= {
                    title: _specify(_ablation(title), cohort, folder / "runs", shared, seed)
                    for title in ABLATIONS
                }
    every = [spec for of_kind in specs.values() for of_seed in of_kind.values() for spec in of_seed.values()]
    if failed := train_all(every, workers):
        raise InputError(f"{len(failed)} runs failed, the first of them {failed[0]}")
    hospitals = {(kind, seed): out / f"{kind}-{seed}" / "hospital" for kind, seed in cohorts}
    jobs = [
        _Job(kind, name, spec.folder, hospitals[kind, seed], cohorts[kind, seed], seed)
        for kind, of_kind in specs.items()
        for seed, of_seed in of_kind.items()
        for name, spec in of_seed.items()
    ]
    done = spread(_measure, jobs, workers, ray=False)
    found = {(job.kind, job.seed, job.name): one for job, one in tracked(done, "measuring", total=len(jobs))}
    measured = {
        kind: [
            {name: found[kind, seed, name] for name in of_seed}
            | measure_perfect(hospitals[kind, seed], cohorts[kind, seed], seed)
            for seed, of_seed in of_kind.items()
        ]
        for kind, of_kind in specs.items()
    }
    (out / "claims.json").write_text(json.dumps(_numbers(measured), indent=1) + "\n", encoding="utf-8")
    titles = {system.name: system.title for system in chosen}
    settings = {"stays": stays, "cxr_rate": cxr_rate, "image_size": image_size, "seeds": list(seeds)}
    tables = report(measured, titles, {name: name for name in ABLATIONS})
    text = f"drfuse {__version__}, {json.dumps(settings)}\n\n{tables}"
    (out / "claims.md").write_text(text, encoding="utf-8")
    figures(measured, titles, out)
    return text


@dataclass(frozen=True)
class _Job:
    """A run to measure: its hospital's kind and seed, its name, its folder, and what it is measured on."""

    kind: str
    name: str
    run: Path
    hospital: Path
    cohort: Cohort
    seed: int


def _measure(job: _Job) -> Measured:
    return measure_run(job.run, job.hospital, job.cohort, job.seed)


def _specify(system: System, cohort: Cohort, runs: Path, shared: Mapping[str, Any], seed: int) -> RunSpec:
    """Return the run of a system on the full dataset of a hospital, with the settings chosen for it."""
    own = {
        key: value for key, value in shared.items() if key not in ("model_args", "seeds", "settings", "lr")
    }
    of_system = shared.get("settings", {}).get(system.name.partition(":")[0], {})
    if unknown := of_system.keys() - OWN_OPTIONS:
        raise InputError(f"settings of {system.name}: {min(unknown)!r} is not a setting of one system")
    options = TrainOptions().changed(**own, **of_system, train_on="full", seed=seed)
    return specify(cohort, runs, system.title, system.with_arguments(shared.get("model_args", {})), options)


def _ablation(title: str) -> System:
    system = paper_systems()["additive-evidence"]
    model = {**system.model, "init_args": {**system.model.get("init_args", {}), **ABLATIONS[title]}}
    return replace(system, name=f"{system.name}:{title}", title=title, model=model)


def _numbers(measured: Mapping[str, Sequence[Mapping[str, Measured]]]) -> dict[str, Any]:
    return {
        kind: [{name: one.numbers for name, one in hospital.items()} for hospital in hospitals]
        for kind, hospitals in measured.items()
    }


if __name__ == "__main__":
    command(claims)
