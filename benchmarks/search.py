"""The same small search for every system: which learning rate and weight decay, on development hospitals.

Hospitals of other seeds than those that are measured later are simulated and prepared. On each, every system
is trained on the matched set with every setting, and judged on the stays of a split that trained nothing and
chose no epoch. The setting with the highest mean over the hospitals is the system's; no stay of a hospital
that is measured later is read.
`python -m benchmarks.search --out DIR --config-file benchmarks/small.yaml` goes on where it was interrupted,
and writes `DIR/settings.yaml` for `drfuse reproduce --config` and `DIR/search.md` with every trial.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import yaml

from benchmarks.command import command
from benchmarks.development import development_cohorts, unseen_prauc
from drfuse.errors import InputError
from drfuse.reproduce.plan import plan
from drfuse.reproduce.systems import choose_systems
from drfuse.run import Predictions
from drfuse.training import TrainOptions
from drfuse.training.matrix import RunSpec, train_all

Setting = tuple[float, float]
"""A learning rate and a weight decay."""


def search(
    out: Path,
    config_file: Path,
    hospitals: Sequence[int] = (101, 102),
    lr: Sequence[float] = (5e-4, 1e-3, 2e-3),
    weight_decay: Sequence[float] = (0.0,),
    stays: int = 3000,
    cxr_rate: float = 0.5,
    image_size: int = 64,
    systems: Sequence[str] | None = None,
    workers: int = 1,
) -> dict[str, dict[str, float]]:
    """Choose the settings of every system of `drfuse reproduce` that is not a variant of DrFuse.

    Args:
        out: Folder for hospitals, cohorts, runs and the result.
        config_file: What all systems share: the options of `drfuse reproduce`, as in `small.yaml`. Its seeds,
            `lr` and `settings` are left out.
        hospitals: Seeds of the development hospitals.
        lr: Learning rates to try.
        weight_decay: Weight decays to try with each.
        stays: Of each hospital.
        cxr_rate: Share of them with a radiograph.
        image_size: Side of the radiographs, in pixels.
        systems: Names of systems of `drfuse reproduce`; by default, all that it compares unasked.
        workers: Runs at a time.

    Returns:
        The chosen settings by system, as `settings` of `drfuse reproduce` takes them.

    Raises:
        InputError: If a hospital is one that is measured, or was made with other options, or a run failed.
    """
    shared = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    model_args = shared.pop("model_args", {})
    own = {key: value for key, value in shared.items() if key not in ("seeds", "lr", "settings")}
    options = TrainOptions().changed(**own)
    # a solver fits the linear baselines, which have neither; variants take DrFuse's
    chosen = [system for system in choose_systems(systems) if not (system.is_variant or system.reference)]
    trials: dict[tuple[str, Setting], list[RunSpec]] = defaultdict(list)
    for cohort in development_cohorts(out, hospitals, stays, cxr_rate, image_size):
        for setting in itertools.product(lr, weight_decay):
            rate, decay = setting
            given = options.changed(weight_decay=decay)
            cells = plan("table2", cohort, out / "runs", chosen, [0], model_args, given, lr=rate)
            for cell, spec in cells.items():
                if cell.train_on == "matched":
                    trials[cell.system, setting].append(spec)
    if failed := train_all([spec for specs in trials.values() for spec in specs], workers):
        raise InputError(f"{len(failed)} runs failed, the first of them {failed[0]}")
    praucs = {
        trial: unseen_prauc([Predictions.read(spec.run.predictions) for spec in specs])
        for trial, specs in trials.items()
    }
    settings = choose(praucs)
    (out / "settings.yaml").write_text(yaml.safe_dump({"settings": settings}), encoding="utf-8")
    (out / "search.md").write_text(table(praucs), encoding="utf-8")
    return settings


def choose(praucs: Mapping[tuple[str, Setting], Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return each system's setting with the highest mean PRAUC; of equals, the first one.

    >>> choose({("a", (1e-3, 0.0)): [0.3, 0.4], ("a", (1e-4, 0.1)): [0.5, 0.4]})
    {'a': {'lr': 0.0001, 'weight_decay': 0.1}}
    """
    best: dict[str, Setting] = {}
    for (system, setting), values in praucs.items():
        if system not in best or mean(values) > mean(praucs[system, best[system]]):
            best[system] = setting
    return {system: {"lr": lr, "weight_decay": decay} for system, (lr, decay) in best.items()}


def table(praucs: Mapping[tuple[str, Setting], Sequence[float]]) -> str:
    """Return every trial as a Markdown table: the mean over the hospitals, and each of them."""
    lines = ["| system | lr | weight decay | macro PRAUC | hospitals |", "|---|---|---|---|---|"]
    for (system, (lr, decay)), values in praucs.items():
        each = "; ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {system} | {lr:g} | {decay:g} | {mean(values):.3f} | {each} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    command(search)
