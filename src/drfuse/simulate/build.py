"""Writes a simulated hospital: raw files in MIMIC's layout, and the truth beside them."""

import gzip
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pyarrow.parquet as pq

from drfuse import __version__
from drfuse.cohort.sources.mimic_cxr import image_path
from drfuse.errors import InputError, check_choice
from drfuse.files import atomic_folder, write_whole
from drfuse.logs import progress_bars
from drfuse.simulate.block import INDICES_PER_BLOCK, STAYS_PER_BLOCK, Block, n_blocks
from drfuse.simulate.disease import Disease, Kind
from drfuse.simulate.entangled import KINDS
from drfuse.simulate.hospital import INDEX_DIGITS, diagnosis_titles
from drfuse.simulate.imaging import Missing
from drfuse.simulate.radiographs import draw_radiographs
from drfuse.simulate.record import item_dictionary
from drfuse.simulate.truth import TRUTH, describe_truth

SETTINGS = "simulation.json"
_CONTENTS = {
    "mimic-iv/*/*.csv.gz",
    "mimic-cxr/*.csv.gz",
    "mimic-cxr/files/*/*/*/*.jpg",
    TRUTH,
    SETTINGS,
}
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Simulation:
    """The counts of a simulated hospital, and how it was made: `simulation.json`.

    Attributes:
        drfuse: The version of this package that made it.
        options: The options of `simulate`, without `kind` in an independent hospital.
        icu_stays: All ICU stays.
        eligible: Those that the inclusion rules keep.
        with_cxr: Eligible stays with an AP radiograph in their window.
        events: Chart events and laboratory results.
        images: All radiographs, including those that do not count.
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
    kind: Kind = Disease.kind,
    overwrite: bool = False,
) -> Simulation:
    """Write the raw files of a simulated hospital, in the layout of MIMIC-IV and MIMIC-CXR-JPG.

    `drfuse prepare` reads `OUT/mimic-iv` and `OUT/mimic-cxr`; `OUT/truth.parquet` holds what no real hospital
    knows. docs/simulator.md describes the model.

    Args:
        out: Folder to write. It appears when it is complete.
        stays: ICU stays that can be included; there are some more, for the inclusion rules to remove.
        cxr_rate: Mean share of them with a radiograph that counts.
        cxr_missing: `severity` images the severely ill more often, and in an entangled hospital also those
            whose image would show more; `mcar` leaves it to chance.
        image_size: Side of the radiographs, in pixels.
        seed: Seed of everything. The same seed gives the same bytes; two seeds share no stay.
        kind: `independent`: given the disease, the readings of EHR and image are independent. `entangled`:
            factors are correlated, phenotypes need both modalities, and these share noise.
        overwrite: Replace the simulated hospital at `out`.

    Returns:
        The counts of what was written.

    Raises:
        InputError: If an option is out of range, or `out` holds something else.
    """
    most_stays = 10**INDEX_DIGITS // INDICES_PER_BLOCK * STAYS_PER_BLOCK
    for name, value, least, most in (
        ("stays", stays, 1, most_stays),
        ("cxr_rate", cxr_rate, 0, 1),
        ("image_size", image_size, 32, 4096),
        ("seed", seed, 0, 10**9 - 1),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}; expected {least:,} to {most:,}")
    check_choice("cxr_missing", cxr_missing, get_args(Missing))
    check_choice("kind", kind, get_args(Kind))
    # an independent hospital keeps the bytes that it had before there was another kind
    of_kind = {} if kind == Disease.kind else {"kind": kind}
    options = {
        "stays": stays,
        "cxr_rate": cxr_rate,
        "cxr_missing": cxr_missing,
        "image_size": image_size,
        "seed": seed,
        **of_kind,
    }
    disease = KINDS[kind].load()
    counts = Counter[str]()
    with (
        atomic_folder(Path(out), "simulated hospital", SETTINGS, _CONTENTS, overwrite) as folder,
        _Tables(folder, {"phenotypes": json.dumps(disease.phenotypes), **of_kind}) as tables,
        progress_bars() as progress,
    ):
        task = progress.add_task("simulating stays", total=stays)
        for number in range(n_blocks(stays)):
            block = Block.draw(disease, number, stays, cxr_rate, cxr_missing, image_size, seed)
            counts.update(_write_block(tables, folder, block, disease))
            progress.advance(task, block.n)
        tables.write("mimic-iv/hosp/d_icd_diagnoses", diagnosis_titles())
        tables.write("mimic-iv/hosp/d_labitems", item_dictionary("labevents"))
        tables.write("mimic-iv/icu/d_items", item_dictionary("chartevents"))
        simulation = Simulation(drfuse=__version__, options=options, **counts)
        write_whole(folder / SETTINGS, json.dumps(asdict(simulation), indent=2) + "\n")
    return simulation


def _write_block(tables: "_Tables", folder: Path, block: Block, disease: Disease) -> dict[str, int]:
    """Write the stays of a block; return the counts."""
    hospital, imaging = block.hospital, block.imaging
    metadata = imaging.metadata.drop("row")
    for table, rows in {
        "mimic-iv/hosp/patients": hospital.patients,
        "mimic-iv/hosp/admissions": hospital.admissions,
        "mimic-iv/hosp/diagnoses_icd": hospital.diagnoses,
        "mimic-iv/icu/icustays": hospital.icustays,
        "mimic-iv/icu/chartevents": block.chartevents,
        "mimic-iv/hosp/labevents": block.labevents,
        "mimic-cxr/mimic-cxr-2.0.0-metadata": metadata,
    }.items():
        tables.write(table, rows)
    eligible = block.census.eligible
    tables.write_truth(
        describe_truth(hospital.icustays, block.patients, eligible, imaging.has_cxr, imaging.cxr_rate)
    )
    images = draw_radiographs(disease.factors, *block.radiographs())
    ids = metadata.select("subject_id", "study_id", "dicom_id").iter_rows()
    for of_image, image in zip(ids, images, strict=True):
        path = folder / "mimic-cxr" / image_path(*of_image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return {
        "icu_stays": len(block.census),
        "eligible": int(eligible.sum()),
        "with_cxr": int((imaging.has_cxr & eligible).sum()),
        "events": block.chartevents.height + block.labevents.height,
        "images": metadata.height,
    }


class _Tables(ExitStack):
    """The tables of the hospital, open for appending. `of_truth` is the metadata of the truth."""

    def __init__(self, folder: Path, of_truth: dict[str, str]) -> None:
        super().__init__()
        self._folder = folder
        self._of_truth = of_truth
        self._files: dict[str, gzip.GzipFile] = {}
        self._truth: pq.ParquetWriter | None = None

    def write(self, table: str, rows: pl.DataFrame) -> None:
        """Append rows to a table, given its path without `.csv.gz`."""
        is_new = table not in self._files
        if is_new:
            path = self._folder / f"{table}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = self.enter_context(path.open("wb"))
            # no name and time in the header, so that the same rows give the same bytes
            self._files[table] = self.enter_context(gzip.GzipFile("", "wb", 4, raw, mtime=0))
        self._files[table].write(rows.write_csv(include_header=is_new, datetime_format=_TIME_FORMAT).encode())

    def write_truth(self, rows: pl.DataFrame) -> None:
        """Append rows to `truth.parquet`."""
        table = rows.to_arrow()
        if self._truth is None:
            schema = table.schema.with_metadata(self._of_truth)
            self._truth = self.enter_context(pq.ParquetWriter(self._folder / TRUTH, schema))
        self._truth.write_table(table)
