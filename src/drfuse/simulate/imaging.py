"""When the simulated stays are imaged, and how: the metadata of MIMIC-CXR-JPG, and each image's readings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from drfuse.simulate.disease import Floats, Patients, Readings, intercept_for

Missing = Literal["severity", "mcar"]

_WINDOW_HOURS = 48
_SLOPE = 1.0  # of the log-odds of a radiograph over the severity
# studies that do not count, as shares of all stays
_EARLIER_IN_WINDOW, _BEFORE, _AFTER, _OTHER_VIEWS = 0.35, 0.10, 0.20, 0.08
_EARLIER_RELIABILITY = 0.5  # factor
_DESCRIPTIONS = {"AP": "CHEST (PORTABLE AP)", "PA": "CHEST (PA AND LAT)", "LATERAL": "CHEST (PA AND LAT)"}
_CODES = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral"}


@dataclass(frozen=True)
class Imaging:
    """The images of some stays.

    Attributes:
        metadata: The rows of MIMIC-CXR-JPG's metadata table, and `row`, the stay of each.
        readings: What each image shows.
        has_cxr: Whether each stay has an AP radiograph in its window (n,).
    """

    metadata: pl.DataFrame
    readings: Readings
    has_cxr: NDArray[np.bool_]


def draw_studies(
    icustays: pl.DataFrame,
    patients: Patients,
    cxr_rate: float,
    missing: Missing,
    size: int,
    generator: np.random.Generator,
) -> Imaging:
    """Return the studies of some stays.

    The last AP study of the window, which a share of `cxr_rate` of the stays have, shows `patients.cxr`.
    Beside it there are studies that must be left out: earlier ones in the window, less reliable; some before
    ICU admission and after the window; some with a PA and a lateral view.

    Args:
        icustays: A row a stay: its ids, `intime` and `outtime`.
        patients: Their hidden state.
        cxr_rate: The mean share of stays with a radiograph.
        missing: Whether the severely ill are imaged more often (`severity`), or chance decides (`mcar`).
        size: Side of the images in pixels.
        generator: What chance draws from.
    """
    n = icustays.height
    log_odds = intercept_for(cxr_rate, _SLOPE) + _SLOPE * patients.severity if 0 < cxr_rate < 1 else None
    share = expit(log_odds) if missing == "severity" and log_odds is not None else np.full(n, cxr_rate)
    has_cxr = generator.random(n) < share
    seconds = (icustays["outtime"] - icustays["intime"]).dt.total_seconds().to_numpy()
    window = np.minimum(seconds, _WINDOW_HOURS * 3600.0)
    last = window * generator.uniform(0.15, 1, n) * 0.999

    def some(rate: float) -> NDArray[np.bool_]:
        return generator.random(n) < rate

    other = some(_OTHER_VIEWS)
    at = window * generator.uniform(0, 1, n)
    studies = [
        (has_cxr, last, "AP", 1.0),
        (
            has_cxr & some(_EARLIER_IN_WINDOW),
            last * generator.uniform(0, 0.95, n),
            "AP",
            _EARLIER_RELIABILITY,
        ),
        (some(_BEFORE), -generator.uniform(600, 40 * 3600, n), "AP", 1.0),
        (some(_AFTER), window + generator.uniform(600, 90 * 3600, n), "AP", 1.0),
        (other, at, "PA", 1.0),
        (other, at, "LATERAL", 1.0),
    ]
    rows = np.concatenate([np.flatnonzero(taken) for taken, *_ in studies])
    after = np.concatenate([time[taken] for taken, time, *_ in studies])
    views = np.repeat([view for *_, view, _ in studies], [int(taken.sum()) for taken, *_ in studies])
    factor = np.repeat([one for *_, one in studies], [int(taken.sum()) for taken, *_ in studies])
    study = np.repeat([0, 1, 2, 3, 4, 4], [int(taken.sum()) for taken, *_ in studies])
    return Imaging(
        metadata=_metadata(icustays, rows, after, views, study, size, generator),
        readings=_readings(patients, rows, factor, generator),
        has_cxr=has_cxr,
    )


def _readings(
    patients: Patients, rows: NDArray[np.int64], factor: Floats, generator: np.random.Generator
) -> Readings:
    """Return what images of the stays `rows` show; those of less than a stay's reliability read it anew."""
    reliability = patients.cxr.reliability[rows] * factor
    anew = Readings.draw(patients.factors[rows], reliability, patients.cxr.seen, generator)
    values = np.where((factor == 1)[:, None], patients.cxr.values[rows], anew.values)
    return Readings(values, reliability, patients.cxr.seen)


def _metadata(
    icustays: pl.DataFrame,
    rows: NDArray[np.int64],
    after: Floats,
    views: NDArray[np.str_],
    study: NDArray[np.int64],
    size: int,
    generator: np.random.Generator,
) -> pl.DataFrame:
    stays = icustays.select("subject_id", "stay_id", "intime")[rows]
    at = stays["intime"] + pl.Series(
        np.round(after * 1000).astype("timedelta64[ms]").astype("timedelta64[us]")
    )
    words = generator.integers(0, 2**32, (len(rows), 5), np.uint64)
    view = pl.Series("ViewPosition", views, dtype=pl.String)
    clock = at.dt.hour().cast(pl.Float64) * 10000 + at.dt.minute().cast(pl.Float64) * 100 + at.dt.second()
    return pl.DataFrame(
        {
            "row": rows,
            "dicom_id": ["-".join(f"{word:08x}" for word in some) for some in words.tolist()],
            "subject_id": stays["subject_id"],
            "study_id": 10 * stays["stay_id"] + pl.Series(study),
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
