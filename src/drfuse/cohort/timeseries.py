"""Hourly bins: the last value of each variable in each hour of a stay's observation window."""

import ibis
import ibis.expr.types as ir

from drfuse.cohort.tables import MimicIV
from drfuse.cohort.variables import Preset, clean_values, derive_gcs_total, item_ids

_MEASUREMENT = ("stay_id", "variable", "charttime", "storetime", "measured", "hour")


def measure(mimic: MimicIV, stays: ir.Table, preset: Preset) -> ir.Table:
    """Return every measurement that falls into a stay's window.

    Chart events belong to the stay they name. Laboratory results belong to the stay of their admission; where
    they name no admission, the preset `extended` gives them to the subject's stay that lasted at that time.

    Args:
        mimic: The release.
        stays: Rows of `stay_id`, `subject_id`, `hadm_id`, `intime` and `window_end`.
        preset: Which items and which rules (see `clean_values`).

    Returns:
        Rows of `stay_id`, `variable`, `charttime`, `storetime`, `measured` and `hour`. Hour k holds the times
        (k, k+1] hours after `intime`; time 0 is in hour 0.
    """
    stays = stays.select("stay_id", "subject_id", "hadm_id", "intime", "window_end")
    chart = mimic.chartevents
    chart = chart.filter(chart.itemid.isin(item_ids(preset, "chartevents"))).drop("subject_id", "hadm_id")
    chart = chart.join(stays, "stay_id").drop("subject_id", "hadm_id")
    labs = mimic.labevents
    labs = labs.filter(labs.itemid.isin(item_ids(preset, "labevents"))).rename(lab_hadm_id="hadm_id")
    labs = labs.join(stays, "subject_id")
    same_admission = labs.lab_hadm_id == labs.hadm_id
    if preset == "extended":
        same_admission |= labs.lab_hadm_id.isnull()
    labs = labs.filter(same_admission).select(chart.columns)

    events = chart.union(labs)
    events = events.filter(events.charttime.between(events.intime, events.window_end))
    seconds = events.charttime.delta(events.intime, unit="second")
    # The published extraction has no storing time: at one time, its largest value wins.
    stored = ibis.coalesce(events.storetime, events.charttime) if preset == "extended" else events.charttime
    events = events.mutate(hour=(seconds - 1).clip(lower=0) // 3600, storetime=stored)
    return clean_values(events, preset).select(_MEASUREMENT)


def last_of_each_hour(measurements: ir.Table, preset: Preset) -> ir.Table:
    """Return the value that stands for each stay, variable and hour: `stay_id`, `variable`, `hour`, `value`.

    The last one charted wins; at the same time the last stored one, then the larger. With the preset
    `extended` the GCS total is derived first.
    """
    if preset == "extended":
        parts = measurements.drop("hour")
        hour_of = measurements.select("stay_id", "charttime", "hour").distinct()
        total = derive_gcs_total(parts).join(hour_of, ["stay_id", "charttime"])
        measurements = measurements.union(total.select(measurements.columns))
    rank = ibis.struct(
        {
            "charttime": measurements.charttime,
            "storetime": measurements.storetime,
            "measured": measurements.measured,
        }
    )
    return measurements.group_by("stay_id", "variable", "hour").agg(value=measurements.measured.argmax(rank))
