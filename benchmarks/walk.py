"""Extraction as published benchmarks do it: walk the event tables row by row, then take the stays one by one.

This is our own code after the approach of Harutyunyan et al. (2019, arXiv:1703.07771), whose descendants
for MIMIC-IV the published fusion models use: every event of an included subject is appended to a file of
that subject; then pandas reads the file of each subject, keeps the items of the 17 variables, cleans them,
and makes a table of each stay, of which the last value an hour stays. The rules are those of our preset
`benchmark`, so that the values can be held against each other. Labels and splits, which the original makes
as well, are left out.
"""

import csv
import gzip
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_COLUMNS = ("subject_id", "hadm_id", "stay_id", "charttime", "itemid", "value")
_LABORATORY = ("glucose", "ph", "oxygen_saturation")
_PLAIN_NUMBER = r"(\d+(\.\d*)?|\.\d+)"
_POUNDS = 226531


def walk(mimic_iv: Path, out: Path, window_hours: int = 48) -> int:
    """Extract the time series of a release.

    Writes `subjects/` with a file of events each, `stay_id.npy` (N,) in rising order and `ehr.npy` float32
    (N, hours, 17), NaN where nothing was observed.

    Args:
        mimic_iv: Folder of a release (it holds `icu/` and `hosp/`) with tables as csv.gz.
        out: Folder to write; it must not exist.
        window_hours: Hours after ICU admission that are observed.

    Returns:
        How many stays have a value.
    """
    stays = _included_stays(mimic_iv)
    subjects = out / "subjects"
    subjects.mkdir(parents=True)
    kept = set(stays["subject_id"].astype(str))
    for table in ("icu/chartevents", "hosp/labevents"):
        _split_by_subject(mimic_iv / f"{table}.csv.gz", kept, subjects)

    items, variables, scores = _definitions()
    found = {}
    for subject_id, of_subject in stays.groupby("subject_id"):
        file = subjects / f"{subject_id}.csv"
        if not file.exists():
            continue
        events = pd.read_csv(
            file, dtype={"value": str}, parse_dates=["charttime"], keep_default_na=False, na_values=[""]
        )  # "None" is an eye response
        events = _clean(events.merge(items, on="itemid"), scores)
        for stay in of_subject.itertuples():
            series = _hourly(_events_of(events, stay, window_hours), variables, window_hours)
            if np.isfinite(series).any():
                found[stay.stay_id] = series
    ids = sorted(found)
    np.save(out / "stay_id.npy", np.array(ids, np.int64))
    np.save(out / "ehr.npy", np.array([found[stay_id] for stay_id in ids], np.float32))
    return len(ids)


def _included_stays(mimic_iv: Path) -> pd.DataFrame:
    """Return adult stays in one care unit, the only such stay of their admission."""
    stays = pd.read_csv(mimic_iv / "icu/icustays.csv.gz", parse_dates=["intime", "outtime"])
    admissions = pd.read_csv(mimic_iv / "hosp/admissions.csv.gz", parse_dates=["admittime"])
    patients = pd.read_csv(mimic_iv / "hosp/patients.csv.gz")
    stays = stays[stays["first_careunit"] == stays["last_careunit"]]
    stays = stays[stays.groupby("hadm_id")["stay_id"].transform("count") == 1]
    stays = stays.merge(admissions[["subject_id", "hadm_id", "admittime"]], on=["subject_id", "hadm_id"])
    stays = stays.merge(patients[["subject_id", "anchor_age", "anchor_year"]], on="subject_id")
    age = stays["anchor_age"] + stays["admittime"].dt.year - stays["anchor_year"]
    return stays[age >= 18]


def _split_by_subject(table: Path, kept: set[str], subjects: Path) -> None:
    """Append each row of a table to the file of its subject, whenever the subject changes."""
    rows: list[dict[str, str]] = []
    with gzip.open(table, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["subject_id"] not in kept:
                continue
            if rows and rows[-1]["subject_id"] != row["subject_id"]:
                _append(rows, subjects)
                rows = []
            rows.append({name: row.get(name, "") for name in _COLUMNS})
    if rows:
        _append(rows, subjects)


def _append(rows: list[dict[str, str]], subjects: Path) -> None:
    path = subjects / f"{rows[0]['subject_id']}.csv"
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if not begun:
            writer.writeheader()
        writer.writerows(rows)


def _definitions() -> tuple[pd.DataFrame, list[str], pd.DataFrame]:
    """Return the items with their variable, the 17 variables in order, and the scores behind texts."""
    folder = files("drfuse") / "cohort" / "definitions"
    tables = []
    for name in ("variables", "variable_ranges", "text_scores"):
        with (folder / f"{name}.csv").open(encoding="utf-8") as file:
            tables.append(pd.read_csv(file, keep_default_na=False))
    items, ranges, scores = tables
    items = items[(items["benchmark"] == 1) & (items["itemid"] != "derived")]
    items = items[["itemid", "variable"]].astype({"itemid": int})
    return items, ranges["variable"].tolist(), scores


def _clean(events: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the events whose value is a number or has a score; `number` holds it in the variable's unit."""
    text = events["value"].str.strip().str.lower()
    scored = (
        events[["variable"]].assign(text=text).merge(scores, on=["variable", "text"], how="left")["score"]
    )
    number = pd.to_numeric(events["value"], errors="coerce")
    plain = events["value"].str.fullmatch(_PLAIN_NUMBER, na=False).astype(bool)
    number = number.mask(events["variable"].isin(_LABORATORY) & ~plain)
    number = number.fillna(pd.Series(scored.to_numpy(float), events.index))
    variable = events["variable"]
    number = number.mask((variable == "fraction_inspired_oxygen") & (number > 1), number / 100)
    number = number.mask((variable == "oxygen_saturation") & (number <= 1), number * 100)
    number = number.mask(events["itemid"] == _POUNDS, number * 0.453592)
    number = number.mask((variable == "temperature") & (number >= 79), (number - 32) * 5 / 9)
    return events.assign(number=number)[np.isfinite(number)]


def _events_of(events: pd.DataFrame, stay: Any, window_hours: int) -> pd.DataFrame:
    """Return the events of one stay in its window, with the `hour` in which each falls."""
    end = min(stay.outtime, stay.intime + pd.Timedelta(hours=window_hours))
    laboratory = events["stay_id"].isna() & (events["hadm_id"] == stay.hadm_id)
    mine = events[(events["stay_id"] == stay.stay_id) | laboratory]
    mine = mine[(mine["charttime"] >= stay.intime) & (mine["charttime"] <= end)]
    seconds = (mine["charttime"] - stay.intime).dt.total_seconds()
    return mine.assign(hour=((seconds - 1).clip(lower=0) // 3600).astype(int))


def _hourly(events: pd.DataFrame, variables: list[str], window_hours: int) -> NDArray[np.float32]:
    """Return the last value of each hour and variable; of several at one time, the largest."""
    ordered = events.sort_values(["charttime", "variable", "number"])
    last = ordered.drop_duplicates(["hour", "variable"], keep="last")
    table = last.pivot(index="hour", columns="variable", values="number")
    hourly: NDArray[np.float32] = table.reindex(range(window_hours), columns=variables).to_numpy(np.float32)
    return hourly
