from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis

from drfuse.cohort.sources import open_source
from drfuse.cohort.stays import describe_stays, require_observation, select_stays
from drfuse.cohort.store import Store
from tests.mimic import INTIME, SECOND, Hospital

Steps = dict[str, list[dict[str, Any]]]


def steps_of(hospital: Hospital, folder: Path, window_hours: int = 48, **options: int) -> Steps:
    """Return the rows that are left after each inclusion step."""
    source = open_source(hospital.write(folder, suffix=".csv"), Store().connect())
    return {
        step.criterion: step.stays.order_by("stay_id").to_pyarrow().to_pylist()
        for step in select_stays(describe_stays(source, window_hours), **options)
    }


def included(steps: Steps) -> list[int]:
    return [row["stay_id"] for row in list(steps.values())[-1]]


def test_each_step_leaves_out_what_it_names(tmp_path: Path) -> None:
    hospital = Hospital()
    kept = hospital.add_stay()
    hospital.add_stay(units=("MICU", "SICU"))  # transferred
    first = hospital.add_stay()
    hospital.add_stay(same_admission=first, intime=INTIME + timedelta(days=9))  # two of one admission
    hospital.add_stay(age=17)

    steps = steps_of(hospital, tmp_path)

    assert {criterion: len(rows) for criterion, rows in steps.items()} == {
        "all ICU stays": 5,
        "same first and last care unit": 4,
        "only such stay of the admission": 2,
        "age at least 18 years": 1,
    }
    assert included(steps) == [kept.stay_id]


def test_the_last_step_leaves_out_stays_without_any_value() -> None:
    candidates = ibis.memtable({"stay_id": [1, 2, 3], "age": [30, 40, 50]})
    step = require_observation(candidates, ibis.memtable({"stay_id": [3, 1, 1, 4]}))
    assert step.criterion == "a variable observed in the window"
    assert sorted(step.stays.to_pyarrow().to_pylist(), key=lambda row: row["stay_id"]) == [
        {"stay_id": 1, "age": 30},
        {"stay_id": 3, "age": 50},
    ]


def test_a_transferred_stay_does_not_count_as_the_second_of_its_admission(tmp_path: Path) -> None:
    hospital = Hospital()
    kept = hospital.add_stay()
    hospital.add_stay(same_admission=kept, units=("MICU", "SICU"), intime=INTIME + timedelta(days=9))
    assert included(steps_of(hospital, tmp_path)) == [kept.stay_id]


def test_each_admission_of_a_patient_may_have_a_stay(tmp_path: Path) -> None:
    hospital = Hospital()
    first = hospital.add_stay()
    second = hospital.add_stay(same_subject=first, intime=INTIME + timedelta(days=60))
    assert included(steps_of(hospital, tmp_path)) == [first.stay_id, second.stay_id]


def test_adults_are_18_or_older(tmp_path: Path) -> None:
    hospital = Hospital()
    stays = [hospital.add_stay(age=age) for age in (17, 18, 91)]
    assert included(steps_of(hospital, tmp_path)) == [stay.stay_id for stay in stays[1:]]


def test_the_least_age_can_be_chosen(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.add_stay(age=64)
    old = hospital.add_stay(age=65)
    steps = steps_of(hospital, tmp_path, min_age_years=65)
    assert included(steps) == [old.stay_id]
    assert list(steps)[-1] == "age at least 65 years"


def test_age_is_shifted_to_the_year_of_the_admission(tmp_path: Path) -> None:
    hospital = Hospital()
    young = hospital.add_stay(age=16)  # 16 in 2150
    grown = hospital.add_stay(same_subject=young, intime=INTIME + timedelta(days=3 * 365))  # 19 in 2153
    steps = steps_of(hospital, tmp_path)
    assert [row["age"] for row in steps["all ICU stays"]] == [16, 19]
    assert included(steps) == [grown.stay_id]


def test_age_goes_by_the_admission_where_the_year_turns_before_the_icu(tmp_path: Path) -> None:
    hospital = Hospital()
    stay = hospital.add_stay(age=18, intime=datetime(2151, 1, 1, 2))  # admitted 5 hours before, in 2150
    (row,) = steps_of(hospital, tmp_path)["all ICU stays"]
    assert row["age"] == 17
    assert row["stay_id"] == stay.stay_id


def test_n_hours_rounds_up_and_ends_with_the_window(tmp_path: Path) -> None:
    n_hours = {
        0.25: 1,
        1: 1,
        1 + SECOND: 2,
        5.5: 6,
        47 + SECOND: 48,
        48: 48,
        48 + SECOND: 48,
        500: 48,
    }
    hospital = Hospital()
    for hours in n_hours:
        hospital.add_stay(hours=hours)
    rows = steps_of(hospital, tmp_path)["all ICU stays"]
    assert [row["n_hours"] for row in rows] == list(n_hours.values())
    ends = [INTIME + timedelta(seconds=round(min(hours, 48) * 3600)) for hours in n_hours]
    assert [row["window_end"] for row in rows] == ends


def test_a_shorter_window_ends_earlier(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.add_stay(hours=30)
    (row,) = steps_of(hospital, tmp_path, window_hours=24)["all ICU stays"]
    assert (row["n_hours"], row["window_end"]) == (24, INTIME + timedelta(hours=24))


def test_a_stay_without_outtime_has_no_window(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.add_stay(hours=None)
    (row,) = steps_of(hospital, tmp_path)["all ICU stays"]
    assert row["outtime"] is None
    assert row["window_end"] is None


def test_the_row_says_who_it_is_and_how_it_ended(tmp_path: Path) -> None:
    hospital = Hospital()
    hospital.add_stay(hours=36, age=44, race="ASIAN", died=True)
    hospital.add_stay()
    died, survived = steps_of(hospital, tmp_path)["all ICU stays"]
    assert (died["gender"], died["race"], died["admission_type"]) == ("F", "ASIAN", "URGENT")
    assert (died["age"], died["los"]) == (44, 1.5)
    assert died["in_hospital_mortality"] is True
    assert survived["in_hospital_mortality"] is False
