"""How long does it take to predict one patient?

`python -m benchmarks.latency` predicts a stay without and with a radiograph: the bare forward pass, a call of
`Predictor.predict_stays` in a process that has loaded the run, and `drfuse predict` from the shell.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import polars as pl
import torch
from PIL import Image

from benchmarks.command import command
from benchmarks.results import Report, Table, Target
from drfuse.cohort import prepare
from drfuse.data.augmentation import CxrTransform
from drfuse.data.loader import EvaluationBatches
from drfuse.inference import Predictor
from drfuse.inference.inputs import open_stays
from drfuse.simulate import simulate
from drfuse.training import TrainOptions, train

_HOW = """\
DrFuse at the paper's size, two ResNet-50 on radiographs of 224 pixels, trained for one epoch on {stays}
simulated stays; its accuracy does not matter here. The patient has {rows} measurements in 48 hours, and an
image of 2500 x 3056 pixels. Medians of {repeats} calls after one that does not count; from the shell, of
{starts}. *Bare*: the network alone on the batch, twice where there is a radiograph, as each stay is also
predicted without it."""
_VARIABLES = ("heart_rate", "respiratory_rate", "systolic_blood_pressure", "oxygen_saturation", "temperature")


def latency(stays: int = 60, repeats: int = 10, starts: int = 3, save: Path | None = None) -> Report:
    """Time predictions of one stay.

    Args:
        stays: Size of the simulated hospital that the run is trained on.
        repeats: Calls in a loaded process.
        starts: Calls from the shell.
        save: JSON file to write the report to.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        simulate(folder / "hospital", stays=stays, cxr_rate=0.5, image_size=64)
        prepare(folder / "hospital/mimic-iv", folder / "cohort", folder / "hospital/mimic-cxr")
        options = TrainOptions(epochs=1, accelerator="cpu")
        run = train(folder / "cohort", folder / "run", options=options, progress=False).folder
        ehr, cxr = _patient(folder)
        predictor = Predictor.open(run)
        rows: list[dict[str, str | float | None]] = []
        for what, image in (("without radiograph", None), ("with radiograph", cxr)):
            bare = _median(_forward(predictor, ehr, image), repeats)
            loaded = _median(partial(predictor.predict_stays, ehr, image), repeats)
            shell = _median(_command(run, ehr, image), starts)
            rows.append(
                {
                    "stay": what,
                    "bare, ms": 1000 * bare,
                    "loaded process, ms": 1000 * loaded,
                    "from the shell, s": shell,
                }
            )
        n_rows = len(pl.read_csv(ehr))
    targets = [
        Target(
            f"one stay {row['stay']}, in a loaded process", float(row["loaded process, ms"] or 0) / 1000, "s"
        )
        for row in rows
    ]
    how = _HOW.format(stays=stays, rows=n_rows, repeats=repeats, starts=starts)
    report = Report("Predicting one patient", how, targets, [Table("Each way", rows)])
    if save is not None:
        report.write(save)
    return report


def _patient(folder: Path) -> tuple[Path, Path]:
    """Write the measurements and the radiograph of one made-up patient."""
    random = np.random.default_rng(0)
    hours = np.tile(np.arange(48) + 0.5, len(_VARIABLES))
    usual = np.repeat([86.0, 19.0, 118.0, 98.0, 36.6], 48)
    table = {
        "stay_id": np.ones(len(hours), int),
        "hours": hours,
        "variable": np.repeat(_VARIABLES, 48),
        "value": usual * random.normal(1, 0.02, len(hours)),
    }
    pl.DataFrame(table).write_csv(folder / "ehr.csv")
    pixels = random.integers(0, 255, (306, 250), np.uint8)
    Image.fromarray(pixels).resize((2500, 3056)).save(folder / "cxr.jpg")
    return folder / "ehr.csv", folder / "cxr.jpg"


def _forward(predictor: Predictor, ehr: Path, cxr: Path | None) -> Callable[[], object]:
    """Return a function that runs the network alone on the patient's batch."""
    with open_stays(predictor.facts, ehr=ehr, cxr=cxr) as stays:
        dataset = predictor.dataset(stays, labelled=False)
        (batch,) = EvaluationBatches(dataset, CxrTransform(predictor.facts.crop_size), [[0]])

    def forward() -> None:
        with torch.inference_mode():
            predictor.model(batch)
            if cxr is not None:
                predictor.model(batch.matched_without_cxr())

    return forward


def _command(run: Path, ehr: Path, cxr: Path | None) -> Callable[[], object]:
    """Return a function that predicts the patient from the shell."""
    images = [] if cxr is None else ["--cxr", str(cxr)]
    called = [sys.executable, "-m", "drfuse", "predict", str(run), "--ehr", str(ehr), *images]
    return lambda: subprocess.run(called, check=True, capture_output=True)


def _median(call: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times[1:])


if __name__ == "__main__":
    command(latency)
