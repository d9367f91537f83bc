from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drfuse.cohort.radiographs import select_radiographs
from drfuse.cohort.sources import open_source
from drfuse.cohort.stays import describe_stays, select_stays
from drfuse.cohort.store import Store
from tests.mimic import SECOND, Hospital, Stay, Suffix

MIDNIGHT = datetime(2150, 3, 1)


def selected(
    hospital: Hospital, folder: Path, views: Sequence[str] = ("AP",), suffix: Suffix = ".csv"
) -> dict[int, str]:
    """Return the dicom_id of each stay's radiograph."""
    store = Store().connect()
    images = hospital.write_radiographs(folder / "cxr", suffix=suffix)
    source = open_source(hospital.write(folder / "iv", suffix=suffix), store, images)
    assert source.radiographs is not None
    stays = store.create_table("stays", select_stays(describe_stays(source, window_hours=48))[-1].stays)
    rows = select_radiographs(source.radiographs, stays, views).to_pyarrow().to_pylist()
    chosen: dict[int, str] = {}
    for row in rows:  # of a stay, the latest comes first
        chosen.setdefault(row["stay_id"], row["dicom_id"])
    return chosen


@pytest.fixture
def hospital() -> Hospital:
    return Hospital()


@pytest.fixture
def stay(hospital: Hospital) -> Stay:
    return hospital.add_stay(hours=100)


def test_the_last_study_of_the_window_counts(hospital: Hospital, stay: Stay, tmp_path: Path) -> None:
    hospital.radiograph(stay, at=3)
    last = hospital.radiograph(stay, at=40)
    hospital.radiograph(stay, at=20)
    assert selected(hospital, tmp_path) == {stay.stay_id: last}


def test_studies_outside_the_window_are_left_out(hospital: Hospital, tmp_path: Path) -> None:
    long, short = (hospital.add_stay(hours=hours) for hours in (100, 10))
    inside = hospital.radiograph(long, at=1)
    hospital.radiograph(long, at=-1)
    hospital.radiograph(long, at=49)
    hospital.radiograph(short, at=11)
    assert selected(hospital, tmp_path) == {long.stay_id: inside}


def test_the_window_holds_both_of_its_ends(hospital: Hospital, tmp_path: Path) -> None:
    millisecond = 0.001 * SECOND
    expected = set()
    for at, counts in ((0, True), (-millisecond, False), (10, True), (10 + millisecond, False)):
        stay = hospital.add_stay(hours=10)
        hospital.radiograph(stay, at=at)
        if counts:
            expected.add(stay.stay_id)
    assert set(selected(hospital, tmp_path)) == expected


def test_other_views_are_ignored_until_they_are_asked_for(
    hospital: Hospital, stay: Stay, tmp_path: Path
) -> None:
    frontal = hospital.radiograph(stay, at=1)
    posterior = hospital.radiograph(stay, at=2, view="PA")
    lateral = hospital.radiograph(stay, at=3, view="LATERAL")
    hospital.radiograph(stay, at=4, ViewPosition=None)
    assert selected(hospital, tmp_path) == {stay.stay_id: frontal}
    assert selected(hospital, tmp_path, ("AP", "PA")) == {stay.stay_id: posterior}
    assert selected(hospital, tmp_path, ("LATERAL",)) == {stay.stay_id: lateral}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_study_time_has_lost_its_leading_zeros(suffix: Suffix, hospital: Hospital, tmp_path: Path) -> None:
    after_midnight = {
        1000.266: timedelta(minutes=10, seconds=0.266),
        59.5: timedelta(seconds=59.5),
        0.0: timedelta(0),
        3.0: timedelta(seconds=3),
        51801.029: timedelta(hours=5, minutes=18, seconds=1.029),
        184051.247: timedelta(hours=18, minutes=40, seconds=51.247),
        235959.999: timedelta(hours=23, minutes=59, seconds=59.999),
    }
    expected = set()
    for study_time, after in after_midnight.items():
        whole_second = MIDNIGHT + timedelta(seconds=after // timedelta(seconds=1))
        in_time = hospital.add_stay(intime=whole_second)
        too_late = hospital.add_stay(intime=whole_second + timedelta(seconds=1))
        too_early = hospital.add_stay(hours=1, intime=whole_second - timedelta(hours=1, seconds=1))
        for stay in (in_time, too_late, too_early):
            hospital.radiograph(stay, StudyDate=21500301, StudyTime=study_time)
        expected.add(in_time.stay_id)
    assert set(selected(hospital, tmp_path, suffix=suffix)) == expected


def test_a_study_without_time_is_left_out(hospital: Hospital, stay: Stay, tmp_path: Path) -> None:
    hospital.radiograph(stay, at=1, StudyTime=None)
    hospital.radiograph(stay, at=1, StudyDate=None)
    hospital.radiograph(stay, at=1, StudyDate=21501399)
    assert selected(hospital, tmp_path) == {}


def test_of_two_images_taken_at_once_the_later_ids_count(
    hospital: Hospital, stay: Stay, tmp_path: Path
) -> None:
    first, second = hospital.radiograph(stay, at=1), hospital.radiograph(stay, at=1)
    assert first < second
    assert selected(hospital, tmp_path) == {stay.stay_id: second}


def test_two_stays_of_a_subject_keep_their_own_radiographs(hospital: Hospital, tmp_path: Path) -> None:
    first = hospital.add_stay(hours=30)
    second = hospital.add_stay(hours=30, same_subject=first, intime=first.intime + timedelta(days=30))
    images = {one.stay_id: hospital.radiograph(one, at=5) for one in (first, second)}
    assert selected(hospital, tmp_path) == images
