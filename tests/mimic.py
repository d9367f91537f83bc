"""Writes synthetic MIMIC-IV and MIMIC-CXR-JPG folders: invented rows in the releases' own tables and columns.

`Hospital` takes the few rows that a test is about and fills in the rest, with ids that start with 9, where
MIMIC has none; `write_hospital` simulates a whole one.
"""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from PIL import Image

from drfuse.simulate import simulate

Layout = Literal["hosp", "core"]
Suffix = Literal[".csv.gz", ".csv", ".parquet"]

# Items by the name that tests call them.
CAPILLARY_REFILL = 223951
DIASTOLIC, DIASTOLIC_MANUAL_RIGHT = 220180, 227242
FIO2 = 223835
GCS_EYE, GCS_MOTOR, GCS_VERBAL = 220739, 223901, 223900
GLUCOSE_LAB, GLUCOSE_URINE_LAB, GLUCOSE_CHART = 50931, 51478, 220621
HEART_RATE = 220045
HEIGHT_INCHES, HEIGHT_CM = 226707, 226730
MEAN_PRESSURE = 220181
O2_SATURATION_LAB, O2_SATURATION, SPECIMEN_TYPE = 50817, 220277, 52033
RESPIRATORY_RATE = 220210
SYSTOLIC = 220179
CELSIUS, FAHRENHEIT = 223762, 223761
WEIGHT_KG, WEIGHT_POUNDS = 226512, 226531
PH_LAB, PH_URINE_LAB = 50820, 51491
SODIUM_LAB, UNUSED_CHART_ITEM = 50983, 220001

SECOND = 1 / 3600  # in hours, the unit of `at`
INTIME = datetime(2150, 3, 1, 10)

_ID, _NUMBER, _TEXT, _TIME = pl.Int64, pl.Float64, pl.String, pl.Datetime("us")
SCHEMAS: dict[str, dict[str, Any]] = {
    "patients": {
        "subject_id": _ID,
        "gender": _TEXT,
        "anchor_age": _ID,
        "anchor_year": _ID,
        "anchor_year_group": _TEXT,
        "dod": _TEXT,
    },
    "admissions": {
        "subject_id": _ID,
        "hadm_id": _ID,
        "admittime": _TIME,
        "dischtime": _TIME,
        "deathtime": _TIME,
        "admission_type": _TEXT,
        "insurance": _TEXT,
        "race": _TEXT,
        "hospital_expire_flag": _ID,
    },
    "icustays": {
        "subject_id": _ID,
        "hadm_id": _ID,
        "stay_id": _ID,
        "first_careunit": _TEXT,
        "last_careunit": _TEXT,
        "intime": _TIME,
        "outtime": _TIME,
        "los": _NUMBER,
    },
    "diagnoses_icd": {
        "subject_id": _ID,
        "hadm_id": _ID,
        "seq_num": _ID,
        "icd_code": _TEXT,
        "icd_version": _ID,
    },
    "chartevents": {
        "subject_id": _ID,
        "hadm_id": _ID,
        "stay_id": _ID,
        "charttime": _TIME,
        "storetime": _TIME,
        "itemid": _ID,
        "value": _TEXT,
        "valuenum": _NUMBER,
        "valueuom": _TEXT,
        "warning": _ID,
    },
    "labevents": {
        "labevent_id": _ID,
        "subject_id": _ID,
        "hadm_id": _ID,
        "specimen_id": _ID,
        "itemid": _ID,
        "charttime": _TIME,
        "storetime": _TIME,
        "value": _TEXT,
        "valuenum": _NUMBER,
        "valueuom": _TEXT,
        "comments": _TEXT,
    },
    "metadata": {
        "dicom_id": _TEXT,
        "subject_id": _ID,
        "study_id": _ID,
        "PerformedProcedureStepDescription": _TEXT,
        "ViewPosition": _TEXT,
        "Rows": _ID,
        "Columns": _ID,
        "StudyDate": _ID,
        "StudyTime": _NUMBER,
    },
}
_OF_NOBODY = {"itemid": 1, "charttime": INTIME, "value": "none"}
"""An event without stay, admission and subject, of an item that nothing reads."""
_METADATA_FILE = "mimic-cxr-2.0.0-metadata"


@dataclass(frozen=True)
class Stay:
    """The ids of an ICU stay, and the time from which `at` counts its hours."""

    subject_id: int
    hadm_id: int
    stay_id: int
    intime: datetime


@dataclass
class Hospital:
    """Rows of every table, in the order in which they were added.

    Attributes:
        rows: The rows of each table; a column that a row lacks is null.
        images: The file of each radiograph by (subject_id, study_id, dicom_id); None where it is missing.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in SCHEMAS})
    images: dict[tuple[int, int, str], bytes | None] = field(default_factory=dict)

    def add_patient(self, subject_id: int, age: int = 60, year: int = INTIME.year) -> None:
        """Add a patient who is `age` years old in `year`."""
        row = {"subject_id": subject_id, "gender": "F", "anchor_age": age, "anchor_year": year}
        self.rows["patients"].append(row)

    def add_admission(
        self,
        subject_id: int,
        hadm_id: int,
        at: datetime = INTIME - timedelta(hours=5),
        race: str = "WHITE",
        died: bool = False,
    ) -> None:
        """Add an admission to the hospital."""
        self.rows["admissions"].append(
            {
                "subject_id": subject_id,
                "hadm_id": hadm_id,
                "admittime": at,
                "dischtime": at + timedelta(days=20),
                "admission_type": "URGENT",
                "race": race,
                "hospital_expire_flag": int(died),
            }
        )

    def add_stay(
        self,
        hours: float | None = 100,
        *,
        same_subject: Stay | None = None,
        same_admission: Stay | None = None,
        units: tuple[str, str] = ("MICU", "MICU"),
        intime: datetime = INTIME,
        age: int = 60,
        race: str = "WHITE",
        died: bool = False,
    ) -> Stay:
        """Add an ICU stay of so many `hours` (None: without outtime), with its admission and its patient.

        Args:
            hours: Length of the stay.
            same_subject: A stay whose patient this one shares, in another admission.
            same_admission: A stay whose patient and admission this one shares.
            units: First and last care unit.
            intime: ICU admission.
            age: Age of the patient in the year of `intime`.
            race: Race, as the admission states it.
            died: Whether the patient died in hospital.
        """
        number = len(self.rows["icustays"]) + 1
        earlier = same_admission or same_subject
        stay = Stay(
            subject_id=earlier.subject_id if earlier else 90_000_000 + number,
            hadm_id=same_admission.hadm_id if same_admission else 91_000_000 + number,
            stay_id=92_000_000 + number,
            intime=intime,
        )
        if earlier is None:
            self.add_patient(stay.subject_id, age, intime.year)
        if same_admission is None:
            self.add_admission(stay.subject_id, stay.hadm_id, intime - timedelta(hours=5), race, died)
        outtime = None if hours is None else intime + timedelta(seconds=round(hours * 3600))
        self.rows["icustays"].append(
            {
                "subject_id": stay.subject_id,
                "hadm_id": stay.hadm_id,
                "stay_id": stay.stay_id,
                "first_careunit": units[0],
                "last_careunit": units[1],
                "intime": intime,
                "outtime": outtime,
                "los": None if hours is None else hours / 24,
            }
        )
        return stay

    def chart(
        self,
        stay: Stay,
        item: int,
        value: float | str | None,
        at: float = 0.5,
        stored: float | None = None,
        **columns: Any,
    ) -> None:
        """Add a chart event `at` hours after intime, stored at `stored` hours; text has no valuenum."""
        event = _event(stay, item, value, at, stored)
        self.rows["chartevents"].append(event | {"stay_id": stay.stay_id, "warning": 0} | columns)

    def lab(
        self,
        stay: Stay,
        item: int,
        value: float | str | None,
        at: float = 0.5,
        stored: float | None = None,
        **columns: Any,
    ) -> None:
        """Add a laboratory result, as `chart` does."""
        number = {"labevent_id": len(self.rows["labevents"]) + 1}
        self.rows["labevents"].append(number | _event(stay, item, value, at, stored) | columns)

    def diagnose(self, stay: Stay, code: str, version: int) -> None:
        """Add a diagnosis to the admission of a stay."""
        rows = self.rows["diagnoses_icd"]
        row = {"seq_num": len(rows) + 1, "icd_code": code, "icd_version": version}
        rows.append({"subject_id": stay.subject_id, "hadm_id": stay.hadm_id} | row)

    def radiograph(
        self,
        stay: Stay,
        at: float = 1,
        view: str = "AP",
        size: tuple[int, int] = (64, 64),
        file: bytes | Literal["missing"] | None = None,
        **columns: Any,
    ) -> str:
        """Add a radiograph of (height, width) pixels taken `at` hours after intime; return its dicom_id."""
        number = len(self.rows["metadata"]) + 1
        dicom_id, study_id = f"{number:08x}-00000000-00000000-00000000-00000000", 93_000_000 + number
        taken = stay.intime + timedelta(seconds=round(at * 3600, 3))
        row = {
            "dicom_id": dicom_id,
            "subject_id": stay.subject_id,
            "study_id": study_id,
            "PerformedProcedureStepDescription": "CHEST (PORTABLE AP)",
            "ViewPosition": view,
            "Rows": size[0],
            "Columns": size[1],
            "StudyDate": int(f"{taken:%Y%m%d}"),
            "StudyTime": float(f"{taken:%H%M%S.%f}"),
        }
        self.rows["metadata"].append(row | columns)
        image = draw(size, number) if file is None else file
        self.images[stay.subject_id, study_id, dicom_id] = None if image == "missing" else image
        return dicom_id

    def frames(self, layout: Layout = "hosp") -> dict[str, pl.DataFrame]:
        """Return every table of MIMIC-IV by its path in the release, without suffix."""
        place = {table: "icu" if table in ("icustays", "chartevents") else "hosp" for table in SCHEMAS}
        place |= {"patients": layout, "admissions": layout}
        filler = {table: [_OF_NOBODY] for table in ("chartevents", "labevents")}  # an empty one is refused
        frames = {
            f"{place[table]}/{table}": pl.DataFrame(self.rows[table] or filler.get(table, []), schema=schema)
            for table, schema in SCHEMAS.items()
            if table != "metadata"
        }
        if layout == "core":
            frames["core/admissions"] = frames["core/admissions"].rename({"race": "ethnicity"})
        return frames

    def write(self, folder: Path, layout: Layout = "hosp", suffix: Suffix = ".csv.gz") -> Path:
        """Write a MIMIC-IV release into `folder` and return it."""
        return write_tables(self.frames(layout), folder, suffix)

    def write_radiographs(self, folder: Path, flat: str | None = None, suffix: Suffix = ".csv.gz") -> Path:
        """Write a MIMIC-CXR-JPG release into `folder` and return it.

        Args:
            folder: Where to write.
            flat: Put all images into this one folder of the release, as resized copies are kept.
            suffix: Format of the metadata table.
        """
        metadata = pl.DataFrame(self.rows["metadata"], schema=SCHEMAS["metadata"])
        write_tables({_METADATA_FILE: metadata}, folder, suffix)
        for (subject_id, study_id, dicom_id), image in self.images.items():
            name = Path(f"{dicom_id}.jpg")
            path = folder / (flat / name if flat is not None else image_path(subject_id, study_id, dicom_id))
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is not None:
                path.write_bytes(image)
        return folder


def image_path(subject_id: int, study_id: int, dicom_id: str) -> Path:
    """Return where MIMIC-CXR-JPG keeps an image."""
    return Path("files", f"p{subject_id}"[:3], f"p{subject_id}", f"s{study_id}", f"{dicom_id}.jpg")


def draw(size: tuple[int, int], seed: int, kind: str = "JPEG") -> bytes:
    """Return the file of a grey image of (height, width) pixels: a gradient with a bright disc somewhere."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre, radius = generator.uniform(0.2, 0.8, 2) * size, generator.uniform(0.1, 0.3) * min(size)
    disc = np.hypot(y - centre[0], x - centre[1]) < radius
    pixels = 120 * y / size[0] + 60 * x / size[1] + 70 * disc
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_tables(frames: Mapping[str, pl.DataFrame], folder: Path, suffix: Suffix = ".csv.gz") -> Path:
    """Write each table at its path in `folder`, and return the folder."""
    for stem, frame in frames.items():
        path = folder / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            frame.write_parquet(path)
        else:
            text = frame.write_csv(datetime_format="%Y-%m-%d %H:%M:%S").encode()
            path.write_bytes(gzip.compress(text, compresslevel=1) if suffix == ".csv.gz" else text)
    return folder


def write_hospital(
    folder: Path,
    n_stays: int = 60,
    seed: int = 0,
    cxr_rate: float = 0.6,
    image_size: int = 64,
) -> tuple[Path, Path]:
    """Simulate `n_stays` that can be included, and some more; return the MIMIC-IV and MIMIC-CXR folders."""
    simulated = folder / "simulated"
    simulate(simulated, n_stays, cxr_rate, image_size=image_size, seed=seed)
    for name in ("mimic-iv", "mimic-cxr"):
        (simulated / name).rename(folder / name)
    shutil.rmtree(simulated)
    return folder / "mimic-iv", folder / "mimic-cxr"


def _event(
    stay: Stay, item: int, value: float | str | None, at: float, stored: float | None
) -> dict[str, Any]:
    """Return the columns that chart events and laboratory results share."""

    def time(hours: float) -> datetime:
        return stay.intime + timedelta(seconds=round(hours * 3600))

    return {
        "subject_id": stay.subject_id,
        "hadm_id": stay.hadm_id,
        "itemid": item,
        "charttime": time(at),
        "storetime": time(at if stored is None else stored),
        "value": None if value is None else str(value),
        "valuenum": None if value is None or isinstance(value, str) else float(value),
    }
