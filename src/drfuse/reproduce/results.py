"""What the finished runs predict, and how well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.evaluation import SeededPrauc, seeded_prauc
from drfuse.reproduce.systems import System
from drfuse.run import Predictions, RunFacts
from drfuse.subsets import Split, Subset
from drfuse.training.matrix import RunSpec


@dataclass(frozen=True)
class Cell:
    """A system, trained on one of the two sets with one seed."""

    system: str
    train_on: Subset
    seed: int


@dataclass(frozen=True)
class Setting:
    """The stays that a system was trained on, and those that it is tested on."""

    train_on: Subset
    test_on: Subset

    def __str__(self) -> str:
        return f"trained on {self.train_on}, tested on {self.test_on}"


@dataclass(frozen=True)
class Results:
    """The predictions of finished runs.

    Attributes:
        cohort: What the runs were trained on.
        task: What is predicted.
        systems: The systems, in the order of the tables.
        cells: The finished runs.
        predictions: Of the test split, by system and training set, one for each seed.
        n_resamples: Half samples of the subjects behind each interval and test.
    """

    cohort: Cohort
    task: Task
    systems: Sequence[System]
    cells: Mapping[Cell, RunSpec]
    predictions: Mapping[tuple[str, Subset], Sequence[Predictions]]
    n_resamples: int
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
        """Return what the finished runs of a plan predict of the test split, and which are damaged."""
        predictions: dict[tuple[str, Subset], list[Predictions]] = {}
        whole, damaged = {}, []
        for cell, spec in cells.items():
            if not spec.is_done:
                continue
            try:
                RunFacts.read(spec.folder)
                of_seed = Predictions.read(spec.run.predictions).of_split("test")
            except InputError as error:
                remedy = f"remove {spec.folder}, and the same command trains it again"
                damaged.append(f"{spec.title} is damaged: {error}: {remedy}")
                continue
            whole[cell] = spec
            predictions.setdefault((cell.system, cell.train_on), []).append(of_seed)
        return cls(cohort, task, systems, whole, predictions, n_resamples), damaged

    def of(self, system: System, train_on: Subset) -> Sequence[Predictions]:
        """Return a system's predictions, one for each seed; none if it has no such runs."""
        return self.predictions.get((system.name, train_on), ())

    def by_system(self, train_on: Subset) -> dict[System, Sequence[Predictions]]:
        """Return the predictions of each system that has some; variants of DrFuse are left out."""
        return {
            system: runs
            for system in self.systems
            if not system.is_variant and (runs := self.of(system, train_on))
        }

    def prevalence(self, split: Split, subset: Subset) -> NDArray[np.float32]:
        """Return the share of these stays that have each label (C,)."""
        shares: NDArray[np.float32] = self.task.labels[self.task.rows(split, subset)].mean(axis=0)
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
        """Return how well a system does in a setting.

        None if it has no such runs, or does not predict every stay of the test set: its number could then not
        be compared with the others.
        """
        key, runs = (system.name, setting), self.of(system, setting.train_on)
        if key not in self._scores and runs:
            rows = runs[0].rows("test", setting.test_on)
            labels, logits = runs[0].labels[rows], [run.logits[rows] for run in runs]
            subjects = runs[0].stays["subject_id"].to_numpy()[rows]
            can_be_compared = labels.any() and not np.isnan(logits).any()
            self._scores[key] = (
                seeded_prauc(labels, logits, subjects, self.n_resamples) if can_be_compared else None
            )
        return self._scores.get(key)


def predicted_by_all(runs: Sequence[Predictions]) -> NDArray[np.bool_]:
    """Return the test stays that a system predicts with every seed (N,)."""
    unknown = np.isnan([run.logits for run in runs]).any(axis=(0, 2))
    return runs[0].rows("test") & ~unknown
