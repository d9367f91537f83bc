import dataclasses
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from drfuse.simulate.disease import Disease
from drfuse.simulate.imaging import Imaging, Missing, draw_studies
from tests.simulate.samples import Admitted, admit_stays, study_times


@dataclasses.dataclass(frozen=True)
class Window:
    """The hours of a stay that may be observed."""

    start: datetime
    end: datetime


def image(admitted: Admitted, cxr_rate: float, missing: Missing = "severity", seed: int = 0) -> Imaging:
    generator = np.random.default_rng(seed)
    return draw_studies(admitted.hospital.icustays, admitted.patients, cxr_rate, missing, 64, generator)


@pytest.fixture(scope="module")
def imaging(admitted: Admitted) -> Imaging:
    return image(admitted, 0.4)


@pytest.fixture(scope="module")
def windows(admitted: Admitted) -> list[Window]:
    return [
        Window(intime, min(outtime, intime + timedelta(hours=48)))
        for intime, outtime in admitted.hospital.icustays.select("intime", "outtime").iter_rows()
    ]


@pytest.fixture(scope="module")
def studies(imaging: Imaging, windows: list[Window]) -> pl.DataFrame:
    """Return the metadata with `image` (its row), `at` and `place`: before, in or after the stay's window."""
    times = study_times(imaging.metadata)
    places = []
    for at, row in zip(times, imaging.metadata["row"], strict=True):
        window = windows[row]
        places.append("before" if at < window.start else "in" if at <= window.end else "after")
    return imaging.metadata.with_columns(at=pl.Series(times), place=pl.Series(places)).with_row_index("image")


@pytest.mark.parametrize("missing", ["severity", "mcar"])
@pytest.mark.parametrize("rate", [0.18, 0.6])
def test_the_mean_share_with_a_radiograph_is_the_rate(
    admitted: Admitted, rate: float, missing: Missing
) -> None:
    shares = [image(admitted, rate, missing, seed).has_cxr.mean() for seed in range(4)]
    assert np.mean(shares) == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("missing", ["severity", "mcar"])
def test_none_or_all_may_have_one(admitted: Admitted, missing: Missing) -> None:
    assert not image(admitted, 0, missing).has_cxr.any()
    assert image(admitted, 1, missing).has_cxr.all()


def test_the_log_odds_of_a_radiograph_grow_with_severity(admitted: Admitted, imaging: Imaging) -> None:
    model = LogisticRegression(C=1e9).fit(admitted.patients.severity[:, None], imaging.has_cxr)
    assert model.coef_[0, 0] == pytest.approx(1, abs=0.15)
    z = np.linspace(-8, 8, 10_001)
    mean = (expit(model.intercept_[0] + z) * norm.pdf(z)).sum() * (z[1] - z[0])
    assert mean == pytest.approx(0.4, abs=0.025)


def test_chance_alone_asks_for_no_severity(admitted: Admitted) -> None:
    by_chance, severity = image(admitted, 0.4, "mcar").has_cxr, admitted.patients.severity
    assert abs(severity[by_chance].mean() - severity[~by_chance].mean()) < 0.12
    by_severity = image(admitted, 0.4).has_cxr
    assert severity[by_severity].mean() - severity[~by_severity].mean() > 0.7


def test_the_last_ap_study_of_the_window_has_the_stays_own_readings(
    admitted: Admitted, imaging: Imaging, studies: pl.DataFrame
) -> None:
    last = (
        studies.filter(place="in", ViewPosition="AP").sort("at").group_by("row").agg(pl.col("image").last())
    )
    rows, images = last["row"].to_numpy(), last["image"].to_numpy()
    assert set(rows) == set(np.flatnonzero(imaging.has_cxr))
    assert np.array_equal(imaging.readings.values[images], admitted.patients.cxr.values[rows])
    assert np.array_equal(imaging.readings.reliability[images], admitted.patients.cxr.reliability[rows])


def test_an_earlier_study_of_the_window_is_half_as_reliable_and_read_anew(
    admitted: Admitted, imaging: Imaging, studies: pl.DataFrame
) -> None:
    in_window = studies.filter(place="in", ViewPosition="AP").sort("at")
    earlier = in_window.filter(pl.col("at") < pl.col("at").max().over("row"))
    rows, images = earlier["row"].to_numpy(), earlier["image"].to_numpy()
    assert len(rows) / imaging.has_cxr.sum() == pytest.approx(0.35, abs=0.05)
    reliability = imaging.readings.reliability[images]
    assert reliability == pytest.approx(admitted.patients.cxr.reliability[rows] / 2)
    shown = admitted.patients.cxr.seen
    values = imaging.readings.values[images]
    assert not values[:, ~shown].any()
    factors = admitted.patients.factors[rows]
    error = (values - np.sqrt(reliability)[:, None] * factors)[:, shown]
    own = admitted.patients.cxr.values[rows] - np.sqrt(2 * reliability)[:, None] * factors
    assert (error**2).mean() == pytest.approx((1 - reliability).mean(), rel=0.05)
    assert abs(np.corrcoef(error.ravel(), own[:, shown].ravel())[0, 1]) < 0.05


def test_there_are_studies_that_must_not_be_taken(admitted: Admitted, studies: pl.DataFrame) -> None:
    n = len(admitted.census)
    for place, share in (("before", 0.10), ("after", 0.20)):
        found = studies.filter(place=place, ViewPosition="AP")
        assert found["row"].n_unique() == found.height
        assert found.height / n == pytest.approx(share, abs=0.025)
    for view in ("PA", "LATERAL"):
        found = studies.filter(ViewPosition=view)
        assert found.height / n == pytest.approx(0.08, abs=0.02)
        assert (found["place"] == "in").all()


def test_no_study_of_another_stay_lies_in_a_window_that_counts(
    admitted: Admitted, studies: pl.DataFrame, windows: list[Window]
) -> None:
    eligible = np.flatnonzero(admitted.census.eligible)
    of_subject = studies.filter(ViewPosition="AP").partition_by("subject_id", as_dict=True)
    n_found = 0
    for row in eligible:
        subject_id = admitted.hospital.icustays["subject_id"][int(row)]
        for at, taken_of in (
            of_subject[(subject_id,)].select("at", "row").iter_rows() if (subject_id,) in of_subject else ()
        ):
            if windows[row].start <= at <= windows[row].end:
                assert taken_of == row
                n_found += 1
    assert n_found > 1000


def test_a_pa_view_comes_with_a_lateral_one(studies: pl.DataFrame) -> None:
    pairs = studies.filter(pl.col("ViewPosition") != "AP").sort("study_id", "ViewPosition")
    views = pairs.group_by("study_id", maintain_order=True).agg("ViewPosition", pl.col("at").n_unique())
    assert all(view == ["LATERAL", "PA"] for view in views["ViewPosition"].to_list())
    assert views["at"].max() == 1


def test_ids_name_one_image_and_one_study(studies: pl.DataFrame, admitted: Admitted) -> None:
    assert studies["dicom_id"].n_unique() == studies.height
    assert studies["dicom_id"].str.contains(r"^([0-9a-f]{8}-){4}[0-9a-f]{8}$").all()
    of_study = studies.group_by("study_id").agg(pl.col("subject_id", "row", "at").n_unique())
    assert of_study.select(pl.max_horizontal(pl.exclude("study_id")).max()).item() == 1
    expected = admitted.hospital.icustays["subject_id"].to_numpy()[studies["row"].to_numpy()]
    assert np.array_equal(studies["subject_id"].to_numpy(), expected)


def test_the_images_have_the_size_asked_for(studies: pl.DataFrame) -> None:
    assert set(studies["Rows"]) == set(studies["Columns"]) == {64}


@pytest.mark.parametrize("seeds", [(0, 10), (1, 11), (1, 101), (3, 33)])
def test_two_seeds_share_no_study(disease: Disease, seeds: tuple[int, int]) -> None:
    admitted = admit_stays(disease, 60, seed=1)
    study_ids = []
    for seed in seeds:
        stay_id = int(f"3{seed}00000000") + pl.int_range(len(admitted.census), eager=True)
        hospital = dataclasses.replace(
            admitted.hospital, icustays=admitted.hospital.icustays.with_columns(stay_id=stay_id)
        )
        metadata = image(dataclasses.replace(admitted, hospital=hospital), 0.5).metadata
        study_ids.append(set(metadata["study_id"]))
    assert study_ids[0]
    assert study_ids[0].isdisjoint(study_ids[1])


def test_the_largest_study_id_fits_into_64_bits(disease: Disease) -> None:
    admitted = admit_stays(disease, 5, seed=1)
    largest = pl.lit(3_999_999_999_99_999_999, pl.Int64).alias("stay_id")
    hospital = dataclasses.replace(
        admitted.hospital, icustays=admitted.hospital.icustays.with_columns(largest)
    )
    metadata = image(dataclasses.replace(admitted, hospital=hospital), 1).metadata
    assert set(metadata["study_id"] // 10) == {3_999_999_999_99_999_999}


def test_the_metadata_are_those_of_mimic(studies: pl.DataFrame, imaging: Imaging, shared: Path) -> None:
    real = pl.read_csv(shared / "mimic-cxr-demo/mimic-cxr-2.0.0-metadata.csv.gz")
    assert imaging.metadata.drop("row").columns == real.columns
    described = ["ViewPosition", "PerformedProcedureStepDescription", "ViewCodeSequence_CodeMeaning"]
    frontal = studies.filter(pl.col("ViewPosition") == "AP").select(described).unique()
    assert frontal.join(real.select(described).unique(), on=described, how="anti").is_empty()


def test_neither_factors_nor_labels_decide_who_is_imaged(disease: Disease) -> None:
    admitted = admit_stays(disease, 60, seed=1)
    another = disease.draw(len(admitted.census), np.random.default_rng(2))
    same_readings = dataclasses.replace(another, ehr=admitted.patients.ehr, cxr=admitted.patients.cxr)
    found, same = (
        image(dataclasses.replace(admitted, patients=patients), 0.5)
        for patients in (admitted.patients, same_readings)
    )
    assert found.metadata.equals(same.metadata)
    assert np.array_equal(found.has_cxr, same.has_cxr)
