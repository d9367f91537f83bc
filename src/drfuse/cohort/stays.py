"""Who is in: the ICU stays that pass the inclusion criteria, and how many are left after each."""

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from drfuse.cohort.tables import MimicIV


@dataclass(frozen=True)
class Step:
    """One inclusion criterion and the stays that are left after it."""

    criterion: str
    stays: ir.Table


def describe_stays(mimic: MimicIV, window_hours: int) -> ir.Table:
    """Return each ICU stay with its admission and its patient, where those are known.

    The columns: `subject_id`, `hadm_id`, `stay_id`, `age` (years, at admission), `gender`, `race`,
    `admission_type`, `first_careunit`, `last_careunit`, `intime`, `outtime`, `los` (days),
    `in_hospital_mortality` (null where MIMIC does not say), `window_end` (the earlier of `outtime` and
    `intime` + window; nothing after it may be read) and `n_hours` (hours until
    `window_end`, rounded up). A stay without `outtime` has no window and so is never observed.
    """
    stays = mimic.icustays.left_join(mimic.admissions, ["subject_id", "hadm_id"]).left_join(
        mimic.patients, "subject_id"
    )
    full_window = stays.intime + ibis.interval(hours=window_hours)
    window_end = (stays.outtime > full_window).ifelse(full_window, stays.outtime)  # null without outtime
    seconds = seconds_between(stays.intime, window_end)
    return stays.select(
        "subject_id",
        "hadm_id",
        "stay_id",
        # anchor_age is the age in anchor_year, a year of the subject's own shifted calendar
        age=stays.anchor_age + stays.admittime.year() - stays.anchor_year,
        gender="gender",
        race="race",
        admission_type="admission_type",
        first_careunit="first_careunit",
        last_careunit="last_careunit",
        intime="intime",
        outtime="outtime",
        los="los",
        in_hospital_mortality=stays.hospital_expire_flag == 1,
        window_end=window_end,
        n_hours=((seconds + 3599) // 3600).clip(lower=1),
    )


def seconds_between(start: ir.TimestampColumn, end: ir.TimestampColumn) -> ir.IntegerColumn:
    """Return the whole seconds from one time to another: engines differ in how they round the rest."""
    start, end = (time.truncate("s").cast(time.type()) for time in (start, end))
    return end.delta(start, unit="second")


def select_stays(everyone: ir.Table, min_age_years: int = 18) -> list[Step]:
    """Return the inclusion steps in order; the last one holds the stays that can enter the cohort.

    Args:
        everyone: All ICU stays (see `describe_stays`).
        min_age_years: The youngest age.
    """
    untransferred = everyone.filter(everyone.first_careunit == everyone.last_careunit)
    stays_of_admission = untransferred.count().over(ibis.window(group_by="hadm_id"))
    single = untransferred.filter(stays_of_admission == 1)
    adult = single.filter(single.age >= min_age_years)
    return [
        Step("all ICU stays", everyone),
        Step("same first and last care unit", untransferred),
        Step("only such stay of the admission", single),
        Step(f"age at least {min_age_years} years", adult),
    ]
