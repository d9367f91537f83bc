"""Which ICU stays pass the inclusion criteria, and how many are left after each."""

from dataclasses import dataclass
from typing import NoReturn

import ibis
import ibis.expr.types as ir

from drfuse.cohort.manifest import FlowStep
from drfuse.cohort.sources import Source
from drfuse.cohort.store import count, fetch
from drfuse.errors import InputError


@dataclass(frozen=True)
class Step:
    """An inclusion criterion and the stays left after it."""

    criterion: str
    stays: ir.Table


@dataclass(frozen=True)
class Candidates:
    """The stays that pass every criterion except the last: that something was measured.

    Attributes:
        flow: The number of stays after each of these criteria.
        stored: The stays (see `describe_stays`), in the store.
        queryable: The same, as a table that queries of the source can join.
        n_backwards: How many stays of the source end before they begin; nothing can be observed in them.
    """

    flow: list[FlowStep]
    stored: ir.Table
    queryable: ir.Table
    n_backwards: int


def describe_stays(source: Source, window_hours: int) -> ir.Table:
    """Return every ICU stay with what is known of its admission and its patient.

    The columns: `subject_id`, `hadm_id`, `stay_id`, `age` (years, at admission), `gender`, `race`,
    `admission_type`, `first_careunit`, `last_careunit`, `intime`, `outtime`, `los` (days; null if
    it is negative), `in_hospital_mortality` (null if unknown), `window_end` (the earlier of `outtime` and
    `intime` + window; nothing later may be read) and `n_hours` (from `intime` to `window_end`, rounded up). A
    stay without an `outtime` has no window and is left out.
    """
    stays = source.stays.left_join(source.admissions, ["subject_id", "hadm_id"])
    full_window = stays.intime + ibis.interval(hours=window_hours)
    window_end = (stays.outtime > full_window).ifelse(full_window, stays.outtime)  # null without outtime
    seconds = seconds_between(stays.intime, window_end)
    return stays.select(
        "subject_id",
        "hadm_id",
        "stay_id",
        "gender",
        "race",
        "admission_type",
        "first_careunit",
        "last_careunit",
        "intime",
        "outtime",
        "in_hospital_mortality",
        los=(stays.los >= 0).ifelse(stays.los, ibis.null("float64")),
        age=stays.admittime.year() - stays.birth_year,
        window_end=window_end,
        n_hours=((seconds + 3599) // 3600).clip(lower=1),
    )


def seconds_between(start: ir.TimestampColumn, end: ir.TimestampColumn) -> ir.IntegerColumn:
    """Return the seconds between two times, fractions cut off first: engines round them differently."""
    start, end = (time.truncate("s").cast(time.type()) for time in (start, end))
    return end.delta(start, unit="second")


def select_stays(everyone: ir.Table, min_age_years: int = 18) -> list[Step]:
    """Return the inclusion steps that need no events, given all stays (see `describe_stays`)."""
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


def require_observation(candidates: ir.Table, observed: ir.Table) -> Step:
    """Return the last inclusion step, whose stays are the cohort.

    `observed` holds the `stay_id` of every stay with a value in its window, once or more.
    """
    return Step("a variable observed in the window", candidates.semi_join(observed, "stay_id"))


def find_candidates(source: Source, window_hours: int) -> Candidates:
    """Return the stays that pass the inclusion steps that need no events.

    Raises:
        InputError: If the source has a stay, an admission or a patient more than once.
    """
    described = describe_stays(source, window_hours)
    everyone = source.materialize(described, "everyone")
    steps = select_stays(everyone)
    counts = [step.stays.aggregate(n=step.stays.count(), step=i) for i, step in enumerate(steps)]
    backwards = everyone.filter(everyone.outtime < everyone.intime)
    counts.append(everyone.aggregate(n=everyone.stay_id.nunique(), step=len(steps)))
    counts.append(backwards.aggregate(n=backwards.count(), step=len(steps) + 1))
    *counted, distinct, n_backwards = fetch(source.store, ibis.union(*counts).order_by("step"))[
        "n"
    ].to_pylist()
    flow = [FlowStep(step.criterion, n) for step, n in zip(steps, counted, strict=True)]
    if flow[0].stays != distinct:
        _refuse_repeated(source, everyone)
    stored = source.store.create_table("candidates", steps[-1].stays)
    queryable = source.queryable(stored, select_stays(described)[-1].stays)
    return Candidates(flow, stored, queryable, n_backwards)


def _refuse_repeated(source: Source, everyone: ir.Table) -> NoReturn:
    """Raise the InputError that names the table in which rows are repeated."""
    if unnamed := count(source.store, everyone.filter(everyone.stay_id.isnull())):
        raise InputError(f"{source.address} has {unnamed} ICU stays without stay_id; correct or remove them")
    for name, (table, keys) in source.keys.items():
        repeated = table.group_by(*keys).agg(n_rows=table.count())
        repeated = repeated.filter(repeated.n_rows > 1)
        again = source.materialize(repeated.agg(n=repeated.count()), f"repeated_{name}")
        if n_repeated := fetch(source.store, again)["n"][0].as_py():
            raise InputError(
                f"the table {name} of {source.address} has {n_repeated} values of {', '.join(keys)} in more "
                "than one row; keep one row of each"
            )
    raise InputError(
        f"{source.address} has ICU stays more than once; keep one row for each stay, admission and patient"
    )
