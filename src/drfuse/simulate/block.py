"""The stays of a simulated hospital, drawn a block at a time; the same options draw the same ones again."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from drfuse.simulate.disease import Disease, Patients, Readings
from drfuse.simulate.hospital import Census, Hospital, admit
from drfuse.simulate.imaging import Imaging, Missing, draw_studies
from drfuse.simulate.radiographs import View
from drfuse.simulate.record import draw_events

STAYS_PER_BLOCK = 500
"""Stays that can be included; a larger hospital repeats all full blocks of a smaller one."""
INDICES_PER_BLOCK = 1000
"""Ids for them and for the stays that cannot be included."""


@dataclass(frozen=True)
class Block:
    """Some stays of a hospital, before anything is written.

    Attributes:
        n: Stays that can be included.
        census: All stays, with those that cannot.
        patients: Their hidden state.
        hospital: The administrative tables.
        chartevents: MIMIC-IV's table.
        labevents: MIMIC-IV's table.
        imaging: When and how they are imaged.
        image_size: Side of the radiographs, in pixels.
        image_seed: Seed of everything in the radiographs but their readings.
    """

    n: int
    census: Census
    patients: Patients
    hospital: Hospital
    chartevents: pl.DataFrame
    labevents: pl.DataFrame
    imaging: Imaging
    image_size: int
    image_seed: tuple[int, ...]

    @classmethod
    def draw(
        cls,
        disease: Disease,
        number: int,
        stays: int,
        cxr_rate: float,
        cxr_missing: Missing,
        image_size: int,
        seed: int,
    ) -> "Block":
        """Return a block by its number, from 0; the other arguments are those of `simulate`."""
        n = min(STAYS_PER_BLOCK, stays - number * STAYS_PER_BLOCK)
        generator = np.random.default_rng((seed, number, 0))
        census = Census.draw(n, generator)
        patients = disease.draw(len(census), generator)
        hospital = admit(census, patients, seed, number * INDICES_PER_BLOCK, generator)
        chartevents, labevents = draw_events(hospital.icustays, patients, generator)
        imaging = draw_studies(hospital.icustays, patients, cxr_rate, cxr_missing, image_size, generator)
        return cls(
            n, census, patients, hospital, chartevents, labevents, imaging, image_size, (seed, number, 1)
        )

    def radiographs(self) -> tuple[Readings, list[View], int, np.random.Generator]:
        """Return the arguments of `draw_radiographs` and `draw_signs` after the factors."""
        views = self.imaging.metadata["ViewPosition"].to_list()
        return self.imaging.readings, views, self.image_size, np.random.default_rng(self.image_seed)


def n_blocks(stays: int) -> int:
    """Return how many blocks a hospital has."""
    return -(-stays // STAYS_PER_BLOCK)
