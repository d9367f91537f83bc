"""What drfuse writes to is its own: no link is followed, and nobody else's file is replaced or deleted."""

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from drfuse import files
from drfuse.errors import InputError
from drfuse.files import (
    atomic_file,
    atomic_folder,
    file_lock,
    find_foreign,
    locked,
    make_own_folder,
    recover_interrupted_write,
    remove_contents,
    remove_leftovers,
    write_whole,
)
from drfuse.run import Run
from drfuse.simulate import simulate
from drfuse.training import TrainOptions
from drfuse.training.claim import claim

LEFT = "0123456789abcdef.partial"
"""The end of the name of what a killed command left."""

CONTENTS = ("marker.json", "data/*.txt")
CONFIG = {"cohort": "", "model": "", **TrainOptions().written()}

make_thing = partial(atomic_folder, what="thing", marker="marker.json", contents=CONTENTS)


def fill(folder: Path, text: str) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.txt").write_text(text)
    (folder / "marker.json").write_text("{}")


def make(out: Path, text: str = "new", overwrite: bool = True) -> None:
    with make_thing(out, overwrite=overwrite) as folder:
        fill(folder, text)


def train(out: Path, overwrite: bool = True) -> None:
    """Claim a run's folder and finish the run."""
    with claim(Run(out), CONFIG, "", overwrite, resumable=False):
        Run(out).predictions.write_bytes(b"PAR1")


def plant(path: Path) -> Path:
    """Return a file of the user's elsewhere, to which a link at `path` leads."""
    precious = path.parents[1] / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)
    return precious


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a folder that came from a stranger."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    return folder


WRITERS: dict[str, Callable[[Path], object]] = {
    "atomic_file": lambda path: write_whole(path, "new"),
    "remove_leftovers": lambda path: remove_leftovers(path.parent),
    "atomic_folder": lambda path: make(path.with_name("out")),
    "recover": lambda path: recover_interrupted_write(path.with_name("out")),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        ".metrics.json.partial",
        f".metrics.json.{LEFT}",
        ".out.partial",
        ".out.replaced",
        f".out.{LEFT}",
        ".out.0123456789abcdef.replaced",
    ],
)
def test_a_link_is_never_followed(theirs: Path, writer: str, name: str) -> None:
    precious = plant(theirs / name)
    WRITERS[writer](theirs / "metrics.json")
    assert precious.read_text() == "precious"
    assert (theirs / name).is_symlink() != (writer == "atomic_file" and name == "metrics.json")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        (".out.lock", lambda folder: make(folder / "out")),
        (".run.lock", lambda folder: train(folder / "run")),
        (".run.replaced", lambda folder: train(folder / "run")),
        ("run/logs", lambda folder: train(folder / "run", overwrite=False)),
        ("run/checkpoints", lambda folder: train(folder / "run", overwrite=False)),
        ("run/logs/hparams.yaml", lambda folder: train(folder / "run", overwrite=False)),
        ("external", lambda folder: make_own_folder(folder / "external")),
        (".report.lock", lambda folder: file_lock(folder / ".report.lock")),
    ],
)
def test_a_link_in_the_place_of_what_is_written_in_place_is_refused(
    theirs: Path, name: str, write: Callable[[Path], object]
) -> None:
    (theirs / "run" / "logs").mkdir(parents=True)
    (theirs / "run" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    if (theirs / name).is_dir():
        (theirs / name).rmdir()
    precious = plant(theirs / name)
    with pytest.raises(InputError, match=r"is a link, and nothing is written|holds something else"):
        write(theirs)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "name",
    [".out.partial", ".out.replaced", ".out.lock.partial", ".out.notes.partial", "..out.partial", "in"],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_lies_beside_the_output_survives(tmp_path: Path, name: str, kind: str) -> None:
    own = tmp_path / name
    if kind == "folder":
        own.mkdir()
        own = own / "notes"
    own.write_text("precious")
    make(tmp_path / "out", "old")
    make(tmp_path / "out")
    assert own.read_text() == "precious"


@pytest.mark.parametrize("folder", [".run.replaced", "run"])
@pytest.mark.parametrize(
    "name", ["notes.txt", "notes.partial", "logs/notes.txt", "external/a/b/metrics.json"]
)
def test_a_run_with_files_of_the_user_is_not_replaced(tmp_path: Path, folder: str, name: str) -> None:
    train(tmp_path / "run")
    own = tmp_path / folder / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("precious")
    with pytest.raises(InputError, match=r"choose a different --out"):
        train(tmp_path / "run")
    assert own.read_text() == "precious"
    assert Run(tmp_path / "run").is_finished


def test_a_failed_run_leaves_the_files_of_the_user(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    writing = claim(run, CONFIG, "", overwrite=False)
    writing.__enter__()
    run.logs.mkdir()
    for name in ("hparams.yaml", "notes.txt"):
        (run.logs / name).write_text("precious")
    writing.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert [path.name for path in run.folder.rglob("*")] == ["logs", "notes.txt"]


@pytest.mark.parametrize("name", ["notes.txt", "mimic-iv/hosp/notes.csv", "mimic-cxr/files/mine.jpg"])
def test_a_hospital_with_files_of_the_user_is_not_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    simulate(out, stays=10, image_size=32)
    (out / name).write_text("precious")
    with pytest.raises(InputError, match=f"holds more than a simulated hospital \\({name}\\)"):
        simulate(out, stays=10, image_size=32, overwrite=True)
    assert (out / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "foreign"),
    [
        ("marker.json", False),
        ("data/a.txt", False),
        (f".marker.json.{LEFT}", False),
        ("data/a/b.txt", True),
        ("data/a.csv", True),
        ("data.txt", True),
        ("marker.json.bak", True),
        ("markerxjson", True),
        ("marker.json\n", True),
        (".marker.json.partial", True),
        (".hidden", True),
    ],
)
def test_files_of_others_are_found_and_stay(tmp_path: Path, path: str, foreign: bool) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert find_foreign(tmp_path, CONTENTS) == (path if foreign else None)
    remove_contents(tmp_path, CONTENTS, last="marker.json")
    assert (tmp_path / path).exists() == foreign


def test_a_temporary_file_is_removed_when_its_command_is_dead(tmp_path: Path) -> None:
    left = tmp_path / f".metrics.json.{LEFT}"
    left.touch()
    (other := tmp_path / f".other.json.{LEFT}").touch()
    with atomic_file(tmp_path / "metrics.json") as partial:
        assert not left.exists()
        write_whole(tmp_path / "metrics.json", "of another command")
        assert partial.exists()
    assert other.exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "metrics.json", "new")
    assert caught.value.filename == str(tmp_path / "metrics.json")
    with pytest.raises(FileNotFoundError) as caught_in:
        write_whole(tmp_path / "gone" / "metrics.json", "new")
    assert ".partial" not in str(caught_in.value)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_killed_replacement_leaves_one_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    make(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        if not exchanges:
            patch.setattr(files, "_exchange", lambda *_: False)
            patch.setattr(Path, "rename", killed_in_second_call(Path.rename))
        patch.setattr(files, "_recover", killed_in_second_call(lambda _: None))
        with pytest.raises(SystemExit):
            make(tmp_path / "out")
    assert (tmp_path / "out").exists() == exchanges
    with locked(tmp_path / "other"):
        recover_interrupted_write(tmp_path / "out")
    assert (tmp_path / "out" / "data" / "a.txt").read_text() == ("new" if exchanges else "old")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock", ".other.lock"}


def test_a_signal_while_a_command_cleans_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "old")
    interrupted = list[object]()

    def interrupt_first(path: Path, ignore_errors: bool) -> None:
        if not interrupted:
            interrupted.append(path)
            raise KeyboardInterrupt
        rmtree(path, ignore_errors=ignore_errors)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", interrupt_first)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}
    assert (tmp_path / "out/data/a.txt").read_text() == "new"


def killed_in_second_call(function: Callable[..., object]) -> Callable[..., object]:
    calls: list[object] = []

    def called(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise SystemExit
        return function(*arguments)

    return called


def test_there_is_no_moment_without_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    missing, done = list[int](), threading.Event()

    def look() -> None:
        while not done.is_set():
            if not os.access(out / "marker.json", os.F_OK):
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(50):
            make(out, str(number))
        make(tmp_path / "other")
        for _ in range(300):
            assert files._exchange(out, tmp_path / "other")
    finally:
        done.set()
        reader.join()
    assert not missing


def test_a_file_system_without_exchange_gets_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    make(tmp_path / "out", "old")
    make(tmp_path / "out")
    assert (tmp_path / "out" / "data" / "a.txt").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}
