"""When and how the simulated stays are imaged: the metadata of MIMIC-CXR-JPG, and each image's readings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.simulate.disease import Floats, Patients, Readings
from drfuse.simulate.radiographs import View

Missing = Literal["severity", "mcar"]

_WINDOW_HOURS = 48
# shares of stays with a study that does not count
_EARLIER_IN_WINDOW, _BEFORE, _AFTER, _OTHER_VIEWS = 0.35, 0.10, 0.20, 0.08
_EARLIER_RELIABILITY = 0.5  # relative to the last study's
_DESCRIPTIONS = {"AP": "CHEST (PORTABLE AP)", "PA": "CHEST (PA AND LAT)", "LATERAL": "CHEST (PA AND LAT)"}
_CODES = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral"}


@dataclass(frozen=True)
class Imaging:
    """The images of some stays.

    Attributes:
        metadata: The rows of MIMIC-CXR-JPG's metadata table, and `row`, the index of each image's stay.
        readings: What each image shows.
        has_cxr: Whether each stay has an AP radiograph in its window (n,).
        cxr_rate: The mean share of them; None if chance alone decides which they are.
    """

    metadata: pl.DataFrame
    readings: Readings
    has_cxr: NDArray[np.bool_]
    cxr_rate: float | None = None


def draw_studies(
    icustays: pl.DataFrame,
    patients: Patients,
    cxr_rate: float,
    missing: Missing,
    size: int,
    generator: np.random.Generator,
) -> Imaging:
    """Return the studies of some stays.

    A share of `cxr_rate` of the stays have an AP study in the window; the last one shows `patients.cxr`.
    `drfuse prepare` must leave out the others: earlier, less reliable ones in the window; some before ICU
    admission or after the window; some with a PA and a lateral view. If `missing` is `severity`, the disease
    decides who is imaged: the severely ill more often; with `mcar`, chance decides. `size` is in pixels.
    """
    n = icustays.height
    by_chance = missing == "mcar" or cxr_rate in (0, 1)
    share = np.full(n, cxr_rate) if by_chance else patients.disease.imaged_share(patients, cxr_rate)
    has_cxr = generator.random(n) < share
    seconds = (icustays["outtime"] - icustays["intime"]).dt.total_seconds().to_numpy()
    window = np.minimum(seconds, _WINDOW_HOURS * 3600.0)
    last = window * generator.uniform(0.15, 1, n) * 0.999

    def some(rate: float) -> NDArray[np.bool_]:
        return generator.random(n) < rate

    other, at = some(_OTHER_VIEWS), window * generator.uniform(0, 1, n)
    drawn = [
        _draw_kind(0, "AP", has_cxr, last),
        _draw_kind(1, "AP", has_cxr & some(_EARLIER_IN_WINDOW), last * generator.uniform(0, 0.95, n)),
        _draw_kind(2, "AP", some(_BEFORE), -generator.uniform(600, 40 * 3600, n)),
        _draw_kind(3, "AP", some(_AFTER), window + generator.uniform(600, 90 * 3600, n)),
        _draw_kind(4, "PA", other, at),
        _draw_kind(4, "LATERAL", other, at),
    ]
    studies = pl.concat(drawn)
    return Imaging(
        metadata=_metadata(icustays, studies, size, generator),
        readings=_readings(patients, studies, generator),
        has_cxr=has_cxr,
        cxr_rate=None if by_chance else cxr_rate,
    )


def _draw_kind(kind: int, view: View, taken: NDArray[np.bool_], seconds: Floats) -> pl.DataFrame:
    """Return the images of one kind: the index of each one's stay, and its time after ICU admission."""
    rows = np.flatnonzero(taken)
    return pl.DataFrame({"row": rows, "seconds": seconds[rows]}).with_columns(
        kind=pl.lit(kind, pl.Int64), view=pl.lit(view)
    )


def _readings(patients: Patients, studies: pl.DataFrame, generator: np.random.Generator) -> Readings:
    """Return what the images show; an earlier one in the window has readings of its own."""
    rows, is_earlier = studies["row"].to_numpy(), (studies["kind"] == 1).to_numpy()
    reliability = patients.cxr.reliability[rows] * np.where(is_earlier, _EARLIER_RELIABILITY, 1)
    disturbance = None if patients.disturbance is None else patients.disturbance[rows]
    own = Readings.draw(patients.factors[rows], reliability, patients.cxr.seen, generator, disturbance)
    values = np.where(is_earlier[:, None], own.values, patients.cxr.values[rows])
    return Readings(values, reliability, patients.cxr.seen)


def _metadata(
    icustays: pl.DataFrame, studies: pl.DataFrame, size: int, generator: np.random.Generator
) -> pl.DataFrame:
    """Return the metadata table, and `row`; a study's id is that of its stay followed by the kind's digit."""
    stays = icustays.select("subject_id", "stay_id", "intime")[studies["row"].to_numpy()]
    milliseconds = np.round(studies["seconds"].to_numpy() * 1000).astype("timedelta64[ms]")
    at = stays["intime"] + pl.Series(milliseconds.astype("timedelta64[us]"))
    words = generator.integers(0, 2**32, (studies.height, 5), np.uint64)  # five of them make a dicom_id
    view = studies["view"].alias("ViewPosition")
    clock = at.dt.hour().cast(pl.Float64) * 10000 + at.dt.minute().cast(pl.Float64) * 100 + at.dt.second()
    return pl.DataFrame(
        {
            "row": studies["row"],
            "dicom_id": ["-".join(f"{word:08x}" for word in five) for five in words.tolist()],
            "subject_id": stays["subject_id"],
            "study_id": 10 * stays["stay_id"] + studies["kind"],
            "PerformedProcedureStepDescription": view.replace_strict(_DESCRIPTIONS),
            "ViewPosition": view,
            "Rows": size,
            "Columns": size,
            "StudyDate": at.dt.strftime("%Y%m%d").cast(pl.Int64),
            "StudyTime": (clock + at.dt.millisecond().cast(pl.Float64) / 1000).round(3),
            "ProcedureCodeSequence_CodeMeaning": view.replace_strict(_DESCRIPTIONS),
            "ViewCodeSequence_CodeMeaning": view.replace_strict(_CODES),
            "PatientOrientationCodeSequence_CodeMeaning": "Erect",
        }
    )
