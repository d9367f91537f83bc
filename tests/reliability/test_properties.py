"""What holds for any table: the hours of a slow reference, whatever the order, and nothing from outside.

`drfuse prepare` runs on small invented hospitals; the slow suite tries more of them.
"""

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drfuse.cohort import load_variables, prepare
from drfuse.cohort.split import SPLITS, hash_split
from drfuse.cohort.store import open_store
from tests.mimic import GLUCOSE_CHART, GLUCOSE_LAB, HEART_RATE, INTIME, SYSTOLIC, Hospital, Stay, write_tables

WINDOW_HOURS = 6
ITEMS = {
    HEART_RATE: "heart_rate",
    SYSTOLIC: "systolic_blood_pressure",
    GLUCOSE_CHART: "glucose",
    GLUCOSE_LAB: "glucose",
}
NOTABLE = (-61, -1, 0, 1, 3599, 3600, 3601, 7200, 10800, 6 * 3600, 6 * 3600 + 1)
"""Seconds at which hours and windows meet, so few that the time of storing or the value often decides."""
FILES = ("cxr.npy", "ehr.npy", "normalization.json", "stays.parquet")


class Event(NamedTuple):
    """A measurement of stay number `stay`, `seconds` after its intime, stored `delay` minutes later."""

    stay: int
    item: int
    seconds: int
    value: int
    delay: int


class Example(NamedTuple):
    """Stays by their length in seconds, and what was measured in them, around them and after them."""

    lengths: list[int]
    events: list[Event]


EVENTS = st.builds(
    Event,
    stay=st.integers(0, 3),
    item=st.sampled_from(list(ITEMS)),
    seconds=st.one_of(st.sampled_from(NOTABLE), st.sampled_from(NOTABLE), st.integers(-4000, 9 * 3600)),
    value=st.integers(60, 120),
    delay=st.integers(0, 2),
)
EXAMPLES = st.builds(
    Example,
    lengths=st.lists(st.integers(1800, 9 * 3600), min_size=4, max_size=4),
    events=st.lists(EVENTS, min_size=60, max_size=120),
)


def few_and_many(few: int, many: int) -> Callable[..., Any]:
    """Run a test with a few examples, and in the slow suite with many."""
    return pytest.mark.parametrize("n_examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def for_all(
    strategies: Sequence[st.SearchStrategy[Any]], n_examples: int, check: Callable[..., None]
) -> None:
    """Run a check on invented examples, the same ones each time."""
    chosen = settings(
        max_examples=n_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(*strategies)(check))()


def hospital_of(example: Example) -> tuple[Hospital, list[Stay]]:
    """Return the hospital of an example; in every stay a heart rate is charted in the first half hour."""
    hospital = Hospital()
    stays = [
        hospital.add_stay(length / 3600, intime=INTIME + timedelta(days=number, seconds=17 * number))
        for number, length in enumerate(example.lengths)
    ]
    for event in (*(Event(n, HEART_RATE, 600, 80, 0) for n in range(len(stays))), *example.events):
        add = hospital.lab if event.item == GLUCOSE_LAB else hospital.chart
        hours = event.seconds / 3600
        add(stays[event.stay], event.item, event.value, hours, hours + event.delay / 60)
    return hospital, stays


def reference(example: Example) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the hourly values (stays, hours, variables), computed one event at a time."""
    names = [variable.name for variable in load_variables()]
    values = np.full((len(example.lengths), WINDOW_HOURS, len(names)), np.nan, np.float32)
    best: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    for event in (*(Event(n, HEART_RATE, 600, 80, 0) for n in range(4)), *example.events):
        second_of_intime = 17 * event.stay  # charted times have no seconds, so a window begins at its minute
        if (
            not -(second_of_intime % 60)
            <= event.seconds
            <= min(example.lengths[event.stay], WINDOW_HOURS * 3600)
        ):
            continue
        hour = max(0, event.seconds - 1) // 3600
        place = event.stay, hour, names.index(ITEMS[event.item])
        rank = event.seconds, event.seconds + 60 * event.delay, event.value
        if place not in best or rank > best[place]:
            best[place] = rank
            values[place] = event.value
    return values


def cohort_of(tables: dict[str, pl.DataFrame], folder: Path, **options: Any) -> dict[str, bytes]:
    """Return the files of the cohort that is made from tables."""
    write_tables(tables, folder / "mimic-iv", ".csv")
    return prepared(folder, **options)


def prepared(folder: Path, **options: Any) -> dict[str, bytes]:
    prepare(folder / "mimic-iv", folder / "cohort", window_hours=WINDOW_HOURS, threads=2, **options)
    return {name: (folder / "cohort" / name).read_bytes() for name in FILES}


@pytest.mark.slow
@few_and_many(3, 60)
def test_any_table_gives_the_hourly_values_of_the_reference(n_examples: int) -> None:
    def check(example: Example) -> None:
        with tempfile.TemporaryDirectory() as name:
            cohort_of(hospital_of(example)[0].frames(), Path(name))
            found = np.load(Path(name) / "cohort/ehr.npy")
        np.testing.assert_array_equal(found, reference(example))

    for_all([EXAMPLES], n_examples, check)


@pytest.mark.slow
@few_and_many(2, 30)
def test_any_order_of_rows_and_files_gives_the_same_cohort(n_examples: int) -> None:
    def check(example: Example, seed: int, n_parts: int) -> None:
        tables = hospital_of(example)[0].frames()
        with tempfile.TemporaryDirectory() as name:
            expected = cohort_of(tables, Path(name))
        generator = np.random.default_rng(seed)
        parts: dict[str, pl.DataFrame] = {}
        for stem, table in tables.items():
            shuffled = table[generator.permutation(len(table))]
            cuts = np.sort(generator.integers(0, len(table) + 1, n_parts - 1))
            for part, (start, end) in enumerate(
                zip([0, *cuts.tolist()], [*cuts.tolist(), len(table)], strict=True)
            ):
                parts[f"{stem}/{generator.integers(10**9)}-{part}"] = shuffled[start:end]
        with tempfile.TemporaryDirectory() as name:
            assert cohort_of(parts, Path(name)) == expected

    for_all([EXAMPLES, st.integers(0, 2**32 - 1), st.integers(1, 3)], n_examples, check)


@pytest.mark.slow
@few_and_many(2, 30)
def test_nothing_from_outside_of_a_window_reaches_a_cell(n_examples: int) -> None:
    outside = st.builds(
        lambda stay, item, after, before, value, is_after: (
            stay,
            item,
            after if is_after else -before,
            value,
        ),
        st.integers(0, 3),
        st.sampled_from(list(ITEMS)),
        st.integers(1, 10**6),
        st.integers(120, 10**6),
        st.integers(60, 120),
        st.booleans(),
    )

    def check(example: Example, others: list[tuple[int, int, int, int]]) -> None:
        hospital, stays = hospital_of(example)
        with tempfile.TemporaryDirectory() as name:
            expected = cohort_of(hospital.frames(), Path(name), before_hours=0)
        for number, item, offset, value in others:
            end = min(example.lengths[number], WINDOW_HOURS * 3600)
            seconds = end + offset if offset > 0 else offset
            add = hospital.lab if item == GLUCOSE_LAB else hospital.chart
            add(stays[number], item, value, seconds / 3600)
            unknown = Stay(stays[number].subject_id, 1, 1, stays[number].intime)  # of another stay, in time
            add(unknown, item, value, 0.25)
        with tempfile.TemporaryDirectory() as name:
            assert cohort_of(hospital.frames(), Path(name), before_hours=0) == expected

    for_all([EXAMPLES, st.lists(outside, min_size=10, max_size=40)], n_examples, check)


@pytest.mark.slow
@few_and_many(20, 500)
def test_no_subject_changes_sides_whatever_the_growth_or_seed(n_examples: int) -> None:
    subjects = st.lists(st.integers(1, 2**40), min_size=1, max_size=50)

    def check(first: list[int], more: list[int], seed: int) -> None:
        def splits_of(ids: list[int]) -> pl.DataFrame:
            store.con.register("ids", pl.DataFrame({"subject_id": ids}).to_arrow())
            table = store.table("ids")
            query = table.mutate(split=hash_split(table.subject_id, seed))
            return pl.DataFrame(store.con.sql(store.compile(query)).pl())

        grown = splits_of([*first, *more, *first])  # a subject has several stays
        assert grown["subject_id"].n_unique() == grown.unique().height
        assert set(grown["split"]) <= set(SPLITS)
        assert splits_of(first).join(grown.unique(), ["subject_id", "split"], "anti").is_empty()

    with open_store(1, "1GiB") as store:
        for_all([subjects, subjects, st.integers(0, 2**32)], n_examples, check)


def test_the_reference_itself_knows_the_ends_of_hours() -> None:
    lengths = [4 * 3600, *[1800] * 3]
    events = [
        Event(0, SYSTOLIC, 3600, 100, 0),
        Event(0, SYSTOLIC, 3601, 90, 0),
        Event(0, SYSTOLIC, 5 * 3600, 70, 0),
    ]
    names = [variable.name for variable in load_variables()]
    series = reference(Example(lengths, events))[0, :, names.index("systolic_blood_pressure")]
    assert series[:2].tolist() == [100, 90]
    assert np.isnan(series[2:]).all()
    assert datetime(2150, 3, 1, 10) == INTIME  # on a full minute, as the reference assumes
