"""Writes docs/reliability.md: what is promised, how it is tested, and what the tests and faults found.

`python -m benchmarks.reliability --out docs/reliability.md`; `make faults` does that. The promises are the
first lines of the test modules, and their cases are counted as pytest collects them.
"""

import ast
import random
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from textwrap import fill

from benchmarks.command import command
from benchmarks.results import Report, Table, markdown_table

_ROOT, _TESTS = Path(__file__).parents[1], "tests/reliability"
_HEAD = """\
# What drfuse promises when things go wrong

Written on {day} by `{command}`;
no number is typed by hand. [Security](security.md) says
what drfuse protects you from.

## Promises

{promises}

Cases are those that pytest collects, the slow ones too; `make test` runs the quick ones, `make test-slow` the
others, and CI both.

{sections}
"""

_HOW = """\
Each file of a small hospital, cohort and run is changed at random: bits, bytes, numbers and words, and pieces
that are cut, doubled or lost; seed {seed}. Runs and checkpoints have no sums here, so that the damage reaches
what reads them. *Refused*: by one sentence. *Read*: the file may hold that, or its rows are left out and
counted. `python -m tests.reliability.fuzz FILE` looks for more, with Atheris (`pip install '.[fuzz]'`)."""


def reliability(
    out: Path,
    faults_per_command: int = 10,
    inputs_per_file: int = 200,
    seed: int = 0,
    faults: Path | None = None,
) -> None:
    """Run the long loops, and write the document.

    Args:
        out: Markdown file to write.
        faults_per_command: How often each kind of fault strikes each command, at most.
        inputs_per_file: How many damaged versions of each file its reader gets.
        seed: Seed of the faults and the damage.
        faults: Results that `python -m benchmarks.faults --save` wrote, to show them instead of new ones.
    """
    with tempfile.TemporaryDirectory() as scratch:
        saved = faults or Path(scratch, "faults.json")
        if faults is None:  # a process of its own, because it forks
            options = [f"--faults-per-command={faults_per_command}", f"--seed={seed}", f"--save={saved}"]
            subprocess.run([sys.executable, "-m", "benchmarks.faults", *options], check=True, cwd=_ROOT)
        of_commands = Report.read(saved)
        of_files = damage(Path(scratch, "files"), inputs_per_file, seed)
    sections = (of_commands.markdown(), of_files.markdown())
    counts = {"faults-per-command": faults_per_command, "inputs-per-file": inputs_per_file, "seed": seed}
    words = " ".join(f"--{name}={value}" for name, value in counts.items())
    text = _HEAD.format(
        day=date.today().isoformat(),
        command=f"python -m benchmarks.reliability --out docs/reliability.md {words}",
        promises=markdown_table(promises()),
        sections="\n\n".join(sections),
    )
    out.write_text(text, encoding="utf-8")


def damage(folder: Path, inputs_per_file: int, seed: int) -> Report:
    """Give each reader damaged versions of its file, and count what it refuses, reads, or fails on."""
    from tests.reliability.fuzz import make_targets, mutate

    rows: list[dict[str, str | float | None]] = []
    for name, target in make_targets(folder).items():
        whole, rng, count = target.path.read_bytes(), random.Random(f"{seed} {name}"), Counter[str]()
        n = inputs_per_file * target.inputs // 100 or 1
        for _ in range(n):
            try:
                count["read" if target.try_bytes(mutate(whole, rng)) else "refused"] += 1
            except Exception:
                count["other error"] += 1
        target.path.write_bytes(whole)
        row: dict[str, str | float | None] = {"file": f"`{name}`", "inputs": n}
        row.update({kind: count[kind] for kind in ("refused", "read", "other error")})
        rows.append(row)
    how = fill(_HOW.format(seed=seed), 110, break_on_hyphens=False)
    return Report("Damaged files", how, tables=[Table("By file", rows)])


def promises() -> list[dict[str, str | float | None]]:
    """Return a row for each test module: its first line, its number of cases, and how to run it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, _TESTS], check=True, capture_output=True, text=True, cwd=_ROOT)
    cases = Counter(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line)
    return [
        {"what": _first_line(_ROOT / module), "cases": count, "command": f"`pytest {module}`"}
        for module, count in sorted(cases.items())
    ]


def _first_line(module: Path) -> str:
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    command(reliability)
