"""The chart events and laboratory results of the simulated stays.

Every variable follows a course over the hours: its mean, the stay's own deviation, the effect of the EHR's
readings, the time of day, and autoregressive noise. It is then charted in rounds at irregular times, as one
of the items and in one of the units that MIMIC has for it. The more reliable a stay's record is, the more
often it is charted and the less it fluctuates.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.signal import lfilter

from drfuse.cohort.variables import SPECIMEN_TYPE
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Floats, Patients
from drfuse.simulate.hospital import INDEX_DIGITS

_HOURS_BEFORE = 12  # laboratory results also come from before ICU admission
_HOURS_AFTER = 60  # events go on after the 48 hours that may be read
_PERSISTENCE = 0.7  # of the noise, from one hour to the next
_LEAST_NOISE, _MOST_NOISE = 0.8, 1.7  # its factor at a reliability of 1 and of 0
_RHYTHM = 0.7  # what a standard deviation of `rhythm` adds to the log of the heart rate's noise
_SKIPPED = 0.05  # share of the values of a round that are not charted
_TYPO_SHARE, _TYPO = 0.0005, 9999.0  # share of the charted numbers that are typing errors, and what is typed
_WITHOUT_ADMISSION = 0.15  # share of the laboratory results
_LATEST_GAP, _LONGEST_GAP = 44.0, 4.0  # hours in which nothing is charted: the patient is away

_CONVERSIONS: dict[str, Callable[[Floats], Floats]] = {
    "fahrenheit": lambda celsius: celsius * 1.8 + 32,
    "pounds": lambda kilogram: kilogram / 0.453592,
    "inches": lambda centimetre: np.round(centimetre / 2.54),
}
_LAB_COLUMNS = ("labevent_id", "subject_id", "hadm_id", "specimen_id", "itemid", "charttime", "storetime")
_CHART_COLUMNS = ("subject_id", "hadm_id", "stay_id", "charttime", "storetime", "itemid")


def draw_courses(patients: Patients, clock_hour: Floats, generator: np.random.Generator) -> dict[str, Floats]:
    """Return the course of each variable, (n, hours), from 12 hours before ICU admission to 60 after it.

    `clock_hour` is the time of day at ICU admission, in hours (n,).
    """
    readings = dict(zip(patients.disease.factors, patients.ehr.values.T, strict=True))
    hour = np.arange(-_HOURS_BEFORE, _HOURS_AFTER)
    noisiness = (_MOST_NOISE - (_MOST_NOISE - _LEAST_NOISE) * patients.ehr.reliability)[:, None]
    effects = read_definitions("effects").partition_by("variable", as_dict=True)
    courses: dict[str, Floats] = {}
    for row in read_definitions("courses").iter_rows(named=True):
        variable, n = row["variable"], len(clock_hour)
        course = row["mean"] + row["between_sd"] * generator.standard_normal((n, 1))
        for _, factor, level, trend in effects[(variable,)].iter_rows() if (variable,) in effects else ():
            course = course + readings[factor][:, None] * (level + trend * (hour / 48 - 0.5))
        phase = (clock_hour[:, None] + hour - row["peak_hour"]) * (2 * np.pi / 24)
        course = course + row["circadian"] * np.cos(phase)
        steps = generator.standard_normal((n, len(hour))) * np.sqrt(1 - _PERSISTENCE**2)
        noise = row["within_sd"] * lfilter([1], [1, -_PERSISTENCE], steps, axis=1)
        if variable == "heart_rate":
            noise = noise * np.exp(_RHYTHM * readings["rhythm"])[:, None]
        course = np.clip(course + noisiness * noise, row["lowest"], row["highest"])
        courses[variable] = np.exp(course) if row["scale"] == "log" else course
    systolic, diastolic = courses["systolic_blood_pressure"], courses["diastolic_blood_pressure"]
    courses["mean_blood_pressure"] = diastolic + (systolic - diastolic) / 3
    return courses


def draw_events(
    icustays: pl.DataFrame, patients: Patients, generator: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the chart events and the laboratory results of some stays, both ordered by stay and time.

    `icustays` has one row per stay: its ids, `intime` and `outtime`.
    """
    minutes = icustays["intime"].dt.hour().cast(pl.Int64) * 60 + icustays["intime"].dt.minute()
    courses = draw_courses(patients, minutes.to_numpy() / 60, generator)
    los_hours = ((icustays["outtime"] - icustays["intime"]).dt.total_seconds() / 3600).to_numpy()
    kits = _draw_kits(icustays.height, generator)
    decimals = dict(read_definitions("courses").select("variable", "decimals").iter_rows())
    texts = read_definitions("texts").partition_by("itemid", as_dict=True)
    rounds = {
        name: _draw_round(every, kept_at_least, los_hours, patients.ehr.reliability, generator)
        for name, every, kept_at_least in read_definitions("rounds").iter_rows()
    }
    tables: dict[str, list[pl.DataFrame]] = {"chartevents": [], "labevents": []}
    items = read_definitions("items")
    for item in items.filter(pl.col("itemid") != SPECIMEN_TYPE).iter_rows(named=True):
        hours, happens = rounds[item["round"]]
        happens = happens & (generator.random(hours.shape) >= _SKIPPED)
        if item["kit"]:
            happens &= kits[item["kit"]][:, None]
        if item["table"] == "chartevents":
            happens &= hours >= 0
        row, column = np.nonzero(happens)
        at = hours[row, column]
        values = courses[item["variable"]][row, np.floor(at).astype(int) + _HOURS_BEFORE]
        events = pl.DataFrame({"row": row, "hours": at, "itemid": np.full(len(row), item["itemid"])})
        if (item["itemid"],) in texts:
            events = events.with_columns(_texts(values, texts[item["itemid"],]))
        else:
            if item["conversion"]:
                values = _CONVERSIONS[item["conversion"]](values)
            values = np.round(values, 1 if item["conversion"] else decimals.get(item["variable"], 0))
            is_typo = generator.random(len(values)) < _TYPO_SHARE
            number = pl.Series("valuenum", np.where(is_typo, _TYPO, values))
            text = number.cast(pl.String).str.strip_suffix(".0").alias("value")
            events = events.with_columns(text, number)
        unit = pl.lit(item["unit"], pl.String).alias("valueuom")
        tables[item["table"]].append(events.with_columns(unit))
    gases = items.filter(pl.col("category") == "Blood Gas")["itemid"].implode()
    tables["labevents"].append(_specimen_types(pl.concat(tables["labevents"]), gases))
    chart, labs = (_timed(pl.concat(parts), icustays, generator) for parts in tables.values())
    chart = chart.select(*_CHART_COLUMNS, "value", "valuenum", "valueuom", warning=pl.lit(0))
    unknown = pl.Series(generator.random(labs.height) < _WITHOUT_ADMISSION)
    first = icustays["stay_id"][0] % 10**INDEX_DIGITS * 1000  # no stay has as many results
    labs = labs.with_columns(
        labevent_id=first + pl.int_range(pl.len(), dtype=pl.Int64),
        hadm_id=pl.when(~unknown).then("hadm_id"),
        specimen_id=first + pl.struct("row", "hours").rle_id().cast(pl.Int64),
    )
    return chart, labs.select(
        *_LAB_COLUMNS, "value", "valuenum", "valueuom", comments=pl.lit(None, pl.String)
    )


def _specimen_types(labs: pl.DataFrame, gases: pl.Series) -> pl.DataFrame:
    """Return a row for each blood gas that says where the blood is from: always arterial."""
    taken = labs.filter(pl.col("itemid").is_in(gases)).unique(["row", "hours"], maintain_order=True)
    return taken.with_columns(
        itemid=pl.lit(SPECIMEN_TYPE, labs.schema["itemid"]),
        value=pl.lit("ART."),
        valuenum=pl.lit(None, pl.Float64),
        valueuom=pl.lit(None, pl.String),
    )


def item_dictionary(table: str) -> pl.DataFrame:
    """Return `d_items` (of chart events) or `d_labitems`."""
    items = read_definitions("items").filter(pl.col("table") == table)
    if table == "labevents":
        return items.select("itemid", "label", "fluid", "category")
    return items.select(
        "itemid", "label", pl.col("label").alias("abbreviation"), pl.lit(table).alias("linksto"), "category",
        pl.col("unit").alias("unitname"), "param_type",
    )  # fmt: skip


def _draw_kits(n_stays: int, generator: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Return whether each stay (n,) has each piece of equipment or way of charting."""
    kits: dict[str, NDArray[np.bool_]] = {}
    for kit, share, otherwise in read_definitions("kits").iter_rows():
        kits[kit] = generator.random(n_stays) < share
        if otherwise:
            kits[otherwise] = ~kits[kit]
    return kits


def _draw_round(
    every: int,
    kept_at_least: float,
    los_hours: Floats,
    reliability: Floats,
    generator: np.random.Generator,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return when rounds of one kind are due, in hours after ICU admission, and whether they happen: (n, k).

    Times are whole minutes. If `every` is 0, there is one round, soon after admission.
    """
    n = len(los_hours)
    if every == 0:
        hours = generator.exponential(1.5, (n, 1))
    else:
        count = (_HOURS_BEFORE + _HOURS_AFTER) // every
        start = generator.uniform(0, every, (n, 1)) - _HOURS_BEFORE
        hours = start + every * (np.arange(count) + generator.uniform(-0.3, 0.3, (n, count)))
    hours = np.round(hours * 60) / 60
    kept = kept_at_least + (0.97 - kept_at_least) * reliability
    happens = (generator.random(hours.shape) < kept[:, None]) & (hours < los_hours[:, None])
    away = generator.uniform(0, _LATEST_GAP, (2, n, 1))
    back = away + generator.exponential(_LONGEST_GAP / 2, (2, n, 1)).clip(max=_LONGEST_GAP)
    happens &= ~((hours > away) & (hours < back)).any(axis=0)
    return hours, happens & (hours >= -_HOURS_BEFORE) & (hours < _HOURS_AFTER)


def _texts(values: Floats, texts: pl.DataFrame) -> list[pl.Series]:
    """Return each value's text, the one with the highest bound below the value, and its score or null."""
    which = np.searchsorted(texts["from"].drop_nulls().to_numpy(), values, side="right")
    chosen = texts[which]
    return [chosen["text"].alias("value"), chosen["score"].cast(pl.Float64).alias("valuenum")]


def _timed(events: pl.DataFrame, icustays: pl.DataFrame, generator: np.random.Generator) -> pl.DataFrame:
    """Return the events, sorted, with the ids of their stays and their times."""
    events = events.sort("row", "hours", "itemid")
    stays = icustays.select("subject_id", "hadm_id", "stay_id", "intime")[events["row"].to_numpy()]
    minutes = (events["hours"] * 60).round().cast(pl.Int64) * 60_000_000
    admitted = stays["intime"].dt.truncate("1m")  # charting has no seconds, admission has
    charted = (admitted + minutes.cast(pl.Duration("us"))).alias("charttime")
    delay = pl.Series(generator.integers(0, 90, events.height) * 60_000_000).cast(pl.Duration("us"))
    return events.hstack(stays).with_columns(charted, (charted + delay).alias("storetime"))
