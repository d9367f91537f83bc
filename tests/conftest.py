"""Fixtures of the whole suite."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client: tests use no network
# before PyTorch and Numba load: what the tests compute is so small that a second thread only costs time
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="drfuse-tests-")  # which cohorts are whole

from drfuse.cohort import prepare
from drfuse.demo import Demo, demo
from tests.mimic import write_hospital

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what was imported, which it would search again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it clean up at the end, or extension modules report leaks."""
    gc.unfreeze()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real input and published facts beside the checkout; skip where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real input in {SHARED}, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared cohort of 80 synthetic stays with 48-pixel radiographs; read it, do not change it."""
    folder = tmp_path_factory.mktemp("hospital")
    mimic_iv, mimic_cxr = write_hospital(folder, n_stays=80, seed=1, image_size=64)
    prepare(mimic_iv, folder / "cohort", mimic_cxr, image_size=48)
    return folder / "cohort"


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort of 40 synthetic stays of another hospital; read it, do not change it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    mimic_iv, mimic_cxr = write_hospital(folder, n_stays=40, seed=2, image_size=64)
    prepare(mimic_iv, folder / "theirs", mimic_cxr, image_size=48)
    return folder / "theirs"


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Return the demo of 120 simulated stays; read its folder, do not change it."""
    return demo(tmp_path_factory.mktemp("demo") / "out", stays=120, fast=True)
