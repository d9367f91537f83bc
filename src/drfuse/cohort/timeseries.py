"""Hourly bins: the last value of each variable in each hour of a stay's observation window."""

import ibis
import ibis.expr.types as ir
from ibis import _

from drfuse.cohort.stays import seconds_between
from drfuse.cohort.tables import MimicIV
from drfuse.cohort.variables import (
    SPECIMEN_TYPE,
    Preset,
    arterial_saturation,
    clean_values,
    derive_gcs_total,
    item_ids,
    items_before_admission,
)

_EVENT = ("stay_id", "itemid", "charttime", "storetime", "value", "valuenum", "intime", "window_end")
_MEASUREMENT = ("stay_id", "variable", "charttime", "storetime", "measured", "hour")


def measure(mimic: MimicIV, stays: ir.Table, preset: Preset, before_hours: int = 0) -> ir.Table:
    """Return every measurement that falls into a stay's window.

    Charted times have no seconds, `intime` has: so with the preset `extended` the window begins with the
    minute of `intime`. What is measured once, height and weight, then also counts from the hours before; it
    is charted for the stay itself, so that nothing of an earlier stay comes in.

    Chart events belong to the stay they name. Laboratory results belong to the stay of their admission; where
    they name no admission, the preset `extended` gives them to the subject's stay that lasted at that time,
    and saturations of blood that is not known to be arterial are left out.

    Args:
        mimic: The release.
        stays: Rows of `stay_id`, `subject_id`, `hadm_id`, `intime` and `window_end`.
        preset: Which items and which rules (see `clean_values`).
        before_hours: Hours before `intime` from which height and weight count (preset `extended`).

    Returns:
        Rows of `stay_id`, `variable` (its place in `load_variables()`), `charttime`, `storetime`, `measured`
        and `hour`. Hour k holds the times (k, k+1] hours after `intime`; hour 0 also holds all that counts
        from before.
    """
    stays = stays.select("stay_id", "subject_id", "hadm_id", "intime", "window_end")
    chart, labs = mimic.chartevents, mimic.labevents
    chart = chart.filter(chart.itemid.isin(item_ids(preset, "chartevents")))
    chart = chart.join(stays, "stay_id").select(_EVENT)
    wanted = item_ids(preset, "labevents")
    if preset == "extended":
        labs = arterial_saturation(labs.filter(labs.itemid.isin([*wanted, SPECIMEN_TYPE])))
    labs = labs.filter(labs.itemid.isin(wanted)).rename(lab_hadm_id="hadm_id")
    labs = labs.join(stays, "subject_id")
    same_admission = labs.lab_hadm_id == labs.hadm_id
    if preset == "extended":
        same_admission |= labs.lab_hadm_id.isnull()
    labs = labs.filter(same_admission).select(_EVENT)

    events = chart.union(labs)
    begin = events.intime
    if preset == "extended":
        begin = begin.truncate("m").cast(begin.type())
        if before_hours:
            earlier = events.intime - ibis.interval(hours=before_hours)
            begin = events.itemid.isin(items_before_admission()).ifelse(earlier, begin)
    events = events.filter(events.charttime.between(begin, events.window_end))
    seconds = seconds_between(events.intime, events.charttime)
    hour = ((seconds - 1).clip(lower=0) // 3600).cast("int16")
    # The published extraction has no storing time: at one time, its largest value wins.
    stored = ibis.coalesce(events.storetime, events.charttime) if preset == "extended" else events.charttime
    events = events.mutate(hour=hour, storetime=stored)
    return clean_values(events, preset, mimic.engine.name != "duckdb").select(_MEASUREMENT)


def last_of_each_hour(measurements: ir.Table, preset: Preset) -> ir.Table:
    """Return the value that stands for each stay, variable and hour: `stay_id`, `variable`, `hour`, `value`.

    The last one charted wins; at the same time the last stored one, then the larger. With the preset
    `extended` the GCS total is derived first.
    """
    if preset == "extended":
        measurements = measurements.union(derive_gcs_total(measurements))
    last = ibis.row_number().over(
        ibis.window(
            group_by=["stay_id", "variable", "hour"],
            order_by=[ibis.desc("charttime"), ibis.desc("storetime"), ibis.desc("measured")],
        )
    )
    measurements = measurements.mutate(rank=last).filter(_.rank == 0)
    return measurements.select("stay_id", "variable", "hour", value="measured")
