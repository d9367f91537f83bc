"""Commands that write the same folder at the same moment: processes that start each round on a barrier."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from drfuse.errors import BusyError
from drfuse.files import atomic_folder, locked, scratch_folder, write_whole

N_PROCESSES = 3
LINES = 400


def take_lock(folder: Path, _: int) -> bool:
    """Enter the lock without waiting; the file says that nobody else is inside."""
    with locked(folder / "out", seconds=0):
        (folder / "inside").touch(exist_ok=False)
        (folder / "inside").unlink()
    return True


def wait_for_lock(folder: Path, _: int) -> bool:
    """Count in a file, which loses a count if two do so at once."""
    with locked(folder / "out", seconds=-1):
        count = folder / "count"
        count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
    return True


def replace_folder(folder: Path, number: int) -> bool:
    """Write a folder of two files; at the end both are of the same process."""
    contents, at_once = {"one", "two"}, patch("drfuse.files.locked", partial(locked, seconds=0))
    with at_once, atomic_folder(folder / "whole", "thing", "one", contents, overwrite=True) as new:
        for name in ("one", "two"):
            (new / name).write_text(str(number) * LINES)
    return True


def replace_file(folder: Path, number: int) -> bool:
    """Write a file, and read what is there: it is of one process."""
    write_whole(folder / "file", str(number) * LINES)
    text = (folder / "file").read_text()
    assert text in {str(one) * LINES for one in range(N_PROCESSES)}, text[:9]
    return True


def use_scratch(folder: Path, number: int) -> bool:
    """Use a folder that nobody else takes for a leftover."""
    with scratch_folder(folder / "scratch") as own:
        (own / "a").write_text(str(number))
        assert (own / "a").read_text() == str(number)
        assert len(list(own.iterdir())) == 1
    return True


def claim_run(folder: Path, _: int) -> bool:
    """Claim a run's folder, and end before there are weights."""
    from drfuse.run import Run
    from drfuse.training.claim import claim
    from drfuse.training.options import TrainOptions

    run, config = Run(folder / "runs" / "run"), {"cohort": "", "model": "", **TrainOptions().written()}
    at_once = patch("drfuse.training.claim.locked", partial(locked, seconds=0))
    with at_once, suppress(KeyboardInterrupt), claim(run, config, "", overwrite=False):
        assert yaml.safe_load(run.config.read_text())["cohort"] == ""
        (folder / "claimed").touch(exist_ok=False)
        (folder / "claimed").unlink()
        raise KeyboardInterrupt
    return True


Race = Callable[[Path, int], bool]


def run_races(races: list[Race], rounds: int, folder: Path, number: int, barrier: Any, results: Any) -> None:
    """Take part in each race of each round; put who won, or what went wrong."""
    try:
        for _ in range(rounds):
            for race in races:
                barrier.wait(60)
                try:
                    won = race(folder, number)
                except BusyError:
                    won = False
                results.put((race.__name__, won, None))
    except BaseException as error:
        barrier.abort()
        results.put(("", False, repr(error)))
        raise


@pytest.mark.parametrize(
    ("races", "rounds"),
    [
        ([take_lock, replace_folder, replace_file, use_scratch], 20),
        pytest.param([take_lock, replace_folder, replace_file, use_scratch], 200, marks=pytest.mark.slow),
        pytest.param([wait_for_lock], 20, marks=pytest.mark.slow),
        pytest.param([claim_run], 200, marks=pytest.mark.slow),
    ],
)
def test_one_wins_or_they_go_one_after_another(tmp_path: Path, races: list[Race], rounds: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier, results = context.Barrier(N_PROCESSES), context.SimpleQueue()
    processes = [
        context.Process(target=run_races, args=(races, rounds, tmp_path, number, barrier, results))
        for number in range(N_PROCESSES)
    ]
    (tmp_path / ".out.lock").touch()
    lock = (tmp_path / ".out.lock").stat().st_ino
    for process in processes:
        process.start()
    won = dict.fromkeys((race.__name__ for race in races), 0)
    for _ in range(rounds * len(races) * N_PROCESSES):
        name, has_won, error = results.get()
        assert error is None
        won[name] += has_won
    for process in processes:
        process.join()
    for name, times in won.items():
        assert rounds <= times <= rounds * N_PROCESSES, name
        if name in ("wait_for_lock", "replace_file", "use_scratch"):
            assert times == rounds * N_PROCESSES, name
    if wait_for_lock in races:
        assert int((tmp_path / "count").read_text()) == rounds * N_PROCESSES
    assert (tmp_path / ".out.lock").stat().st_ino == lock
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {".out.lock", ".whole.lock", "whole", "file", "count", "runs"}
    if replace_folder in races:
        assert (tmp_path / "whole/one").read_text() == (tmp_path / "whole/two").read_text()


def test_a_scratch_folder_of_a_killed_command_is_deleted_by_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from drfuse.files import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'patients').touch(); print(folder, flush=True); time.sleep(600)"
    )
    path = tmp_path / "drfuse"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        theirs = Path(command.stdout.readline().strip())
        assert theirs.stat().st_mode & 0o777 == 0o700
        with scratch_folder(path):
            assert (theirs / "patients").exists()  # it is in use
        os.kill(command.pid, signal.SIGKILL)
    with scratch_folder(path) as ours:
        assert not theirs.exists()
        assert ours != theirs
    assert not list(tmp_path.iterdir())
