"""The whole way on real input: the MIMIC-IV demo and radiographs attached to it."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drfuse.cohort import load_variables, prepare
from drfuse.cohort.images import decode
from tests.cohort.prepared import Prepared, open_cohort
from tests.mimic import image_path

METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"


@pytest.fixture(scope="module")
def demo(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("demo") / "cohort"
    manifest = prepare(shared / "mimic-iv-demo", folder, shared / "mimic-cxr-demo", image_size=64)
    return open_cohort(folder, manifest)


def test_112_of_140_stays_are_included(demo: Prepared) -> None:
    assert [step.stays for step in demo.manifest.flow] == [140, 129, 112, 112, 112]
    assert demo.stays["stay_id"].n_unique() == demo.stays.height == 112
    assert demo.ehr.shape == (112, 48, 17)
    assert demo.manifest.warnings == {
        "rejected_rows": {},
        "unreadable_images": [],
        "undated_images": 0,
        "diagnoses": {"listed": 706, "start listed": 0, "unlisted": 1236, "not ICD": 0},
        "stays_with_unknown": {"phenotypes": 0, "in_hospital_mortality": 0, "los": 0},
        "phenotypes_without_positive": [],
        "stays_that_end_before_they_begin": 0,
        "stays_without": {"chart events": 0, "laboratory results": 2, "radiograph": 68, "labels": 0},
    }


@pytest.mark.parametrize(
    ("before_hours", "with_height", "with_weight"),
    [(0, 41, 104), (6, 61, 112)],  # without the minute of admission: 2 and 98; a 62nd is 61 cm, left out
)
def test_height_and_weight_are_read_from_the_hours_before(
    shared: Path, tmp_path: Path, before_hours: int, with_height: int, with_weight: int
) -> None:
    manifest = prepare(shared / "mimic-iv-demo", tmp_path / "cohort", before_hours=before_hours)
    ehr = open_cohort(tmp_path / "cohort", manifest).ehr
    names = [variable.name for variable in load_variables()]
    observed = {name: int(np.isfinite(ehr[..., names.index(name)]).any(axis=1).sum()) for name in names}
    assert (observed["height"], observed["weight"]) == (with_height, with_weight)


def test_44_stays_have_a_radiograph(demo: Prepared) -> None:
    assert demo.stays["has_cxr"].sum() == len(demo.cxr) == 44
    assert sum(split["with_cxr"] for split in demo.manifest.splits.values()) == 44


def test_each_radiograph_is_the_last_ap_one_of_its_window(demo: Prepared, shared: Path) -> None:
    metadata = pl.read_csv(shared / "mimic-cxr-demo" / METADATA, schema_overrides={"StudyTime": pl.String})
    studies: dict[int, list[tuple[datetime, int, str]]] = {}
    for row in metadata.filter(ViewPosition="AP").iter_rows(named=True):
        whole, _, fraction = row["StudyTime"].partition(".")
        taken = datetime.strptime(f"{row['StudyDate']} {whole:0>6}.{fraction or 0}", "%Y%m%d %H%M%S.%f")
        studies.setdefault(row["subject_id"], []).append((taken, row["study_id"], row["dicom_id"]))
    for stay in demo.stays.iter_rows(named=True):
        end = min(stay["outtime"], stay["intime"] + timedelta(hours=48))
        inside = [study for study in studies.get(stay["subject_id"], []) if stay["intime"] <= study[0] <= end]
        last = max(inside, default=None)
        assert stay["dicom_id"] == (last and last[2])
        if last:
            path = shared / "mimic-cxr-demo" / image_path(stay["subject_id"], last[1], last[2])
            assert np.array_equal(demo.cxr[stay["cxr_row"]], decode(path, 64))


def test_every_variable_is_plausible(demo: Prepared) -> None:
    assert np.isfinite(demo.ehr).any(axis=(1, 2)).all()
    for column, variable in enumerate(load_variables()):
        values = demo.ehr[..., column]
        values = values[~np.isnan(values)]
        assert ((variable.valid_low <= values) & (values <= variable.valid_high)).all(), variable.name
        if variable.name == "capillary_refill_rate":
            assert len(values) == 0  # the demo lacks its texts
            continue
        assert len(values) > 0, variable.name
        if variable.kind == "categorical":
            assert np.array_equal(values, values.round()), variable.name


def test_typical_values_are_typical(demo: Prepared) -> None:
    median = {
        variable.name: float(np.nanmedian(demo.ehr[..., column]))
        for column, variable in enumerate(load_variables())
        if variable.name != "capillary_refill_rate"
    }
    assert 70 < median["heart_rate"] < 100
    assert 36 < median["temperature"] < 38
    assert 0.3 < median["fraction_inspired_oxygen"] < 0.7
    assert 150 < median["height"] < 190
    assert 7.2 < median["ph"] < 7.5
    assert median["gcs_motor_response"] == 6


def test_nothing_is_observed_after_n_hours(demo: Prepared) -> None:
    after = np.arange(48)[None, :] >= demo.stays["n_hours"].to_numpy()[:, None]
    assert np.isnan(demo.ehr[after]).all()


def test_no_subject_is_in_two_splits(demo: Prepared) -> None:
    assert demo.stays.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1


def test_the_most_common_labels_have_positives(demo: Prepared) -> None:
    positives = demo.stays.select(demo.manifest.phenotypes).sum().row(0, named=True)
    assert len(positives) == 25
    assert min(positives.values()) > 0
    assert positives["Essential hypertension"] > 30
    assert 0 < demo.stays["in_hospital_mortality"].sum() < 30
