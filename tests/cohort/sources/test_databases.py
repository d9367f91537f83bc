"""The same expressions on every engine: each must give what the local DuckDB gives on files, bit by bit."""

import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import duckdb
import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
import pytest
import sqlglot

from drfuse.cohort import prepare
from drfuse.cohort.phenotypes import match_diagnoses, read_phenotypes
from drfuse.cohort.sources import Source, open_source, source_kinds
from drfuse.cohort.sources.bigquery import TIME_TYPE, BigQuery
from drfuse.cohort.sources.mimic_iv import find_mimic_iv
from drfuse.cohort.stays import describe_stays, select_stays
from drfuse.cohort.store import Store
from drfuse.cohort.timeseries import last_of_each_hour, measure
from drfuse.cohort.variables import Preset
from drfuse.errors import InputError, MissingInputError
from tests.builders import left_in
from tests.cohort.sources.engines import (
    PASSWORD,
    PASSWORD_IN_URL,
    Server,
    load_duckdb,
    load_postgres,
    postgres_binaries,
    postgres_server,
)
from tests.mimic import (
    CAPILLARY_REFILL,
    CELSIUS,
    FAHRENHEIT,
    FIO2,
    GCS_EYE,
    GCS_MOTOR,
    GCS_VERBAL,
    GLUCOSE_LAB,
    HEART_RATE,
    HEIGHT_INCHES,
    INTIME,
    O2_SATURATION,
    PH_LAB,
    SCHEMAS,
    SECOND,
    SODIUM_LAB,
    UNUSED_CHART_ITEM,
    WEIGHT_POUNDS,
    Hospital,
    write_tables,
)

Frames = dict[str, pl.DataFrame]
ODD_TEXTS = [
    *("nan", "NaN", "inf", "-Infinity", "1e5", "1E+02", "1e999", "1e-999", "-1e99", "1e100", "9" * 150),
    *("", " ", " 12 ", "\t12", "12\n", "12\r\n", "12\x0b", "12\x0c", "12\x85", "\u00a012", "12.", ".5", "+7"),
    *(
        "-3",
        "--3",
        "1_000",
        "1,000",
        "1.2.3",
        "0x10",
        "12d",
        "12f",
        "1e",
        "e5",
        "ERROR",
        "<10",
        "7.30000000000",
    ),
    *(
        "0.1",
        "0.30000000000000004",
        "2.2250738585072014e-08",
        "98.60000000000001",
        "1e22",
        "1e23",
        "7;",
        "7;x",
    ),
]
ODD_NUMBERS = [
    *(float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, 1.0000000000000002, 79.0, 78.99999999999999),
    *(0.1, 1 / 3, 98.6, 390.0, 390.00000000000006, 6.3, 6.299999999999999, 1e300, 1e-300, 5e-324),
]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Return the tables of a hospital in which everything is as odd as it can be."""
    hospital = Hospital()
    first = hospital.add_stay(hours=30.5, race="BLACK/AFRICAN AMERICAN")
    second = hospital.add_stay(hours=20, same_subject=first, intime=INTIME + timedelta(days=30, minutes=1))
    hospital.add_stay(units=("MICU", "SICU"))
    hospital.add_stay(age=17)
    hospital.add_stay(same_admission=hospital.add_stay(), intime=INTIME + timedelta(days=9))
    hospital.add_stay(hours=None)
    hospital.add_stay(hours=0, died=True)
    stay = hospital.add_stay(hours=200, age=18, died=True)
    hospital.rows["admissions"][0]["hospital_expire_flag"] = None
    hospital.rows["patients"][1]["gender"] = None
    items = (HEART_RATE, FIO2, O2_SATURATION, CELSIUS, FAHRENHEIT, WEIGHT_POUNDS, HEIGHT_INCHES, GCS_EYE)
    for hour, text in enumerate(ODD_TEXTS):
        for item in items:
            hospital.chart(stay, item, text, at=hour + 0.5)
            hospital.chart(stay, item, text, at=hour + 0.75, valuenum=ODD_NUMBERS[hour % len(ODD_NUMBERS)])
        hospital.lab(stay, PH_LAB, text, at=hour + 0.5, hadm_id=None)
        hospital.lab(stay, GLUCOSE_LAB, text, at=hour + 0.25)
    for hour, number in enumerate(ODD_NUMBERS):
        for item in (*items, UNUSED_CHART_ITEM):
            hospital.chart(first, item, str(number), at=hour + SECOND, valuenum=number)
    scores = (
        "Spontaneously",
        " to speech\t",
        "None",
        "No Response-ETT",
        "no response",
        "ORIENTED",
        "Obeys Commands",
    )
    for number, text in enumerate(scores):
        for item in (GCS_EYE, GCS_MOTOR, GCS_VERBAL, CAPILLARY_REFILL):
            hospital.chart(second, item, text, at=number + 0.1, stored=number + 0.5)
            hospital.chart(second, item, 1 + number % 3 + 0.1, at=number + 0.1, stored=number + 0.2)
    hospital.chart(second, CAPILLARY_REFILL, "Abnormal >3 Seconds", at=2)
    for value in (60, 61.5, 59):  # ties
        hospital.chart(second, HEART_RATE, value, at=4, stored=4.5)
        hospital.chart(second, HEART_RATE, value, at=5, storetime=None)
    hospital.chart(second, HEART_RATE, 70, charttime=None)
    hospital.chart(second, HEART_RATE, 71, stay_id=None)
    hospital.chart(second, HEART_RATE, 72, at=0)
    hospital.chart(second, HEIGHT_INCHES, 70, at=-2)
    hospital.lab(second, PH_LAB, 7.4, at=0, hadm_id=None)
    hospital.chart(second, HEART_RATE, 73, at=20)
    hospital.chart(second, HEART_RATE, 74, at=20 + SECOND)
    hospital.lab(second, GLUCOSE_LAB, 90, at=3, hadm_id=None)
    hospital.lab(second, GLUCOSE_LAB, 91, at=4, hadm_id=first.hadm_id)
    hospital.lab(second, SODIUM_LAB, 140, at=4)
    for code in ("4019", " 4019 ", "i10", "I10", "I50.9", "R57", "E849", "0031"):
        for version in (9, 10):
            hospital.diagnose(stay, code, version)
            hospital.diagnose(first, code, version)
    return hospital.frames()


@pytest.fixture(scope="module")
def files(frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(frames, tmp_path_factory.mktemp("files"), ".parquet")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("needs the programs of a PostgreSQL server (initdb, pg_ctl)")
    with postgres_server(binaries) as started:
        yield started


@pytest.fixture(scope="module")
def postgres_url(server: Server, frames: Frames) -> str:
    return load_postgres(server, "mimiciv", frames)


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """Stop the session that the tests of this module share, and with it the Java process."""
    pyspark = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    yield
    if session := pyspark.SparkSession.getActiveSession():
        session.stop()


def queries_on(source: Source) -> dict[str, ir.Table]:
    """Return what is asked of an engine, for both presets."""
    everyone = describe_stays(source, 48)
    candidates = select_stays(everyone)[-1].stays
    diagnoses = source.diagnoses.semi_join(candidates, "hadm_id")
    queries = {"stays": everyone, "diagnoses": match_diagnoses(diagnoses, read_phenotypes())}
    for preset in get_args(Preset):
        queries[preset] = last_of_each_hour(measure(source, candidates, preset, before_hours=6), preset)
    return queries


def results(source: Source) -> dict[str, pa.Table]:
    """Return what each query gives, in an order of its own."""
    return {name: in_order(source.batches(query, rows=100)) for name, query in queries_on(source).items()}


def in_order(batches: Iterator[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(list(batches))
    return table.sort_by([(name, "ascending") for name in table.column_names])


def check_same(source: Source, files: Path) -> None:
    expected, found = results(open_source(files, Store().connect())), results(source)
    for name, table in expected.items():
        assert table.num_rows > 5, name
        assert found[name].schema == table.schema, name
        assert found[name].equals(table), (name, differences(found[name], table))


def differences(found: pa.Table, expected: pa.Table) -> list[str]:
    """Return the rows that only one of two tables has."""
    rows = [{str(row) for row in table.to_pylist()} for table in (found, expected)]
    return sorted(rows[0] ^ rows[1])[:20]


@pytest.mark.slow
def test_a_duckdb_file_gives_the_same(frames: Frames, files: Path, tmp_path: Path) -> None:
    url = load_duckdb(tmp_path / "mimic.duckdb", frames)
    source = open_source(url, Store().connect())
    check_same(source, files)
    assert source.address == url
    assert source.files == ()


@pytest.mark.slow
def test_postgresql_gives_the_same(postgres_url: str, files: Path, server: Server) -> None:
    source = open_source(postgres_url, Store().connect())
    check_same(source, files)
    assert source.address == f"postgresql://127.0.0.1:{server.port}/mimiciv"
    assert PASSWORD not in repr(source)
    assert PASSWORD_IN_URL not in repr(source)
    assert source.release == "2.0 or later"


@pytest.mark.slow
@pytest.mark.parametrize("preset", get_args(Preset))
def test_postgresql_reads_each_event_once(preset: Preset, postgres_url: str) -> None:
    source = open_source(postgres_url, Store().connect())
    candidates = select_stays(describe_stays(source, 48))[-1].stays
    query = last_of_each_hour(measure(source, candidates, preset), preset)
    with source.engine.raw_sql(f"EXPLAIN {source.engine.compile(query)}") as cursor:
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert plan.count("on chartevents") == 1, plan
    assert plan.count("on labevents") == 1, plan


@pytest.mark.extras
def test_spark_gives_the_same(files: Path, spark: None) -> None:
    source = open_source(f"spark://local[2]{files}", Store().connect())
    check_same(source, files)


@pytest.mark.parametrize(
    "engine",
    [
        "duckdb",
        pytest.param("postgresql", marks=pytest.mark.slow),
        pytest.param("spark", marks=pytest.mark.extras),
    ],
)
@pytest.mark.parametrize("preset", get_args(Preset))
def test_every_engine_makes_the_same_cohort(
    engine: str, preset: Preset, frames: Frames, files: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    addresses: dict[str, Callable[[], str]] = {
        "duckdb": lambda: load_duckdb(tmp_path / "mimic.duckdb", frames),
        "postgresql": lambda: request.getfixturevalue("postgres_url"),
        "spark": lambda: f"spark://local[2]{files}",
    }
    if engine == "spark":
        request.getfixturevalue("spark")
    expected = prepare(files, tmp_path / "files", preset=preset)
    url = addresses[engine]()
    found = prepare(url, tmp_path / "database", preset=preset)
    assert found.flow == expected.flow
    assert found.flow[-1].stays >= 3
    assert found.files == expected.files  # byte for byte
    assert found.sources["mimic_iv"]["files"] == {}
    for path in (tmp_path / "database").iterdir():
        assert PASSWORD.encode() not in path.read_bytes()
        assert PASSWORD_IN_URL.encode() not in path.read_bytes()
    again = prepare(url, tmp_path / "database", preset=preset, overwrite=True)  # read anew: it may have grown
    assert again == found


@pytest.mark.slow
def test_what_a_database_refuses_is_said_in_its_words(server: Server, frames: Frames, tmp_path: Path) -> None:
    import psycopg

    url = load_postgres(server, "refusing", frames)
    with psycopg.connect(server.url("refusing", "owner")) as client:
        client.execute("REVOKE SELECT ON mimiciv_icu.chartevents FROM reader")
    with pytest.raises(InputError) as refused:
        prepare(url, tmp_path / "cohort")
    assert str(refused.value) == (
        "the database cannot answer: permission denied for table chartevents; check its tables and your "
        "rights there"
    )
    assert left_in(tmp_path) == set()


@pytest.mark.slow
def test_a_cohort_of_a_database_is_never_taken_for_that_of_another(
    frames: Frames, files: Path, tmp_path: Path
) -> None:
    url = load_duckdb(tmp_path / "mimic.duckdb", frames)
    prepare(files, tmp_path / "cohort")
    with pytest.raises(InputError, match="--overwrite"):
        prepare(url, tmp_path / "cohort")
    prepare(url, tmp_path / "cohort", overwrite=True)
    with pytest.raises(InputError, match="--overwrite"):
        prepare(url, tmp_path / "cohort")


@pytest.mark.slow
def test_bigquery_gets_queries_in_its_dialect() -> None:
    schemas = {table: unbound_schema(table) for table in SCHEMAS if table != "metadata"}

    def open_table(table: str, place: str) -> ir.Table:
        return ibis.table(schemas[table], name=table, catalog="physionet-data", database=place)

    address, store = "bigquery://physionet-data/mimiciv_3_1", Store().connect()
    tables = find_mimic_iv(address, open_table, ("mimiciv_3_1_{module}",), time_type=TIME_TYPE)
    source = BigQuery(address=address, engine=None, store=store, **tables)
    assert source.release == "3.1"
    expected = {
        "stays": {"icustays", "admissions", "patients"},
        "diagnoses": {"diagnoses_icd", "icustays", "admissions", "patients"},
        "extended": {"chartevents", "labevents", "icustays", "admissions", "patients"},
        "benchmark": {"chartevents", "labevents", "icustays", "admissions", "patients"},
    }
    for name, query in queries_on(source).items():
        tree = sqlglot.parse_one(str(ibis.to_sql(query, dialect="bigquery")), read="bigquery")
        read = [table for table in tree.find_all(sqlglot.exp.Table) if table.catalog]
        assert {table.name for table in read} == expected[name]
        assert {table.catalog for table in read} == {"physionet-data"}
        assert {table.db for table in read} <= {"mimiciv_3_1_hosp", "mimiciv_3_1_icu"}
        events = [table.name for table in read if table.name.endswith("events")]
        assert len(events) == len(set(events))  # each is read once
        unknown = {call.name.upper() for call in tree.find_all(sqlglot.exp.Anonymous)}
        assert unknown <= {"IEEE_DIVIDE", "TIMESTAMP_ADD"}, (
            unknown
        )  # BigQuery's own, though strange to sqlglot
        kinds = {kind.sql("bigquery") for kind in tree.find_all(sqlglot.exp.DataType)}
        assert kinds <= {"INT64", "FLOAT64", "STRING", "TIMESTAMP"}, kinds


def unbound_schema(table: str) -> dict[str, str]:
    """Return the columns of a table with the types that they have on BigQuery."""
    kinds = {pl.Int64: "int64", pl.Float64: "float64", pl.String: "string", pl.Datetime("us"): "timestamp(6)"}
    return {column: kinds[kind] for column, kind in SCHEMAS[table].items()}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "mysql://localhost/mimic",
            "cannot open addresses that begin with mysql://; expected .*duckdb:///.* or spark://",
        ),
        ("duckdb:///nowhere/mimic.duckdb", "no DuckDB file /nowhere/mimic.duckdb"),
        ("bigquery://physionet-data", "not of the form bigquery://project/dataset"),
        ("spark://local[2]", "not of the form spark://host:port/folder"),
        ("postgresql://jane:se@cret@localhost/mimic", "not of the form postgresql://user:password@host"),
        ("postgresql://jane:se/cret@localhost/mimic", "not of the form postgresql://user:password@host"),
        ("postgresql://jane:secret@localhost", "not of the form postgresql://user:password@host"),
        (
            "postgresql://jane:secret@127.0.0.1:1/mimic",
            r"cannot connect .*postgresql://127\.0\.0\.1:1/mimic: ",
        ),
        (
            "postgresql://127.0.0.1:1/mimic?user=jane&password=secret",
            r"cannot connect .*127\.0\.0\.1:1/mimic: ",
        ),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_without_its_password(url: str, message: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(InputError, match=message) as caught:
        open_source(url, Store().connect())
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None or "cret" not in str(caught.value.__cause__)


def test_an_unknown_address_is_answered_with_every_form_that_would_do() -> None:
    schemes = [scheme for kind in source_kinds() for scheme in kind.schemes]
    assert sorted(schemes) == ["bigquery", "duckdb", "postgres", "postgresql", "spark"]
    with pytest.raises(InputError) as caught:
        open_source("mysql://localhost/mimic", Store().connect())
    for kind in source_kinds():
        assert kind.form.startswith(f"{kind.schemes[0]}://")
        assert kind.form in str(caught.value)


@pytest.mark.parametrize(("scheme", "module"), [("postgresql", "psycopg"), ("spark", "pyspark.sql")])
def test_a_driver_that_is_not_installed_is_named(
    scheme: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "py4j.protocol", None)
    with pytest.raises(MissingInputError, match=rf"pip install '\.\[{scheme}\]'"):
        open_source(f"{scheme}://localhost:7077/mimic", Store().connect())


def test_a_file_that_is_no_duckdb_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mimic.duckdb").write_text("subject_id,gender\n" * 1000)
    with pytest.raises(InputError, match=r"cannot open .*mimic\.duckdb as a DuckDB database"):
        open_source(f"duckdb://{tmp_path}/mimic.duckdb", Store().connect())


@pytest.mark.slow
def test_a_wrong_password_is_one_sentence(server: Server) -> None:
    with pytest.raises(InputError, match=r"cannot connect .*password authentication failed") as caught:
        open_source(server.url("postgres", "owner", "guess-4711"), Store().connect())
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_missing_table_or_column_is_named(
    engine: str, frames: Frames, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def load(name: str, tables: Frames) -> str:
        if engine == "duckdb":
            return load_duckdb(tmp_path / name, tables)
        return load_postgres(request.getfixturevalue("server"), name, tables)

    few = {path: frame.clear() for path, frame in frames.items()}
    labs = few.pop("hosp/labevents")
    with pytest.raises(MissingInputError, match=r"/no-table lacks the table labevents; expected it in hosp"):
        open_source(load("no-table", few), Store().connect())
    with pytest.raises(MissingInputError, match="/no-column lacks the column valuenum of"):
        open_source(load("no-column", few | {"hosp/labevents": labs.drop("valuenum")}), Store().connect())


def test_a_release_before_2_0_keeps_its_layout_in_a_database(frames: Frames, tmp_path: Path) -> None:
    old = {path.replace("hosp/patients", "core/patients"): frame for path, frame in frames.items()}
    old["core/admissions"] = old.pop("hosp/admissions").rename({"race": "ethnicity"})
    source = open_source(load_duckdb(tmp_path / "mimic.duckdb", old), Store().connect())
    assert source.release == "1.x"
    assert "race" in source.admissions.columns


@pytest.mark.slow
def test_a_table_that_may_not_be_read_is_one_sentence(server: Server, frames: Frames) -> None:
    import psycopg

    url = load_postgres(server, "closed", frames)
    with psycopg.connect(server.url("closed", "owner")) as client:
        client.execute("REVOKE SELECT ON mimiciv_icu.icustays FROM reader")
    source = open_source(url, Store().connect())
    with pytest.raises(InputError, match="cannot answer: permission denied for table icustays; check"):
        next(source.batches(describe_stays(source, 48), rows=10))


@pytest.mark.slow
def test_databases_are_opened_to_be_read_only(postgres_url: str, frames: Frames, tmp_path: Path) -> None:
    import psycopg

    source = open_source(postgres_url, Store().connect())
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        source.engine.raw_sql("CREATE TEMPORARY TABLE ours (x INTEGER)")
    local = Store().connect()
    open_source(load_duckdb(tmp_path / "mimic.duckdb", frames), local)
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        local.raw_sql("CREATE TABLE mimic_iv.mimiciv_hosp.ours (x INTEGER)")
