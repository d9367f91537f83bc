"""Trains many runs, several at a time; each is identified by a hash of its settings and trained once."""

import gc
import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from drfuse.data import Cohort
from drfuse.errors import BusyError, DamagedRunError, InputError, describe_os_error
from drfuse.files import is_locked, make_folder
from drfuse.imports import describe_error, import_class, import_path
from drfuse.logs import Terminal, log_to, progress_bars
from drfuse.models import FusionModel
from drfuse.processes import end_with_parent
from drfuse.run import Run
from drfuse.training.network import make_network
from drfuse.training.options import DEFAULTS, TrainOptions
from drfuse.training.train import train

if TYPE_CHECKING:
    from drfuse.data import CohortDataModule

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT = 5.0
"""Pause before looking again at a run that another command is training."""

_RAY_RETRIES = 3
_RAY_TIMEOUT_SECONDS = 10.0

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

Outcome = Literal["done", "busy"] | InputError | OSError


@dataclass(frozen=True)
class RunSpec:
    """One training of a matrix.

    Attributes:
        title: Its name, for people.
        cohort: Folder of the cohort.
        model: `class_path` and `init_args`, as in `config.yaml`.
        options: How it is trained.
        folder: Folder of the run.
        after: Runs whose weights it starts from.
    """

    title: str
    cohort: Path
    model: Mapping[str, Any]
    options: TrainOptions
    folder: Path
    after: Sequence["RunSpec"] = ()

    @property
    def run(self) -> Run:
        """The files of the run."""
        return Run(self.folder)

    @property
    def is_done(self) -> bool:
        """Whether the run is finished."""
        return self.run.is_finished

    @property
    def damage(self) -> str | None:
        """What is damaged in the finished run, if something is; its files are read once (see `Run.check`)."""
        try:
            if self.is_done:
                self.run.check()
        except InputError as error:
            return str(error).partition(";")[0]
        return None


def specify(
    cohort: Cohort,
    runs: Path,
    title: str,
    model: Mapping[str, Any],
    options: TrainOptions = DEFAULTS,
    after: Mapping[str, RunSpec] | None = None,
    **changes: Any,
) -> RunSpec:
    """Return a run whose folder's name has a hash of the cohort, the model and the options that decide it.

    Folders of the cohort and the runs, and options that only say how to compute, do not enter the hash (see
    `TrainOptions.deciding`); of a path, only the last part does.

    Args:
        cohort: The cohort.
        runs: Folder of the runs.
        title: Its name, for people.
        model: `class_path`, and the `init_args` that differ from the model's defaults.
        options: How it is trained.
        after: By `ehr` and `cxr`, the unimodal run whose weights the encoder starts from.
        changes: Options by name, in place of those in `options`.

    Raises:
        InputError: If the model or an option is unknown.
    """
    after = after or {}
    starts = {f"init_{modality}": spec.folder for modality, spec in after.items()}
    options = options.changed(**changes, **starts)
    kind = import_class(model["class_path"], FusionModel)
    if options.train_on == "full" or len(kind.reads) == 1:  # the option changes nothing there
        options = options.changed(matched_cxr_dropout=DEFAULTS.matched_cxr_dropout)
    described = {"class_path": import_path(kind), "init_args": _init_args(model, kind)}
    identity = {"cohort": cohort.fingerprint, "model": described, **options.deciding()}
    try:
        text = json.dumps(_plain(identity), sort_keys=True)
    except TypeError as error:
        raise InputError(
            f"an argument of {kind.__name__} cannot be written as JSON ({error}); use numbers, text, lists "
            "and mappings"
        ) from error
    name = f"{kind.__name__}-{options.train_on}-{options.seed}".lower()
    folder = runs / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return RunSpec(title, cohort.folder, described, options, folder, tuple(after.values()))


def _plain(value: Any) -> Any:
    """Return a value for hashing: paths become their last part, and whole floats integers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_models(specs: Sequence[RunSpec], data: "CohortDataModule") -> None:
    """Make the model of each run that is not finished and whole, before anything is trained.

    Raises:
        InputError: If one cannot be made, or has no CXR encoder to freeze.
    """
    n_features, n_labels = len(data.dataset.features), len(data.dataset.task.label_names)
    every = [one for spec in specs for one in (*spec.after, spec) if not one.is_done or one.damage]
    for spec in {str(spec.model): spec for spec in every}.values():
        make_network(_model_of(spec), n_features, n_labels, spec.options.freeze_cxr)


def _model_of(spec: RunSpec) -> Callable[[int, int], FusionModel]:
    return partial(import_class(spec.model["class_path"], FusionModel), **spec.model["init_args"])


def train_all(specs: Sequence[RunSpec], workers: int = 1, ray: bool | str = False) -> list[str]:
    """Train the runs that are not finished, resume those that were interrupted, and return the failures.

    A finished run that is damaged is trained again. A run that another command is training is left to it and
    waited for. A failed run does not stop the others.

    Args:
        specs: The runs; duplicates are trained once.
        workers: Runs at a time, each in its own process with its share of the CPU cores and one of the GPUs.
        ray: Use a Ray cluster instead: its address, or True for one on this machine. Each run gets a GPU if
            the cluster has any. All machines need to see the folders of the cohort and the runs.

    Returns:
        One sentence for each run that failed.

    Raises:
        InputError: If a process died, or Ray is requested but not available.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    for folder in {spec.folder.parent for spec in specs}:
        make_folder(folder)
    failed: list[str] = []
    if first := [one for spec in specs for one in spec.after]:
        logger.info("training the runs that others start from first")
        failed += train_all(first, workers, ray)
    left = {spec.folder: spec for spec in specs if not spec.is_done or spec.damage}
    logger.info("training %d of %d runs", len(left), len({spec.folder for spec in specs}))
    parallel = bool(ray) or workers > 1  # otherwise Lightning shows a bar for each run
    columns = ("training", BarColumn(), MofNCompleteColumn(), "runs", TimeElapsedColumn())
    with progress_bars(*columns, shown=parallel) as progress:
        bar = progress.add_task("", total=len(left))
        while left:
            jobs = [spec for spec in left.values() if spec.is_done or not is_locked(spec.folder)]
            if not jobs:
                logger.info("waiting for %d runs that another command is training", len(left))
                time.sleep(SECONDS_TO_WAIT)
                continue
            for spec, outcome in spread(train_one, jobs, workers, ray) if parallel else _one_by_one(jobs):
                if outcome == "busy":
                    continue
                del left[spec.folder]
                progress.advance(bar)
                if isinstance(outcome, Exception):
                    failed.append(f"{spec.title}: {describe_os_error(outcome)}")
                    logger.error("failed: %s", failed[-1])
                else:
                    logger.info("trained: %s", spec.title)
    return failed


def train_one(
    spec: RunSpec,
    progress: bool = False,
    callbacks: Sequence[object] = (),
    passing: tuple[type[Exception], ...] = (),
) -> Outcome:
    """Train a run unless it is finished and whole, or another command is training it.

    Args:
        spec: The run.
        progress: Whether to show progress bars.
        callbacks: Further Lightning callbacks.
        passing: Exceptions of the callbacks that are raised to the caller.

    Returns:
        `done`, `busy` if another command is training it, or the error.
    """
    damage = spec.damage
    if spec.is_done and damage is None:
        return "done"
    if is_locked(spec.folder):
        return "busy"
    try:
        if lacking := [one.title for one in spec.after if not one.is_done]:
            raise InputError(f"it starts from {' and '.join(lacking)}, which failed")
        # under torchrun or srun, processes share the list of runs, not a single run
        alone = spec.options.changed(devices=1, nodes=1)
        fit = partial(train, spec.cohort, spec.folder, _model_of(spec), alone, progress=progress)
        try:
            if damage is None:
                fit(callbacks=callbacks)
        except DamagedRunError as error:
            damage = str(error).partition(";")[0]
        if damage is not None:
            logger.warning("%s: %s; it is trained from the beginning", spec.title, damage)
            fit(callbacks=callbacks, overwrite=True)
    except passing:
        raise
    except BusyError:
        return "busy"
    except (InputError, OSError) as error:
        # another command may just have finished it
        return "done" if spec.is_done and spec.damage is None else error
    except Exception as error:  # whatever a model raises: a full GPU, mismatched tensors, its own errors
        logger.debug("%s failed", spec.title, exc_info=True)
        return InputError(f"{describe_error(error)}; run `drfuse train` with its options to see where")
    finally:
        gc.collect()  # a trainer and its model refer to each other
    return "done"


def spread(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, ray: bool | str
) -> Iterator[tuple[_Job, _Result]]:
    """Yield each job with the function's result as it ends, from local processes or from a Ray cluster.

    Raises:
        InputError: If a process died, or Ray is not available.
    """
    return _on_ray(function, jobs, ray) if ray else _in_processes(function, jobs, workers)


def _one_by_one(specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Outcome]]:
    for number, spec in enumerate(specs, start=1):
        logger.info("run %d of %d: %s", number, len(specs), spec.title)
        yield spec, train_one(spec, progress=True)


def _in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int
) -> Iterator[tuple[_Job, _Result]]:
    waiting, running = iter(jobs), dict[Future[_Result], _Job]()
    others = set(multiprocessing.active_children())
    with _worker_pool(workers) as pool:
        try:
            while True:
                for job in islice(waiting, workers - len(running)):
                    running[pool.submit(function, job)] = job
                if not running:
                    return
                # wake every second: a signal that another thread receives is only handled when this one runs
                for done in wait_for(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        except BaseException as error:  # such as an interruption; the runs can be resumed
            for process in set(multiprocessing.active_children()) - others:
                process.kill()  # a process would treat a milder signal as an interruption of its run alone
            if not isinstance(error, BrokenProcessPool):
                raise
            raise InputError(
                "a process that trained a run died, perhaps because memory ran out; finished runs are kept: "
                "start the command again, with fewer --workers"
            ) from error


def _worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes that share the CPU cores and the GPUs, and end with this one."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    n_threads = max(1, torch.get_num_threads() // workers)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    settings = (context.Value("i", 0), n_threads, gpus.split(","), logger.getEffectiveLevel())
    return ProcessPoolExecutor(workers, context, _prepare_worker, settings)


def _prepare_worker(n_started: Any, n_threads: int, gpus: Sequence[str], level: int) -> None:
    with n_started.get_lock():
        number, n_started.value = n_started.value, n_started.value + 1
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]  # before CUDA starts in this process
    torch.set_num_threads(n_threads)
    log_to(Terminal(stderr=True), level)
    end_with_parent()


def _on_ray(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], address: bool | str
) -> Iterator[tuple[_Job, _Result]]:
    """Yield each job and its result; a job lost with its machine starts again on another."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--ray needs Ray; install it with `pip install '.[ray]'` in drfuse's checkout"
        ) from error
    try:
        if isinstance(address, str) and ":" in address:  # Ray itself would keep trying for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=_RAY_TIMEOUT_SECONDS).close()
        ray.init(
            address if isinstance(address, str) else None,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one, or choose a different --ray"
        ) from error
    n_gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=_RAY_RETRIES)(function)
    left = {remote.remote(job): job for job in jobs}
    try:
        while left:
            (done,), _ = ray.wait(list(left))
            yield left[done], ray.get(done)
            del left[done]
    except ray.exceptions.RayTaskError as error:  # what the function raised
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a run was lost on the Ray cluster and {_RAY_RETRIES} retries failed ({error}); start the "
            "command again to continue"
        ) from error
    finally:
        for job in left:
            ray.cancel(job)


def _init_args(model: Mapping[str, Any], kind: type[FusionModel]) -> dict[str, Any]:
    """Return the model's arguments after its two sizes, defaults included."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [one for one in inspect.signature(kind).parameters.values() if one.kind not in variadic][2:]
    given = dict(model.get("init_args") or {})
    if unknown := sorted(given.keys() - {parameter.name for parameter in parameters}):
        raise InputError(f"{model['class_path']} takes no argument {unknown[0]!r}")
    arguments = {parameter.name: given.get(parameter.name, parameter.default) for parameter in parameters}
    if lacking := [name for name, value in arguments.items() if value is inspect.Parameter.empty]:
        raise InputError(f"{model['class_path']} needs the argument {lacking[0]!r}")
    return arguments
