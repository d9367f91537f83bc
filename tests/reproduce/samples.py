"""Results of runs that were never trained: a cohort and predictions made in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from drfuse.cohort.manifest import Manifest
from drfuse.data import Cohort, Task, TaskName
from drfuse.evaluation import Recalibration
from drfuse.report import Number, Row, Table
from drfuse.reproduce.results import Cell, Results, Setting
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Predictions, Run
from drfuse.subsets import Subset
from drfuse.training.matrix import RunSpec
from drfuse.training.options import TrainOptions

PHENOTYPES = ["Shock", "Septicemia (except in labor)", "Cardiac dysrhythmias"]
LINES = [  # a recalibration for each of two seeds
    Recalibration("temperature", PHENOTYPES, [0.5] * 3, [0.0] * 3, {}, [], {}, 6, 3),
    Recalibration("platt", PHENOTYPES, [0.2, 0.4, 0.6], [0.5, -0.5, 0.0], {}, [], {}, 6, 3),
]
SPLITS = ("train",) * 30 + ("validation",) * 6 + ("test",) * 40
N = len(SPLITS)
TEST = np.array(SPLITS) == "test"
HAS_CXR = np.arange(N) % 4 != 1
MATCHED_TEST = TEST & HAS_CXR
SUBJECTS = 100 + np.arange(N) // 2
STAYED = np.arange(N) % 3 != 0  # until the window ended: these take part in the other tasks
DIED = (np.arange(N) % 5 < 2) ^ ~STAYED
MAIN = ("transformer", "resnet50", "late-fusion", "mmtm", "daft", "medfuse", "medfuse-ii", "drfuse")
VARIANTS = ("drfuse-no-disentangling", "drfuse-mse", "drfuse-no-ranking")
RESAMPLES = 20

Floats = NDArray[np.floating[Any]]


def draw_labels(seed: int = 0) -> NDArray[np.uint8]:
    """Return the labels (N, C) of `make_cohort`."""
    return (np.random.default_rng(seed).random((N, len(PHENOTYPES))) < 0.4).astype(np.uint8)


def make_cohort(labels: NDArray[np.uint8] | None = None) -> Cohort:
    """Return a cohort of two stays a subject, three in four with a radiograph, every third of two days."""
    labels = draw_labels() if labels is None else labels
    stays = pl.DataFrame(
        {
            "subject_id": SUBJECTS,
            "stay_id": 1000 + np.arange(N),
            "split": SPLITS,
            "age": np.linspace(20, 88, N),
            "gender": ["F" if subject % 3 else "M" for subject in SUBJECTS],
            "race": ["WHITE"] * N,
            "admission_type": ["URGENT"] * N,
            "los": np.where(STAYED, 6.5, 1.5),
            "in_hospital_mortality": DIED,
            "has_cxr": HAS_CXR,
            "cxr_row": pl.Series(np.cumsum(HAS_CXR) - 1).set(pl.Series(~HAS_CXR), None),
            **{name: labels[:, c].astype(bool) for c, name in enumerate(PHENOTYPES)},
        }
    )
    manifest = Manifest("0", {}, {"window_hours": 48}, [], [], PHENOTYPES, {}, {}, {})
    return Cohort(Path("nowhere"), manifest, np.empty(0, "f4"), np.empty((0, 8, 8), "u1"), {}, stays)


def predict(
    system: str, labels: NDArray[Any], train_on: Subset, seed: int, names: Sequence[str] = PHENOTYPES
) -> Predictions:
    """Return what a system could say of all stays: noise that leans to the labels (N, C).

    One of radiographs alone says nothing of stays without, one of the EHR alone the same with and without.
    From the radiograph alone, a fusion says something else again.
    """
    rng = np.random.default_rng([*system.encode(), len(train_on), seed])
    without = (rng.normal(size=labels.shape) + labels).astype(np.float32)
    with_cxr = (without + 0.5 * rng.normal(size=labels.shape) + 0.5 * labels).astype(np.float32)
    alone = (with_cxr + rng.normal(size=labels.shape)).astype(np.float32)
    reads = paper_systems()[system].reads
    if list(reads) == ["ehr"]:
        with_cxr, alone = without, np.full_like(without, np.nan)
    elif list(reads) == ["cxr"]:
        without, alone = np.full_like(without, np.nan), with_cxr
    return Predictions(
        phenotypes=list(names),
        stays=make_cohort().stays.select("subject_id", "stay_id", "split", "has_cxr"),
        logits=np.where(HAS_CXR[:, None], with_cxr, without),
        labels=labels.astype(np.uint8),
        modality_weights=None,
        logits_without_cxr=without,
        logits_without_ehr=np.where(HAS_CXR[:, None], alone, np.float32(np.nan)),
    )


def results_of(
    predictions: Mapping[tuple[str, Subset], Sequence[Predictions]],
    cohort: Cohort | None = None,
    task: TaskName = "phenotyping",
    n_resamples: int = RESAMPLES,
) -> Results:
    """Return results of given predictions; systems are in the order in which they occur."""
    cohort = cohort or make_cohort()
    systems = [paper_systems()[name] for name in dict.fromkeys(name for name, _ in predictions)]
    cells: dict[Cell, RunSpec] = {}
    return Results(cohort, Task.of(cohort, task), systems, cells, predictions, n_resamples)


def make_results(names: Sequence[str] = MAIN, seeds: int = 2, task: TaskName = "phenotyping") -> Results:
    """Return results of made-up predictions, of the test stays that take part in the task."""
    cohort = make_cohort()
    of = Task.of(cohort, task)
    trained_on: tuple[Subset, ...] = ("matched", "full")
    predictions = {
        (name, train_on): [
            only(predict(name, of.labels, train_on, seed, of.label_names), of.eligible).of_split("test")
            for seed in range(seeds)
        ]
        for name in names
        for train_on in trained_on
    }
    return results_of(predictions, cohort, task)


def with_recalibrations(
    results: Results, folder: Path, maps: Mapping[str, Sequence[Recalibration]]
) -> Results:
    """Return results whose runs, trained on full, have recalibrations; their files lie in a folder."""
    cells = {}
    for name, of_seeds in maps.items():
        for seed, one in enumerate(of_seeds):
            run = Run(folder / f"{name}-{seed}")
            run.folder.mkdir()
            one.write(run.recalibration)
            cells[Cell(name, "full", seed)] = RunSpec("", Path(), {}, TrainOptions(), run.folder)
    return replace(results, cells=cells)


def only(predictions: Predictions, rows: NDArray[np.bool_]) -> Predictions:
    """Return the predictions of some stays."""
    arrays = {name: array[rows] for name, array in predictions._arrays.items()}
    return replace(predictions, stays=predictions.stays.filter(rows), **arrays)


def macro(labels: NDArray[Any], scores: Floats) -> float:
    """Return the macro PRAUC as scikit-learn has it, over the labels that occur."""
    occur = labels.any(axis=0)
    return float(average_precision_score(labels[:, occur], scores[:, occur], average="macro"))


def shown_p(p: float) -> str:
    """Return a p-value as tables show it."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def number(table: Table, header: str, column: str) -> Number:
    """Return a cell by the heads of its row and its column."""
    (row,) = (row for row in table.rows if row.header == header)
    cell = row.cells[table.full_columns.index(column) - 1]
    assert isinstance(cell, Number)
    return cell


def column_of(setting: Setting) -> str:
    """Return the head of the column of a setting in table 2."""
    return f"trained on {setting.train_on}: tested on {setting.test_on}"


def of_seeds(results: Results, name: str, setting: Setting) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a system's test rows, and what each seed says of them."""
    rows = TEST & HAS_CXR if setting.test_on == "matched" else TEST
    return rows, [run.logits[rows[TEST]] for run in results.predictions[name, setting.train_on]]


def values(results: Results, name: str, setting: Setting) -> list[float]:
    """Return the macro PRAUC of each seed."""
    rows, scores = of_seeds(results, name, setting)
    return [macro(draw_labels()[rows], one) for one in scores]


def published(numbers: Sequence[Number]) -> list[float | None]:
    """Return what the paper published beside numbers: of each the value and both ends."""
    return [part for one in numbers for part in (one.paper, one.paper_low, one.paper_high)]


def numbers(row: Row) -> list[Number]:
    """Return the numbers of a row, without its text."""
    return [cell for cell in row.cells if isinstance(cell, Number)]


def by_title(table: Table) -> dict[str, list[Number]]:
    """Return the numbers of each row by its head."""
    return {row.header: numbers(row) for row in table.rows}
