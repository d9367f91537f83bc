"""Whatever the umask, other users can read nothing that drfuse writes, and nobody else's folder changes."""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard.writer import SummaryWriter

from drfuse import sums
from drfuse.cli import main
from drfuse.cohort import prepare
from drfuse.command_line import run_command
from drfuse.evaluation import evaluate
from drfuse.export import export
from drfuse.files import (
    atomic_file,
    locked,
    make_folder,
    make_output_folder,
    make_own_folder,
    private,
    write_whole,
)
from drfuse.inference.predict import predict
from drfuse.simulate import simulate
from drfuse.training import train
from tests.training.own_model import FirstHour


@pytest.fixture(autouse=True, params=[0o000, 0o022], ids=["no-umask", "usual-umask"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a test under a umask that lets others read; it must still be there at the end."""
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    """Return what other users may read or write, in a folder and the folder itself."""
    return [str(path) for path in (folder, *folder.rglob("*")) if mode(path) & 0o077]


@pytest.mark.slow
def test_all_that_the_functions_write_is_private(tmp_path: Path, umask: int) -> None:
    out, hospital = tmp_path / "new", tmp_path / "new" / "hospital"
    simulate(hospital, stays=60, image_size=32, seed=3)
    prepare(hospital / "mimic-iv", out / "cohort", hospital / "mimic-cxr", image_size=32)
    options: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu", "batch_size": 64}
    run = train(out / "cohort", out / "runs" / "run", FirstHour, progress=False, **options).folder
    evaluate(run, n_resamples=5)
    export(run, out / "export")
    predict(run, out / "cohort", out=out / "predictions" / "all.csv", progress=False)
    predict(run, mimic_iv=hospital / "mimic-iv", out=out / "all.parquet", temp_dir=tmp_path, progress=False)
    assert open_to_others(out) == []
    assert len(list(out.rglob("*"))) > 100
    assert mode(tmp_path) == 0o700
    assert umask in (0o000, 0o022)


def with_libraries(folder: Path) -> None:
    """Write a folder and files as libraries do."""
    with private(), SummaryWriter(str(folder / "logs")) as writer:
        writer.add_scalar("loss", 1.0)
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")


def by_a_command(folder: Path) -> None:
    """Write a file from a command."""

    def write() -> None:
        """Write."""
        (folder / "file").touch()
        os.system(f"mkdir {folder}/below && touch {folder}/below/file")

    run_command(write, "drfuse write", [])


def by_a_locked_one(folder: Path) -> None:
    with locked(folder / "below" / "out"):
        pass


def saved_by_a_library(folder: Path) -> None:
    with atomic_file(folder / "model.safetensors") as partial:
        save_file({"a": torch.zeros(1)}, partial)


def over_an_open_file(folder: Path) -> None:
    (folder / "file").touch()
    write_whole(folder / "file", "new")


WRITERS: list[Callable[[Path], object]] = [
    with_libraries,
    by_a_command,
    by_a_locked_one,
    saved_by_a_library,
    over_an_open_file,
    lambda folder: make_folder(folder / "a" / "b"),
    lambda folder: make_output_folder(folder / "a"),
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_each_way_to_write_is_private(tmp_path: Path, write: Callable[[Path], object]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    inside = [one for one in open_to_others(folder) if one != str(folder)]
    assert inside == []
    assert any(folder.iterdir())


@pytest.mark.parametrize(
    ("make", "content", "after"),
    [
        (make_folder, False, 0o755),
        (make_output_folder, False, 0o700),
        (make_output_folder, True, 0o755),
        (make_own_folder, True, 0o700),
    ],
    ids=["above", "empty", "used", "own"],
)
def test_what_exists_keeps_its_rights_unless_it_is_ours(
    tmp_path: Path, make: Callable[[Path], object], content: bool, after: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o755)
    if content:
        (folder / "file").touch()
    make(folder)
    assert mode(folder) == after


def test_a_run_of_an_earlier_version_becomes_private_when_it_goes_on(
    small_cohort: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu", "batch_size": 64}
    run = train(small_cohort, tmp_path / "run", FirstHour, progress=False, **options).folder
    (run / "predictions.parquet").unlink()
    for path in (run, *run.rglob("*")):
        path.chmod(0o777)
    train(small_cohort, run, FirstHour, progress=False, **options)
    assert open_to_others(run) == []


def test_the_user_s_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sums, "_SETTLED_NS", -(10**12))
    (tmp_path / "stays.parquet").touch()
    assert sums.changed_file(tmp_path, {"stays.parquet": sums.sha256(tmp_path / "stays.parquet")}) is None
    assert json.loads(next((tmp_path / "cache").rglob("*.json")).read_text())
    assert open_to_others(tmp_path / "cache") == []


def test_of_two_threads_the_last_one_restores_the_umask(tmp_path: Path, umask: int) -> None:
    entered, left = threading.Event(), threading.Event()

    def stay() -> None:
        with private():
            entered.set()
            left.wait()
            (tmp_path / "file").touch()

    with private():
        other = threading.Thread(target=stay)
        other.start()
        entered.wait()
    left.set()
    other.join()
    assert mode(tmp_path / "file") == 0o600
    assert os.umask(umask) == umask


def test_a_command_restores_the_umask(umask: int) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "/nowhere"])
    assert os.umask(umask) == umask
