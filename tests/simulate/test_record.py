import csv
import dataclasses
from collections.abc import Callable
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import load_variables
from drfuse.simulate.definitions import read_definitions
from drfuse.simulate.disease import Disease
from drfuse.simulate.record import draw_courses, draw_events, item_dictionary
from tests.mimic import (
    CAPILLARY_REFILL,
    CELSIUS,
    FAHRENHEIT,
    FIO2,
    GCS_EYE,
    GCS_MOTOR,
    GCS_VERBAL,
    GLUCOSE_LAB,
    HEART_RATE,
    HEIGHT_CM,
    HEIGHT_INCHES,
    O2_SATURATION_LAB,
    RESPIRATORY_RATE,
    SPECIMEN_TYPE,
    SYSTOLIC,
    WEIGHT_KG,
    WEIGHT_POUNDS,
)
from tests.simulate.samples import Floats, Recorded, admit_stays, held_out_r2, slopes

pytestmark = pytest.mark.slow

ARTERIAL_SYSTOLIC, CAPILLARY_REFILL_LEFT, HEART_RHYTHM = 220050, 224308, 220048
TEXTS = (GCS_EYE, GCS_VERBAL, GCS_MOTOR, CAPILLARY_REFILL, CAPILLARY_REFILL_LEFT, HEART_RHYTHM)
HOURS = np.arange(-12, 60)  # of a course
SLIP = 9999  # a number that no monitor showed


@pytest.fixture(scope="module")
def clock_hour(clean: Recorded) -> Floats:
    intime = clean.icustays["intime"]
    return (intime.dt.hour() + intime.dt.minute() / 60).to_numpy()


@pytest.fixture(scope="module")
def courses(clean: Recorded, clock_hour: Floats) -> dict[str, Floats]:
    return draw_courses(clean.patients, clock_hour, np.random.default_rng(5))


@pytest.fixture(scope="module")
def stays(clean_cohort: Path) -> pl.DataFrame:
    return pl.read_parquet(clean_cohort / "stays.parquet")


@pytest.fixture(scope="module")
def ehr(clean_cohort: Path) -> Floats:
    return np.load(clean_cohort / "ehr.npy").astype(np.float64)


@pytest.fixture(scope="module")
def rows(clean: Recorded, stays: pl.DataFrame) -> list[int]:
    """Return the row of each prepared stay among the simulated ones."""
    at = {stay_id: row for row, stay_id in enumerate(clean.icustays["stay_id"])}
    return [at[stay_id] for stay_id in stays["stay_id"]]


@pytest.fixture(scope="module")
def mean_of(ehr: Floats) -> Callable[[str], Floats]:
    """Return each prepared stay's mean of a variable; NaN where it was never observed."""
    names = [variable.name for variable in load_variables()]

    def mean(name: str) -> Floats:
        values = ehr[..., names.index(name)]
        n = np.isfinite(values).sum(axis=1)
        return np.where(n > 0, np.nansum(values, axis=1) / np.maximum(n, 1), np.nan)

    return mean


def reading(recorded: Recorded, factor: str) -> Floats:
    return recorded.patients.ehr.values[:, recorded.patients.disease.factors.index(factor)]


def values_of(events: pl.DataFrame, item: int) -> pl.DataFrame:
    """Return the numbers of an item that are no artefacts."""
    return events.filter(pl.col("itemid") == item, pl.col("valuenum") != SLIP)


def with_charted(stays: pl.DataFrame, recorded: Recorded, item: int) -> pl.Series:
    charted = recorded.chart.filter(itemid=item)["stay_id"].unique()
    return stays["stay_id"].is_in(charted.implode())


def test_the_items_are_those_of_mimic(shared: Path) -> None:
    real = pl.read_csv(shared / "mimic-iv-demo/icu/d_items.csv.gz")
    chart = item_dictionary("chartevents")
    shown = ["itemid", "label", "linksto", "category", "param_type"]
    assert chart.height == 25
    assert (
        chart.select(shown)
        .sort("itemid")
        .equals(real.select(shown).filter(pl.col("itemid").is_in(chart["itemid"].implode())).sort("itemid"))
    )
    real = pl.read_csv(shared / "mimic-iv-demo/hosp/d_labitems.csv.gz")
    labs = item_dictionary("labevents")
    assert labs.height == 7
    assert labs.sort("itemid").equals(
        real.select(labs.columns).filter(pl.col("itemid").is_in(labs["itemid"].implode())).sort("itemid")
    )


def test_the_units_are_those_of_mimic(recorded: Recorded, shared: Path) -> None:
    for events, table in ((recorded.chart, "icu/chartevents"), (recorded.labs, "hosp/labevents")):
        units = events.select("itemid", "valueuom").unique().drop_nulls()
        real = pl.read_csv(
            shared / f"mimic-iv-demo/{table}.csv.gz", columns=["itemid", "valueuom"], infer_schema=False
        )
        real = real.with_columns(pl.col("itemid").cast(pl.Int64)).drop_nulls().unique()
        items = events["itemid"].unique().implode()
        assert units.sort("itemid").equals(real.filter(pl.col("itemid").is_in(items)).sort("itemid"))


def test_the_items_feed_the_variables_that_they_measure() -> None:
    path = files("drfuse.cohort") / "definitions/variables.csv"
    cohort = {
        int(row["itemid"]): (row["variable"], row["table"])
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        if row["extended"] == "1" and row["itemid"] != "derived"
    }
    renamed = {"coma_depth": "gcs", "refill_delay": "capillary_refill_rate"}
    unused, fed = [], set()
    for item in read_definitions("items").iter_rows(named=True):
        if item["itemid"] not in cohort:
            unused.append(item["label"])
            continue
        variable, table = cohort[item["itemid"]]
        assert table == item["table"]
        assert variable.startswith(renamed.get(item["variable"], item["variable"]))
        fed.add(variable)
    assert unused == ["Heart Rhythm", "Sodium", "Lactate", "Specimen Type"]
    assert fed == {variable.name for variable in load_variables()} - {"gcs_total"}


def test_every_item_is_charted(recorded: Recorded) -> None:
    items = read_definitions("items")
    for table, events in (("chartevents", recorded.chart), ("labevents", recorded.labs)):
        assert set(events["itemid"]) == set(items.filter(table=table)["itemid"])


def test_chart_events_lie_between_admission_and_the_end(recorded: Recorded) -> None:
    stays = recorded.icustays.select("subject_id", "hadm_id", "stay_id", "intime", "outtime")
    events = recorded.chart.join(stays, on=["subject_id", "hadm_id", "stay_id"])
    assert events.height == recorded.chart.height > 100_000
    minute = events["intime"].dt.truncate("1m")
    assert (events["charttime"] >= minute).all()
    assert (events["charttime"] < events["intime"]).any()  # in the minute of admission
    assert (events["charttime"] <= events["outtime"]).all()
    hours = (events["charttime"] - events["intime"]).dt.total_seconds() / 3600
    assert 59 < hours.max() <= 60
    assert (events["storetime"] >= events["charttime"]).all()


def test_laboratory_results_may_precede_the_stay_but_not_follow_it(recorded: Recorded) -> None:
    known = recorded.labs.filter(pl.col("hadm_id").is_not_null())
    stays = recorded.icustays.filter(pl.len().over("hadm_id") == 1)
    results = known.join(stays, on=["subject_id", "hadm_id"])
    assert results.height > 5000
    assert (results["charttime"] <= results["outtime"]).all()
    before = (results["intime"].dt.truncate("1m") - results["charttime"]).dt.total_seconds() / 3600
    assert 0.1 < (before > 0).mean() < 0.4
    assert before.max() <= 12
    assert before.min() >= -60


def test_some_laboratory_results_name_no_admission(recorded: Recorded) -> None:
    assert recorded.labs["hadm_id"].is_null().mean() == pytest.approx(0.15, abs=0.01)
    assert recorded.labs["labevent_id"].n_unique() == recorded.labs.height


def test_events_are_in_the_order_of_stays_and_of_time(recorded: Recorded) -> None:
    order = {stay_id: row for row, stay_id in enumerate(recorded.icustays["stay_id"])}
    chart = recorded.chart.select(pl.col("stay_id").replace_strict(order), "charttime")
    assert chart.equals(chart.sort("stay_id", "charttime"))


def test_charting_takes_whole_minutes(recorded: Recorded) -> None:
    assert (recorded.chart["charttime"].dt.second() == 0).all()
    assert recorded.chart["charttime"].dt.minute().n_unique() == 60


def test_the_more_reliable_a_record_is_the_denser_it_is(recorded: Recorded) -> None:
    stays = recorded.icustays.with_columns(reliability=pl.Series(recorded.patients.ehr.reliability))
    counts = recorded.chart.filter(itemid=HEART_RATE).group_by("stay_id").len()
    stays = stays.join(counts, on="stay_id", how="left").with_columns(pl.col("len").fill_null(0))
    per_hour = (stays["len"] / (24 * stays["los"]).clip(upper_bound=60)).to_numpy()
    (least, denser), _ = slopes(stays["reliability"].to_numpy()[:, None], per_hour)
    # rounds of 0.35 to 0.97, less 5 % of the values and the hours in which the patient is away
    assert least == pytest.approx(0.35 * 0.95 * 0.93, abs=0.06)
    assert denser == pytest.approx(0.62 * 0.95 * 0.93, abs=0.08)


def test_the_more_reliable_a_record_is_the_calmer_it_is(recorded: Recorded) -> None:
    reliability = dict(
        zip(recorded.icustays["stay_id"], recorded.patients.ehr.reliability.tolist(), strict=True)
    )
    rates = values_of(recorded.chart, RESPIRATORY_RATE).with_columns(
        reliability=pl.col("stay_id").replace_strict(reliability),
        step=pl.col("valuenum").diff().over("stay_id"),
    )
    wild = rates.filter(pl.col("reliability") < 0.5)["step"].std()
    calm = rates.filter(pl.col("reliability") > 0.9)["step"].std()
    assert wild > 1.25 * calm


def test_one_number_in_2000_is_a_slip(recorded: Recorded) -> None:
    numbers = recorded.chart.filter(~pl.col("itemid").is_in(TEXTS))["valuenum"]
    assert numbers.null_count() == 0
    assert (numbers == SLIP).mean() == pytest.approx(0.0005, rel=0.25)


def test_numbers_and_their_text_agree(recorded: Recorded) -> None:
    numbers = recorded.labs.filter(pl.col("itemid") != SPECIMEN_TYPE)
    for events in (recorded.chart.filter(~pl.col("itemid").is_in(TEXTS)), numbers):
        assert events["value"].cast(pl.Float64).equals(events["valuenum"].alias("value"))


@pytest.mark.parametrize(
    ("item", "variable"),
    [
        (GCS_EYE, "gcs_eye_opening"),
        (GCS_VERBAL, "gcs_verbal_response"),
        (GCS_MOTOR, "gcs_motor_response"),
        (CAPILLARY_REFILL, "capillary_refill_rate"),
        (CAPILLARY_REFILL_LEFT, "capillary_refill_rate"),
    ],
)
def test_every_text_means_its_score(recorded: Recorded, item: int, variable: str) -> None:
    path = files("drfuse.cohort") / "definitions/text_scores.csv"
    scores = {
        row["text"]: float(row["score"])
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        if row["variable"] == variable
    }
    events = recorded.chart.filter(itemid=item)
    charted = dict(events.select(pl.col("value").str.to_lowercase(), "valuenum").unique().iter_rows())
    assert set(charted) <= set(scores)
    assert {scores[text] for text in charted} == set(scores.values())
    if variable == "capillary_refill_rate":
        assert set(charted.values()) == {None}
    else:
        assert charted == {text: scores[text] for text in charted}


def test_deeper_coma_and_slower_refill_score_as_such(
    clean: Recorded, rows: list[int], mean_of: Callable[[str], Floats]
) -> None:
    for variable, factor, sign in (
        ("gcs_total", "neurological", -1),
        ("gcs_eye_opening", "neurological", -1),
        ("gcs_motor_response", "neurological", -1),
        ("gcs_verbal_response", "neurological", -1),
        ("capillary_refill_rate", "haemodynamic", 1),
    ):
        mean, z = mean_of(variable), reading(clean, factor)[rows]
        told = np.isfinite(mean)
        assert sign * np.corrcoef(mean[told], z[told])[0, 1] > 0.6, variable


def test_patients_have_an_arterial_line_or_a_cuff(recorded: Recorded) -> None:
    charted = {
        item: set(recorded.chart.filter(itemid=item)["stay_id"])
        for item in (SYSTOLIC, ARTERIAL_SYSTOLIC, FAHRENHEIT, CELSIUS, FIO2)
    }
    n = recorded.icustays.height
    assert charted[SYSTOLIC].isdisjoint(charted[ARTERIAL_SYSTOLIC])
    assert len(charted[ARTERIAL_SYSTOLIC]) / n == pytest.approx(0.45, abs=0.05)
    assert charted[FAHRENHEIT].isdisjoint(charted[CELSIUS])
    assert len(charted[CELSIUS]) / n == pytest.approx(0.15, abs=0.04)
    assert len(charted[FIO2]) / n == pytest.approx(0.8, abs=0.05)


def test_pounds_and_kilograms_are_one_weight(recorded: Recorded) -> None:
    both = values_of(recorded.chart, WEIGHT_KG).join(
        values_of(recorded.chart, WEIGHT_POUNDS), on=["stay_id", "charttime"], suffix="_pounds"
    )
    assert both.height > 200
    difference = both["valuenum_pounds"] * 0.45359237 - both["valuenum"]
    assert difference.abs().max() < 0.05 + 0.05 * 0.4536 + 1e-3


def test_inches_and_centimetres_are_one_height(recorded: Recorded) -> None:
    both = values_of(recorded.chart, HEIGHT_INCHES).join(
        values_of(recorded.chart, HEIGHT_CM), on=["stay_id", "charttime"], suffix="_cm"
    )
    assert both.height > 500
    assert (both["valuenum"] * 2.54 - both["valuenum_cm"]).abs().max() <= 1.27 + 0.5 + 1e-9


def test_a_temperature_is_prepared_alike_from_either_unit(
    clean: Recorded, stays: pl.DataFrame, rows: list[int], mean_of: Callable[[str], Floats]
) -> None:
    mean, z = mean_of("temperature"), reading(clean, "inflammation")[rows]
    for item, least in ((FAHRENHEIT, 1500), (CELSIUS, 250)):
        own = with_charted(stays, clean, item).to_numpy() & np.isfinite(mean)
        assert own.sum() > least
        (typical, fever), error = slopes(z[own][:, None], mean[own])
        assert typical == pytest.approx(36.9, abs=0.02 + 4 * error[0])
        assert fever == pytest.approx(0.55, abs=0.02 + 4 * error[1])


def test_a_weight_is_prepared_alike_from_either_unit(
    clean: Recorded, stays: pl.DataFrame, rows: list[int], mean_of: Callable[[str], Floats]
) -> None:
    mean, z = mean_of("weight"), reading(clean, "habitus")[rows]
    in_pounds = with_charted(stays, clean, WEIGHT_POUNDS).to_numpy()
    for own in (in_pounds, ~in_pounds):
        own = own & np.isfinite(mean) & (mean > 20)  # noqa: PLW2901
        (typical, heavier), error = slopes(z[own][:, None], mean[own])
        assert typical == pytest.approx(81, abs=0.5 + 4 * error[0])
        assert heavier == pytest.approx(14, abs=0.5 + 4 * error[1])


def test_a_height_is_prepared_in_centimetres(
    clean: Recorded, stays: pl.DataFrame, mean_of: Callable[[str], Floats]
) -> None:
    mean = mean_of("height")
    in_inches_alone = ~with_charted(stays, clean, HEIGHT_CM).to_numpy() & np.isfinite(mean)
    assert in_inches_alone.sum() > 100
    assert np.median(mean[in_inches_alone]) == pytest.approx(169, abs=3)
    assert np.nanmedian(mean) == pytest.approx(169, abs=1)


def test_oxygen_and_glucose_are_prepared_in_their_units(
    clean: Recorded, rows: list[int], mean_of: Callable[[str], Floats]
) -> None:
    assert np.nanmedian(mean_of("fraction_inspired_oxygen")) == pytest.approx(0.46, abs=0.02)
    log_glucose = np.log(mean_of("glucose"))
    told = np.isfinite(log_glucose)
    (typical, sweeter), _ = slopes(reading(clean, "glycaemia")[rows][told][:, None], log_glucose[told])
    assert typical == pytest.approx(4.92, abs=0.03)
    assert sweeter == pytest.approx(0.3, abs=0.03)
    assert values_of(clean.labs, GLUCOSE_LAB)["valuenum"].log().median() == pytest.approx(4.92, abs=0.05)


def test_each_reading_adds_what_is_defined_and_nothing_else(
    clean: Recorded, courses: dict[str, Floats]
) -> None:
    factors = np.array(clean.patients.disease.factors)[clean.patients.ehr.seen]
    readings = clean.patients.ehr.values[:, clean.patients.ehr.seen]
    time = (HOURS - HOURS.mean()) / 48
    for definition in read_definitions("courses").iter_rows(named=True):
        course = courses[definition["variable"]]
        course = np.log(course) if definition["scale"] == "log" else course
        expected = dict.fromkeys(factors, (0.0, 0.0))
        for _, factor, level, trend in (
            read_definitions("effects").filter(variable=definition["variable"]).iter_rows()
        ):
            expected[factor] = (level, trend)
        level, level_error = slopes(readings, course.mean(axis=1))
        trend, trend_error = slopes(readings, course @ time / (time**2).sum())
        # what would lie beyond the range that can be charted is cut off
        for found, error, wanted in (
            (level[1:], level_error[1:], [expected[factor][0] for factor in factors]),
            (trend[1:], trend_error[1:], [expected[factor][1] for factor in factors]),
        ):
            tolerance = 0.09 * np.abs(wanted) + 4 * error
            assert (np.abs(found - wanted) < tolerance).all(), definition["variable"]
        middle = 0.03 * (definition["between_sd"] + definition["within_sd"]) + 4 * level_error[0]
        cut_off = 0.5 if definition["variable"] in ("oxygen_saturation", "fraction_inspired_oxygen") else 0
        assert level[0] == pytest.approx(definition["mean"], abs=middle + cut_off), definition["variable"]


def test_rhythm_makes_the_heart_rate_wander(clean: Recorded, courses: dict[str, Floats]) -> None:
    steps = np.log(np.diff(courses["heart_rate"], axis=1).std(axis=1))
    (_, wilder), _ = slopes(reading(clean, "rhythm")[:, None], steps)
    assert wilder == pytest.approx(0.7, abs=0.1)


def test_the_wandering_persists(courses: dict[str, Floats]) -> None:
    for variable in ("refill_delay", "heart_rhythm", "sodium"):
        course = courses[variable]
        one_hour = (np.diff(course, axis=1) ** 2).mean()
        two_hours = ((course[:, 2:] - course[:, :-2]) ** 2).mean()
        assert two_hours / one_hour == pytest.approx(1.7, abs=0.05)


@pytest.mark.parametrize(
    ("variable", "amplitude", "peak"), [("temperature", 0.2, 18), ("respiratory_rate", 0.5, 15)]
)
def test_the_time_of_day_shows(
    courses: dict[str, Floats], clock_hour: Floats, variable: str, amplitude: float, peak: float
) -> None:
    angle = ((clock_hour[:, None] + HOURS) * 2 * np.pi / 24).ravel()
    course = courses[variable] - courses[variable].mean(axis=1, keepdims=True)
    (_, cosine, sine), _ = slopes(np.column_stack([np.cos(angle), np.sin(angle)]), course.ravel())
    assert np.hypot(cosine, sine) == pytest.approx(amplitude, rel=0.1)
    assert np.arctan2(sine, cosine) * 24 / (2 * np.pi) % 24 == pytest.approx(peak, abs=0.5)


def test_values_are_charted_at_their_time(clean: Recorded) -> None:
    charted = values_of(clean.chart, FAHRENHEIT).with_columns(
        celsius=(pl.col("valuenum") - 32) / 1.8,
        clock=pl.col("charttime").dt.hour() + pl.col("charttime").dt.minute() / 60,
    )
    angle = charted["clock"].to_numpy() * 2 * np.pi / 24
    typical = charted.select(pl.col("celsius").mean().over("stay_id")).to_series()
    own = (charted["celsius"] - typical).to_numpy()
    (_, cosine, sine), _ = slopes(np.column_stack([np.cos(angle), np.sin(angle)]), own)
    assert np.arctan2(sine, cosine) * 24 / (2 * np.pi) % 24 == pytest.approx(18.5, abs=0.5)


def test_the_mean_pressure_follows_the_other_two(courses: dict[str, Floats]) -> None:
    expected = (courses["systolic_blood_pressure"] + 2 * courses["diastolic_blood_pressure"]) / 3
    assert courses["mean_blood_pressure"] == pytest.approx(expected)


def test_no_course_leaves_the_range_that_can_be_charted(courses: dict[str, Floats]) -> None:
    for definition in read_definitions("courses").iter_rows(named=True):
        course = courses[definition["variable"]]
        course = np.log(course) if definition["scale"] == "log" else course
        assert course.min() >= definition["lowest"] - 1e-9
        assert course.max() <= definition["highest"] + 1e-9


def test_the_record_is_made_of_the_ehrs_readings_alone(disease: Disease) -> None:
    admitted = admit_stays(disease, 30, seed=1)
    another = disease.draw(len(admitted.census), np.random.default_rng(2))
    same_ehr = dataclasses.replace(another, ehr=admitted.patients.ehr)
    (chart, labs), (same_chart, same_labs), (other_chart, _) = (
        draw_events(admitted.hospital.icustays, patients, np.random.default_rng(3))
        for patients in (admitted.patients, same_ehr, another)
    )
    assert chart.equals(same_chart)
    assert labs.equals(same_labs)
    assert not chart.equals(other_chart)


def test_the_events_of_the_window_are_those_prepared(
    clean: Recorded, stays: pl.DataFrame, ehr: Floats
) -> None:
    column = [variable.name for variable in load_variables()].index("respiratory_rate")
    window_end = pl.min_horizontal("outtime", pl.col("intime") + timedelta(hours=48))
    events = values_of(clean.chart, RESPIRATORY_RATE).join(clean.icustays, on="stay_id")
    events = events.filter(pl.col("charttime") <= window_end)
    last = events.sort("charttime").group_by("stay_id").agg(pl.col("valuenum").last())
    expected = dict(last.iter_rows())
    for stay_id, series in zip(stays["stay_id"], ehr[..., column], strict=True):
        observed = series[np.isfinite(series)]
        assert (observed[-1] if len(observed) else None) == expected.get(stay_id)


def test_the_record_tells_every_factor_that_it_shows_and_no_other(
    clean: Recorded, rows: list[int], ehr: Floats
) -> None:
    features = features_of(ehr)
    factors = clean.patients.factors[rows]
    r2 = held_out_r2(features, factors, penalty=10)
    shown = clean.patients.ehr.seen
    names = np.array(clean.patients.disease.factors)
    told = dict(zip(names, r2.round(2).tolist(), strict=True))
    assert {name for name in told if told[name] > 0.5} == set(names[shown]), told
    assert {name for name in told if told[name] < 0.1} == set(names[~shown]), told


def features_of(ehr: Floats) -> Floats:
    """Return the mean, the unrest and the trend of each variable (N, 3 V); 0 where it tells none."""
    observed = np.isfinite(ehr)
    n = np.maximum(observed.sum(axis=1), 1)
    mean = np.nansum(ehr, axis=1) / n
    hour = np.where(observed, np.arange(ehr.shape[1])[:, None], np.nan)
    late = hour - (np.nansum(hour, axis=1) / n)[:, None]
    spread = np.maximum(np.nansum(late**2, axis=1), 1)
    trend = np.nansum(late * (ehr - mean[:, None]), axis=1) / spread
    steps = np.diff(ehr, axis=1)
    unrest = np.sqrt(np.nansum(steps**2, axis=1) / np.maximum(np.isfinite(steps).sum(axis=1), 1))
    known = observed.any(axis=1)
    typical = np.nanmean(np.where(known, mean, np.nan), axis=0)
    return np.hstack([np.where(known, mean, typical), np.log(unrest + 0.1), trend])


def test_each_blood_gas_says_that_it_is_arterial(recorded: Recorded) -> None:
    types = recorded.labs.filter(pl.col("itemid") == SPECIMEN_TYPE)
    assert set(types["value"]) == {"ART."}
    assert types["valuenum"].is_null().all()
    saturations = recorded.labs.filter(pl.col("itemid") == O2_SATURATION_LAB)
    assert saturations.height > 1000
    assert saturations.join(types, on="specimen_id", how="anti").is_empty()
    assert types["specimen_id"].n_unique() == types.height
