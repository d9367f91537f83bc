import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.errors import InputError, MissingInputError
from drfuse.run import Predictions
from drfuse.simulate.disease import Disease
from drfuse.simulate.truth import TRUTH, Truth, ceilings, describe_truth, oracle
from tests.simulate.samples import Admitted, Simulated, admit_stays

ARRAYS = ("labels", "log_odds", "probability", "given_both", "given_ehr", "given_cxr", "cxr_advantage")


@pytest.fixture(scope="module")
def admitted(disease: Disease) -> Admitted:
    return admit_stays(disease, 300, seed=4)


@pytest.fixture(scope="module")
def table(admitted: Admitted) -> pl.DataFrame:
    """Return the rows of a truth in which every third stay has a radiograph."""
    has_cxr = np.arange(len(admitted.census)) % 3 == 0
    return describe_truth(admitted.hospital.icustays, admitted.patients, admitted.census.eligible, has_cxr)


@pytest.fixture(scope="module")
def truth(admitted: Admitted, table: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("truth")
    phenotypes = json.dumps(admitted.patients.disease.phenotypes)
    table.write_parquet(folder / TRUTH, metadata={"phenotypes": phenotypes})
    return Truth.read(folder)


@pytest.fixture(scope="module")
def run(truth: Truth) -> Predictions:
    """Return predictions of some stays in an order of their own, without some of their radiographs."""
    rows = np.random.default_rng(0).permutation(truth.stays.height)[:120]
    has_cxr = truth.stays["has_cxr"].to_numpy()[rows]
    has_cxr[:40] = False
    stays = (
        truth.stays[rows]
        .select("subject_id", "stay_id")
        .with_columns(pl.lit("test").alias("split"), pl.Series("has_cxr", has_cxr))
    )
    shape = (len(rows), 25)
    return Predictions(
        truth.phenotypes, stays, np.zeros(shape, np.float32), truth.labels[rows].astype(np.uint8), None
    )


def test_what_is_written_is_read(admitted: Admitted, truth: Truth) -> None:
    patients = admitted.patients
    assert truth.phenotypes == list(patients.disease.phenotypes)
    assert truth.stays["stay_id"].equals(admitted.hospital.icustays["stay_id"])
    assert np.array_equal(truth.labels, patients.labels)
    assert truth.labels.dtype == bool
    for name, expected in (
        ("log_odds", patients.log_odds),
        ("probability", expit(patients.log_odds)),
        ("given_both", patients.given("ehr", "cxr")),
        ("given_ehr", patients.given("ehr")),
        ("given_cxr", patients.given("cxr")),
    ):
        assert getattr(truth, name) == pytest.approx(expected, rel=1e-5), name
        assert getattr(truth, name).dtype == np.float32, name
    assert truth.stays["eligible"].to_numpy().tolist() == admitted.census.eligible.tolist()


def test_the_advantage_is_that_of_its_definition(truth: Truth) -> None:
    p, cxr, ehr = (
        getattr(truth, name).astype(np.float64) for name in ("probability", "given_cxr", "given_ehr")
    )
    expected = p * np.log(cxr / ehr) + (1 - p) * np.log((1 - cxr) / (1 - ehr))
    assert truth.cxr_advantage == pytest.approx(expected, abs=1e-4)


def test_factors_and_what_each_modality_shows_of_them_are_told(admitted: Admitted, truth: Truth) -> None:
    patients = admitted.patients
    columns = {"subject_id", "hadm_id", "stay_id", "eligible", "has_cxr"}
    columns |= {"ehr_reliability", "cxr_reliability"}
    for k, name in enumerate(patients.disease.factors):
        columns.add(name)
        assert truth.stays[name].to_numpy() == pytest.approx(patients.factors[:, k], abs=1e-6)
        for modality, readings in (("ehr", patients.ehr), ("cxr", patients.cxr)):
            if readings.seen[k]:
                columns.add(f"{modality}_{name}")
                found = truth.stays[f"{modality}_{name}"].to_numpy()
                assert found == pytest.approx(readings.values[:, k], abs=1e-6)
    assert set(truth.stays.columns) == columns
    for modality, readings in (("ehr", patients.ehr), ("cxr", patients.cxr)):
        found = truth.stays[f"{modality}_reliability"].to_numpy()
        assert found == pytest.approx(readings.reliability, abs=1e-6)


def test_a_folder_without_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"has no truth\.parquet.*drfuse simulate"):
        Truth.read(tmp_path)


@pytest.mark.parametrize(
    "damage", ["empty", "cut off", "text", "without given_ehr", "without labels", "without names"]
)
def test_a_damaged_truth_is_refused(table: pl.DataFrame, tmp_path: Path, damage: str) -> None:
    path, names = tmp_path / TRUTH, {"phenotypes": "[]"}
    table.write_parquet(path, metadata=names)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_bytes(b"not a table at all\n" * 100)
    elif damage == "without names":
        table.write_parquet(path)
    else:
        table.drop(damage.removeprefix("without ")).write_parquet(path, metadata=names)
    with pytest.raises(InputError, match=r"damaged.*simulate the hospital again"):
        Truth.read(tmp_path)


def test_a_table_of_another_program_is_no_truth(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / TRUTH, pa.schema([("x", pa.int64())]), store_schema=False) as writer:
        writer.write_table(pa.table({"x": [1]}))
    with pytest.raises(InputError, match="damaged"):
        Truth.read(tmp_path)


def test_stays_come_in_the_order_asked_for(truth: Truth) -> None:
    ids = truth.stays["stay_id"].to_list()
    rows = [200, 3, 77, 3, 0]
    some = truth.of([ids[row] for row in rows])
    assert some.stays["stay_id"].to_list() == [ids[row] for row in rows]
    for name in ARRAYS:
        assert np.array_equal(getattr(some, name), getattr(truth, name)[rows]), name
    assert some.phenotypes == truth.phenotypes


def test_the_order_of_the_file_does_not_matter(truth: Truth, table: pl.DataFrame, tmp_path: Path) -> None:
    shuffled = table.sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_parquet(tmp_path / TRUTH, metadata={"phenotypes": json.dumps(truth.phenotypes)})
    again = Truth.read(tmp_path).of(truth.stays["stay_id"].to_numpy())
    assert again.stays.equals(truth.stays)
    assert np.array_equal(again.given_both, truth.given_both)


@pytest.mark.parametrize("stranger", [1, 2**62, -5])
def test_a_stay_of_another_hospital_is_refused(truth: Truth, stranger: int) -> None:
    known = truth.stays["stay_id"].to_list()[:2]
    with pytest.raises(InputError, match="1 of 3 stays are not in this simulated hospital"):
        truth.of([known[0], stranger, known[1]])


def test_the_radiographs_reader_knows_nothing_without_one(truth: Truth) -> None:
    has_cxr = truth.stays["has_cxr"].to_numpy()
    read = truth.read_by("cxr")
    assert np.isnan(read[~has_cxr]).all()
    assert np.array_equal(read[has_cxr], truth.given_cxr[has_cxr])


def test_the_fused_reader_falls_back_on_the_ehr(truth: Truth) -> None:
    has_cxr = truth.stays["has_cxr"].to_numpy()
    read = truth.read_by("fused")
    assert np.array_equal(read[has_cxr], truth.given_both[has_cxr])
    assert np.array_equal(read[~has_cxr], truth.given_ehr[~has_cxr])
    assert np.array_equal(truth.read_by("ehr"), truth.given_ehr)


def test_the_ceilings_are_average_precisions(truth: Truth) -> None:
    found = ceilings(truth)
    assert found.columns == ["phenotype", "fused", "ehr", "cxr"]
    assert found["phenotype"].to_list() == truth.phenotypes
    has_cxr = truth.stays["has_cxr"].to_numpy()
    fused = np.where(has_cxr[:, None], truth.given_both, truth.given_ehr)
    for c, row in enumerate(found.iter_rows(named=True)):
        labels = truth.labels[:, c]
        assert row["fused"] == pytest.approx(average_precision_score(labels, fused[:, c]))
        assert row["ehr"] == pytest.approx(average_precision_score(labels, truth.given_ehr[:, c]))
        on_matched = average_precision_score(labels[has_cxr], truth.given_cxr[has_cxr, c])
        assert row["cxr"] == pytest.approx(on_matched)


def test_the_ceilings_are_those_of_the_stays_that_are_asked_about(truth: Truth) -> None:
    some = truth.of(truth.stays["stay_id"].to_numpy()[100:])
    expected = average_precision_score(truth.labels[100:, 0], truth.given_ehr[100:, 0])
    assert ceilings(some)["ehr"][0] == pytest.approx(expected)


def test_the_readings_are_those_that_were_written(admitted: Admitted, truth: Truth) -> None:
    for modality in ("ehr", "cxr"):
        drawn, read = getattr(admitted.patients, modality), truth.readings(modality)
        np.testing.assert_allclose(read.values, drawn.values, rtol=1e-6)
        np.testing.assert_allclose(read.reliability, drawn.reliability, rtol=1e-6)
        assert np.array_equal(read.seen, drawn.seen)


def test_the_oracle_follows_the_run(truth: Truth, run: Predictions) -> None:
    perfect = oracle(truth, run)
    assert list(perfect) == ["fused", "ehr", "cxr"]
    at = {stay_id: row for row, stay_id in enumerate(truth.stays["stay_id"])}
    rows = [at[stay_id] for stay_id in run.stays["stay_id"]]
    has_cxr = run.stays["has_cxr"].to_numpy()
    expected = {
        "fused": np.where(has_cxr[:, None], truth.given_both[rows], truth.given_ehr[rows]),
        "ehr": truth.given_ehr[rows],
        "cxr": np.where(has_cxr[:, None], truth.given_cxr[rows], np.nan),
    }
    for reader, predictions in perfect.items():
        assert expit(predictions.logits) == pytest.approx(expected[reader], abs=1e-5, nan_ok=True)
        assert predictions.logits.dtype == np.float32
        assert predictions.stays.equals(run.stays)
        assert predictions.phenotypes == run.phenotypes
        assert np.array_equal(predictions.labels, run.labels)
        assert predictions.modality_weights is None


def test_the_oracles_predictions_can_be_kept(truth: Truth, run: Predictions, tmp_path: Path) -> None:
    for reader, predictions in oracle(truth, run).items():
        path = tmp_path / f"{reader}.parquet"
        predictions.write(path)
        assert np.array_equal(Predictions.read(path).logits, predictions.logits, equal_nan=True)


def test_the_oracle_refuses_radiographs_that_it_does_not_know(truth: Truth, run: Predictions) -> None:
    other = run.stays.with_columns(has_cxr=pl.lit(True))
    with pytest.raises(InputError, match="another window or view"):
        oracle(truth, Predictions(run.phenotypes, other, run.logits, run.labels, None))


def test_the_oracle_refuses_other_phenotypes(truth: Truth, run: Predictions) -> None:
    other = Predictions([*run.phenotypes[1:], "other"], run.stays, run.logits, run.labels, None)
    with pytest.raises(InputError, match="other phenotypes"):
        oracle(truth, other)


def test_the_oracle_refuses_a_run_of_another_hospital(truth: Truth, run: Predictions) -> None:
    elsewhere = run.stays.with_columns(pl.col("stay_id") + 10**9)
    other = Predictions(run.phenotypes, elsewhere, run.logits, run.labels, None)
    with pytest.raises(InputError, match="120 of 120 stays"):
        oracle(truth, other)


def test_a_simulated_hospital_tells_its_truth(simulated: Simulated) -> None:
    truth = Truth.read(simulated.folder)
    assert truth.phenotypes == read_phenotypes()["phenotype"].unique(maintain_order=True).to_list()
    assert truth.stays.height == simulated.simulation.icu_stays
    assert np.isfinite(ceilings(truth.of(simulated.stays["stay_id"])).drop("phenotype").to_numpy()).all()
