"""One stay: its hours as small drawings, its radiograph, and what a run predicts of it."""

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from drfuse.cohort.manifest import Variable
from drfuse.data.cohort import Cohort
from drfuse.explore.opened import Predicted

WIDTH, HEIGHT = 240, 64
"""Size of a drawing of a variable, in its own units."""

_MARGIN = 5


@dataclass(frozen=True)
class Chart:
    """A variable over the hours of a stay, as drawn on `WIDTH` by `HEIGHT`.

    Attributes:
        name: The variable.
        unit: Its unit.
        low: The value at the bottom, and `high` that at the top.
        high: See `low`.
        range: The y of the top and of the bottom of the reference range; None without one.
        reference: The reference range in words, with its source.
        points: What was observed: x, y, the hour and the value.
        carried: Path of the values that stand in for hours without an observation.
        said: What the drawing shows, in words.
    """

    name: str
    unit: str
    low: float
    high: float
    range: tuple[float, float] | None
    reference: str
    points: list[tuple[float, float, int, float]]
    carried: str
    said: str


@dataclass(frozen=True)
class Shares:
    """A label of a stay.

    Attributes:
        name: The label.
        present: Whether the stay has it; None if that is unknown.
        probabilities: Its probability by what the model is given, as in `Predicted`; None if not predicted.
        weights: Its modality weights, of the record alone, of what both show and of the radiograph alone.
    """

    name: str
    present: bool | None
    probabilities: dict[str, float | None]
    weights: list[float] | None


def charts(cohort: Cohort, row: int) -> list[Chart]:
    """Return the drawings of a stay's variables, in the order of the cohort."""
    n_hours = int(cohort.n_hours[row])
    values = np.array(cohort.ehr[row, :n_hours])
    return [
        _chart(variable, values[:, v], cohort.ehr.shape[1])
        for v, variable in enumerate(cohort.manifest.variables)
    ]


def labels(predicted: Predicted, row: int) -> list[Shares]:
    """Return the labels of a stay, the most probable first; without a run, those that it has."""
    p = {given: values[row] for given, values in predicted.probabilities.items()}
    truth = predicted.truth[row]
    order = np.argsort(-np.nan_to_num(p["both"] if p else truth, nan=-1.0), kind="stable")
    weights = None if predicted.weights is None else predicted.weights[row]
    return [
        Shares(
            predicted.labels[c],
            None if np.isnan(truth[c]) else bool(truth[c]),
            {given: None if np.isnan(values[c]) else float(values[c]) for given, values in p.items()},
            None if weights is None or np.isnan(weights[c]).any() else weights[c].tolist(),
        )
        for c in order.tolist()
    ]


def radiograph(cohort: Cohort, row: int) -> bytes | None:
    """Return the radiograph of a stay as PNG, or None if it has none."""
    from PIL import Image

    number = int(cohort.cxr_row[row])
    if number < 0:
        return None
    written = io.BytesIO()
    Image.fromarray(np.array(cohort.cxr[number])).save(written, "png", compress_level=1)
    return written.getvalue()


def _chart(variable: Variable, values: NDArray[np.float32], n_hours: int) -> Chart:
    low_normal, high_normal, source = _reference_ranges().get(variable.name, (None, None, ""))
    hours = np.flatnonzero(np.isfinite(values))
    shown = [*values[hours].tolist(), *(one for one in (low_normal, high_normal) if one is not None)]
    if variable.kind == "categorical":
        shown = [variable.valid_low, variable.valid_high]
    low, high = (min(shown), max(shown)) if shown else (variable.normal, variable.normal)
    if high <= low:
        margin = abs(low) / 20 or 1  # a single value stands in the middle
        low, high = low - margin, high + margin

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - _MARGIN - share * (HEIGHT - 2 * _MARGIN), 1)

    def x(hour: float) -> float:
        return round(hour / n_hours * WIDTH, 1)

    band, reference = None, ""
    if source:
        tops = 0.0 if high_normal is None else y(high_normal) - 1
        bottoms = float(HEIGHT) if low_normal is None else y(low_normal) + 1
        band, reference = (tops, bottoms), f"{_range(low_normal, high_normal)} ({source})"
    points = [(x(hour + 0.5), y(values[hour]), hour, float(values[hour])) for hour in hours.tolist()]
    name, unit = variable.name.replace("_", " "), variable.unit
    said = f"{name}: observed in {len(hours)} of {len(values)} hours"
    if len(hours):
        said += (
            f", {values[hours].min():.4g} to {values[hours].max():.4g}, last {values[hours[-1]]:.4g} {unit}"
        )
    # before the first observation stands the normal value, after each the value itself, until the next
    starts = [(0.0, y(variable.normal)), *((at, level) for at, level, _, _ in points)]
    ends = [*(at for at, _, _, _ in points), x(len(values))]
    steps = zip(starts, ends, strict=True)
    carried = "".join(f"M{start} {level}H{end}" for (start, level), end in steps)
    return Chart(name, unit, low, high, band, reference, points, carried, said)


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"up to {high:g}" if low is None else f"from {low:g}"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


@cache
def _reference_ranges() -> dict[str, tuple[float | None, float | None, str]]:
    """Return the reference range of adults by variable; an end that is open is None."""
    text = (files("drfuse.explore") / "reference_ranges.csv").read_text("utf-8")
    return {
        row["variable"]: (
            float(row["low"]) if row["low"] else None,
            float(row["high"]) if row["high"] else None,
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    }
