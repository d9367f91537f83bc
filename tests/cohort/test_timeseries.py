import math
from datetime import timedelta
from pathlib import Path

import pytest

from drfuse.cohort.sources import open_source
from drfuse.cohort.stays import describe_stays, select_stays
from drfuse.cohort.store import Store
from drfuse.cohort.timeseries import last_of_each_hour, measure
from drfuse.cohort.variables import Preset, load_variables
from tests.mimic import (
    GCS_EYE,
    GCS_MOTOR,
    GCS_VERBAL,
    GLUCOSE_CHART,
    GLUCOSE_LAB,
    HEART_RATE,
    HEIGHT_INCHES,
    INTIME,
    MEAN_PRESSURE,
    O2_SATURATION_LAB,
    PH_LAB,
    SECOND,
    SPECIMEN_TYPE,
    UNUSED_CHART_ITEM,
    Hospital,
    Stay,
    Suffix,
)

Hours = dict[int, float]


class Hourly(dict[tuple[int, str], Hours]):
    """The hours and values of each (stay_id, variable)."""

    def of(self, stay: Stay, variable: str) -> Hours:
        return self.get((stay.stay_id, variable), {})


def hourly(
    hospital: Hospital,
    folder: Path,
    preset: Preset = "extended",
    window_hours: int = 48,
    suffix: Suffix = ".csv",
) -> Hourly:
    """Return what stands in each hour of each included stay."""
    store = Store().connect()
    source = open_source(hospital.write(folder, suffix=suffix), store)
    stays = store.create_table("stays", select_stays(describe_stays(source, window_hours))[-1].stays)
    measurements = store.create_table("measurements", measure(source, stays, preset))
    rows = last_of_each_hour(measurements, preset).to_pyarrow().to_pylist()
    variables = load_variables()
    found = Hourly()
    for row in rows:
        hours = found.setdefault((row["stay_id"], variables[row["variable"]].name), {})
        assert row["hour"] not in hours
        hours[row["hour"]] = row["value"]
    return found


@pytest.fixture
def hospital() -> Hospital:
    return Hospital()


def test_hour_k_ends_with_its_last_second(hospital: Hospital, tmp_path: Path) -> None:
    at_0, second_1, hour_1, after_1, hour_2 = (hospital.add_stay() for _ in range(5))
    hospital.chart(at_0, HEART_RATE, 60, at=0)
    hospital.chart(second_1, HEART_RATE, 61, at=SECOND)
    hospital.chart(hour_1, HEART_RATE, 62, at=1)
    hospital.chart(after_1, HEART_RATE, 63, at=1 + SECOND)
    hospital.chart(hour_2, HEART_RATE, 64, at=2)

    found = hourly(hospital, tmp_path)

    assert found.of(at_0, "heart_rate") == {0: 60}
    assert found.of(second_1, "heart_rate") == {0: 61}
    assert found.of(hour_1, "heart_rate") == {0: 62}
    assert found.of(after_1, "heart_rate") == {1: 63}
    assert found.of(hour_2, "heart_rate") == {1: 64}


def test_hours_count_from_an_intime_with_seconds(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay(intime=INTIME + timedelta(minutes=59, seconds=59))
    hospital.chart(stay, HEART_RATE, 70, at=1)
    hospital.chart(stay, HEART_RATE, 71, at=1 + SECOND)
    assert hourly(hospital, tmp_path).of(stay, "heart_rate") == {0: 70, 1: 71}


@pytest.mark.parametrize(("preset", "expected"), [("extended", {0: 70}), ("benchmark", {})])
def test_the_minute_of_admission_is_hour_0(
    hospital: Hospital, tmp_path: Path, preset: Preset, expected: Hours
) -> None:
    stay = hospital.add_stay(intime=INTIME + timedelta(seconds=59))
    hospital.chart(stay, HEART_RATE, 70, at=-59 * SECOND)
    hospital.chart(stay, HEART_RATE, 71, at=-60 * SECOND)  # a minute before
    assert hourly(hospital, tmp_path, preset).of(stay, "heart_rate") == expected


def test_saturation_is_of_arterial_blood(hospital: Hospital, tmp_path: Path) -> None:
    arterial, venous, unsaid = (hospital.add_stay() for _ in range(3))
    for specimen, (stay, text) in enumerate([(arterial, "ART."), (venous, "VEN."), (unsaid, None)]):
        hospital.lab(stay, O2_SATURATION_LAB, 70, specimen_id=specimen)
        hospital.lab(stay, GLUCOSE_LAB, 90, specimen_id=specimen)
        if text:
            hospital.lab(stay, SPECIMEN_TYPE, text, specimen_id=specimen)
    found = hourly(hospital, tmp_path / "a")
    assert [found.of(stay, "oxygen_saturation") for stay in (arterial, venous, unsaid)] == [{0: 70}, {}, {}]
    assert all(found.of(stay, "glucose") == {0: 90} for stay in (arterial, venous, unsaid))
    published = hourly(hospital, tmp_path / "b", "benchmark")
    assert all(published.of(stay, "oxygen_saturation") == {0: 70} for stay in (arterial, venous, unsaid))


def test_nothing_before_intime_is_read(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, HEART_RATE, 70, at=-SECOND)
    hospital.lab(stay, GLUCOSE_LAB, 90, at=-SECOND)
    assert hourly(hospital, tmp_path) == {}


def test_the_last_moment_of_the_stay_is_read_and_nothing_after_it(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay(hours=5.5)
    hospital.chart(stay, HEART_RATE, 70, at=5.5)
    hospital.chart(stay, HEART_RATE, 71, at=5.5 + SECOND)
    hospital.chart(stay, HEART_RATE, 72, at=7)
    hospital.lab(stay, GLUCOSE_LAB, 90, at=5.5)
    hospital.lab(stay, GLUCOSE_LAB, 91, at=5.5 + SECOND)
    found = hourly(hospital, tmp_path)
    assert found.of(stay, "heart_rate") == {5: 70}
    assert found.of(stay, "glucose") == {5: 90}


@pytest.mark.parametrize("window_hours", [24, 48])
def test_the_last_moment_of_the_window_is_read_and_nothing_after_it(
    window_hours: int, hospital: Hospital, tmp_path: Path
) -> None:
    stay = hospital.add_stay(hours=100)
    hospital.chart(stay, HEART_RATE, 70, at=window_hours)
    hospital.chart(stay, HEART_RATE, 71, at=window_hours + SECOND)
    found = hourly(hospital, tmp_path, window_hours=window_hours)
    assert found.of(stay, "heart_rate") == {window_hours - 1: 70}


def test_a_stay_without_outtime_is_never_observed(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay(hours=None)
    hospital.chart(stay, HEART_RATE, 70)
    hospital.lab(stay, GLUCOSE_LAB, 90)
    assert hourly(hospital, tmp_path) == {}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_where_the_number_is_nan_the_text_counts(suffix: Suffix, hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, HEART_RATE, "71.5", valuenum=math.nan)
    hospital.chart(stay, GCS_EYE, "To Speech", valuenum=math.nan)
    hospital.chart(stay, MEAN_PRESSURE, "65", valuenum=64)
    hospital.lab(stay, GLUCOSE_LAB, "90", at=0.5, valuenum=math.nan)
    if suffix == ".csv":
        hospital.write(tmp_path, suffix=suffix)
        assert (tmp_path / "icu/chartevents.csv").read_text().count(",NaN") == 2
    found = hourly(hospital, tmp_path, suffix=suffix)
    names = ("heart_rate", "gcs_eye_opening", "mean_blood_pressure", "glucose")
    assert [found.of(stay, name) for name in names] == [{0: 71.5}, {0: 3}, {0: 64}, {0: 90}]


def test_the_last_value_of_an_hour_wins(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, HEART_RATE, 60, at=0.9)
    hospital.chart(stay, HEART_RATE, 99, at=0.2)
    hospital.chart(stay, HEART_RATE, 98, at=0.5)
    assert hourly(hospital, tmp_path).of(stay, "heart_rate") == {0: 60}


def test_items_of_one_variable_share_its_hours(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, GLUCOSE_CHART, 120, at=0.2)
    hospital.lab(stay, GLUCOSE_LAB, 110, at=0.3)
    hospital.lab(stay, GLUCOSE_LAB, 100, at=1.2)
    assert hourly(hospital, tmp_path).of(stay, "glucose") == {0: 110, 1: 100}


def test_at_the_same_time_the_last_stored_value_wins(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, HEART_RATE, 99, at=0.5, stored=0.6)
    hospital.chart(stay, HEART_RATE, 60, at=0.5, stored=0.9)
    hospital.chart(stay, HEART_RATE, 98, at=0.5, stored=0.7)
    assert hourly(hospital, tmp_path).of(stay, "heart_rate") == {0: 60}


def test_at_the_same_time_and_storing_time_the_larger_value_wins(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    for value in (99, 101, 100):  # as text, 99 would be the largest
        hospital.chart(stay, HEART_RATE, value)
    assert hourly(hospital, tmp_path).of(stay, "heart_rate") == {0: 101}


def test_a_value_without_storing_time_counts_as_stored_at_once(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, HEART_RATE, 99, storetime=None)
    hospital.chart(stay, HEART_RATE, 60, at=0.5, stored=0.6)
    assert hourly(hospital, tmp_path).of(stay, "heart_rate") == {0: 60}


def test_the_benchmark_breaks_ties_by_value_alone(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, MEAN_PRESSURE, 99, at=0.5, stored=0.6)
    hospital.chart(stay, MEAN_PRESSURE, 60, at=0.5, stored=0.9)
    assert hourly(hospital, tmp_path, "benchmark").of(stay, "mean_blood_pressure") == {0: 99}


def test_other_items_and_other_stays_are_left_out(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    transferred = hospital.add_stay(units=("MICU", "SICU"))
    hospital.chart(stay, UNUSED_CHART_ITEM, 70)
    hospital.chart(transferred, HEART_RATE, 70)
    hospital.chart(stay, HEART_RATE, 70, stay_id=None)
    hospital.chart(stay, HEART_RATE, 70, charttime=None)
    assert hourly(hospital, tmp_path) == {}


def test_chart_events_belong_to_the_stay_that_they_name(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay(hours=10)
    next_stay = hospital.add_stay(same_subject=stay, intime=INTIME + timedelta(hours=10))
    hospital.chart(stay, HEART_RATE, 70, at=9.5)
    hospital.chart(next_stay, HEART_RATE, 80, at=0.5)
    found = hourly(hospital, tmp_path)
    assert found.of(stay, "heart_rate") == {9: 70}
    assert found.of(next_stay, "heart_rate") == {0: 80}


@pytest.mark.parametrize(("preset", "hours"), [("extended", {0: 90, 2: 92}), ("benchmark", {0: 90})])
def test_labs_without_admission_count_in_the_extended_preset(
    preset: Preset, hours: Hours, hospital: Hospital, tmp_path: Path
) -> None:
    stay = hospital.add_stay()
    hospital.lab(stay, GLUCOSE_LAB, 90, at=0.5)
    hospital.lab(stay, GLUCOSE_LAB, 92, at=2.5, hadm_id=None)
    assert hourly(hospital, tmp_path, preset).of(stay, "glucose") == hours


@pytest.mark.parametrize("preset", ["extended", "benchmark"])
def test_labs_of_another_admission_or_subject_are_left_out(
    preset: Preset, hospital: Hospital, tmp_path: Path
) -> None:
    stay, stranger = hospital.add_stay(), hospital.add_stay()
    hospital.lab(stay, GLUCOSE_LAB, 90, hadm_id=91_999_999)
    hospital.lab(stranger, GLUCOSE_LAB, 91, hadm_id=None)
    assert hourly(hospital, tmp_path, preset).of(stay, "glucose") == {}


def test_a_lab_without_admission_goes_to_the_stay_of_its_time(hospital: Hospital, tmp_path: Path) -> None:
    first = hospital.add_stay(hours=20)
    second = hospital.add_stay(hours=20, same_subject=first, intime=INTIME + timedelta(days=30))
    hospital.lab(second, GLUCOSE_LAB, 90, at=3, hadm_id=None)
    hospital.lab(second, GLUCOSE_LAB, 91, at=-3, hadm_id=None)  # between the stays
    found = hourly(hospital, tmp_path)
    assert found.of(first, "glucose") == {}
    assert found.of(second, "glucose") == {2: 90}


@pytest.mark.parametrize("seconds", [0, 30])
def test_a_lab_of_the_minute_in_which_a_stay_follows_another_counts_in_the_later(
    seconds: int, hospital: Hospital, tmp_path: Path
) -> None:
    moved = INTIME + timedelta(hours=10, seconds=seconds)
    first = hospital.add_stay(hours=10 + seconds * SECOND)
    second = hospital.add_stay(same_subject=first, intime=moved)
    hospital.lab(first, GLUCOSE_LAB, 89, at=10 - 60 * SECOND, hadm_id=None)
    hospital.lab(first, GLUCOSE_LAB, 90, at=10, hadm_id=None)
    hospital.lab(first, PH_LAB, 7.4, at=10)  # it names the admission of the first
    hospital.lab(second, GLUCOSE_LAB, 91, at=1.5, hadm_id=None)
    found = hourly(hospital, tmp_path)
    assert found.of(first, "glucose") == {9: 89}
    assert found.of(first, "ph") == {9: 7.4}
    assert found.of(second, "glucose") == {0: 90, 1: 91}


def test_a_lab_after_a_stay_within_another_counts_in_the_one_that_goes_on(
    hospital: Hospital, tmp_path: Path
) -> None:
    outer = hospital.add_stay(hours=20)
    inner = hospital.add_stay(hours=5, same_subject=outer, intime=INTIME + timedelta(hours=5))
    for at in (4, 7, 12):
        hospital.lab(outer, GLUCOSE_LAB, 90 + at, at=at, hadm_id=None)
    found = hourly(hospital, tmp_path)
    assert found.of(outer, "glucose") == {3: 94, 11: 102}
    assert found.of(inner, "glucose") == {1: 97}


def test_what_counts_from_before_the_admission_is_not_in_the_window(
    hospital: Hospital, tmp_path: Path
) -> None:
    before, within, both = (hospital.add_stay() for _ in range(3))
    hospital.chart(before, HEIGHT_INCHES, 70, at=-2)
    hospital.chart(within, HEIGHT_INCHES, 70, at=0)
    hospital.chart(both, HEIGHT_INCHES, 70, at=0.5)
    hospital.chart(both, HEIGHT_INCHES, 60, at=-2)
    store = Store().connect()
    source = open_source(hospital.write(tmp_path, suffix=".csv"), store)
    stays = select_stays(describe_stays(source, 48))[-1].stays
    rows = last_of_each_hour(measure(source, stays, "extended", 6), "extended").to_pyarrow().to_pylist()
    assert {(row["stay_id"], row["hour"], round(row["value"], 1), row["in_window"]) for row in rows} == {
        (before.stay_id, 0, 177.8, False),
        (within.stay_id, 0, 177.8, True),
        (both.stay_id, 0, 177.8, True),
    }


def test_the_gcs_total_needs_its_three_parts_at_one_time(hospital: Hospital, tmp_path: Path) -> None:
    whole, in_parts = hospital.add_stay(), hospital.add_stay()
    for item, score in ((GCS_EYE, 3), (GCS_MOTOR, 5), (GCS_VERBAL, 4)):
        hospital.chart(whole, item, score, at=1.5)
    for item, score, at in ((GCS_EYE, 3, 1.5), (GCS_MOTOR, 5, 1.5), (GCS_VERBAL, 4, 1.5 + 60 * SECOND)):
        hospital.chart(in_parts, item, score, at=at)

    found = hourly(hospital, tmp_path)

    assert found.of(whole, "gcs_total") == {1: 12}
    assert found.of(in_parts, "gcs_total") == {}
    assert found.of(in_parts, "gcs_verbal_response") == {1: 4}


def test_the_last_gcs_total_of_an_hour_wins(hospital: Hospital, tmp_path: Path) -> None:
    stay = hospital.add_stay()
    for at, scores in ((0.2, (4, 6, 5)), (0.8, (1, 1, 1)), (1, (2, 2, 2)), (1.5, (3, 3, 3))):
        for item, score in zip((GCS_EYE, GCS_MOTOR, GCS_VERBAL), scores, strict=True):
            hospital.chart(stay, item, score, at=at)
    assert hourly(hospital, tmp_path).of(stay, "gcs_total") == {0: 6, 1: 9}


def test_of_two_scores_of_one_part_the_last_stored_counts_in_the_total(
    hospital: Hospital, tmp_path: Path
) -> None:
    stay = hospital.add_stay()
    hospital.chart(stay, GCS_EYE, 4, at=0.5, stored=0.6)
    hospital.chart(stay, GCS_EYE, 1, at=0.5, stored=0.9)
    hospital.chart(stay, GCS_MOTOR, 6, at=0.5)
    hospital.chart(stay, GCS_VERBAL, 5, at=0.5)
    found = hourly(hospital, tmp_path)
    assert found.of(stay, "gcs_eye_opening") == {0: 1}
    assert found.of(stay, "gcs_total") == {0: 12}
