"""CSV files read in blocks give what DuckDB reads at once; a quote that is not closed is found."""

import gzip
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from drfuse.cohort.sources import csv_files
from drfuse.cohort.sources.csv_files import CsvFiles, read_blocks
from drfuse.cohort.sources.csv_records import select_records, whole_records
from drfuse.cohort.sources.mimic_iv import Schema
from drfuse.cohort.sources.source import SourceFile
from drfuse.cohort.store import Store
from drfuse.errors import InputError

COLUMNS = ("stay_id", "charttime", "itemid", "comment", "value", "valuenum")
SCHEMA: Schema = {
    "stay_id": "int64",
    "charttime": "timestamp(6)",
    "itemid": "int64",
    "value": "string",
    "valuenum": "float64",
}
WANTED = (7, 12, 300)
ROW = "1,2180-07-23 12:36:00,7,plain,60,60"

USUAL = (
    ("1", "39553978", ""),
    ("2180-07-23 12:36:00", "2000-02-28 23:59:59", ""),
    ("7", "12", "8", "300", ""),
    ("", "plain", '"two, three"', '"said ""so"""'),
    ("60", "CMV/ASSIST", '"1, 2"', '""', ""),
    ("60", "39.4", "-0.5", ""),
)
UNUSUAL = (
    ("one", " 4", "+3", "99999999999999999999", "NaN", '"5"', "1e3", "-2"),
    (
        "2180-02-29 10:00:00",
        "2181-02-29 10:00:00",
        "2180-07-23",
        "2180-07-31 08:00:00",
        "24:00",
        "2180-13-01 00:00:00",
    ),
    ("seven", "7.0", " 12", "-7", "0000000000000000000007", "12 ", '"7"', "nan"),
    ('5"', '5" long', '"closed" late', ' "spaced" ', '"two\nlines"', '"a\r\nb\n\nc"', "grün", '"x"y'),
    ('6"', '"two\nlines, quoted"', "ä", '"', "NAN", ' "x"'),
    ("inf", "nan", "1e5", ".5", "5.", "-", "1234567890.123456789", "1,2", " 7", '"8"'),
)
INTEGERS = {
    True: ("12", "12.0", "12.", '"12"', " 7 ", "+7", "-7", "3e7", "3.25e+02", "", "NaN"),
    False: ("12.5", '"12.5"', " 12.50", "-0.5", ".5", "3.25e1", "125e-1", "0x10", "1_000"),
}
TIMES = {
    True: ("2150-01-31 00:00:00", "1900-01-01 00:00:00", '"2300-12-31 23:59:59"', "2150-01-31", "", "NaN"),
    False: (
        "290000-01-01 00:00:00",
        '"1899-12-31 00:00:00"',
        "2301-01-01",
        "0001-01-01",
        "infinity",
        "epoch",
    ),
}
"""Cells whose row is kept, or not: DuckDB would round 12.5 to 13, and take these times."""


def write(path: Path, records: Sequence[str], end: str = "\n") -> SourceFile:
    text = ",".join(COLUMNS) + end + "".join(record + end for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return SourceFile("chartevents", "events", path, COLUMNS)


def as_bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def read_by_blocks(file: SourceFile, threads: int = 2) -> tuple[Counter[Any], int]:
    """Return the wanted rows, and how many rows do not parse."""
    store = Store().connect()
    store.raw_sql(f"SET threads = {threads}")
    csv = CsvFiles(store)
    rows = csv.select(csv.table([file], SCHEMA), "itemid", WANTED, lambda rows: rows)
    found = Counter(store.raw_sql(f"FROM {rows.get_name()}").fetchall())
    return found, store.rejected_rows.get(file.path.name, 0)


def read_at_once(path: Path) -> tuple[Counter[Any], int]:
    """Return the same as DuckDB reads the unpacked file."""
    types = {"int64": "BIGINT", "float64": "DOUBLE", "timestamp(6)": "TIMESTAMP", "string": "VARCHAR"}
    columns = {name: types[SCHEMA.get(name, "string")] for name in COLUMNS}
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""SELECT {", ".join(SCHEMA)} FROM read_csv($1, columns = {columns}, auto_detect = false,
            header = true, delim = ',', quote = '"', escape = '"', nullstr = ['', 'NaN', 'nan', 'NAN'],
            ignore_errors = true, store_rejects = true) WHERE itemid IN {WANTED}""",
            [str(path)],
        ).fetchall()
        ((n_rejected,),) = connection.sql("SELECT count(DISTINCT line) FROM reject_errors").fetchall()
    return Counter(rows), n_rejected


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and batches so small that every record meets their ends."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 512)
    monkeypatch.setattr(csv_files, "BATCH_BYTES", 900)


@pytest.mark.slow
def test_a_selection_leaves_the_table_whole(tmp_path: Path) -> None:
    store = Store().connect()
    csv = CsvFiles(store)
    table = csv.table([write(tmp_path / "chartevents.csv", [ROW, ROW.replace(",7,", ",8,"), ROW])], SCHEMA)
    for wanted, n in (([7], 2), ([8], 1), ([7], 2)):
        assert len(store.to_pyarrow(csv.select(table, "itemid", wanted, lambda rows: rows))) == n
    assert len(store.to_pyarrow(table)) == 3
    assert len(store.to_pyarrow(csv.select(table, "itemid", [8], lambda rows: rows))) == 1


def any_record(chance: random.Random) -> str:
    """Return a record of usual cells, and often one that is not usual, or a cell too many or too few."""
    cells = [chance.choice(cells) for cells in USUAL]
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        column = chance.randrange(len(cells))
        cells[column] = chance.choice(UNUSUAL[column])
    match chance.randrange(12):
        case 0:
            return ",".join(cells[:-1])
        case 1:
            return ",".join([*cells, "more"])
        case 2:
            return ""
    return ",".join(cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "is_kept"),
    [
        *((f"{cell},,", kept) for kept in (True, False) for cell in INTEGERS[kept]),
        *((f"1,{cell},", kept) for kept in (True, False) for cell in TIMES[kept]),
    ],
)
def test_cells_that_a_parser_would_misread_lose_their_row(cells: str, is_kept: bool) -> None:
    selection = select_records(as_bytes(f"{cells}\n"), ["integer", "time", "text"])
    assert (bytes(selection.records) == f"{cells}\n".encode()) == is_kept


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seed", range(12))
def test_rows_and_rejected_rows_are_those_of_one_reading(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drfuse.cohort.sources.source.TOLERATED_ROWS", 1_000_000)
    chance = random.Random(seed)
    text = tmp_path / "chartevents.csv"
    records: list[str] = []
    while (
        len(records) < 150
    ):  # without those that are refused: a quote that is never closed, or closed too late
        record = any_record(chance)
        if select_records(as_bytes(f"{record}\n"), ["text"] * len(COLUMNS)).fault == "none":
            records.append(record)
    write(text, records)
    packed = write(tmp_path / "chartevents.csv.gz", records)
    expected = read_at_once(text)
    assert expected[1] > 0
    assert sum(expected[0].values()) > 10
    assert read_by_blocks(packed) == expected
    assert read_by_blocks(SourceFile("chartevents", "events", text, COLUMNS), threads=1) == expected


def with_comment(comment: str) -> str:
    return ROW.replace("plain", comment)


def comments(path: Path, records: Sequence[str]) -> list[str | None]:
    store = Store().connect()
    csv = CsvFiles(store)
    schema = {"stay_id": "int64", "comment": "string"}
    rows = csv.table([write(path, records)], schema)
    return [row["comment"] for row in store.to_pyarrow(rows).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("size", [40, 64, 101, 4096])
def test_cells_of_several_lines_are_read_wherever_blocks_end(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", size)
    cells = ["one\ntwo", "a, b\r\nc", 'he said ""so""\nand left', "\n\n", "last\n"]
    records = [with_comment(f'"{cell}"') for cell in cells for _ in range(7)]
    expected = [cell.replace('""', '"') for cell in cells for _ in range(7)]
    assert sorted(map(str, comments(tmp_path / "chartevents.csv.gz", records))) == sorted(expected)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("after", [0, 1, 2, 500])
@pytest.mark.parametrize("before", [0, 3, 400])
@pytest.mark.parametrize("later", ["plain", '"quoted"', '""', '"two\nlines"'])
@pytest.mark.usefixtures("small_blocks")
def test_a_quote_that_is_not_closed_is_refused_with_its_line(
    before: int, after: int, later: str, end: str, tmp_path: Path
) -> None:
    records = [ROW] * before + [with_comment('"not closed')] + [with_comment(later)] * after
    file = write(tmp_path / "chartevents.csv.gz", records, end)
    with pytest.raises(InputError) as caught:
        read_by_blocks(file)
    assert str(caught.value).startswith(f"the quote that opens in line {before + 2} of {file.path} is ")
    assert str(caught.value).endswith("; correct that line, or fetch the file again")


def test_a_quote_in_the_middle_of_a_cell_is_text(tmp_path: Path) -> None:
    records = [with_comment("5' 10\""), ROW, with_comment('6"')]
    assert comments(tmp_path / "chartevents.csv", records) == ["5' 10\"", "plain", '6"']


@pytest.mark.parametrize("tail", [b"", bytes(1), bytes(2_000_000)])
def test_members_of_a_gzip_file_and_zero_bytes_behind_it_are_read(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chartevents.csv.gz"
    file = write(path, [ROW] * 5)
    packed = path.read_bytes()
    path.write_bytes(packed + gzip.compress(f"{ROW}\n{ROW}".encode()) + tail)
    assert sum(read_by_blocks(file)[0].values()) == 7


def test_lines_that_end_in_two_ways_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chartevents.csv"
    file = write(path, [f"{ROW}\r", ROW, f"{ROW}\r"])
    assert sum(read_by_blocks(file)[0].values()) == 3


def test_a_file_of_only_a_header_is_an_empty_table(tmp_path: Path) -> None:
    assert comments(tmp_path / "chartevents.csv", []) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "end"),
    [
        ("1,2\n3,4\n5", 8),
        ('1,"2\n3",4\n5,"', 10),
        ('1,"2\n3,4\n5', 0),
        ('1,"2"', 0),
        ('1,"2"\n', 6),
        ('1,"2""\n3"\n', 10),
        ('1,2"\n3\n', 7),
    ],
)
def test_records_end_outside_of_quotes(block: str, end: int) -> None:
    assert whole_records(as_bytes(block)) == end


def test_blocks_know_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 40)
    file = write(tmp_path / "chartevents.csv", [ROW, with_comment('"two\nlines"'), ROW, ROW])
    blocks = list(read_blocks(file.path))
    assert len(blocks) > 2
    lines = file.path.read_bytes().split(b"\n")
    for block in blocks:
        first = block.records.tobytes().split(b"\n")[0]
        assert lines[block.line - 1] == first


@pytest.mark.parametrize("closes", ["5 ft 6", "", "6 ft"])
def test_a_quote_that_the_next_row_closes_is_refused(closes: str, tmp_path: Path) -> None:
    records = [ROW, with_comment('"5 ft'), with_comment(f'{closes}"'), ROW]
    with pytest.raises(InputError, match="the quote that opens in line 3 of "):
        read_by_blocks(write(tmp_path / "chartevents.csv", records))


@pytest.mark.parametrize(
    "cell", ["history:\n1, 2, 3, 4, 5, 6\nend", "a,b,c,d,e,f\ng,h,i,j,k,l\n", "see\n7,5"]
)
def test_prose_of_several_lines_is_not_taken_for_rows(cell: str, tmp_path: Path) -> None:
    assert comments(tmp_path / "chartevents.csv", [ROW, with_comment(f'"{cell}"')]) == ["plain", cell]


def test_a_row_as_long_as_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(csv_files, "LONGEST_RECORD", 32768)
    file = write(tmp_path / "chartevents.csv.gz", [ROW, with_comment("x" * 50_000), *[ROW] * 5])
    with pytest.raises(InputError, match=r"the row that begins in line 3 of .* has more than 32768 bytes"):
        read_by_blocks(file)


def test_a_row_too_long_for_the_parser_is_counted_even_if_it_is_not_wanted(tmp_path: Path) -> None:
    records = [ROW, with_comment("x" * 3_000_000).replace(",7,", ",8,"), ROW]
    path = tmp_path / "chartevents.csv"
    file = write(path, records)
    assert read_by_blocks(file) == read_at_once(path)
    assert read_by_blocks(file)[1] == 1


def test_any_column_name_that_a_csv_can_have_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chartevents.csv"
    header = '"it\'s ""x"", {0} $1",itemid'
    path.write_text(f"{header}\na,7\n")
    file = SourceFile("chartevents", "events", path, ('it\'s "x", {0} $1', "itemid"))
    store = Store().connect()
    assert store.to_pyarrow(CsvFiles(store).table([file], {"itemid": "int64"})).to_pylist() == [{"itemid": 7}]


@pytest.mark.slow
def test_a_damaged_cache_of_compiled_code_is_done_without(tmp_path: Path) -> None:
    file = write(tmp_path / "chartevents.csv", [ROW])
    code = (
        "from pathlib import Path; from drfuse.cohort.sources.csv_files import read_blocks; "
        f"print(len(list(read_blocks(Path({str(file.path)!r})))))"
    )
    cache = tmp_path / "cache"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert done.stdout == b"1\n"
        indices = list(cache.rglob("*.nbi"))
        assert indices
        for index in indices:
            index.write_bytes(b"")
