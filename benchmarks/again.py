"""What does a second `drfuse prepare` cost: with the same options, and with one of them changed?

`python -m benchmarks.again --mimic-iv DIR` runs it on copies of that release, each run in a process of its
own.
"""

import tempfile
from pathlib import Path

from benchmarks.command import command
from benchmarks.extraction import run_prepare
from benchmarks.replicate import COPIES, Form, copied
from benchmarks.results import Report, Table, Target

_PHENOTYPES = "phenotype,icd_version,icd_code\nHypertension,10,I10\nHypertension,9,4019\n"
_HOW = """\
The release is copied {copies} times, as {form}. `drfuse prepare` runs on it, then once more with the same
inputs and options, then with one option changed at a time (`--overwrite`; the cohort before it is always
the first one's). The time within the process counts, without the start of Python and its imports."""


def again(
    mimic_iv: Path,
    copies: int = 20,
    form: Form = "csv.gz",
    folder: Path = COPIES,
    save: Path | None = None,
) -> Report:
    """Time a second `drfuse prepare` beside the first.

    Args:
        mimic_iv: Folder of a release with tables as csv.gz.
        copies: How many times the release is copied.
        form: Format of the copies.
        folder: Where the copies are kept.
        save: JSON file to write the report to.
    """
    release = copied(mimic_iv, copies, form, folder)
    with tempfile.TemporaryDirectory() as scratch:
        phenotypes = Path(scratch, "phenotypes.csv")
        phenotypes.write_text(_PHENOTYPES, encoding="utf-8")
        changes = {
            "another seed": ["--seed", "1"],
            "other phenotypes": ["--phenotypes", str(phenotypes)],
            "another image size": ["--image-size", "128"],
            "another window": ["--window-hours", "24"],
        }
        out = Path(scratch, "cohort")
        runs = {"the first": run_prepare(release, out), "nothing changed": run_prepare(release, out)}
        for what, options in changes.items():
            runs[what] = run_prepare(release, out, "--overwrite", *options)
            run_prepare(release, out, "--overwrite")
    first = runs["the first"].seconds
    targets = [
        Target(f"time of a second prepare over the first, {what}", run.seconds / first)
        for what, run in runs.items()
        if what != "the first"
    ]
    rows: list[dict[str, str | float | None]] = [
        {
            "prepare": what,
            "seconds": run.seconds,
            "over the first": run.seconds / first,
            "seconds of the whole process": run.process_seconds,
            "peak memory, GiB": run.peak_gib,
        }
        for what, run in runs.items()
    ]
    how = _HOW.format(copies=copies, form=form)
    report = Report("A second prepare", how, targets, [Table("Each run", rows)])
    if save is not None:
        report.write(save)
    return report


if __name__ == "__main__":
    command(again)
