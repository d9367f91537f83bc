"""The floor under any extraction: one bare DuckDB query over the same files, of which nothing is written.

It reads the items of the 17 variables, joins them to the included stays, and keeps the last number of each
stay, hour and variable. What `prepare` does besides is left out: scores behind text, units, outliers and
ranges, the GCS total, the order of storing, labels, splits, rows that do not parse, the sums of gzip files,
and everything on disk.
"""

import csv
import gzip
from importlib.resources import files
from pathlib import Path

import duckdb

_SMALL = """
CREATE TABLE stays AS
WITH single AS (
    SELECT * FROM {icustays} WHERE first_careunit = last_careunit
    QUALIFY count(*) OVER (PARTITION BY hadm_id) = 1
)
SELECT stay_id, subject_id, hadm_id, intime, least(outtime, intime + INTERVAL {hours} HOUR) AS window_end
FROM single JOIN {admissions} USING (subject_id, hadm_id) JOIN {patients} USING (subject_id)
WHERE anchor_age + year(admittime) - anchor_year >= 18 AND outtime IS NOT NULL
"""

_QUERY = """
CREATE TABLE hourly AS
WITH events AS (
    SELECT stay_id, variable, charttime, valuenum, intime
    FROM {chartevents} JOIN items USING (itemid) JOIN stays USING (stay_id)
    WHERE in_chart AND charttime BETWEEN intime AND window_end AND valuenum IS NOT NULL
    UNION ALL
    SELECT stay_id, variable, charttime, valuenum, intime
    FROM {labevents} AS lab JOIN items USING (itemid) JOIN stays USING (subject_id)
    WHERE NOT in_chart AND charttime BETWEEN intime AND window_end AND valuenum IS NOT NULL
      AND (lab.hadm_id = stays.hadm_id OR lab.hadm_id IS NULL)
)
SELECT stay_id, variable, greatest(datesub('second', intime, charttime) - 1, 0) // 3600 AS hour,
       arg_max(valuenum, charttime) AS value
FROM events
GROUP BY ALL
"""

_TYPES = {
    "subject_id": "BIGINT",
    "hadm_id": "BIGINT",
    "stay_id": "BIGINT",
    "itemid": "INTEGER",
    "valuenum": "DOUBLE",
    "charttime": "TIMESTAMP",
    "intime": "TIMESTAMP",
    "outtime": "TIMESTAMP",
    "admittime": "TIMESTAMP",
    "anchor_age": "INTEGER",
    "anchor_year": "INTEGER",
}


def floor(mimic_iv: Path, window_hours: int = 48) -> int:
    """Run the query and return how many cells it found.

    Args:
        mimic_iv: Folder of a release (it holds `icu/` and `hosp/`), all tables csv.gz, csv or Parquet.
        window_hours: Hours after ICU admission that are observed.
    """
    definitions = (
        files("drfuse") / "cohort" / "definitions"
    )  # importing drfuse.cohort takes longer than the query
    listed = csv.DictReader((definitions / "variables.csv").read_text(encoding="utf-8").splitlines())
    items = [row for row in listed if row["extended"] == "1" and row["itemid"] != "derived"]
    names = sorted({row["variable"] for row in items})
    tables = {
        name: _scan(mimic_iv / module / name)
        for module, names in {
            "icu": ("icustays", "chartevents"),
            "hosp": ("admissions", "patients", "labevents"),
        }.items()
        for name in names
    }
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        rows = ", ".join(
            f"({row['itemid']}, {names.index(row['variable'])}::UTINYINT, {row['table'] == 'chartevents'})"
            for row in items
        )
        connection.execute(f"CREATE TABLE items AS FROM (VALUES {rows}) AS _(itemid, variable, in_chart)")
        connection.execute(_SMALL.format(hours=window_hours, **tables))
        connection.execute(_QUERY.format(**tables))
        return int(connection.sql("SELECT count(*) FROM hourly").fetchall()[0][0])


def _scan(stem: Path) -> str:
    """Return what reads a table, with nothing left for DuckDB to guess."""
    parquet, text = stem.with_suffix(".parquet"), stem.with_suffix(".csv")
    if parquet.exists():
        return f"read_parquet('{parquet}')"
    packed = stem.with_suffix(".csv.gz")
    with gzip.open(packed, "rt") if packed.exists() else text.open() as file:
        columns = {name: _TYPES.get(name, "VARCHAR") for name in file.readline().strip().split(",")}
    path = packed if packed.exists() else text
    return (
        f"read_csv('{path}', columns = {columns}, auto_detect = false, header = true, delim = ',', "
        "quote = '\"', escape = '\"')"
    )
