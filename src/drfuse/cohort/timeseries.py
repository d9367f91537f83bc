"""Hourly bins: the last value of each variable in each hour of a stay's observation window."""

import ibis
import ibis.expr.types as ir
from ibis import _

from drfuse.cohort.sources import Source
from drfuse.cohort.stays import seconds_between
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


def measure(source: Source, stays: ir.Table, preset: Preset, before_hours: int = 0) -> ir.Table:
    """Return every measurement that falls into a stay's window.

    `charttime` is given to the minute and `intime` to the second, so with the preset `extended` the window
    begins at the minute of `intime`. That preset also counts height and weight from the hours before, because
    they are measured once. They are charted for the stay itself, so nothing of an earlier stay comes in.

    Chart events belong to the stay they name, laboratory results to the stay of their admission. With the
    preset `extended`, results that name no admission belong to the stay that the subject was in at the time
    (in a minute in which one stay ends and the next begins, to the next), and saturations of blood that is
    not known to be arterial are left out.

    Args:
        source: The records.
        stays: Rows of `stay_id`, `subject_id`, `hadm_id`, `intime` and `window_end`.
        preset: Which items and which rules (see `clean_values`).
        before_hours: Hours before `intime` from which height and weight count (preset `extended`).

    Returns:
        Rows of `stay_id`, `variable` (its place in `load_variables()`), `charttime`, `storetime`, `measured`
        and `hour`. Hour k holds the times (k, k+1] hours after `intime`; hour 0 also holds the minute of
        `intime`, and hour -1 what counts from before.
    """
    stays = stays.select("stay_id", "subject_id", "hadm_id", "intime", "window_end")

    def in_window(events: ir.Table) -> ir.Table:
        begin = events.intime if preset == "benchmark" else _minute(events.intime)
        if before_hours and preset == "extended":
            earlier = events.intime - ibis.interval(hours=before_hours)
            begin = events.itemid.isin(items_before_admission()).ifelse(earlier, begin)
        return events.filter(events.charttime.between(begin, events.window_end)).select(_EVENT)

    chart = source.select_events(
        "chartevents", item_ids(preset, "chartevents"), lambda rows: in_window(rows.join(stays, "stay_id"))
    )
    wanted = item_ids(preset, "labevents")
    read = [*wanted, SPECIMEN_TYPE] if preset == "extended" else wanted
    labs = source.select_events("labevents", read, lambda rows: rows)
    if preset == "extended":
        labs = arterial_saturation(labs)
    labs = labs.filter(labs.itemid.isin(wanted)).rename(lab_hadm_id="hadm_id")
    if preset == "benchmark":
        labs = labs.join(stays, "subject_id")
        labs = labs.filter(labs.lab_hadm_id == labs.hadm_id)
    else:
        in_order = ibis.window(group_by="subject_id", order_by=["intime", "stay_id"])
        begin, end = _minute(stays.intime), stays.window_end
        stays = stays.mutate(next_begin=begin.lead().over(in_order), next_end=end.lead().over(in_order))
        labs = labs.join(stays, "subject_id")
        is_of_next = ibis.coalesce(labs.charttime.between(labs.next_begin, labs.next_end), False)
        labs = labs.filter((labs.lab_hadm_id == labs.hadm_id) | (labs.lab_hadm_id.isnull() & ~is_of_next))

    events = chart.union(in_window(labs))
    seconds = seconds_between(events.intime, events.charttime)
    hour = (seconds - 1).clip(lower=0) // 3600
    hour = (events.charttime < _minute(events.intime)).ifelse(-1, hour).cast("int16")
    # The published extraction has no storing time: at one time, its largest value wins.
    stored = ibis.coalesce(events.storetime, events.charttime) if preset == "extended" else events.charttime
    events = events.mutate(hour=hour, storetime=stored)
    return clean_values(events, preset, source.small_table).select(_MEASUREMENT)


def last_of_each_hour(measurements: ir.Table, preset: Preset) -> ir.Table:
    """Return the value that stands for each stay, variable and hour.

    The last one charted wins; at the same time the last stored one, then the larger. With the preset
    `extended` the GCS total is derived first.

    Returns:
        Rows of `stay_id`, `variable`, `hour`, `value` and `in_window`: a value from before the admission is
        not in the window, and fills hour 0 if nothing else does.
    """
    if preset == "extended":
        measurements = measurements.union(derive_gcs_total(measurements))
    measurements = measurements.mutate(in_window=_.hour >= 0, hour=ibis.greatest(_.hour, 0).cast("int16"))
    last = ibis.row_number().over(
        ibis.window(
            group_by=["stay_id", "variable", "hour"],
            order_by=[ibis.desc("charttime"), ibis.desc("storetime"), ibis.desc("measured")],
        )
    )
    measurements = measurements.mutate(rank=last).filter(_.rank == 0)
    return measurements.select("stay_id", "variable", "hour", "in_window", value="measured")


def _minute(time: ir.TimestampColumn) -> ir.TimestampColumn:
    """Return a time without its seconds, as charted times are."""
    return time.truncate("m").cast(time.type())
