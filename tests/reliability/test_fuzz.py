"""A fixed number of damaged files for each reader: refused by an InputError of one line, or read."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.fuzz import Target, make_targets, mutate


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return make_targets(tmp_path_factory.mktemp("fuzz"))


NAMES = [
    *("chartevents.csv", "icustays.csv", "admissions.csv", "mimic-cxr-2.0.0-metadata.csv"),
    *("measurements.csv", "measurements.parquet", "image.jpg", "image.png"),
    *("cohort/manifest.json", "cohort/stays.parquet", "cohort/ehr.npy", "cohort/cxr.npy"),
    *("cohort/normalization.json", "run/config.yaml", "run/config.json", "run/recalibration.json"),
    *("run/model.safetensors", "run/predictions.parquet", "run/metrics.json", "run/last.ckpt"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_or_read(targets: dict[str, Target], name: str) -> None:
    target, rng = targets[name], random.Random(name)
    whole = target.path.read_bytes()
    assert target.try_bytes(whole)
    try:
        assert not target.try_bytes(b"\xff\x00")
        for _ in range(target.inputs):
            target.try_bytes(mutate(whole, rng))
    finally:
        target.path.write_bytes(whole)


@pytest.mark.slow
def test_every_target_is_tried(targets: dict[str, Target]) -> None:
    assert sorted(targets) == sorted(NAMES)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["run/config.json", "cohort/manifest.json", "measurements.csv"])
def test_atheris_finds_nothing(name: str) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.reliability.fuzz", name, "-runs=500", "-seed=1", "-timeout=20"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 500 runs" in done.stderr
