"""Readers of files that may come from anyone, and bytes for them: bad ones are refused by an InputError.

`test_fuzz.py` gives each reader a fixed number of damaged files. With the extra `fuzz`, Atheris looks for
inputs that reach other lines, for as long as wanted: `python -m tests.reliability.fuzz TARGET -runs=10000`.
"""

import random
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from drfuse.cohort import prepare
from drfuse.cohort.patients import read_patients
from drfuse.data import Cohort
from drfuse.data.summary import summarize_inputs
from drfuse.errors import InputError
from drfuse.evaluation import Recalibration, evaluate
from drfuse.export import export
from drfuse.inference import Predictor
from drfuse.run import Run
from drfuse.training import train
from drfuse.training.checkpoints import load_checkpoint
from tests.builders import write_cohort
from tests.mimic import HEART_RATE, Hospital
from tests.training.own_model import FirstHour

TOKENS = (
    *(b'"', b"'", b",", b";", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"[", b"{", b"}", b":", b"- "),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"12.5", b"9" * 30, b"[]", b"{}", b'""'),
    *(b"2180-13-01", b"../x", b"=1+1", b"\x1b[31m", b"[" * 5000, b"&a *a", b"!!python/name:os.system ''"),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORD = re.compile(rb'"[^"\n]*"|null|true|false')


@dataclass(frozen=True)
class Target:
    """A file, and what reads it.

    Attributes:
        path: Where the file lies.
        read: Reads it; raises InputError if it cannot.
        inputs: How many damaged files the test tries.
    """

    path: Path
    read: Callable[[], object]
    inputs: int = 100

    def try_bytes(self, content: bytes) -> bool:
        """Return whether the file may have this content; what raises anything but InputError is a bug."""
        self.path.write_bytes(content)
        try:
            self.read()
        except InputError as error:
            if len(str(error).splitlines()) != 1 or "\0" in str(error):
                raise AssertionError(f"not one sentence: {error!r}") from error
            return False
        return True


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return content with one to four changes of bits, bytes, numbers, words and pieces."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        to = min(len(content), at + rng.choice((1, 4, 16, 64)))
        change = rng.randrange(7)
        pattern = _NUMBER if change == 4 else _WORD
        if change == 0 and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif change == 1:
            content = content[:at] + rng.choice(TOKENS) + content[to:]
        elif change == 2:
            content = content[:at] + content[to:]
        elif change == 3:
            content = content[:at] + content[at:to] * rng.choice((2, 50)) + content[to:]
        elif change in (4, 5) and (found := list(pattern.finditer(content))):
            one = rng.choice(found)
            content = content[: one.start()] + rng.choice(TOKENS) + content[one.end() :]
        elif change == 6 and rng.random() < 0.2:
            content = content[:at]
    return content


def make_targets(folder: Path) -> dict[str, Target]:
    """Write a small hospital, a cohort and a run to a folder, and return their files and what reads them."""
    targets = _of_hospital(folder / "hospital") | _of_patients(folder)
    splits = ("train",) * 12 + ("validation",) * 6 + ("test",) * 12
    cohort = write_cohort(folder / "cohort", splits, range(0, 30, 3))
    options: dict[str, Any] = {"epochs": 1, "crop_size": 8, "accelerator": "cpu", "progress": False}
    run = Run(train(cohort, folder / "run", FirstHour, **options).folder)
    evaluate(run.folder, n_resamples=2)
    for sums in (run.sums, run.checkpoints / "sums.json"):  # so that damage reaches what reads the files
        sums.unlink()
    for name in ("manifest.json", "stays.parquet", "ehr.npy", "cxr.npy", "normalization.json"):
        targets[f"cohort/{name}"] = Target(cohort / name, partial(_open_cohort, cohort))
    readers: dict[Path, Callable[[], object]] = {
        run.config: run.read_options,
        run.facts: partial(Predictor.open, run.folder),
        run.recalibration: partial(Recalibration.read, run.folder),
        run.model: partial(Predictor.open, run.folder),
        run.predictions: run.read_predictions,
        run.metrics: partial(export, run.folder, folder / "export", overwrite=True),
        run.last_checkpoint: partial(load_checkpoint, run.last_checkpoint),
    }
    slow = (run.facts, run.model, run.metrics)
    return targets | {
        f"run/{path.name}": Target(path, read, inputs=30 if path in slow else 100)
        for path, read in readers.items()
    }


def _open_cohort(folder: Path) -> None:
    cohort = Cohort.open(folder)
    for rows in (cohort.rows("test", "matched"), cohort.rows("train")):
        summarize_inputs(cohort, rows)


def _of_hospital(folder: Path) -> dict[str, Target]:
    hospital = Hospital()
    for number in range(12):
        stay = hospital.add_stay(60)
        for hour in range(3):
            hospital.chart(stay, HEART_RATE, 70 + number, hour + 0.5)
        hospital.diagnose(stay, "4019", 9)
        hospital.radiograph(stay, 1)
    hospital.write(folder / "mimic-iv", suffix=".csv")
    hospital.write_radiographs(folder / "mimic-cxr", suffix=".csv")
    options: dict[str, Any] = {"image_size": 32, "threads": 1, "overwrite": True}
    read = partial(prepare, folder / "mimic-iv", folder / "cohort", folder / "mimic-cxr", **options)
    files = ("mimic-iv/icu/chartevents.csv", "mimic-iv/icu/icustays.csv", "mimic-iv/hosp/admissions.csv")
    metadata = "mimic-cxr/mimic-cxr-2.0.0-metadata.csv"
    return {Path(file).name: Target(folder / file, read, inputs=6) for file in (*files, metadata)}


def _of_patients(folder: Path) -> dict[str, Target]:
    table = pl.DataFrame(
        {
            "stay_id": [1] * 6,
            "hours": [0.5, 1, 2, 3, 4, 5],
            "variable": ["heart_rate"] * 6,
            "value": ["80"] * 6,
        }
    )
    table.write_csv(csv := folder / "measurements.csv")
    table.write_parquet(parquet := folder / "measurements.parquet")
    targets = {path.name: Target(path, partial(read_patients, path)) for path in (csv, parquet)}
    for suffix in ("jpg", "png"):
        image = folder / f"image.{suffix}"
        Image.linear_gradient("L").resize((48, 40)).save(image)
        targets[image.name] = Target(image, partial(read_patients, table, image, image_size=32), 25)
    return targets


def main() -> None:
    """Have Atheris look for bytes that a reader does not refuse as it should."""
    import atheris

    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        target = make_targets(Path(scratch))[name]
        (corpus := Path(scratch, "corpus")).mkdir()
        (corpus / "whole").write_bytes(target.path.read_bytes())
        atheris.instrument_all()
        atheris.Setup(["fuzz", *options, str(corpus)], lambda data: target.try_bytes(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
