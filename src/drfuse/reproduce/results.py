"""The predictions of finished runs, and their scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.evaluation import Recalibration, SeededPrauc, fit_recalibration, seeded_prauc
from drfuse.evaluation.external import Shift, predict_elsewhere
from drfuse.logs import tracked
from drfuse.reproduce.systems import System
from drfuse.run import Predictions
from drfuse.subsets import Split, Subset
from drfuse.training.matrix import RunSpec

_RUNS_IN_MEMORY = 8
"""How many runs' predictions are kept after use; more are read again."""


@dataclass(frozen=True)
class Cell:
    """One run: a system trained on one of the two training sets with one seed."""

    system: str
    train_on: Subset
    seed: int


@dataclass(frozen=True)
class Setting:
    """A training set and a test set."""

    train_on: Subset
    test_on: Subset

    def __str__(self) -> str:
        return f"trained on {self.train_on}, tested on {self.test_on}"


@dataclass(frozen=True)
class Results:
    """The predictions of finished runs.

    Attributes:
        cohort: The cohort that the runs were trained on.
        task: The task that they predict.
        systems: The systems, in the order of the tables.
        cells: The finished runs.
        predictions: By system and training set, the predictions of the test split, one for each seed.
        n_resamples: Half samples of the subjects behind each interval and test.
        elsewhere: The results of the same runs on another cohort, all of whose stays are tested; None if
            there is no such cohort.
        shift: How the stays of this cohort differ from those of the training, if the runs were trained on
            another.
    """

    cohort: Cohort
    task: Task
    systems: Sequence[System]
    cells: Mapping[Cell, RunSpec]
    predictions: Mapping[tuple[str, Subset], Sequence[Predictions]]
    n_resamples: int
    elsewhere: "Results | None" = None
    shift: Sequence[Shift] = ()
    _scores: dict[tuple[str, Setting], SeededPrauc | None] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        cohort: Cohort,
        task: Task,
        systems: Sequence[System],
        cells: Mapping[Cell, RunSpec],
        n_resamples: int,
    ) -> tuple["Results", list[str]]:
        """Return the results of the finished runs of a plan, and a sentence about each damaged run."""
        read = lru_cache(_RUNS_IN_MEMORY)(partial(Predictions.read, split="test"))
        files: dict[tuple[str, Subset], list[Path]] = {}
        readable, damaged = {}, []
        for cell, spec in cells.items():
            if not spec.is_done:
                continue
            try:
                _check(spec, task, read)
            except InputError as error:
                remedy = f"remove {spec.folder}, and the same command trains it again"
                damaged.append(f"{spec.title} is damaged: {error}: {remedy}")
                continue
            readable[cell] = spec
            files.setdefault((cell.system, cell.train_on), []).append(spec.run.predictions)
        predictions = {key: _Stored(of_seeds, read) for key, of_seeds in files.items()}
        return cls(cohort, task, systems, readable, predictions, n_resamples), damaged

    def measured_on(self, other: Cohort, other_people: bool, accelerator: str) -> "Results":
        """Return the results with those of the same runs on another cohort; each run predicts it once.

        Raises:
            InputError: If the cohort does not fit a run, or has a subject that it learned from (see
                `predict_elsewhere`).
        """
        read = lru_cache(_RUNS_IN_MEMORY)(partial(Predictions.read, split="test"))
        files: dict[tuple[str, Subset], list[Path]] = {}
        shift: Sequence[Shift] = ()
        for cell, spec in tracked(self.cells.items(), f"predicting {other.folder.name}", len(self.cells)):
            found, external = predict_elsewhere(spec.run, other, other_people, accelerator, progress=False)
            files.setdefault((cell.system, cell.train_on), []).append(found.predictions)
            shift = external.shift
        predictions = {key: _Stored(of_seeds, read) for key, of_seeds in files.items()}
        task = Task.of(other, self.task.name)
        there = Results(other, task, self.systems, self.cells, predictions, self.n_resamples, shift=shift)
        return replace(self, elsewhere=there)

    def of(self, system: System, train_on: Subset) -> Sequence[Predictions]:
        """Return a system's predictions, one for each seed; empty if it has no such run."""
        return self.predictions.get((system.name, train_on), ())

    def recalibrations(self, system: System, train_on: Subset) -> list[Recalibration]:
        """Return what each run of a system learned of its probabilities, in the order of `of`.

        Empty unless every run did. Runs of an earlier version learn it now.
        """
        runs = [
            spec.run
            for cell, spec in self.cells.items()
            if (cell.system, cell.train_on) == (system.name, train_on)
        ]
        found = [
            Recalibration.read(run.folder) or fit_recalibration(run.read_predictions("validation", True))
            for run in runs
        ]
        learned = [one for one in found if one is not None]
        return learned if len(learned) == len(found) else []

    def by_system(self, train_on: Subset) -> dict[System, Sequence[Predictions]]:
        """Return the predictions of each system that has some, without the variants of DrFuse."""
        return {
            system: runs
            for system in self.systems
            if not system.is_variant and (runs := self.of(system, train_on))
        }

    def prevalence(self, split: Split, subset: Subset) -> NDArray[np.float32]:
        """Return the share of these stays that has each label (C,)."""
        shares: NDArray[np.float32] = self.task.labels_of(self.task.rows(split, subset)).mean(axis=0)
        return shares

    @property
    def is_of_the_paper(self) -> bool:
        """Whether the paper has numbers for this task."""
        return self.task.name == "phenotyping"

    @property
    def n_seeds(self) -> int:
        """How many seeds each system was trained with."""
        return max(map(len, self.predictions.values()), default=0)

    def score(self, system: System, setting: Setting) -> SeededPrauc | None:
        """Return a system's macro PRAUC in a setting.

        None if it has no such run, no label has a positive, or the system does not predict every stay of the
        test set, so that its score would not be comparable.
        """
        key, runs = (system.name, setting), self.of(system, setting.train_on)
        if key not in self._scores and runs:
            labels, logits, subjects = select(runs, runs[0].rows("test", setting.test_on))
            is_comparable = labels.any() and not np.isnan(logits).any()
            score = seeded_prauc(labels, logits, subjects, self.n_resamples) if is_comparable else None
            self._scores[key] = score
        return self._scores.get(key)


class _Stored(Sequence[Predictions]):
    """The predictions of a system's test stays, one for each seed, read whenever they are used."""

    def __init__(self, files: Sequence[Path], read: Callable[[Path], Predictions]) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: Any) -> Any:
        found = self.files[number]
        return self.read(found) if isinstance(found, Path) else [self.read(file) for file in found]


def _check(spec: RunSpec, task: Task, read: Callable[[Path], Predictions]) -> None:
    """Raise InputError if a run's files are damaged or missing, or belong to another cohort or task."""
    facts, cohort, rows = spec.run.read_facts(), task.cohort, task.rows("test")
    Recalibration.read(spec.run.folder)
    predictions = read(spec.run.predictions)
    if not (
        facts.cohort == cohort.fingerprint
        and facts.label_names == predictions.phenotypes == task.label_names
        and predictions.stays.equals(cohort.columns(*predictions.stays.columns)[rows])
        and np.array_equal(predictions.labels, task.labels_of(rows))
        and predictions.logits.shape == predictions.labels.shape
    ):
        raise InputError(f"its files are not all of the cohort {cohort.folder} and the task {task.name}")


def select(
    runs: Sequence[Predictions], rows: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]], NDArray[np.int64]]:
    """Return the labels (n, C), each seed's logits (n, C) and the subjects (n,) in these rows of a system."""
    subjects = runs[0].stays["subject_id"].to_numpy()
    return runs[0].labels[rows], [run.logits[rows] for run in runs], subjects[rows]


def predicted_by_all(runs: Sequence[Predictions]) -> NDArray[np.bool_]:
    """Return whether a system predicts each test stay with every seed (N,)."""
    unknown = np.isnan([run.logits for run in runs]).any(axis=(0, 2))
    return runs[0].rows("test") & ~unknown
