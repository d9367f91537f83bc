"""Measurements and radiographs of single patients, as files -> hourly values and images, as in a cohort."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import ibis
import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.cohort.images import decode
from drfuse.cohort.manifest import Variable
from drfuse.cohort.sources.source import Source, StoreSource
from drfuse.cohort.store import Store, open_store
from drfuse.cohort.timeseries import last_of_each_hour, measure
from drfuse.cohort.variables import (
    SPECIMEN_TYPE,
    Preset,
    item_ids,
    load_variables,
    read_units,
    variable_of_items,
)
from drfuse.errors import InputError, MissingInputError, without_data

_ADMITTED = datetime(2000, 1, 1)  # any day: only hours since then count
_LONGEST_HOURS = 8760.0
_MINUTE = 1 / 60
_MEMORY = "1GiB"
_IMAGES = (".jpg", ".jpeg", ".png")
_TABLES = (".csv", ".csv.gz", ".parquet")
_COLUMNS = ("stay_id", "hours", "variable", "itemid", "value", "unit")
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)
_REPEATED = re.compile(r"_duplicated_\d+$")  # what Polars appends to a name that another column has
_ADVICE = re.compile(r" (?:Consider setting|The current offset|You might want) ")  # to programmers, by Polars
_WITH_COMMA = r"^[+-]?[0-9.]*,[0-9.,]+$"
_MOST_EXACT = 2**53  # whole numbers from here on have no exact float


@dataclass(frozen=True)
class Patients:
    """N stays that were read from files; H hours.

    Attributes:
        variables: The V variables of an hour.
        stay_id: Int64 (N,), ascending.
        n_hours: Int64 (N,), the hours up to the last record of each stay, 1 to H.
        ehr: Float32 (N, H, V) in physical units, NaN where nothing was observed.
        cxr: Uint8 (M, size, size), the M radiographs.
        cxr_row: Int64 (N,), the row of each stay's radiograph in `cxr`, -1 where it has none.
        n_unused: Records that give no value: outside of the window, of an item that is not read, not a
            number, or an outlier. Earlier values of an hour count as used.
    """

    variables: Sequence[Variable]
    stay_id: NDArray[np.int64]
    n_hours: NDArray[np.int64]
    ehr: NDArray[np.float32]
    cxr: NDArray[np.uint8]
    cxr_row: NDArray[np.int64]
    n_unused: int


@dataclass(frozen=True, kw_only=True)
class _Records(StoreSource):
    """Records of patients as tables of a source, so that they are read by the same rules as a hospital's.

    Small tables are literals, so that its queries can be kept as text.
    """

    small_table = Source.small_table

    @classmethod
    def open(cls, address: str, store: Store) -> "_Records":
        """Return the store's tables `stays`, `chartevents` and `labevents` as a source."""
        stays, chart, labs = map(store.table, ("stays", "chartevents", "labevents"))
        return cls(
            name="patients",
            address=address,
            release="",
            engine=store,
            store=store,
            stays=stays,
            admissions=stays,
            events={"chartevents": chart, "labevents": labs},
            diagnoses=None,
        )


def read_patients(
    ehr: Path | pl.DataFrame,
    cxr: Path | None = None,
    preset: Preset = "extended",
    window_hours: int = 48,
    before_hours: int = 6,
    image_size: int = 256,
) -> Patients:
    """Return the stays of a table of measurements, and their radiographs.

    Values are read by the rules of `prepare`. A laboratory item counts as a result of the stay; results of
    one stay and time are of one specimen.

    Args:
        ehr: A CSV or Parquet file, or a table, with a row for each measurement and the columns `stay_id`;
            `hours` since ICU admission, negative before it; `variable` (a name of `load_variables()`) or
            `itemid` (of MIMIC-IV), or both, one of them in each row; `value`, a number or the text that was
            charted; and, if a variable may have several, its `unit` (definitions/units.csv). Other columns
            are ignored.
        cxr: The radiograph of the only stay, as a JPEG or PNG file; or a folder of such files, each named by
            its stay: `31234567.jpg`. Without it, no stay has a radiograph.
        preset: How values are read, as in `prepare`.
        window_hours: H, the hours after admission that may be observed; later records are not used.
        before_hours: Hours before admission from which height and weight count, as in `prepare`.
        image_size: Side of the radiographs, in pixels.

    Raises:
        MissingInputError: If a file or column is missing.
        InputError: If a cell or an image cannot be read, or a stay has no value in its window.
    """
    where = "the table of measurements" if isinstance(ehr, pl.DataFrame) else str(ehr)
    table = _checked(ehr if isinstance(ehr, pl.DataFrame) else _read(Path(ehr)), where)
    stays = table.group_by("stay_id").agg(last=pl.col("hours").max()).sort("stay_id")
    stay_id, last = stays["stay_id"].to_numpy(), stays["last"].to_numpy()
    n_hours = np.clip(np.ceil(last), 1, window_hours).astype(np.int64)
    events = _events(table, preset, where)
    values, n_used = _hourly_values(events, stay_id, n_hours, preset, before_hours)
    variables = load_variables()
    array = np.full((len(stay_id), window_hours, len(variables)), np.nan, np.float32)
    row = np.searchsorted(stay_id, values["stay_id"].to_numpy())
    array[row, values["hour"].to_numpy(), values["variable"].to_numpy()] = values["value"].to_numpy()
    in_window = values.filter("in_window")["stay_id"].unique()
    if missing := sorted(set(stay_id.tolist()) - set(in_window.to_list())):
        raise InputError(
            f"{where}: the stay {missing[0]} has no value that can be read in its first {window_hours} hours "
            f"({len(missing)} of {len(stay_id)} stays have none); check hours, variable or itemid, value and "
            "unit, or leave it out"
        )
    images, cxr_row = _read_images(None if cxr is None else Path(cxr), stay_id, image_size, where)
    return Patients(variables, stay_id, n_hours, array, images, cxr_row, len(table) - n_used)


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise MissingInputError(f"there is no file {path}; expected a table of measurements")
    if not path.name.endswith(_TABLES):
        raise InputError(f"{path} is not called .csv, .csv.gz or .parquet; expected a table of one of these")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        return pl.read_csv(path, glob=False, infer_schema=False, truncate_ragged_lines=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = _ADVICE.split(without_data(error), maxsplit=1)[0]
        raise InputError(
            f"{path} cannot be read as its name says ({reason[:200]}); write it again"
        ) from error


def _checked(table: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the columns that are read, with their types, and `row`, the number of each row from 1.

    A time less than a minute before admission counts as the admission, as in `measure`, because charted times
    have no seconds.
    """
    given = _columns(table, where)
    absent = {name: pl.lit(None, pl.String) for name in _COLUMNS if name not in given.columns}
    text = given.with_columns(**absent).select(
        pl.col(name).cast(pl.String).str.strip_chars().replace("", None) for name in _COLUMNS
    )
    text = text.with_row_index("row", 1).filter(~pl.all_horizontal(pl.col(_COLUMNS).is_null()))
    hours = pl.col("hours").cast(pl.Float64, strict=False)
    hours = pl.when((hours <= -_MINUTE) | (hours >= 0)).then(hours).otherwise(hours.clip(0))
    typed = text.with_columns(_whole("stay_id"), _whole("itemid"), hours=hours)
    hours = pl.col("hours")
    in_range = (hours.is_finite() & hours.abs().le(_LONGEST_HOURS)).fill_null(value=False)
    has_item = pl.col("itemid").is_not_null() | text["itemid"].is_not_null()
    for name, is_wrong, expected in (
        ("stay_id", pl.col("stay_id").is_null(), "a whole number"),
        ("hours", ~in_range, f"a number from {-_LONGEST_HOURS:.0f} to {_LONGEST_HOURS:.0f}"),
        ("variable or itemid", has_item == pl.col("variable").is_not_null(), "one of the two"),
        ("itemid", has_item & pl.col("itemid").is_null(), "a whole number"),
    ):
        _refuse(typed.filter(is_wrong), f"{where}: {{}} no usable {name}; expected {expected}")
    if typed.is_empty():
        raise InputError(f"{where} is empty; expected a row for each measurement")
    spelled = typed.select("row", "stay_id", spelled=text["stay_id"])
    if spelled["spelled"].n_unique() > spelled["stay_id"].n_unique():
        first = pl.col("spelled").first().over("stay_id")
        message = (
            f"{where}: {{}} a stay_id that an earlier row spells differently, as 031 and 31; spell it alike"
        )
        _refuse(spelled.filter(pl.col("spelled") != first), message)
    return typed


def _columns(table: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return those of the known columns that a table has, by their names without spaces around them.

    Raises:
        MissingInputError: If a column is missing.
        InputError: If one is there twice, or holds neither numbers nor text.
    """
    names = [_REPEATED.sub("", name.strip().removeprefix("\ufeff")) for name in table.columns]
    missing = [name for name in ("stay_id", "hours", "value") if name not in names]
    if not {"variable", "itemid"} & set(names):
        missing.append("variable (or itemid)")
    if missing:
        hint = "their names are in small letters, " if set(_COLUMNS) & set(map(str.lower, names)) else ""
        hint = "they are separated by commas, " if len(names) == 1 else hint
        raise MissingInputError(
            f"{where} lacks the column {', '.join(missing)}; expected ({hint}in any order) stay_id, hours, "
            "variable or itemid, value, and unit if a variable may have several"
        )
    found = [table.to_series(names.index(name)).alias(name) for name in _COLUMNS if name in names]
    for column in found:
        if names.count(column.name) > 1:
            raise InputError(f"{where} has the column {column.name} more than once; keep one of them")
        if not (column.dtype.is_numeric() or column.dtype in _TEXTS):
            raise InputError(
                f"{where}: the column {column.name} is of type {column.dtype}; expected numbers or text"
            )
    return pl.DataFrame(found)


def _refuse(wrong: pl.DataFrame, message: str) -> None:
    """Raise InputError if there is a row; the message's brackets become how many there are, and the first."""
    if n := len(wrong):
        first = wrong["row"][0]
        which = f"row {first} has" if n == 1 else f"{n} rows, the first row {first}, have"
        raise InputError(message.format(which))


def _whole(name: str) -> pl.Expr:
    """Return a column of text as int64; null where it is no whole number (12.0 is one, 12.5 is not)."""
    number = pl.col(name).cast(pl.Float64, strict=False)
    is_exact = (number == number.floor()) & (number.abs() < _MOST_EXACT)
    as_float = pl.when(is_exact).then(number).cast(pl.Int64, strict=False)
    return pl.coalesce(pl.col(name).cast(pl.Int64, strict=False), as_float).alias(name)


def _events(table: pl.DataFrame, preset: Preset, where: str) -> pl.DataFrame:
    """Return the rows as events of MIMIC-IV, values in the unit of their item; `is_lab` says which table."""
    rows = _with_items(table, where)
    has_comma = pl.col("variable").is_not_null() & pl.col("value").str.contains(_WITH_COMMA)
    _refuse(
        rows.filter(has_comma), f"{where}: {{}} a comma in a number; write 36.5 and 1200, not 36,5 and 1,200"
    )
    number = pl.col("value").cast(pl.Float64, strict=False)
    scaled, is_kept = number * pl.col("factor"), (pl.col("factor") == 1) | number.is_null()
    seconds = (pl.col("hours") * 3600).round().cast(pl.Int64)
    time = (pl.lit(_ADMITTED) + pl.duration(seconds=seconds)).cast(pl.Datetime("us"))
    return rows.select(
        "stay_id",
        "itemid",
        subject_id="stay_id",
        hadm_id="stay_id",
        charttime=time,
        storetime=time,
        value=pl.when(is_kept).then("value").otherwise(scaled.cast(pl.String)),
        valuenum=scaled,
        specimen_id=pl.struct("stay_id", "hours").rank("dense").cast(pl.Int64),
        is_lab=pl.col("itemid").is_in([*item_ids(preset, "labevents"), SPECIMEN_TYPE]),
    )


def _with_items(table: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the rows with the `itemid` of each, and the `factor` from its unit to that of the item."""
    units, items = read_units(), variable_of_items()
    usual = units.unique("variable", keep="first")
    given = pl.col("variable").is_not_null()
    names = {variable.name for variable in load_variables()}
    unknown, derived = table.filter(given & ~pl.col("variable").is_in(names)), names - set(units["variable"])
    if len(unknown):
        name = unknown["variable"][0]
        _refuse(unknown, f"{where}: {{}} the variable {name!r}; expected one of {', '.join(sorted(names))}")
    for name in derived:
        _refuse(
            table.filter(pl.col("variable") == name),
            f"{where}: {{}} the variable {name}, which is computed from others; give those",
        )
    of_item = pl.col("itemid").replace_strict(items, default=None, return_dtype=pl.String)
    rows = table.with_columns(
        variable=pl.coalesce("variable", of_item), spelled=pl.col("unit").str.to_lowercase()
    )
    in_unit = units.select("variable", "factor", spelled=pl.col("unit").str.to_lowercase(), of_unit="itemid")
    rows = rows.join(in_unit, ["variable", "spelled"], "left", maintain_order="left")
    rows = rows.join(usual.select("variable", usual="itemid"), "variable", "left", maintain_order="left")
    has_unit = pl.col("variable").is_not_null() & pl.col("unit").is_not_null()
    unknown = rows.filter(has_unit & pl.col("of_unit").is_null())
    if len(unknown):
        name = unknown["variable"][0]
        choices = ", ".join(units.filter(variable=name)["unit"].drop_nulls()) or "none"
        _refuse(unknown, f"{where}: {{}} an unknown unit; expected, for {name}, one of {choices}")
    special = set(units["itemid"]) - set(usual["itemid"])  # items of a unit of their own, such as Fahrenheit
    item_unit = pl.when(pl.col("itemid").is_in(special)).then("itemid").otherwise("usual")
    _refuse(
        rows.filter(has_unit & pl.col("itemid").is_not_null() & (item_unit != pl.col("of_unit"))),
        f"{where}: {{}} a unit that is not that of the itemid; leave it empty, or give the variable instead",
    )
    return rows.with_columns(
        itemid=pl.coalesce("itemid", "of_unit", "usual"), factor=pl.col("factor").fill_null(1.0)
    )


def _hourly_values(
    events: pl.DataFrame,
    stay_id: NDArray[np.int64],
    n_hours: NDArray[np.int64],
    preset: Preset,
    before_hours: int,
) -> tuple[pl.DataFrame, int]:
    """Return the answer of `last_of_each_hour`, and how many events give a measurement."""
    ends = pl.lit(_ADMITTED) + pl.duration(hours=pl.col("n_hours"))
    stays = pl.DataFrame({"stay_id": stay_id, "n_hours": n_hours}).select(
        "stay_id",
        subject_id="stay_id",
        hadm_id="stay_id",
        intime=pl.lit(_ADMITTED).cast(pl.Datetime("us")),
        window_end=ends.cast(pl.Datetime("us")),
    )
    tables = {
        "stays": stays,
        "chartevents": events.filter(~pl.col("is_lab")).drop("is_lab"),
        "labevents": events.filter("is_lab").drop("is_lab"),
    }
    with open_store(None, _MEMORY) as store:
        for name, table in tables.items():
            store.con.register("given", table.to_arrow())
            store.raw_sql(f"CREATE TABLE {name} AS FROM given")
        schema = tuple((name, tuple(table.schema.items())) for name, table in tables.items())
        measured, last = _queries(schema, preset, before_hours)
        store.raw_sql(f"CREATE TABLE measured AS {measured}")
        values = store.con.sql(last).pl()
        ((n_used,),) = store.con.sql("SELECT count(*) FROM measured").fetchall()
    return values, n_used


@cache
def _queries(
    schema: tuple[tuple[str, tuple[tuple[str, pl.DataType], ...]], ...], preset: Preset, before_hours: int
) -> tuple[str, str]:
    """Return DuckDB's SQL of `measure`, and of `last_of_each_hour` of its answer, the table `measured`.

    They are kept, because compiling them takes ten times as long as answering them for one patient.

    Args:
        schema: The columns and types of the tables of events and of `stays`.
        preset: As in `prepare`.
        before_hours: As in `prepare`.
    """
    with open_store(1, _MEMORY) as store:
        for name, columns in schema:
            store.create_table(name, ibis.memtable(pl.DataFrame(schema=dict(columns))))
        source = _Records.open("patients", store)
        first = measure(source, source.stays, preset, before_hours)
        measured = store.create_table("measured", schema=first.schema())
        return store.compile(first), store.compile(last_of_each_hour(measured, preset))


def _read_images(
    cxr: Path | None, stay_id: NDArray[np.int64], size: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the radiographs and the row of each stay's."""
    rows = np.full(len(stay_id), -1)
    files = {} if cxr is None else _image_files(cxr, stay_id, where)
    images = np.empty((len(files), size, size), np.uint8)
    for number, (stay, path) in enumerate(sorted(files.items())):
        try:
            images[number] = decode(path, size)
        except Exception as error:  # Pillow raises many kinds
            reason = " ".join(str(error).split())
            raise InputError(f"{path} cannot be read as an image: {reason}; expected JPEG or PNG") from error
        rows[np.searchsorted(stay_id, stay)] = number
    return images, rows


def _image_files(cxr: Path, stay_id: NDArray[np.int64], where: str) -> dict[int, Path]:
    """Return the image of each stay that has one."""
    if cxr.is_file():
        if len(stay_id) > 1:
            raise InputError(
                f"{cxr} is one image, but {where} has {len(stay_id)} stays; put the images into a folder, "
                "each named by its stay, as in 31234567.jpg"
            )
        return {int(stay_id[0]): cxr}
    if not cxr.is_dir():
        raise MissingInputError(f"there is no file or folder {cxr}; expected radiographs")
    files: dict[int, Path] = {}
    known = set(stay_id.tolist())
    shown = [path for path in cxr.iterdir() if not path.name.startswith(".")]  # macOS adds ._31234567.jpg
    for path in sorted(path for path in shown if path.suffix.lower() in _IMAGES):
        stay = int(path.stem) if path.stem.isascii() and path.stem.isdigit() else None
        if stay is None or stay not in known:
            raise InputError(
                f"{path} is not named by a stay of {where}; name each image by its stay, as in 31234567.jpg"
            )
        if stay in files:
            raise InputError(f"{files[stay]} and {path} are of one stay; keep one of them")
        files[stay] = path
    if not files:
        raise MissingInputError(f"{cxr} holds no .jpg, .jpeg or .png; leave it out to go on without them")
    return files
