"""Searches for DrFuse's loss weights and learning rate on the validation split; see `tune`."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import yaml
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.escapes import csv_of
from drfuse.files import file_lock, make_output_folder, make_own_folder, private, refuse_link, write_whole
from drfuse.imports import import_path
from drfuse.models import DrFuse
from drfuse.run import Run
from drfuse.training.fit import data_module
from drfuse.training.matrix import (
    SECONDS_TO_WAIT,
    RunSpec,
    check_models,
    specify,
    spread,
    train_all,
    train_one,
)
from drfuse.training.options import TrainOptions
from drfuse.training.tune import Sampler, Tuned

logger = logging.getLogger(__name__)

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_FAILURE = "failure"  # the attribute of a trial that holds its run's error


@dataclass(frozen=True)
class _Search:
    """A TPE search, as each of its processes needs it.

    Attributes:
        grid: The values of each hyper-parameter, of which the smallest and the largest bound the search.
        run_of: Returns the run of given hyper-parameters.
        out: Folder of the search.
        storage: URL of a database, or a file.
        study: The study's name in it.
        n_trials: How many trials to finish.
        seed: Seed of the sampler.
    """

    grid: Mapping[str, Sequence[float]]
    run_of: Callable[[Mapping[str, float]], RunSpec]
    out: Path
    storage: str
    study: str
    n_trials: int
    seed: int


@private()
def run_search(
    cohort: Path,
    out: Path,
    grid: Mapping[str, Sequence[float]],
    sampler: Sampler,
    trials: int,
    storage: str | None,
    model_args: Mapping[str, Any],
    workers: int,
    ray: bool | str,
    options: TrainOptions,
) -> Tuned:
    """Search within a grid, the values of each hyper-parameter; see `tune`."""
    opened, out = Cohort.open(cohort.resolve()), out.resolve()
    run_of = partial(_run_of, opened, out / "runs", model_args, options)
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    check_models([run_of(points[0])], data_module(opened, options))  # reports errors before any training
    make_output_folder(out)
    make_own_folder(out / "runs")
    if sampler == "grid":
        specs = [run_of(point) for point in points]
        failed = train_all(specs, workers, ray)
        rows = [
            {
                **point,
                "val_prauc_macro": _val_prauc(spec) if spec.is_done else None,
                "state": "complete" if spec.is_done else "failed",
                "run": spec.folder.name if spec.is_done else None,
            }
            for point, spec in zip(points, specs, strict=True)
        ]
    else:
        if storage is None:
            refuse_link(out / "study.journal")
            storage = str(out / "study.journal")
        study_name = run_of(dict.fromkeys(grid, 1.0)).folder.name  # each configuration has its own study
        search = _Search(grid, run_of, out, storage, study_name, trials, options.seed)
        with _quiet_optuna():
            study = _open(search)
            if workers == 1 and not ray:
                _work(search)
            else:
                for _ in spread(_work, [search] * workers, workers, ray):
                    pass
            ended = [trial for trial in study.trials if _is_over(trial)]
        rows = [_row(trial, run_of) for trial in ended]
        failed = [trial.user_attrs[_FAILURE] for trial in ended if _FAILURE in trial.user_attrs]
    if not any(row["state"] == "complete" for row in rows):
        why = f": {failed[0]}" if failed else " yet; start the command again, later or with more --trials"
        raise InputError(f"no trial is completed{why}")
    table = pl.DataFrame(rows, infer_schema_length=None)
    tuned = _write(out, table.sort("val_prauc_macro", descending=True, nulls_last=True, maintain_order=True))
    if failed and sampler == "grid":  # for TPE, a failed point is just one of its trials
        raise InputError(
            f"{len(failed)} of {len(rows)} runs failed, the first of them {failed[0]}; {out / 'trials.csv'} "
            "has the others, and the same command tries the failed ones again"
        )
    return tuned


def _run_of(
    cohort: Cohort,
    runs: Path,
    model_args: Mapping[str, Any],
    options: TrainOptions,
    point: Mapping[str, float],
) -> RunSpec:
    """Return the run of a point: a value for each hyper-parameter."""
    weights = {name: value for name, value in point.items() if name != "lr"}
    model = {"class_path": import_path(DrFuse), "init_args": {**model_args, **weights}}
    title = ", ".join(f"{name} {value:.3g}" for name, value in point.items())
    return specify(cohort, runs, title, model, options, lr=point["lr"])


def _work(search: _Search) -> None:
    """Train proposed points until the study has enough trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open(search)
    while True:
        with ExitStack() as locks:
            with file_lock(search.out / ".lock"):
                trial = _propose(study, search)
                if trial is None:
                    return
                locks.enter_context(_trial_lock(search, trial.number))
            _train(study, trial, search.run_of(trial.params))


def _propose(study: optuna.Study, search: _Search) -> optuna.Trial | None:
    """Return the next trial, or None if enough are finished or being trained.

    Its point depends on the seed and the earlier trials, not on the process or on interruptions.
    """
    _repropose_interrupted(study, search)
    earlier = study.get_trials(deepcopy=False)
    n_taken = sum(_is_over(trial) or trial.state == TrialState.RUNNING for trial in earlier)
    if n_taken >= search.n_trials:
        return None
    (seed,) = np.random.SeedSequence((search.seed, n_taken)).generate_state(1)
    study.sampler = optuna.samplers.TPESampler(seed=int(seed))
    trial = study.ask()
    for name, values in search.grid.items():
        trial.suggest_float(name, min(values), max(values), log=name == "lr")
    return trial


def _repropose_interrupted(study: optuna.Study, search: _Search) -> None:
    """Enqueue again the points whose trial no process trains any more; their runs resume."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        with suppress(Timeout), _trial_lock(search, trial.number):
            if study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
                continue  # it has just finished
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params.keys() == search.grid.keys():  # otherwise its point was never complete
                study.enqueue_trial(trial.params)


def _trial_lock(search: _Search, number: int) -> FileLock:
    """Return the lock of the process that trains a trial, which is free as soon as that process ends.

    Entering it raises Timeout if another process holds it.
    """
    return file_lock(search.out / f".trial-{number}.lock", seconds=0)


def _train(study: optuna.Study, trial: optuna.Trial, spec: RunSpec) -> None:
    """Train the run of a trial and tell the study its result, which may be that the point cannot be trained.

    Raises:
        OSError: If the machine fails, for example with a full disk; the trial then does not count.
    """
    from drfuse.training.pruning import ReportToTrial

    try:
        while (
            outcome := train_one(spec, callbacks=[ReportToTrial(trial)], passing=(optuna.TrialPruned,))
        ) == "busy":  # another trial has the same point
            time.sleep(SECONDS_TO_WAIT)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(spec.folder, ignore_errors=True)  # before the first checkpoint, it is already gone
        logger.info("trial %d stopped: %s", trial.number, spec.title)
        return
    except Exception:  # not an interruption, after which the trial is proposed again
        study.tell(trial, state=TrialState.FAIL)
        raise
    if isinstance(outcome, OSError):  # the machine's fault, not the point's
        study.tell(trial, state=TrialState.FAIL)
        raise outcome
    if isinstance(outcome, Exception):
        trial.set_user_attr(_FAILURE, f"{spec.title}: {outcome}")
        study.tell(trial, state=TrialState.FAIL)
        logger.error("trial %d failed: %s: %s", trial.number, spec.title, outcome)
        return
    study.tell(trial, _val_prauc(spec))
    logger.info("trial %d, validation macro PRAUC %.4f: %s", trial.number, _val_prauc(spec), spec.title)


def _is_over(trial: FrozenTrial) -> bool:
    """Return whether a trial has finished, was stopped or failed, and was not just interrupted."""
    return trial.state in _FINISHED or _FAILURE in trial.user_attrs


def _open(search: _Search) -> optuna.Study:
    """Return the study, which is created if it does not exist."""
    try:
        storage: str | BaseStorage = search.storage
        if "://" not in search.storage:
            storage = JournalStorage(JournalFileBackend(search.storage))
        return optuna.create_study(
            storage=storage,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
            study_name=search.study,
            direction="maximize",
            load_if_exists=True,
        )
    except Exception as error:  # whatever the database's driver raises
        reason = " ".join(str(error).split())
        raise InputError(
            f"the study in {search.storage} cannot be opened ({reason}); check --storage"
        ) from error


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _row(trial: FrozenTrial, run_of: Callable[[Mapping[str, float]], RunSpec]) -> dict[str, Any]:
    complete = trial.state == TrialState.COMPLETE
    value = trial.value if complete else trial.intermediate_values.get(trial.last_step or 0)
    run = run_of(trial.params).folder.name if complete else None
    state = "failed" if _FAILURE in trial.user_attrs else trial.state.name.lower()
    return {**trial.params, "val_prauc_macro": value, "state": state, "run": run}


def _val_prauc(spec: RunSpec) -> float:
    return spec.run.read_facts().val_prauc_macro


def _write(out: Path, trials: pl.DataFrame) -> Tuned:
    """Write `trials.csv`, and the best run's configuration without the cohort's path as `best.yaml`."""
    best_run = trials.filter(pl.col("state") == "complete")["run"][0]
    config = Run.open(out / "runs" / best_run).read_options()
    del config["cohort"]
    with file_lock(out / ".lock"):  # another command may finish at the same time
        write_whole(out / "best.yaml", yaml.safe_dump(config, sort_keys=False))
        write_whole(out / "trials.csv", csv_of(trials))
    return Tuned(out, trials, out / "best.yaml")
