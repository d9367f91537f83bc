"""What is predicted of a stay, and who takes part."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drfuse.data import Cohort, Split, Subset, Task, TaskName
from drfuse.errors import InputError
from tests.builders import PHENOTYPES, write_cohort

DAYS = (0.5, 2.0, 2.001, 3.0, 3.001, 4.0, 5.0, 6.0, 7.0, 7.001, 14.0, 14.001)
CLASSES = (0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6)
TAKES_PART = (False, False) + (True,) * 10  # the window has two days


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort.open(write_cohort(tmp_path / "cohort", window_hours=48, los=DAYS))


def test_phenotypes_are_asked_of_every_stay(cohort: Cohort) -> None:
    task = Task.of(cohort)
    assert (task.name, task.label_names) == ("phenotyping", PHENOTYPES)
    np.testing.assert_array_equal(task.labels, cohort.stays.select(PHENOTYPES).to_numpy())
    assert task.eligible.tolist() == [True] * 12


def test_death_is_asked_of_stays_that_outlast_the_window(cohort: Cohort) -> None:
    task = Task.of(cohort, "mortality")
    assert task.label_names == ["death in hospital"]
    assert task.labels.dtype == np.float32
    assert task.labels.tolist() == [[1.0], [0.0], [0.0]] * 4
    assert task.eligible.tolist() == list(TAKES_PART)


def test_a_stay_has_one_class_of_days_whose_upper_edge_belongs_to_it(cohort: Cohort) -> None:
    task = Task.of(cohort, "los")
    assert task.labels.shape == (12, 7)
    assert task.labels.dtype == np.float32
    assert (task.labels.sum(axis=1) == 1).all()
    assert task.labels.argmax(axis=1).tolist() == list(CLASSES)
    assert task.eligible.tolist() == list(TAKES_PART)
    assert task.label_names == [
        "up to 3 days",
        "3 to 4 days",
        "4 to 5 days",
        "5 to 6 days",
        "6 to 7 days",
        "7 to 14 days",
        "more than 14 days",
    ]


@pytest.mark.parametrize("name", ["phenotyping", "los"])
@pytest.mark.parametrize("split", ["train", "validation", "test", None])
@pytest.mark.parametrize("subset", ["full", "matched"])
def test_the_rows_of_a_task_are_the_eligible_stays_of_a_split_and_subset(
    cohort: Cohort, name: TaskName, split: Split | None, subset: Subset
) -> None:
    of_split = {"train": range(6), "validation": range(6, 9), "test": range(9, 12), None: range(12)}
    expected = [
        row
        for row in of_split[split]
        if (subset == "full" or row in (0, 2, 3, 6, 8, 10)) and (name == "phenotyping" or TAKES_PART[row])
    ]
    assert Task.of(cohort, name).rows(split, subset).tolist() == expected


def test_an_unknown_split_or_subset_has_no_rows(cohort: Cohort) -> None:
    with pytest.raises(InputError, match="split is 'all'; expected one of 'train', "):
        Task.of(cohort).rows("all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="subset is 'some'; expected one of 'full', 'matched'"):
        Task.of(cohort).rows("test", "some")  # type: ignore[arg-type]


def test_the_window_decides_who_takes_part(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", window_hours=8, los=DAYS))
    assert Task.of(cohort, "los").eligible.all()
    cohort = Cohort.open(write_cohort(tmp_path / "longer", window_hours=72, los=DAYS))
    assert Task.of(cohort, "los").eligible.tolist() == [days > 3 for days in DAYS]


@pytest.mark.parametrize(("task", "column"), [("mortality", "in_hospital_mortality"), ("los", "los")])
def test_a_stay_whose_outcome_is_unknown_takes_no_part(tmp_path: Path, task: str, column: str) -> None:
    folder = write_cohort(tmp_path / "cohort", los=DAYS)
    stays = pl.read_parquet(folder / "stays.parquet")
    longest = int(np.argmax(DAYS))
    unknown = pl.when(pl.int_range(pl.len()) != longest).then(column).alias(column)
    stays.with_columns(unknown).write_parquet(folder / "stays.parquet")
    found = Task.of(Cohort.open(folder), task)  # type: ignore[arg-type]
    assert not found.eligible[longest]
    assert found.eligible.any()
    assert np.isfinite(found.labels[found.eligible]).all()


def test_a_stay_without_known_labels_takes_no_part_in_phenotyping(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", los=DAYS)
    cohort = Cohort.open(folder)
    unknown = [pl.when(pl.int_range(pl.len()) != 1).then(name).alias(name) for name in cohort.phenotypes]
    cohort.stays.with_columns(unknown).write_parquet(folder / "stays.parquet")
    found = Task.of(Cohort.open(folder))
    assert found.eligible.tolist() == [row != 1 for row in range(len(DAYS))]


def test_an_unknown_task_is_refused(cohort: Cohort) -> None:
    with pytest.raises(
        InputError, match=r"task is 'weather'; expected one of 'phenotyping', 'mortality', 'los'"
    ):
        Task.of(cohort, "weather")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "column"), [("mortality", "in_hospital_mortality"), ("mortality", "los"), ("los", "los")]
)
def test_a_cohort_without_the_outcome_is_refused(tmp_path: Path, task: str, column: str) -> None:
    folder = write_cohort(tmp_path / "cohort", los=DAYS)
    pl.read_parquet(folder / "stays.parquet").drop(column).write_parquet(folder / "stays.parquet")
    cohort = Cohort.open(folder)
    with pytest.raises(InputError, match=rf"stays\.parquet lacks {column}; run `drfuse prepare` again"):
        Task.of(cohort, task)  # type: ignore[arg-type]
    assert Task.of(cohort).eligible.all()


@pytest.mark.parametrize(
    ("task", "column", "what"),
    [
        ("mortality", "in_hospital_mortality", "whether the patient died"),
        ("mortality", "los", "how long it lasted"),
        ("los", "los", "how long it lasted"),
    ],
)
def test_a_cohort_whose_outcome_is_unknown_is_refused(
    tmp_path: Path, task: str, column: str, what: str
) -> None:
    folder = write_cohort(tmp_path / "cohort", los=DAYS)
    stays = pl.read_parquet(folder / "stays.parquet")
    unknown = pl.lit(None, stays.schema[column]).alias(column)
    stays.with_columns(unknown).write_parquet(folder / "stays.parquet")
    with pytest.raises(InputError, match=rf"does not say for any stay .*{what}.*; choose a different --task"):
        Task.of(Cohort.open(folder), task)  # type: ignore[arg-type]


def test_a_cohort_of_short_stays_only_is_refused(tmp_path: Path) -> None:
    cohort = Cohort.open(write_cohort(tmp_path / "cohort", window_hours=48, los=(2.0,) * 12))
    for task in ("mortality", "los"):
        with pytest.raises(InputError, match=r"no stay of .* is longer than the window"):
            Task.of(cohort, task)
