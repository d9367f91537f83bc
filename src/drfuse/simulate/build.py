"""A simulated hospital on disk: raw files in MIMIC's own layout, and the truth beside them."""

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from rich.progress import Progress

from drfuse import __version__
from drfuse.errors import InputError, check_choice
from drfuse.files import atomic_folder, write_whole
from drfuse.simulate.disease import Disease, Patients
from drfuse.simulate.hospital import INDEX_DIGITS, Census, Hospital, admit, diagnosis_titles
from drfuse.simulate.imaging import Imaging, Missing, draw_studies
from drfuse.simulate.radiographs import draw_radiographs
from drfuse.simulate.record import draw_events, item_dictionary
from drfuse.simulate.truth import TRUTH, describe_truth

SETTINGS = "simulation.json"
_METADATA = "mimic-cxr/mimic-cxr-2.0.0-metadata"
_CONTENTS = {"mimic-iv", "mimic-cxr", TRUTH, SETTINGS}
_STAYS_AT_A_TIME = 500  # that can be included; a larger hospital draws the same, but for the last ones
_INDICES_AT_A_TIME = 1000  # ids set aside for them and for the stays that cannot be included
_TIMES = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Simulation:
    """What a simulated hospital consists of; it is written as `simulation.json`.

    Attributes:
        drfuse: Version of this package that made it.
        options: What it was made with.
        icu_stays: All ICU stays.
        eligible: Those that the inclusion rules keep.
        with_cxr: Those with an AP radiograph in their window.
        events: Chart events and laboratory results.
        images: Radiographs, whether they count or not.
    """

    drfuse: str
    options: dict[str, Any]
    icu_stays: int
    eligible: int
    with_cxr: int
    events: int
    images: int


def simulate(
    out: Path,
    stays: int,
    cxr_rate: float = 0.18,
    cxr_missing: Missing = "severity",
    image_size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> Simulation:
    """Write the raw files of a simulated hospital, in the layout of MIMIC-IV and MIMIC-CXR-JPG.

    `OUT/mimic-iv` and `OUT/mimic-cxr` are what `drfuse prepare` reads; `OUT/truth.parquet` tells what no real
    hospital knows. The model is described in docs/simulator.md.

    Args:
        out: Folder to write. It appears when it is complete.
        stays: ICU stays that can be included; some more are there for the inclusion rules to remove.
        cxr_rate: Mean share of them with a radiograph that counts.
        cxr_missing: `severity` images the severely ill more often; `mcar` leaves it to chance.
        image_size: Side of the radiographs, in pixels.
        seed: Seed of everything. The same seed gives the same bytes, two seeds share no stay.
        overwrite: Replace the simulated hospital that lies at `out`.

    Returns:
        What was written, in numbers.

    Raises:
        InputError: If an option is out of range, or something else lies at `out`.
    """
    most = 10**INDEX_DIGITS // _INDICES_AT_A_TIME * _STAYS_AT_A_TIME
    for name, value, least, largest in (
        ("stays", stays, 1, most),
        ("cxr_rate", cxr_rate, 0, 1),
        ("image_size", image_size, 32, 4096),
        ("seed", seed, 0, 10**9 - 1),
    ):
        if not least <= value <= largest:
            raise InputError(f"{name} is {value}; expected {least:,} to {largest:,}")
    check_choice("cxr_missing", cxr_missing, get_args(Missing))
    options = {
        "stays": stays,
        "cxr_rate": cxr_rate,
        "cxr_missing": cxr_missing,
        "image_size": image_size,
        "seed": seed,
    }
    disease = Disease.load()
    counts = dict.fromkeys(("icu_stays", "eligible", "with_cxr", "events", "images"), 0)
    with (
        atomic_folder(Path(out), "simulated hospital", SETTINGS, _CONTENTS, overwrite) as folder,
        _Tables(folder) as tables,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task("simulating stays", total=stays)
        for chunk, start in enumerate(range(0, stays, _STAYS_AT_A_TIME)):
            n = min(_STAYS_AT_A_TIME, stays - start)
            drawn = _draw(disease, n, chunk, cxr_rate, cxr_missing, image_size, seed)
            counts["events"] += drawn.write(
                tables, folder, image_size, np.random.default_rng((seed, chunk, 1))
            )
            counts["icu_stays"] += len(drawn.census)
            counts["eligible"] += int(drawn.census.eligible.sum())
            counts["with_cxr"] += int((drawn.imaging.has_cxr & drawn.census.eligible).sum())
            counts["images"] += drawn.imaging.metadata.height
            progress.advance(task, n)
        tables.write("mimic-iv/hosp/d_icd_diagnoses", diagnosis_titles())
        tables.write("mimic-iv/hosp/d_labitems", item_dictionary("labevents"))
        tables.write("mimic-iv/icu/d_items", item_dictionary("chartevents"))
        simulation = Simulation(drfuse=__version__, options=options, **counts)
        write_whole(folder / SETTINGS, json.dumps(asdict(simulation), indent=2) + "\n")
    return simulation


@dataclass(frozen=True)
class _Drawn:
    """Some stays of the hospital, before they are written."""

    census: Census
    patients: Patients
    hospital: Hospital
    imaging: Imaging
    chartevents: pl.DataFrame
    labevents: pl.DataFrame

    def write(self, tables: "_Tables", folder: Path, image_size: int, generator: np.random.Generator) -> int:
        """Append the stays to the tables, write their images, and return the number of events."""
        tables.write("mimic-iv/hosp/patients", self.hospital.patients)
        tables.write("mimic-iv/hosp/admissions", self.hospital.admissions)
        tables.write("mimic-iv/hosp/diagnoses_icd", self.hospital.diagnoses)
        tables.write("mimic-iv/icu/icustays", self.hospital.icustays)
        tables.write("mimic-iv/icu/chartevents", self.chartevents)
        tables.write("mimic-iv/hosp/labevents", self.labevents)
        metadata = self.imaging.metadata.drop("row")
        tables.write(_METADATA, metadata)
        tables.write_truth(
            describe_truth(self.hospital.icustays, self.patients, self.census.eligible, self.imaging.has_cxr)
        )
        factors, views = self.patients.disease.factors, metadata["ViewPosition"].to_list()
        images = draw_radiographs(factors, self.imaging.readings, views, image_size, generator)
        for path, image in zip(_image_paths(metadata), images, strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(image)
        return self.chartevents.height + self.labevents.height


def _draw(
    disease: Disease, n: int, chunk: int, cxr_rate: float, missing: Missing, image_size: int, seed: int
) -> _Drawn:
    """Draw some stays that can be included, and those that come with them."""
    generator = np.random.default_rng((seed, chunk, 0))
    census = Census.draw(n, generator)
    patients = disease.draw(len(census), generator)
    hospital = admit(census, patients, seed, chunk * _INDICES_AT_A_TIME, generator)
    chartevents, labevents = draw_events(hospital.icustays, patients, generator)
    imaging = draw_studies(hospital.icustays, patients, cxr_rate, missing, image_size, generator)
    return _Drawn(census, patients, hospital, imaging, chartevents, labevents)


def _image_paths(metadata: pl.DataFrame) -> Iterator[Path]:
    """Yield where MIMIC-CXR-JPG keeps each image, from the root of the simulated hospital."""
    for subject_id, study_id, dicom_id in metadata.select("subject_id", "study_id", "dicom_id").iter_rows():
        patient = f"p{subject_id}"
        yield Path("mimic-cxr", "files", patient[:3], patient, f"s{study_id}", f"{dicom_id}.jpg")


class _Tables(ExitStack):
    """The tables of the hospital, open to be written to a part at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._files: dict[str, gzip.GzipFile] = {}
        self._truth: pq.ParquetWriter | None = None

    def write(self, table: str, rows: pl.DataFrame) -> None:
        """Append rows to a .csv.gz, named by its path without suffix."""
        is_new = table not in self._files
        if is_new:
            path = self._folder / f"{table}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = self.enter_context(path.open("wb"))
            # without a name and a time in the header, the same rows make the same bytes
            self._files[table] = self.enter_context(gzip.GzipFile("", "wb", 4, raw, mtime=0))
        self._files[table].write(rows.write_csv(include_header=is_new, datetime_format=_TIMES).encode())

    def write_truth(self, rows: pl.DataFrame) -> None:
        """Append rows to the truth."""
        table = rows.to_arrow()
        if self._truth is None:
            schema = table.schema.with_metadata({"phenotypes": json.dumps(Disease.load().phenotypes)})
            self._truth = self.enter_context(pq.ParquetWriter(self._folder / TRUTH, schema))
        self._truth.write_table(table)
