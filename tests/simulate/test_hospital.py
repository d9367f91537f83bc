import dataclasses
import math
from collections import defaultdict
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Disease
from drfuse.simulate.hospital import Census, Hospital, admit, diagnosis_titles
from tests.simulate.samples import Admitted, slopes

LAST_BLOCK = 99_999_000  # the first index of the last 1,000 that eight digits hold
IDS = ("subject_id", "hadm_id", "stay_id")


@pytest.fixture(scope="module")
def stays(admitted: Admitted) -> pl.DataFrame:
    """Return each ICU stay with its admission, its patient and the census' flags."""
    hospital, census = admitted.hospital, admitted.census
    flags = {name: getattr(census, name) for name in ("transferred", "minor", "returned", "eligible")}
    return (
        hospital.icustays.with_columns(pl.Series(name, flag) for name, flag in flags.items())
        .join(hospital.admissions, on=["subject_id", "hadm_id"], maintain_order="left")
        .join(hospital.patients, on="subject_id", maintain_order="left")
    )


def small_hospital(disease: Disease, seed: int, first_index: int = 0) -> Hospital:
    generator = np.random.default_rng(0)
    census = Census.draw(60, generator)
    return admit(census, disease.draw(len(census), generator), seed, first_index, generator)


@pytest.mark.parametrize("n", [1, 7, 500])
def test_as_many_stays_as_asked_for_can_be_included(n: int) -> None:
    assert Census.draw(n, np.random.default_rng(n)).eligible.sum() == n


def test_others_come_with_them(admitted: Admitted) -> None:
    census = admitted.census
    assert census.eligible.sum() == 4000
    counts = [int(flag.sum()) for flag in (census.transferred, census.minor, census.returned)]
    assert counts == [320, 40, 2 * 160]
    assert len(census) == admitted.hospital.icustays.height == 4680


def test_the_transferred_change_their_unit(stays: pl.DataFrame) -> None:
    assert stays.height == 4680
    changes = stays["first_careunit"] != stays["last_careunit"]
    assert changes.equals(stays["transferred"])


def test_minors_are_under_18_and_nobody_else_is(stays: pl.DataFrame) -> None:
    age = stays["anchor_age"] + stays["admittime"].dt.year() - stays["anchor_year"]
    assert (age < 18).equals(stays["minor"])


def test_the_returned_have_two_stays_in_their_admission(stays: pl.DataFrame) -> None:
    in_admission = stays.select(pl.len().over("hadm_id")).to_series()
    assert (in_admission > 1).equals(stays["returned"])
    assert in_admission.max() == 2


def test_the_rules_keep_only_those_without_a_flag(stays: pl.DataFrame) -> None:
    flagged = stays["transferred"] | stays["minor"] | stays["returned"]
    assert (~flagged).equals(stays["eligible"])


def test_stays_lie_within_their_admission(stays: pl.DataFrame) -> None:
    assert (stays["admittime"] <= stays["intime"]).all()
    assert (stays["intime"] < stays["outtime"]).all()
    assert (stays["outtime"] <= stays["dischtime"]).all()
    days = (stays["outtime"] - stays["intime"]).dt.total_seconds() / 86_400
    assert stays["los"].to_numpy() == pytest.approx(days.to_numpy())


def test_the_admissions_of_a_subject_follow_each_other(admitted: Admitted) -> None:
    ends: dict[int, list[tuple[datetime, datetime]]] = defaultdict(list)
    for row in admitted.hospital.admissions.sort("hadm_id").iter_rows(named=True):
        ends[row["subject_id"]].append((row["admittime"], row["dischtime"]))
    times = [[time for admission in of_one for time in admission] for of_one in ends.values()]
    assert all(one == sorted(one) for one in times)
    share = sum(len(of_one) - 1 for of_one in ends.values()) / admitted.hospital.admissions.height
    assert share == pytest.approx(0.2, abs=0.03)


def test_the_second_stay_of_an_admission_begins_after_the_first_one_ends(stays: pl.DataFrame) -> None:
    returned = stays.filter("returned")
    first, second = returned.gather_every(2), returned.gather_every(2, 1)
    assert first["hadm_id"].equals(second["hadm_id"])
    gap = second["intime"] - first["outtime"]
    assert gap.min() >= timedelta(hours=8) - timedelta(minutes=1)
    assert gap.max() <= timedelta(hours=48) + timedelta(minutes=1)


def test_each_row_is_there_once(admitted: Admitted) -> None:
    hospital = admitted.hospital
    for table, key in (
        (hospital.patients, "subject_id"),
        (hospital.admissions, "hadm_id"),
        (hospital.icustays, "stay_id"),
    ):
        assert table[key].n_unique() == table.height
    assert set(hospital.patients["subject_id"]) == set(hospital.admissions["subject_id"])
    assert set(hospital.admissions["hadm_id"]) == set(hospital.icustays["hadm_id"])


@pytest.mark.parametrize("seeds", [(0, 1), (0, 10), (1, 10), (1, 11), (1, 101), (12, 2), (9, 99), (5, 50)])
def test_two_seeds_share_no_id(disease: Disease, seeds: tuple[int, int]) -> None:
    ids = [
        {name: set[int]().union(*(table[name] for table in blocks)) for name in IDS}
        for blocks in (
            [small_hospital(disease, seed, first).icustays for first in (0, 1000, 10_000_000, LAST_BLOCK)]
            for seed in seeds
        )
    ]
    for name in IDS:
        assert ids[0][name]
        assert ids[0][name].isdisjoint(ids[1][name]), name


def test_the_blocks_of_a_hospital_share_no_id(disease: Disease) -> None:
    blocks = [small_hospital(disease, 4, first).icustays for first in (0, 1000, 2000, 10_000, LAST_BLOCK)]
    for name in IDS:
        assert pl.concat(blocks)[name].n_unique() == sum(block[name].n_unique() for block in blocks)


def test_the_largest_ids_fit_into_64_bits_and_end_in_seed_and_number(disease: Disease) -> None:
    largest = small_hospital(disease, 999_999_999, LAST_BLOCK).icustays
    for name, head in (("subject_id", r"1\d"), ("hadm_id", "2"), ("stay_id", "3")):
        assert largest[name].cast(pl.String).str.contains(rf"^{head}99999999999999\d{{3}}$").all(), name
    assert [int(str(one)[10:]) for one in largest["stay_id"]] == [
        LAST_BLOCK + i for i in range(largest.height)
    ]


def test_an_admission_has_the_codes_of_its_phenotypes_and_of_no_other(admitted: Admitted) -> None:
    phenotype_of = {
        (version, code): name
        for name, version, code in read_phenotypes()
        .select("phenotype", "icd_version", "icd_code")
        .iter_rows()
    }
    background = set(read_definitions("background_codes").select("icd_version", "icd_code").iter_rows())
    assert background.isdisjoint(phenotype_of)
    found: dict[int, set[str]] = defaultdict(set)
    of_none: dict[int, int] = defaultdict(int)
    rows = admitted.hospital.diagnoses.select("hadm_id", "icd_version", "icd_code")
    for hadm_id, *code in rows.iter_rows():
        if tuple(code) in phenotype_of:
            found[hadm_id].add(phenotype_of[tuple(code)])
        else:
            assert tuple(code) in background
            of_none[hadm_id] += 1
    first_stay = np.unique(admitted.census.admission, return_index=True)[1]
    names = np.array(admitted.patients.disease.phenotypes)
    hadm_ids = admitted.hospital.icustays["hadm_id"].to_numpy()[first_stay].tolist()
    for hadm_id, labels in zip(hadm_ids, admitted.patients.labels[first_stay], strict=True):
        assert found[hadm_id] == set(names[labels])
        assert 1 <= of_none[hadm_id] <= 2


def test_a_subject_is_coded_in_one_version(admitted: Admitted) -> None:
    versions = admitted.hospital.diagnoses.group_by("subject_id").agg(pl.col("icd_version").unique())
    assert versions["icd_version"].list.len().max() == 1
    assert set(versions["icd_version"].list.first()) == {9, 10}


def test_the_diagnoses_of_an_admission_are_numbered_and_different(admitted: Admitted) -> None:
    diagnoses = admitted.hospital.diagnoses
    assert diagnoses.select("hadm_id", "icd_code").is_unique().all()
    for numbers in diagnoses.group_by("hadm_id").agg("seq_num")["seq_num"]:
        assert numbers.to_list() == list(range(1, len(numbers) + 1))
    admissions = admitted.hospital.admissions.select("subject_id", "hadm_id")
    assert diagnoses.join(admissions, on=["subject_id", "hadm_id"], how="anti").is_empty()


def test_each_code_has_one_title(admitted: Admitted) -> None:
    titles = diagnosis_titles()
    assert titles.select("icd_code", "icd_version").is_unique().all()
    assert admitted.hospital.diagnoses.join(titles, on=["icd_code", "icd_version"], how="anti").is_empty()
    assert titles.filter(icd_code="J9601")["long_title"].to_list() == [
        "Respiratory failure; insufficiency; arrest (adult)"
    ]


def test_only_the_last_admission_of_a_subject_ends_in_death(admitted: Admitted) -> None:
    admissions = admitted.hospital.admissions.sort("admittime")
    is_last = admissions.select(
        pl.col("admittime") == pl.col("admittime").max().over("subject_id")
    ).to_series()
    died = admissions["hospital_expire_flag"] == 1
    assert 0.05 < died.mean() < 0.3
    assert not (died & ~is_last).any()
    has_several = admissions.select(pl.len().over("subject_id") > 1).to_series()
    assert (died & has_several).any()
    assert died.equals(admissions["deathtime"].is_not_null())
    assert died.equals(admissions["discharge_location"] == "DIED")
    dead = admissions.filter(died)
    assert dead["deathtime"].equals(dead["dischtime"])


def test_the_dead_have_the_day_of_their_death(admitted: Admitted) -> None:
    deaths = admitted.hospital.admissions.filter(pl.col("deathtime").is_not_null())
    expected = {
        subject_id: time.date() for subject_id, time in deaths.select("subject_id", "deathtime").iter_rows()
    }
    found = admitted.hospital.patients.filter(pl.col("dod").is_not_null())
    assert dict(found.select("subject_id", "dod").iter_rows()) == expected


def test_the_severely_ill_stay_longer(admitted: Admitted) -> None:
    log_hours = np.log(24 * admitted.hospital.icustays["los"].to_numpy())
    (typical, longer), _ = slopes(admitted.patients.severity[:, None], log_hours)
    assert math.exp(typical) == pytest.approx(52, rel=0.05)
    assert math.exp(longer) == pytest.approx(1.2, abs=0.06)


def test_who_has_more_of_the_acute_factors_dies_more_often(admitted: Admitted) -> None:
    illness = admitted.patients.factors[:, admitted.patients.disease.acute].sum(axis=1)
    died = admitted.hospital.admissions.select("hadm_id", died=pl.col("deathtime").is_not_null())
    of_stay = admitted.hospital.icustays.join(died, on="hadm_id", maintain_order="left")["died"].to_numpy()
    assert illness[of_stay].mean() > illness[~of_stay].mean() + 1


def test_age_and_sex_say_nothing_of_the_factors(admitted: Admitted) -> None:
    people = admitted.hospital.icustays.join(
        admitted.hospital.patients, on="subject_id", maintain_order="left"
    )
    women = (people["gender"] == "F").to_numpy().astype(float)
    for column in (people["anchor_age"].to_numpy(), women):
        correlation = [np.corrcoef(column, factor)[0, 1] for factor in admitted.patients.factors.T]
        assert np.abs(correlation).max() < 0.06


def test_when_a_stay_takes_place_is_decided_by_what_the_ehr_shows(disease: Disease) -> None:
    census = Census.draw(60, np.random.default_rng(0))
    patients = disease.draw(len(census), np.random.default_rng(1))
    another = disease.draw(len(census), np.random.default_rng(2))
    same_ehr = dataclasses.replace(another, ehr=patients.ehr)
    tables = [
        admit(census, hidden, 0, 0, np.random.default_rng(3)).icustays
        for hidden in (patients, same_ehr, another)
    ]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
