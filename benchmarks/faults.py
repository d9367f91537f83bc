"""What is left when a command dies or its disk is full, and does the same command go on from there?

`python -m benchmarks.faults` runs each command that writes on a small simulated hospital, first undisturbed,
then again and again with a fault: it is killed before an operation on a file or after a random time, gets
SIGTERM, or finds the disk full. After each fault it looks at the folder, repeats the command, and compares
every byte with what the undisturbed command left.
"""

import hashlib
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Literal

from rich.console import Console

from benchmarks.command import command
from benchmarks.injection import Action, Ended, in_child, on_small_disk, run, run_and_import
from benchmarks.results import Report, Table, Target

_TINY = ("--model=EhrTransformer", "--model.dim=8")
_TRAIN = ("--epochs=2", "--crop-size=32", "--batch-size=64", "--accelerator=cpu")
_BACKBONE = "{layer_type: basic, embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1]}"
_DRFUSE = f"--model-args={{dim: 8, heads: 2, feedforward: 8, cxr_backbone: {_BACKBONE}}}"
_WORDS: dict[str, tuple[str, ...]] = {
    "simulate": ("simulate", "--image-size=32", "--cxr-rate=0.5"),
    "prepare": (
        "prepare",
        "--mimic-iv={inputs}/hospital/mimic-iv",
        "--mimic-cxr={inputs}/hospital/mimic-cxr",
        "--image-size=32",
    ),
    "train": ("train", "{inputs}/cohort", *_TINY, *_TRAIN, "--lr=0.01", "--progress=false"),
    "explain": ("explain", "{inputs}/run", "{inputs}/cohort", "--stay={stay}", "--most-steps=8"),
    "predict": ("predict", "{inputs}/run", "{inputs}/cohort", "--accelerator=cpu", "--progress=false"),
    "evaluate": ("evaluate", "out", "--n-resamples=10"),
}
_INPUTS: dict[str, tuple[str, ...]] = {
    "hospital": (*_WORDS["simulate"], "--stays=100"),
    "elsewhere": (*_WORDS["simulate"], "--stays=60", "--seed=1"),
    "small": (*_WORDS["simulate"], "--stays=20", "--seed=1"),
    "cohort": _WORDS["prepare"],
    "another": (*_WORDS["prepare"], "--seed=1"),
    "theirs": (
        "prepare",
        "--mimic-iv={inputs}/elsewhere/mimic-iv",
        "--mimic-cxr={inputs}/elsewhere/mimic-cxr",
        "--image-size=32",
    ),
    "other-run": (*_WORDS["train"], "--seed=1"),
    "run": _WORDS["train"],
    "evaluated": ("evaluate", "{inputs}/evaluated", *_WORDS["evaluate"][2:]),
    "explanation": (*_WORDS["explain"], "--ehr-method=occlusion"),
    "predictions.parquet": (_WORDS["predict"][0], "{inputs}/other-run", *_WORDS["predict"][2:]),
    "export": ("export", "{inputs}/other-run"),
}
"""What the commands read or replace: the words that make each, but for `--out`."""

_VARIES = (
    "cache",
    "cache/drfuse",
    "cache/drfuse/whole",
    "cache/drfuse/whole/*.json",
    "*/logs/*",
    "*/checkpoints/sums.json",
    "*/checkpoints/*.ckpt",
)
"""Files that differ between two undisturbed runs: times in logs and checkpoints, and stamps of files."""

_TEMPORARY = re.compile(r"(.*/)?\..+\.[0-9a-f]{16}\.(partial|replaced|scratch)(/.*)?|tmp/.+", re.DOTALL)
_PAGE = 4096
_BAD = ("lost", "left over", "not said")
_COLUMNS = ("faults", "old", "new", "unfinished", "same", *_BAD)
_LOCK, _REPLACED = ".lock", ".out.replaced"
_NO_ROOM = re.compile(
    "no space is left on the disk|No space left on device; choose a --temp-dir|if the disk is full, free some"
)

State = Literal["old", "new", "unfinished", "neither"]
Kind = Action | Literal["random", "small disk"]


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: What follows `drfuse`, with `{inputs}` and `{stay}`.
        before: What lies in the folder before: its name, and the input that it is a copy of.
        finished: The file without which the output is unfinished; empty: the output appears at once.
        remade: Patterns of files that may be missing, or say that others are, while it is unfinished.
    """

    words: tuple[str, ...]
    before: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""
    remade: tuple[str, ...] = ()


_OUT, _REMADE = "--out=out", ("*.csv", "*/sums.json")
COMMANDS: dict[str, Command] = {
    "simulate": Command((*_INPUTS["small"], _OUT)),
    "simulate --overwrite": Command(
        (*_WORDS["simulate"], "--stays=20", _OUT, "--overwrite"), {"out": "small"}
    ),
    "prepare": Command((*_WORDS["prepare"], _OUT)),
    "prepare --overwrite": Command((*_WORDS["prepare"], _OUT, "--overwrite"), {"out": "another"}),
    "train": Command((*_WORDS["train"], _OUT), finished="out/predictions.parquet"),
    "train --overwrite": Command(
        (*_WORDS["train"], _OUT, "--overwrite"), {"out": "other-run"}, "out/predictions.parquet"
    ),
    "evaluate": Command(_WORDS["evaluate"], {"out": "run"}, "out/subgroups.csv", _REMADE),
    "evaluate again": Command(
        (*_WORDS["evaluate"], "--seed=1"), {"out": "evaluated"}, "out/subgroups.csv", _REMADE
    ),
    "evaluate --on": Command(
        (*_WORDS["evaluate"], "--on={inputs}/theirs", "--other-people", "--accelerator=cpu"),
        {"out": "evaluated"},
        "out/external/theirs-*/subgroups.csv",
        _REMADE,
    ),
    "predict": Command((*_WORDS["predict"], "--out=out.parquet")),
    "predict --overwrite": Command(
        (*_WORDS["predict"], "--out=out.parquet", "--overwrite"), {"out.parquet": "predictions.parquet"}
    ),
    "predict --mimic-iv": Command(
        ("predict", "{inputs}/run", "--mimic-iv={inputs}/elsewhere/mimic-iv", "--out=out.csv")
    ),
    "explain": Command((*_WORDS["explain"], _OUT)),
    "explain --overwrite": Command((*_WORDS["explain"], _OUT, "--overwrite"), {"out": "explanation"}),
    "export": Command(("export", "{inputs}/run", _OUT)),
    "export --overwrite": Command(("export", "{inputs}/run", _OUT, "--overwrite"), {"out": "export"}),
    "tune": Command(
        (
            *("tune", "{inputs}/cohort", _OUT, _DRFUSE, *_TRAIN, "--lr", "0.01", "0.001"),
            *("--alignment-weight=0", "--orthogonality-weight=0", "--auxiliary-weight=0"),
        ),
        finished="out/best.yaml",
    ),
    "reproduce": Command(
        (
            *("reproduce", "calibration", "{inputs}/cohort", _OUT, _DRFUSE, *_TRAIN, "--lr=0.01"),
            *("--models=drfuse", "--n-resamples=10"),
        ),
        finished="out/report-calibration.html",
    ),
}


@dataclass(frozen=True)
class Found:
    """What was found after one fault.

    Attributes:
        state: What lay there.
        operations: How many operations on files the command had begun.
        problems: What is wrong, by its kind: `lost`, `left over` or `not said`.
    """

    state: State
    operations: int
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """A command, ready to be disturbed.

    Attributes:
        command: The command.
        words: Its words, with paths.
        inputs: Folder of the inputs.
        folder: Folder that it runs in.
    """

    command: Command
    words: Sequence[str]
    inputs: Path
    folder: Path

    def clear(self) -> None:
        """Make the folder as it is before the command."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "tmp").mkdir()
        (self.folder / "notes.txt").write_text("of the user")
        for name, of_input in self.command.before.items():
            original = self.inputs / of_input
            (shutil.copytree if original.is_dir() else shutil.copy2)(original, self.folder / name)

    def contents(self) -> dict[str, str]:
        """Return the SHA-256 of every file that two undisturbed runs share, by its path."""
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in self._files()
            if not _TEMPORARY.fullmatch(name) and path.is_file() and path.suffix != _LOCK
        }

    def listing(self) -> set[str]:
        """Return the paths of everything, but for logs and what else varies."""
        return {name for name, _ in self._files()}

    def size(self) -> int:
        """Return how many bytes the folder takes on a disk, in pages."""
        return sum(
            -(-path.stat().st_size // _PAGE) * _PAGE for path in self.folder.rglob("*") if path.is_file()
        )

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if not any(fnmatch(name, pattern) for pattern in _VARIES):
                yield name, path


@dataclass(frozen=True)
class Undisturbed:
    """What a command finds and leaves, and how it ends, when nothing happens to it."""

    old: Mapping[str, str]
    new: Mapping[str, str]
    listing: set[str]
    ended: Ended
    before: int
    size: int

    @classmethod
    def of(cls, bench: Bench) -> "Undisturbed":
        """Run a command twice.

        Raises:
            ValueError: If it fails, or the two differ.
        """
        found = []
        for _ in range(2):
            bench.clear()
            old, before = bench.contents(), bench.size()
            ended = run(bench.words, bench.folder)
            found.append((bench.contents(), bench.listing()))
        if ended.code or found[0] != found[1]:
            differ = {name for name, sum_ in found[0][0].items() if found[1][0].get(name) != sum_}
            raise ValueError(
                f"{' '.join(bench.words)}: exit code {ended.code}, {differ} differ: {ended.said}"
            )
        return cls(old, *found[0], ended, before, bench.size() + before)


def disturb(bench: Bench, whole: Undisturbed, kind: Kind, at: float) -> Found | None:
    """Disturb a command once, look at what it left, and repeat it.

    Args:
        bench: The command.
        whole: What it does undisturbed.
        kind: What happens to it.
        at: Before which operation, after how many seconds, or how many bytes the disk has.

    Returns:
        What was found; None if nothing happened to the command, or could have.
    """
    if kind == "small disk":
        found: Found | None = on_small_disk(
            bench.folder, int(at), partial(_disturb_and_repeat, bench, whole, kind, at)
        )
        return found
    return _disturb_and_repeat(bench, whole, kind, at)


def _disturb_and_repeat(
    bench: Bench, whole: Undisturbed, kind: Kind, at: float, make_room: Callable[[], object] = lambda: None
) -> Found | None:
    bench.clear()
    if kind == "small disk":
        ended = run(bench.words, bench.folder)
    elif kind == "random":
        ended = run(bench.words, bench.folder, seconds=at)
    else:
        ended = run(bench.words, bench.folder, int(at), kind)
    make_room()
    if kind in ("random", "small disk") and ended.code == 0:
        return None
    state, problems = state_of(bench, whole), dict[str, str]()
    if state == "neither" and bench.command.finished and "runs failed" in ended.said:
        state = "unfinished"  # its table and its page have the runs that did not
    if state == "neither":
        problems["lost"] = f"what is there is neither old nor new: {_differs(bench.contents(), whole.new)}"
    if kind in ("terminate", "full disk", "small disk"):
        if left := sorted(filter(_TEMPORARY.fullmatch, bench.listing() - whole.listing)):
            problems["left over"] = f"{left[0]} after exit code {ended.code}"
        if not _is_said(ended, kind, state):
            problems["not said"] = f"exit code {ended.code}: {ended.said.strip()[-500:]}"
    again = run(bench.words, bench.folder)
    if again.code and not (state == "new" and again.code == 2 and "--overwrite" in again.said):
        problems["lost"] = f"the same command fails then: {again.said.strip()[-500:]}"
    elif (now := bench.contents()) != whole.new:
        problems["lost"] = f"the same command makes other bytes then: {_differs(now, whole.new)}"
    if left := sorted(bench.listing() - whole.listing):
        problems["left over"] = f"{left[0]} after the same command"
    return Found(state, ended.operations, problems)


def state_of(bench: Bench, whole: Undisturbed) -> State:
    """Return what a command left: the old, the new, or what drfuse says is unfinished."""
    now, old = bench.contents(), whole.old
    if now == old:
        return "old"
    if {name: sum_ for name, sum_ in now.items() if not name.startswith(_REPLACED)} == whole.new:
        return "new"
    finished = bench.command.finished
    if not finished or any(bench.folder.glob(finished)):
        return "neither"
    remade = {name for name in {**now, **old} if any(fnmatch(name, one) for one in bench.command.remade)}
    if bench.command.remade and any(
        sum_ not in (old.get(name), whole.new.get(name)) for name, sum_ in now.items() if name not in remade
    ):
        return "neither"
    kept = dict(old)
    if "--overwrite" not in bench.words:
        kept = {
            name: sum_ for name, sum_ in old.items() if whole.new.get(name) == sum_ and name not in remade
        }
    # a run that is replaced is kept beside until the new one is finished
    replaced = {
        f"out{name.removeprefix(_REPLACED)}": sum_ for name, sum_ in now.items() if name.startswith(_REPLACED)
    }
    places = (now, now | replaced)
    return "unfinished" if any(kept.items() <= place.items() for place in places) else "neither"


def _is_said(ended: Ended, kind: Kind, state: State) -> bool:
    """Return whether a command that was not killed ended as it should, in a sentence."""
    if "Traceback" in ended.said:
        return False
    if ended.code == 0:
        return state == "new"
    if kind == "terminate":
        return ended.code == 143 and "terminated; run the same command again" in ended.said
    return ended.code == 2 and _NO_ROOM.search(ended.said) is not None and "Errno" not in ended.said


def _differs(now: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Return the paths of files that are not as wanted."""
    names = sorted(name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name))
    return ", ".join(names[:3])


KINDS: dict[Kind, str] = {
    "kill": "killed before an operation on a file",
    "random": "killed after a random time",
    "terminate": "SIGTERM before an operation on a file",
    "full disk": "disk full from an operation on",
    "small disk": "a disk with too little room",
}

_HOW = """\
Each command runs on a simulated hospital of 100 stays: undisturbed, twice; then with faults, at most {n} of
each kind, seed {seed}. *Operations*: those that change the folder that it runs in, as an audit hook of Python
sees them. *Old*, *new*, *unfinished*: what lies there after the fault, to the byte; what is unfinished lacks
the file that marks a finished output. Then the same command runs again. *Same*: what is there then is, to the
byte, what the undisturbed command leaves (it may say that this exists); not compared are {varies}. *Lost*:
the second command fails or makes other bytes, or what lay there after the fault was neither old nor new.
*Left over*: a temporary file is there after an end that was not a kill, or after the second command.
*Not said*: a command that was not killed did not end with its sentence."""


def faults(
    commands: Sequence[str] = tuple(COMMANDS),
    kinds: Sequence[Kind] = tuple(KINDS),
    faults_per_command: int = 10,
    seed: int = 0,
    save: Path | None = None,
) -> Report:
    """Disturb commands, and count what was lost.

    Args:
        commands: The commands.
        kinds: What happens to them.
        faults_per_command: How often each kind of fault strikes each command, at most; each operation once.
        seed: Seed of the moments.
        save: JSON file to write the report to.
    """
    said, rng = Console(stderr=True, highlight=False, markup=False), random.Random(seed)
    rows: list[dict[str, str | float | None]] = []
    of_kinds = {kind: Counter[str]() for kind in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, folder = Path(scratch, "inputs"), Path(scratch, "work")
        stay = make_inputs(inputs, needed(commands))
        for name in commands:
            bench = make_bench(name, inputs, folder, stay)
            whole, count = Undisturbed.of(bench), Counter[str]()
            for kind, at in moments(whole, kinds, faults_per_command, rng):
                found = disturb(bench, whole, kind, at)
                if found is None:
                    continue
                good = () if found.problems else ("same",)
                count.update(("faults", found.state, *good, *found.problems))
                of_kinds[kind].update(("faults", *good, *found.problems))
                for what, problem in found.problems.items():
                    said.print(f"{name}, {KINDS[kind]}, {at:.6g}: {what}: {problem}", soft_wrap=True)
            begun = {"operations": whole.ended.operations}
            rows.append(_row(f"`{name}`", "command", {**count, **begun}, ("operations", *_COLUMNS)))
            said.print(f"{name}: {count['faults']} faults, {count['same']} same")
    total = sum(of_kinds.values(), Counter[str]())
    targets = [Target("faults", total["faults"], "faults")]
    targets += [Target(what, total[what], "faults", at_most=0) for what in _BAD]
    shown = ("faults", "same", *_BAD)
    kinds_shown = [_row(KINDS[kind], "fault", of_kinds[kind], shown) for kind in kinds]
    varies = ", ".join(f"`{one}`" for one in _VARIES)
    how = fill(_HOW.format(n=faults_per_command, seed=seed, varies=varies), 110, break_on_hyphens=False)
    report = Report("Faults", how, targets, [Table("By command", rows), Table("By fault", kinds_shown)])
    if save is not None:
        report.write(save)
    return report


def needed(commands: Sequence[str]) -> list[str]:
    """Return the inputs of commands, each after those that it is made from."""
    words = [word for name in commands for word in COMMANDS[name].words]
    found = {of_input for name in commands for of_input in COMMANDS[name].before.values()}
    for name in reversed(_INPUTS):
        if name in found or any(re.search(rf"{{inputs}}/{name}(/|$)", word) for word in words):
            found.add(name)
            words += [*_INPUTS[name], "{inputs}/run"] if name == "evaluated" else _INPUTS[name]
    return [name for name in _INPUTS if name in found]


def make_inputs(folder: Path, names: Sequence[str]) -> str:
    """Make what the commands read, and import what that takes; return the id of a stay with a radiograph."""
    (folder / "tmp").mkdir(parents=True)
    stay = ""
    for name in names:
        words = _fill(_INPUTS[name], folder, stay)
        if name == "evaluated":
            shutil.copytree(folder / "run", folder / name)
        else:
            words.append(f"--out={folder / name}")
        run_and_import(words, folder)
        if name == "cohort":
            stay = str(in_child(partial(_stay_with_radiograph, folder / name)))
    return stay


def make_bench(name: str, inputs: Path, folder: Path, stay: str) -> Bench:
    """Return a command, ready to be disturbed in a folder."""
    command = COMMANDS[name]
    return Bench(command, _fill(command.words, inputs, stay), inputs, folder)


def moments(
    whole: Undisturbed, kinds: Sequence[Kind], n: int, rng: random.Random
) -> Iterator[tuple[Kind, float]]:
    """Yield each kind of fault with up to n moments: numbers of operations, seconds, or bytes of the disk."""
    for kind in kinds:
        if kind == "random":
            yield from ((kind, rng.uniform(0, whole.ended.seconds)) for _ in range(n))
        elif kind == "small disk":
            yield from ((kind, whole.before + rng.uniform(0, whole.size)) for _ in range(n))
        else:
            operations = range(1, whole.ended.operations + 1)
            yield from ((kind, at) for at in sorted(rng.sample(operations, min(n, len(operations)))))


def _stay_with_radiograph(cohort: Path) -> int:
    import polars as pl

    return int(pl.read_parquet(cohort / "stays.parquet").filter("has_cxr")["stay_id"][0])


def _fill(words: Sequence[str], inputs: Path, stay: str) -> list[str]:
    return [word.replace("{inputs}", str(inputs)).replace("{stay}", stay) for word in words]


def _row(
    name: str, of: str, count: Mapping[str, int], columns: Sequence[str]
) -> dict[str, str | float | None]:
    return {of: name} | {column: count.get(column, 0) for column in columns}


if __name__ == "__main__":
    command(faults)
