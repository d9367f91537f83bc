"""The preset `benchmark` beside a plain retelling of the published MIMIC-IV benchmark extraction.

The retelling goes through the demo's own files row by row and shares no code with the package. It says what
the published extraction does, not what it should do:

- An event counts if its admission has an included stay; its time decides to which stay it belongs.
- Only the text in `value` is read, where there is any. Of laboratory variables, plain numbers are kept.
- Of one variable's values at one time the largest is kept. For the variables that no cleaning rule turns into
  numbers (heart rate, respiratory rate, mean pressure, GCS) that is the largest text: "99" beats "101".
- Hour k holds (k, k+1] after intime, time 0 is in hour 0; the last time of an hour wins.

One rule is told as it was meant: a percentage of oxygen becomes a fraction. As published, it divides
fractions too.
"""

import csv
import gzip
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from drfuse.cohort import prepare
from tests.cohort.prepared import Prepared, open_cohort

pytestmark = pytest.mark.slow

COMPARED_AS_TEXT = {
    "heart_rate",
    "respiratory_rate",
    "mean_blood_pressure",
    "gcs_eye_opening",
    "gcs_motor_response",
    "gcs_verbal_response",
}
LABORATORY = {"glucose", "ph", "oxygen_saturation"}
SCORES = {
    "gcs_eye_opening": ["None", "To Pain", "To Speech", "Spontaneously"],
    "gcs_motor_response": [
        "No response",
        "Abnormal extension",
        "Abnormal Flexion",
        "Flex-withdraws",
        "Localizes Pain",
        "Obeys Commands",
    ],
    "gcs_verbal_response": [
        "No Response",
        "Incomprehensible sounds",
        "Inappropriate Words",
        "Confused",
        "Oriented",
    ],
}
POUNDS = 226531

Cell = tuple[int, int, str]  # stay_id, hour, variable


@dataclass(frozen=True)
class IcuStay:
    stay_id: int
    subject_id: int
    hadm_id: int
    intime: datetime
    end: datetime


@dataclass(frozen=True)
class Published:
    """What the published extraction makes of the demo.

    Attributes:
        cells: The value of each observed cell.
        rivals: All values of the time that stands in a cell.
    """

    cells: dict[Cell, float]
    rivals: dict[Cell, list[float]]


def rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def stays_of(demo: Path) -> list[IcuStay]:
    """Return the stays of adults without transfer, one an admission."""
    adults = {
        row["subject_id"] for row in rows(demo / "hosp/patients.csv.gz") if int(row["anchor_age"]) >= 18
    }
    by_admission = defaultdict(list)
    for row in rows(demo / "icu/icustays.csv.gz"):
        if row["first_careunit"] == row["last_careunit"] and row["subject_id"] in adults:
            by_admission[row["hadm_id"]].append(row)
    alone = [admission[0] for admission in by_admission.values() if len(admission) == 1]
    return [
        IcuStay(
            int(row["stay_id"]),
            int(row["subject_id"]),
            int(row["hadm_id"]),
            time(row["intime"]),
            min(time(row["outtime"]), time(row["intime"]) + timedelta(hours=48)),
        )
        for row in alone
    ]


def number(variable: str, itemid: int, text: str) -> float | None:
    """Return the value that stands in the text of an event."""
    if variable in SCORES:
        return SCORES[variable].index("No Response" if text == "No Response-ETT" else text) + 1.0
    if variable == "capillary_refill_rate":  # only the texts of MIMIC-III are known
        return None
    if variable in LABORATORY and not re.fullmatch(r"\d+\.?\d*|\.\d+", text):
        return None
    value = float(text)
    if variable == "fraction_inspired_oxygen" and value > 1:
        value /= 100
    elif variable == "oxygen_saturation" and value <= 1:
        value *= 100
    elif variable == "temperature" and value >= 79:
        value = (value - 32) * 5 / 9
    elif itemid == POUNDS:
        value *= 0.453592
    return value


def extract(shared: Path) -> Published:
    demo = shared / "mimic-iv-demo"
    with (shared / "reference/variables.csv").open(encoding="utf-8", newline="") as file:
        items = {
            int(row["itemid"]): row["variable"] for row in csv.DictReader(file) if row["benchmark"] == "1"
        }
    stays = stays_of(demo)
    admissions = {(stay.subject_id, stay.hadm_id): stay.stay_id for stay in stays}

    values = defaultdict(list)  # (text, number) of each subject, variable and time
    for table in ("icu/chartevents.csv.gz", "hosp/labevents.csv.gz"):
        for row in rows(demo / table):
            variable = items.get(int(row["itemid"]))
            if variable is None or not row["value"] or not row["hadm_id"]:
                continue
            subject = int(row["subject_id"])
            stay_id = admissions.get((subject, int(row["hadm_id"])))
            if stay_id is None or int(row.get("stay_id") or stay_id) != stay_id:
                continue
            value = number(variable, int(row["itemid"]), row["value"])
            if value is not None:
                values[subject, variable, time(row["charttime"])].append((row["value"], value))

    by_subject = defaultdict(list)
    for (subject, variable, at), found in values.items():
        numbers = [value for _, value in found]
        kept = max(found)[1] if variable in COMPARED_AS_TEXT else max(numbers)
        by_subject[subject].append((at, variable, kept, numbers))

    cells: dict[Cell, float] = {}
    rivals: dict[Cell, list[float]] = {}
    for stay in stays:
        for at, variable, kept, all_of_them in sorted(by_subject[stay.subject_id]):
            if stay.intime <= at <= stay.end:
                hours = (at - stay.intime) / timedelta(hours=1)
                cell = stay.stay_id, max(math.ceil(hours) - 1, 0), variable
                cells[cell] = kept
                rivals[cell] = all_of_them
    return Published(cells, rivals)


@pytest.fixture(scope="module")
def published(shared: Path) -> Published:
    return extract(shared)


@pytest.fixture(scope="module")
def cohort(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("benchmark") / "cohort"
    return open_cohort(folder, prepare(shared / "mimic-iv-demo", folder, preset="benchmark"))


@pytest.fixture(scope="module")
def ours(cohort: Prepared) -> dict[Cell, float]:
    stays, names = (
        cohort.stays["stay_id"].to_list(),
        [variable.name for variable in cohort.manifest.variables],
    )
    return {
        (stays[row], int(hour), names[column]): float(cohort.ehr[row, hour, column])
        for row, hour, column in np.argwhere(~np.isnan(cohort.ehr))
    }


def test_the_same_stays_are_included(cohort: Prepared, published: Published) -> None:
    assert set(cohort.stays["stay_id"]) == {stay_id for stay_id, _, _ in published.cells}


def test_the_same_hours_hold_an_observation(ours: dict[Cell, float], published: Published) -> None:
    assert len(ours) > 30_000
    assert set(ours) == set(published.cells)


def disagreements(ours: dict[Cell, float], published: Published) -> list[Cell]:
    return [
        cell for cell, value in published.cells.items() if not math.isclose(ours[cell], value, rel_tol=1e-6)
    ]


def test_999_of_1000_values_agree(ours: dict[Cell, float], published: Published) -> None:
    assert len(disagreements(ours, published)) <= 0.001 * len(published.cells)


def test_only_ties_broken_by_text_disagree(ours: dict[Cell, float], published: Published) -> None:
    for cell in disagreements(ours, published):
        assert cell[2] in COMPARED_AS_TEXT, cell
        assert ours[cell] == pytest.approx(max(published.rivals[cell])), cell
        assert published.cells[cell] < max(published.rivals[cell]), cell
