"""A cohort that is replaced while it is in use is noticed."""

import pickle
import shutil
from pathlib import Path

import pytest
from lightning import Callback, LightningModule, Trainer

from drfuse.cohort.manifest import Manifest
from drfuse.data import Cohort
from drfuse.data.opened import OpenedFiles
from drfuse.errors import InputError
from drfuse.sums import sha256
from drfuse.training.train import train
from tests.builders import write_cohort
from tests.training.own_model import FirstHour


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return a cohort."""
    return write_cohort(tmp_path / "cohort")


def replace(cohort: Path, seed: int = 1) -> None:
    """Put another cohort in a cohort's place."""
    shutil.rmtree(cohort)
    write_cohort(cohort, seed=seed)


def test_the_fingerprint_is_that_of_the_manifest_that_was_read(cohort: Path) -> None:
    before = Cohort.open(cohort)
    expected = sha256(cohort / "manifest.json")
    replace(cohort)
    assert before.fingerprint == expected != Cohort.open(cohort).fingerprint


@pytest.mark.parametrize("name", ["manifest.json", "ehr.npy", "cxr.npy", "stays.parquet"])
def test_a_file_that_was_replaced_is_noticed(cohort: Path, name: str) -> None:
    before = Cohort.open(cohort)
    before.check_unchanged()
    copy = cohort / "copy"
    shutil.copy2(cohort / name, copy)  # the same bytes and times
    copy.replace(cohort / name)
    with pytest.raises(InputError, match=rf"{name} was replaced while it was in use"):
        before.check_unchanged()


def test_a_file_that_is_gone_is_noticed(cohort: Path) -> None:
    before = OpenedFiles.of(cohort, ["ehr.npy"])
    (cohort / "ehr.npy").unlink()
    assert before.first_changed() == "ehr.npy"


def test_another_process_opens_no_other_cohort(cohort: Path) -> None:
    pickled = pickle.dumps(Cohort.open(cohort))
    assert len(pickle.loads(pickled)) == 12
    replace(cohort)
    with pytest.raises(InputError, match="was replaced while it was in use"):
        pickle.loads(pickled)


def test_a_cohort_that_is_replaced_while_it_is_opened_is_refused(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, manifests = Manifest.read, []

    def read_then_replace(folder: Path) -> Manifest:
        manifests.append(read(folder))
        if len(manifests) == 1:
            replace(cohort)
        return manifests[-1]

    monkeypatch.setattr(Manifest, "read", read_then_replace)
    with pytest.raises(InputError, match="was replaced while it was opened"):
        Cohort.open(cohort)


class Replace(Callback):
    """Puts another cohort in a cohort's place when the training begins."""

    def __init__(self, cohort: Path) -> None:
        self.cohort = cohort

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        replace(self.cohort)


def test_a_training_whose_cohort_is_replaced_writes_no_run(cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match="was replaced while it was in use, so what was computed mixes"):
        train(cohort, run, FirstHour, epochs=1, crop_size=8, callbacks=[Replace(cohort)], progress=False)
    assert not (run / "model.safetensors").exists()
