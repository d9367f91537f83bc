"""The runs that an experiment needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.reproduce.experiments import experiments_of
from drfuse.reproduce.names import ExperimentName
from drfuse.reproduce.results import Cell
from drfuse.reproduce.systems import System, paper_systems
from drfuse.subsets import Subset
from drfuse.training.matrix import RunSpec, specify
from drfuse.training.options import DEFAULTS, TrainOptions

OWN_OPTIONS = frozenset({"lr", "weight_decay"})
"""The training options that a system may have for itself, because they are tuned for each system."""


def plan(
    what: ExperimentName,
    cohort: Cohort,
    runs: Path,
    systems: Sequence[System],
    seeds: Sequence[int],
    model_args: Mapping[str, Any],
    options: TrainOptions = DEFAULTS,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    lr: float | None = None,
) -> dict[Cell, RunSpec]:
    """Return the runs that an experiment needs: one for each system, training set and seed.

    Args:
        what: The experiment, or `all`.
        cohort: The cohort.
        runs: The folder of all runs.
        systems: The systems to train.
        seeds: The seeds to train each with.
        model_args: Arguments for every model that takes them.
        options: Training options of all runs.
        settings: By system name, its own training options, which override `options`; the variants of DrFuse
            use DrFuse's unless they have their own.
        lr: Learning rate of all systems; None for each system's published one.

    Raises:
        InputError: If no system takes part, no model takes one of `model_args`, or `settings` has an unknown
            system, or an option that a system cannot have for itself.
    """
    shipped = paper_systems()
    known = {system.name: system for system in (*systems, *shipped.values())}  # settings may list any of them
    taken = {key for system in known.values() for key in system.with_arguments(model_args)["init_args"]}
    if unknown := sorted(model_args.keys() - taken):
        raise InputError(f"--model-args: none of the systems' models takes {unknown[0]!r}")
    settings = settings or {}
    _check_settings(settings, known)

    def run_of(system: System, train_on: Subset, seed: int) -> RunSpec:
        first = {key: run_of(shipped[name], train_on, seed) for key, name in system.first_stage.items()}
        rate = next((one for one in (lr, system.lr) if one is not None), options.lr)
        tuned_as = "drfuse" if system.is_variant and system.name not in settings else system.name
        own = {"lr": rate, **settings.get(tuned_as, {})}
        return specify(
            cohort,
            runs,
            f"{system.title}, trained on {train_on}, seed {seed}",
            system.with_arguments(model_args),
            options.changed(**own, train_on=train_on, seed=seed),
            first,
        )

    experiments = experiments_of(what).values()
    cells = {
        Cell(system.name, train_on, seed): run_of(system, train_on, seed)
        for experiment in experiments
        for system in systems
        if experiment.takes_part(system)
        for train_on in experiment.trained_on
        for seed in seeds
    }
    if not cells and any(experiment.trained_on for experiment in experiments):
        raise InputError(f"none of the systems takes part in {what}; choose others in --models")
    return cells


def _check_settings(settings: Mapping[str, Mapping[str, Any]], known: Mapping[str, System]) -> None:
    """Check the systems, options and values in `settings`.

    Raises:
        InputError: If a system is unknown or fitted by a solver, an option is not in `OWN_OPTIONS`, or a
            value is out of range.
    """
    for name, own in settings.items():
        if name not in known:
            raise InputError(f"settings: {name!r} is not a system; expected {', '.join(sorted(known))}")
        if known[name].is_fitted:
            raise InputError(f"settings: a solver fits {name}: it has no lr or weight_decay; leave it out")
        if unknown := sorted(own.keys() - OWN_OPTIONS):
            expected = " or ".join(sorted(OWN_OPTIONS))
            raise InputError(f"settings: {unknown[0]!r} cannot be set for {name} alone; expected {expected}")
        try:
            DEFAULTS.changed(**own)
        except InputError as error:
            raise InputError(f"settings of {name}: {error}") from error
