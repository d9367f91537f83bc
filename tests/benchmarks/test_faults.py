"""The benchmark of faults: what it calls lost, and a few faults of which nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import COMMANDS, Bench, Command, Undisturbed, needed, state_of
from benchmarks.injection import Ended
from benchmarks.results import Report

LEFT = ".out.0123456789abcdef.partial/a"


@pytest.mark.parametrize(
    ("command", "files", "state"),
    [
        (Command(()), {"out/a": "old"}, "old"),
        (Command(()), {"out/a": "new", "out/b": "new"}, "new"),
        (Command(()), {"out/a": "old", ".out.lock": "", LEFT: "half", "tmp/a": "half"}, "old"),
        (Command(()), {"out/a": "new"}, "neither"),
        (Command(()), {"out/a": "half"}, "neither"),
        (Command(()), {}, "neither"),
        (
            Command(("--overwrite",), finished="out/b"),
            {"out/a": "half", ".out.replaced/a": "old"},
            "unfinished",
        ),
        (Command(("--overwrite",), finished="out/b"), {"out/a": "half"}, "neither"),
        (Command(("--overwrite",), finished="out/b"), {"out/b": "new", ".out.replaced/a": "old"}, "neither"),
        (Command((), finished="out/b", remade=("*/a",)), {"out/a": "new"}, "unfinished"),
        (Command((), finished="out/b", remade=("*/a",)), {}, "unfinished"),
        (Command((), finished="out/b", remade=("*/c",)), {"out/a": "half"}, "neither"),
    ],
)
def test_what_is_there_is_old_or_new_or_unfinished(
    tmp_path: Path, command: Command, files: dict[str, str], state: str
) -> None:
    bench, found = Bench(command, command.words, tmp_path, tmp_path), []
    for contents in ({"out/a": "old"}, {"out/a": "new", "out/b": "new"}, files):
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            path.unlink()
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        found.append(bench.contents())
    assert state_of(bench, Undisturbed(found[0], found[1], set(), Ended(0, "", 0, 0), 0, 0)) == state


def test_commands_get_their_inputs() -> None:
    assert needed(["predict"]) == ["hospital", "cohort", "run"]
    assert needed(["simulate --overwrite"]) == ["small"]
    assert needed(["evaluate again"]) == ["hospital", "cohort", "run", "evaluated"]
    for name, command in COMMANDS.items():
        assert bool(command.before) == (name.startswith("evaluate") or "--overwrite" in command.words)


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    options = ["--commands", "prepare", "evaluate", "predict", "--faults-per-command=2"]
    options += ["--kinds", "kill", "terminate", "full disk", f"--save={tmp_path / 'found.json'}"]
    command = [sys.executable, "-m", "benchmarks.faults", *options]  # it forks, so it needs a fresh process
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = {target.what: target.value for target in Report.read(tmp_path / "found.json").targets}
    assert found == {"faults": 18, "lost": 0, "left over": 0, "not said": 0}, done.stderr
