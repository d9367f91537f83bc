"""The administrative tables of the simulated hospital: patients, admissions, ICU stays and diagnoses."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Patients

Ints = NDArray[np.int64]

INDEX_DIGITS = 8  # the last digits of every id, after those of the seed
_TRANSFERRED, _MINORS, _RETURNED = 0.08, 0.01, 0.04  # per stay that can be included
_SAME_SUBJECT = 0.2  # the share of admissions that are of the same subject as the one before
_UNITS = np.array(
    [
        "Medical Intensive Care Unit (MICU)",
        "Surgical Intensive Care Unit (SICU)",
        "Medical/Surgical Intensive Care Unit (MICU/SICU)",
        "Cardiac Vascular Intensive Care Unit (CVICU)",
        "Coronary Care Unit (CCU)",
        "Trauma SICU (TSICU)",
    ]
)
_ADMISSION_TYPES = ("EW EMER.", "URGENT", "OBSERVATION ADMIT", "ELECTIVE", "SURGICAL SAME DAY ADMISSION")
_RACES = ("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC/LATINO - PUERTO RICAN", "ASIAN - CHINESE", "UNKNOWN")
_INSURANCES = ("Medicare", "Private", "Medicaid")
_YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019", "2020 - 2022")
_ICD_9_GROUPS = 2  # the first year groups are coded in ICD-9, the others in ICD-10


@dataclass(frozen=True)
class Census:
    """Whose n ICU stays there are and of which kind, before anything happens in them.

    Attributes:
        subject: The subject of each stay (n,), counted from 0; stays of one subject are adjacent.
        admission: The admission of each stay (n,), counted from 0; stays of one admission are adjacent.
        transferred: Whether the stay ends in a different unit than it began in (n,).
        minor: Whether the patient is a minor (n,).
        returned: Whether the admission has two stays (n,).
    """

    subject: Ints
    admission: Ints
    transferred: NDArray[np.bool_]
    minor: NDArray[np.bool_]
    returned: NDArray[np.bool_]

    @classmethod
    def draw(cls, n_eligible: int, generator: np.random.Generator) -> "Census":
        """Return `n_eligible` stays that can be included, and some more that the inclusion rules remove."""
        extra = [round(share * n_eligible) for share in (_TRANSFERRED, _MINORS, _RETURNED)]
        kind = generator.permutation(np.repeat(np.arange(4), [n_eligible, *extra]))  # of each admission
        adult = kind != 2
        follows = (generator.random(len(kind)) < _SAME_SUBJECT) & adult & np.append(False, adult[:-1])
        n_stays = np.where(kind == 3, 2, 1)
        stay_kind = np.repeat(kind, n_stays)
        return cls(
            subject=np.repeat(np.cumsum(~follows) - 1, n_stays),
            admission=np.repeat(np.arange(len(kind)), n_stays),
            transferred=stay_kind == 1,
            minor=stay_kind == 2,
            returned=stay_kind == 3,
        )

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """Whether the inclusion rules keep each stay (n,)."""
        return ~(self.transferred | self.minor | self.returned)

    def __len__(self) -> int:
        return len(self.subject)


@dataclass(frozen=True)
class Hospital:
    """The administrative tables of some stays; `icustays` is in the order of the census."""

    patients: pl.DataFrame
    admissions: pl.DataFrame
    icustays: pl.DataFrame
    diagnoses: pl.DataFrame


def admit(
    census: Census, patients: Patients, seed: int, first_index: int, generator: np.random.Generator
) -> Hospital:
    """Return the tables of the stays in a census. Severely ill patients stay longer and die more often.

    Every id contains the hospital's `seed` and an index, which begins at `first_index`.
    """
    n = len(census)
    los_hours = np.clip(np.exp(generator.normal(np.log(52) + 0.2 * patients.severity, 0.6)), 5, 1000)
    intime = _intimes(census, los_hours, generator)
    outtime = intime + _minutes(los_hours * 60)
    intime = intime + generator.integers(60, size=n).astype("timedelta64[s]")
    unit = generator.integers(len(_UNITS), size=n)
    next_unit = (unit + generator.integers(1, len(_UNITS), n)) % len(_UNITS)
    icustays = pl.DataFrame(
        {
            "subject_id": _ids(1, seed, first_index + census.subject),
            "hadm_id": _ids(2, seed, first_index + census.admission),
            "stay_id": _ids(3, seed, first_index + np.arange(n)),
            "first_careunit": _UNITS[unit],
            "last_careunit": _UNITS[np.where(census.transferred, next_unit, unit)],
            "intime": intime,
            "outtime": outtime,
            "los": (outtime - intime) / np.timedelta64(1, "D"),
        }
    )
    is_first, is_last = _first_and_last(census.admission)
    is_first_of_subject, is_last_of_subject = _first_and_last(census.subject)
    died = (generator.random(n) < expit(-2.6 + 1.2 * patients.severity)) & is_last_of_subject
    admissions = _admissions(icustays.filter(is_first), outtime[is_last], died[is_last], generator)
    group = generator.integers(len(_YEAR_GROUPS), size=n)[census.subject]
    minor, group_of_subject = census.minor[is_first_of_subject], group[is_first_of_subject]
    return Hospital(
        patients=_patients(admissions, minor, group_of_subject, generator),
        admissions=admissions,
        icustays=icustays,
        diagnoses=_diagnoses(
            admissions,
            patients.labels[is_first],
            np.where(group[is_first] < _ICD_9_GROUPS, 9, 10),
            patients.disease.phenotypes,
            generator,
        ),
    )


def diagnosis_titles() -> pl.DataFrame:
    """Return `d_icd_diagnoses`: every code that the hospital uses; the title is its phenotype, if any."""
    codes = read_phenotypes().select("icd_code", "icd_version", long_title="phenotype")
    background = read_definitions("background_codes").select(codes.columns)
    return pl.concat([codes, background]).sort("icd_version", "icd_code")


def _ids(table: int, seed: int, index: Ints) -> Ints:
    """Return ids (n,) that begin with `table`, as MIMIC's do; a subject's second digit varies."""
    seed_digits = len(str(seed))
    head = table * 10 + index % 10 if table == 1 else np.full(len(index), table)
    ids: Ints = (head * 10**seed_digits + seed) * 10**INDEX_DIGITS + index
    return ids


def _first_and_last(ids: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether each entry is the first, and the last, with its id; equal ids are adjacent."""
    differs = ids[1:] != ids[:-1]
    return np.append(True, differs), np.append(differs, True)


def _minutes(values: NDArray[np.float64]) -> NDArray[np.timedelta64]:
    return np.round(values).astype("timedelta64[m]").astype("timedelta64[us]")


def _intimes(
    census: Census, los_hours: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.datetime64]:
    """Return ICU admission times (n,).

    A subject's admissions are months apart; the second stay of an admission begins about a day after the
    first ends.
    """
    n = len(census)
    is_first, _ = _first_and_last(census.admission)
    is_first_of_subject, _ = _first_and_last(census.subject)
    first_stay = np.flatnonzero(is_first_of_subject)[census.subject]  # the subject's
    start = np.datetime64(datetime(2110, 1, 1), "us") + _minutes(generator.uniform(0, 80 * 525_600, n))
    next_stay_hours, next_admission_hours = generator.uniform(8, 48, n), generator.uniform(3000, 20_000, n)
    gap_hours = np.where(is_first, next_admission_hours, next_stay_hours)
    since_first = np.cumsum(np.where(is_first_of_subject, 0.0, gap_hours + np.append(0, los_hours[:-1])))
    return start[first_stay] + _minutes((since_first - since_first[first_stay]) * 60)


def _patients(
    admissions: pl.DataFrame, minor: NDArray[np.bool_], year_group: Ints, generator: np.random.Generator
) -> pl.DataFrame:
    """Return the subjects of some admissions; `minor` and `year_group` have one entry per subject."""
    n = len(minor)
    age = np.clip(np.round(generator.normal(64, 16, n)), 18, 91)
    subjects = admissions.group_by("subject_id", maintain_order=True)
    first_and_death = subjects.agg(pl.col("admittime").first(), pl.col("deathtime").last())
    return first_and_death.select(
        "subject_id",
        gender=pl.Series(np.where(generator.random(n) < 0.44, "F", "M")),
        anchor_age=pl.Series(np.where(minor, generator.integers(12, 17, n), age).astype(np.int64)),
        anchor_year=pl.col("admittime").dt.year(),
        anchor_year_group=pl.Series(np.array(_YEAR_GROUPS)[year_group]),
        dod=pl.col("deathtime").dt.date(),
    )


def _admissions(
    first_stays: pl.DataFrame,
    last_outtime: NDArray[np.datetime64],
    died: NDArray[np.bool_],
    generator: np.random.Generator,
) -> pl.DataFrame:
    n = first_stays.height
    before, after = generator.exponential(12, n), generator.exponential(80, n)
    discharged = pl.Series(last_outtime + _minutes(np.where(died, 0.0, 60 * (2 + after))))
    return first_stays.select(
        "subject_id",
        "hadm_id",
        admittime=pl.col("intime") - pl.Series(_minutes(60 * np.minimum(before, 36))),
        dischtime=discharged,
        deathtime=pl.when(pl.Series(died)).then(discharged),
        admission_type=pl.Series(generator.choice(_ADMISSION_TYPES, n, p=[0.5, 0.2, 0.15, 0.05, 0.1])),
        admission_location=pl.lit("EMERGENCY ROOM"),
        discharge_location=pl.Series(np.where(died, "DIED", "HOME")),
        insurance=pl.Series(generator.choice(_INSURANCES, n, p=[0.5, 0.33, 0.17])),
        language=pl.lit("ENGLISH"),
        race=pl.Series(generator.choice(_RACES, n, p=[0.67, 0.11, 0.05, 0.04, 0.13])),
        hospital_expire_flag=pl.Series(died.astype(np.int64)),
    )


def _diagnoses(
    admissions: pl.DataFrame,
    labels: NDArray[np.bool_],
    version: Ints,
    phenotypes: tuple[str, ...],
    generator: np.random.Generator,
) -> pl.DataFrame:
    """Return each admission's diagnoses: one or two codes for each of its phenotypes, and background ones."""
    listed = read_phenotypes().select("phenotype", "icd_version", "icd_code")
    background = read_definitions("background_codes").with_columns(phenotype=pl.lit(""))
    groups = (
        pl.concat([listed, background.select(listed.columns)])
        .group_by("phenotype", "icd_version", maintain_order=True)
        .agg("icd_code")
    )
    codes_of = {
        (name, icd_version): np.array(codes, dtype=object) for name, icd_version, codes in groups.iter_rows()
    }
    found = np.hstack([labels, np.ones((len(labels), 1), bool)])  # everyone has a background diagnosis
    twice = generator.random(found.shape) < 0.2
    rows, drawn = [], []
    for c, name in enumerate((*phenotypes, "")):
        for icd_version in (9, 10):
            having = np.flatnonzero(found[:, c] & (version == icd_version))
            having = np.concatenate([having, having[twice[having, c]]])
            codes = codes_of[name, icd_version]
            rows.append(having)
            drawn.append(codes[generator.integers(len(codes), size=len(having))])
    icd_code = pl.Series(np.concatenate(drawn).tolist(), dtype=pl.String)
    table = pl.DataFrame({"row": np.concatenate(rows), "icd_code": icd_code}).unique(maintain_order=True)
    table = table.with_columns(order=pl.Series(generator.random(table.height))).sort("row", "order")
    ids = admissions.select("subject_id", "hadm_id", icd_version=pl.Series(version)).with_row_index("row")
    return (
        table.join(ids.with_columns(pl.col("row").cast(pl.Int64)), on="row", maintain_order="left")
        .with_columns(seq_num=pl.int_range(1, pl.len() + 1).over("row"))
        .select("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version")
    )
