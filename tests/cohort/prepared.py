"""Prepares the cohort of a synthetic hospital and opens what was written, without drfuse's own reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.cohort import Manifest, prepare
from tests.mimic import Hospital, Stay


@dataclass(frozen=True)
class Prepared:
    """What `prepare` returned and the files that it wrote."""

    folder: Path
    manifest: Manifest
    stays: pl.DataFrame
    ehr: NDArray[np.float32]
    cxr: NDArray[np.uint8]

    def row(self, stay: Stay) -> dict[str, Any]:
        """Return the row of a stay in stays.parquet."""
        return self.stays.row(by_predicate=pl.col("stay_id") == stay.stay_id, named=True)

    def values(self, stay: Stay, variable: str) -> dict[int, float]:
        """Return the observed hours of a stay's variable and their values."""
        column = [one.name for one in self.manifest.variables].index(variable)
        series = self.ehr[self.stays["stay_id"].to_list().index(stay.stay_id), :, column]
        return {int(hour): float(series[hour]) for hour in np.flatnonzero(~np.isnan(series))}


def open_cohort(folder: Path, manifest: Manifest) -> Prepared:
    """Open the files of a cohort."""
    return Prepared(
        folder=folder,
        manifest=manifest,
        stays=pl.read_parquet(folder / "stays.parquet"),
        ehr=np.load(folder / "ehr.npy"),
        cxr=np.load(folder / "cxr.npy"),
    )


def prepare_hospital(hospital: Hospital, folder: Path, **options: Any) -> Prepared:
    """Write a hospital into `folder`, prepare its cohort there and open it."""
    if hospital.images:
        options.setdefault("mimic_cxr", hospital.write_radiographs(folder / "mimic-cxr"))
    manifest = prepare(hospital.write(folder / "mimic-iv"), folder / "cohort", **options)
    return open_cohort(folder / "cohort", manifest)
