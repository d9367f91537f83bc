"""Events -> hourly values: the last one of each variable in each hour of a stay's observation window."""

import ibis
import ibis.expr.types as ir
from ibis import _

from drfuse.cohort.sources import Source
from drfuse.cohort.stays import seconds_between
from drfuse.cohort.store import Store, fetch
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
_MEASUREMENT = ("stay_id", "variable", "charttime", "storetime", "measured", "hour", "is_lab")
KINDS_OF_EVENTS = ("chart events", "laboratory results")


def measure(source: Source, stays: ir.Table, preset: Preset, before_hours: int = 0) -> ir.Table:
    """Return every measurement in the windows of the stays, cleaned (see `clean_values`).

    A chart event belongs to the stay it names, a laboratory result to the stay of its admission. The preset
    `extended` reads more than `benchmark`:

    - Its window begins at the minute of `intime`, because `charttime` has no seconds.
    - Height and weight, which are measured once, count from `before_hours` before `intime` on. They are
      charted for the stay itself, so no value of an earlier stay comes in.
    - A result without an admission belongs to the stay that the subject was in at the time; in a minute in
      which one stay ends and the next begins, to the next.

    `extended` leaves out oxygen saturations of blood that is not known to be arterial.

    Returns:
        Rows of `stay_id`, `variable` (its index in `load_variables()`), `charttime`, `storetime`,
        `measured`, `hour` and `is_lab` (a laboratory result). Hour k holds the times (k, k+1] hours after
        `intime`; hour 0 also holds the minute of `intime`, and hour -1 holds what comes before.
    """
    stays = stays.select("stay_id", "subject_id", "hadm_id", "intime", "window_end")

    # cells of a CSV file that a preset does not use are not parsed, so they do not lose their row
    unused = {"storetime", "valuenum", "specimen_id"} if preset == "benchmark" else set()
    used = [name for name in _EVENT if name not in unused]

    def in_window(events: ir.Table) -> ir.Table:
        begin = events.intime if preset == "benchmark" else _minute(events.intime)
        if before_hours and preset == "extended":
            earlier = events.intime - ibis.interval(hours=before_hours)
            begin = events.itemid.isin(items_before_admission()).ifelse(earlier, begin)
        return events.filter(events.charttime.between(begin, events.window_end)).select(used)

    chart = source.select_events(
        "chartevents", item_ids(preset, "chartevents"), lambda rows: in_window(rows.join(stays, "stay_id"))
    )
    wanted = item_ids(preset, "labevents")
    read = [*wanted, SPECIMEN_TYPE] if preset == "extended" else wanted
    labs = source.select_events("labevents", read, lambda rows: rows.drop(*unused))
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

    chart, labs = chart.mutate(is_lab=ibis.literal(False)), in_window(labs).mutate(is_lab=ibis.literal(True))
    events = chart.union(labs)
    seconds = seconds_between(events.intime, events.charttime)
    hour = (seconds - 1).clip(lower=0) // 3600
    hour = (events.charttime < _minute(events.intime)).ifelse(-1, hour).cast("int16")
    # The published extraction has no storetime: of values charted at the same time, the largest wins.
    stored = ibis.coalesce(events.storetime, events.charttime) if preset == "extended" else events.charttime
    events = events.mutate(hour=hour, storetime=stored)
    return clean_values(events, preset, source.small_table).select(_MEASUREMENT)


def last_of_each_hour(measurements: ir.Table, preset: Preset) -> ir.Table:
    """Return one value for each stay, variable and hour.

    The columns: `stay_id`, `variable`, `hour`, `in_window`, `is_lab` (a laboratory result) and `value`.

    The value charted last wins; of those charted at the same time, the one stored last, then the largest. A
    value from before the window (`in_window` is false) fills hour 0 if nothing else does. The preset
    `extended` derives the GCS total first.
    """
    if preset == "extended":
        measurements = measurements.union(derive_gcs_total(measurements))
    measurements = measurements.mutate(in_window=_.hour >= 0, hour=ibis.greatest(_.hour, 0).cast("int16"))
    last = ibis.row_number().over(
        ibis.window(
            group_by=["stay_id", "variable", "hour"],
            order_by=[ibis.desc(by) for by in ("charttime", "storetime", "measured", "is_lab")],
        )
    )
    measurements = measurements.mutate(rank=last).filter(_.rank == 0)
    return measurements.select("stay_id", "variable", "hour", "in_window", "is_lab", value="measured")


def count_unobserved(hourly: ir.Table, store: Store) -> dict[str, int]:
    """Return how many stays have no hourly value of each of `KINDS_OF_EVENTS` in their window.

    `hourly` is the result of `last_of_each_hour` in the store; only stays with a value there are counted.
    """
    observed = hourly.filter(hourly.in_window).group_by("stay_id")
    observed = observed.agg(is_charted=(~hourly.is_lab).any(), is_lab=hourly.is_lab.any())
    counts = observed.agg(
        **{
            kind: (~observed[column]).sum().fill_null(0)
            for kind, column in zip(KINDS_OF_EVENTS, ("is_charted", "is_lab"), strict=True)
        }
    )
    (row,) = fetch(store, counts).to_pylist()
    return {kind: int(row[kind]) for kind in KINDS_OF_EVENTS}


def _minute(time: ir.TimestampColumn) -> ir.TimestampColumn:
    """Return a time without its seconds: charted times have none."""
    return time.truncate("m").cast(time.type())
