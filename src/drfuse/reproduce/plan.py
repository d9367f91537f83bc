"""Which runs an experiment needs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.reproduce.experiments import ExperimentName, experiments_of
from drfuse.reproduce.results import Cell
from drfuse.reproduce.systems import System, paper_systems
from drfuse.subsets import Subset
from drfuse.training.matrix import RunSpec, specify
from drfuse.training.options import DEFAULTS, TrainOptions

OWN_OPTIONS = frozenset({"lr", "weight_decay"})
"""The options of `train` that a system may have for itself: what was tuned for each."""


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
    """Return the runs that an experiment needs, each once.

    Each system is trained once a seed. `model_args` go to every model that takes them. `settings` are, by a
    system's name, its own options of `train`, which go before `options`; a variant of DrFuse without any
    takes DrFuse's. Without `lr` each system has its published learning rate.

    Raises:
        InputError: If no system takes part, no system takes one of `model_args`, or `settings` has an unknown
            system or an option that a system cannot have for itself.
    """
    known = (*systems, *paper_systems().values())  # one configuration may serve any of them
    taken = {key for system in known for key in system.with_arguments(model_args)["init_args"]}
    if unknown := sorted(model_args.keys() - taken):
        raise InputError(f"--model-args: none of the systems' models takes {unknown[0]!r}")

    settings = settings or {}
    _check_settings(settings, {system.name: system for system in known})

    def run_of(system: System, train_on: Subset, seed: int) -> RunSpec:
        shipped = paper_systems()
        first = {key: run_of(shipped[name], train_on, seed) for key, name in system.first_stage.items()}
        rate = next((one for one in (lr, system.lr) if one is not None), options.lr)
        return specify(
            cohort,
            runs,
            f"{system.title}, trained on {train_on}, seed {seed}",
            system.with_arguments(model_args),
            options.changed(**{"lr": rate, **_own(system, settings)}, train_on=train_on, seed=seed),
            first,
        )

    cells = {
        Cell(system.name, train_on, seed): run_of(system, train_on, seed)
        for experiment in experiments_of(what).values()
        for system in systems
        if experiment.takes_part(system)
        for train_on in experiment.trained_on
        for seed in seeds
    }
    if not cells and any(experiment.trained_on for experiment in experiments_of(what).values()):
        raise InputError(f"none of the systems takes part in {what}; choose others in --models")
    return cells


def _own(system: System, settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a system's own options; a variant without any has DrFuse's."""
    name = "drfuse" if system.is_variant and system.name not in settings else system.name
    return settings.get(name, {})


def _check_settings(settings: Mapping[str, Mapping[str, Any]], known: Mapping[str, System]) -> None:
    """Check the systems, options and values in `settings`.

    Raises:
        InputError: If a system is unknown or fitted by a solver, an option is not in `OWN_OPTIONS`, or a
            value is out of range.
    """
    options = ", ".join(sorted(OWN_OPTIONS))
    for name, own in settings.items():
        if name not in known:
            raise InputError(
                f"settings: there is no system {name!r}; expected some of {', '.join(sorted(known))}"
            )
        if known[name].is_fitted:
            raise InputError(
                f"settings: a solver fits {name}, which has no lr and no weight_decay; leave it out"
            )
        if unknown := sorted(own.keys() - OWN_OPTIONS):
            raise InputError(f"settings: {unknown[0]!r} cannot be set for {name} alone; expected {options}")
        for option, value in own.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf or (option == "lr" and value == 0):
                expected = "a number above 0" if option == "lr" else "a number of at least 0"
                raise InputError(f"settings: {option} of {name} is {value!r}; expected {expected}")
