"""Does a cohort of a million stays fit in memory, from `prepare`'s assembly to `evaluate`?

`python -m benchmarks.million` writes a cohort of made-up stays with the code of `prepare`, predicts them with
a model of one layer as `train` does, and evaluates the run, each stage in a process of its own.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import ibis.expr.types as ir
import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.assembly import make_up_hourly
from benchmarks.command import command
from benchmarks.fresh import fresh
from benchmarks.results import Report, Table, Target
from drfuse import __version__
from drfuse.cohort.assembly import number_stays, write_ehr, write_normalization, write_stays
from drfuse.cohort.left_out import count_left_out
from drfuse.cohort.manifest import FlowStep, Manifest
from drfuse.cohort.radiographs import find_radiographs, store_radiographs
from drfuse.cohort.reuse import CONTENT, INPUTS, write_inputs
from drfuse.cohort.sources import Images, Source
from drfuse.cohort.split import count_splits
from drfuse.cohort.store import Store, open_store, spill_folder
from drfuse.cohort.variables import load_variables
from drfuse.data import Batch, Cohort
from drfuse.data.dataset import StayDataset
from drfuse.evaluation import evaluate as evaluate_run
from drfuse.inference import Predictor
from drfuse.models import FusionModel
from drfuse.models.base import MODALITIES, FusionOutput
from drfuse.run import Run, RunFacts, predictions_file
from drfuse.sums import sha256

AT_MOST_GIB = 4
_LABELS = [f"phenotype {c}" for c in range(25)]
_HOURS, _SIDE = 48, 32
_IMAGE_FILES = 100
_CELLS = 30
_HOW = """\
{stays:,} made-up stays of half as many subjects, {cells} observed values and 25 labels each, every {every}th
with a radiograph of {side} pixels, pass through the code that `drfuse prepare` writes a cohort with, under
its default memory limit of 2 GiB. Then the cohort is opened, and every stay is predicted by a model of one
layer with modality weights, as at the end of `drfuse train`; then `drfuse evaluate` measures the test split,
with 1,000 half samples and groups of patients. The weights are random: an AUROC of 0.5 is right. Each stage
runs in a process of its own. Its peak memory counts the pages of memory-mapped files that it reads."""


def measure(
    stays: int = 1_000_000, every: int = 50, folder: Path | None = None, save: Path | None = None
) -> Report:
    """Measure time and memory of each stage.

    Args:
        stays: Stays of the cohort.
        every: Every how manyth stay has a radiograph.
        folder: Where to work; by default a temporary folder. Needs 4 GB for a million stays.
        save: JSON file to write the report to.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cohort, run = Path(work, "cohort"), Path(work, "run")
        stages = {
            "prepare: assembly": fresh("benchmarks.million:assemble", cohort, stays, every),
            "open, sums checked": fresh("benchmarks.million:check", cohort),
            "predict every stay": fresh("benchmarks.million:predict", cohort, run),
            "evaluate": fresh("benchmarks.million:evaluate", cohort, run),
        }
    rows: list[dict[str, str | float | None]] = [
        {
            "stage": name,
            "time, s": stage.seconds,
            "microseconds a stay": 1e6 * stage.seconds / stays,
            "peak memory, GiB": stage.peak_gib,
        }
        for name, stage in stages.items()
    ]
    auroc = stages["evaluate"].result
    report = Report(
        f"{stays:,} stays, end to end",
        _HOW.format(stays=stays, cells=_CELLS, every=every, side=_SIDE),
        [
            Target(f"peak memory: {name}", stage.peak_gib, "GiB", at_most=AT_MOST_GIB)
            for name, stage in stages.items()
        ],
        [Table("Each stage", rows, f"The macro AUROC is {auroc:.3f}.")],
    )
    if save is not None:
        report.write(save)
    return report


def assemble(folder: Path, n_stays: int, every: int) -> None:
    """Write a cohort of made-up stays with the steps of `prepare` that follow its queries."""
    folder.mkdir()
    files = folder.with_name("images")
    _write_images(files)
    variables = load_variables()
    ehr, stays_file = folder / "ehr.npy", folder / "stays.parquet"
    with open_store(None, "2GiB") as store, spill_folder(store, folder, None):
        hourly = make_up_hourly(store, n_stays, _CELLS)
        source = _MadeUp(
            store, _ImageFiles("made_up_cxr", "1", files, (), _radiographs(store, n_stays, every))
        )
        _make_up_stays(store, n_stays)
        stays = number_stays(store.table("included"), store.table("labels"), None, 0, store)
        for _ in write_ehr(ehr, stays, hourly, (_HOURS, len(variables)), store):
            pass
        found, undated = find_radiographs(cast(Source, source), stays, ["AP"])
        with Progress(disable=True) as progress:
            images = store_radiographs(
                found, cast(Source, source), _SIDE, None, folder / "cxr.npy", None, progress
            )
        write_stays(stays_file, stays, images, _LABELS, store)
        write_inputs(folder / INPUTS, {}, images, store)
    warnings = count_left_out(
        stays_file, _LABELS, {}, [], undated, dict.fromkeys(("label", "no label", "not ICD"), 0)
    )
    write_normalization(folder / "normalization.json", ehr, stays_file, variables)
    Manifest(
        drfuse=__version__,
        sources={},
        options={"window_hours": _HOURS, "image_size": _SIDE},
        flow=[FlowStep("made up", n_stays)],
        variables=list(variables),
        phenotypes=_LABELS,
        splits=count_splits(stays_file),
        warnings=warnings,
        files={name: sha256(folder / name) for name in CONTENT},
    ).write(folder)


def check(cohort: Path) -> int:
    """Open a cohort as the first process of a training does; return its number of stays."""
    return len(Cohort.open(cohort, verify=True))


def predict(cohort: Path, run: Path) -> None:
    """Write a run of a model with random weights, and predict every stay as `train` does."""
    opened = Cohort.open(cohort)
    dataset = StayDataset(opened, cxr="nothing")
    torch.manual_seed(0)
    model = OneLayer(len(dataset.features), len(_LABELS))
    run.mkdir()
    files = Run(run)
    save_file(model.state_dict(), files.model)
    RunFacts(
        drfuse=__version__,
        cohort=opened.fingerprint,
        model={"class_path": "benchmarks.million.OneLayer", "init_args": {}},
        n_features=len(dataset.features),
        task="phenotyping",
        label_names=_LABELS,
        variables=opened.manifest.variables,
        normalization=opened.normalization,
        window_hours=_HOURS,
        image_size=_SIDE,
        crop_size=_SIDE,
        batch_size=256,
        precision="32-true",
        best_epoch=0,
        val_prauc_macro=0.0,
    ).write(files.facts)
    with predictions_file(files.predictions) as append:
        for block in Predictor.open(run).predict_blocks(opened):
            append(block)


def evaluate(cohort: Path, run: Path) -> float:
    """Evaluate the run as `drfuse evaluate RUN --cohort COHORT` does; return its macro AUROC."""
    found = evaluate_run(run, cohort=cohort)
    return next(one.metrics["auroc"].macro.value for one in found if one.test_on == "full")


class OneLayer(FusionModel):
    """A linear layer on the last hour, and modality weights that depend on the radiograph alone."""

    def __init__(self, n_features: int, n_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_features, n_labels)

    def forward(self, batch: Batch) -> FusionOutput:
        """Return logits (B, C) and modality weights (B, C, 3)."""
        logits = self.head(batch.ehr[torch.arange(len(batch)), batch.n_hours - 1])
        weights = F.one_hot(batch.has_cxr.long(), len(MODALITIES)).float()
        return FusionOutput(logits, weights[:, None].expand(-1, logits.shape[1], -1))

    def loss(self, output: FusionOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross entropy as `total`."""
        return {"total": F.binary_cross_entropy_with_logits(output.logits, batch.labels)}


@dataclass(frozen=True)
class _ImageFiles(Images):
    """Radiographs of which many are the same file."""

    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:  # noqa: ARG002
        """Return one of the image files."""
        return self.root / f"{study_id % _IMAGE_FILES}.png"

    def may_hold(self, missing: str) -> bool:  # noqa: ARG002
        """Return False."""
        return False


@dataclass(frozen=True)
class _MadeUp:
    """What the assembly reads of a source."""

    store: Store
    images: Images

    @property
    def radiographs(self) -> ir.Table:
        """The table of the radiographs."""
        return self.images.table


def _make_up_stays(store: Store, n_stays: int) -> None:
    """Make tables of the stays, as `describe_stays` gives them, and of the labels of their admissions."""
    labels = ", ".join(f"hash(i, {c}) % 5 = 0 AS label_{c}" for c in range(len(_LABELS)))
    store.raw_sql(
        f"""
        CREATE TABLE included AS
        SELECT 10_000_000 + i // 2 AS subject_id, 20_000_000 + i AS hadm_id, 30_000_000 + 7 * i AS stay_id,
               (hash(i) % 60 + 18)::BIGINT AS age, ['F', 'M'][i // 2 % 2 + 1] AS gender,
               ['WHITE', 'BLACK', 'ASIAN', 'OTHER', 'UNKNOWN'][(hash(i // 2) % 5 + 1)::BIGINT] AS race,
               ['EW EMER.', 'URGENT', 'ELECTIVE'][(hash(i, 1) % 3 + 1)::BIGINT] AS admission_type,
               TIMESTAMP '2150-01-01' + to_hours(i % 10_000 * 100) AS intime,
               intime + to_hours(48) AS window_end, intime + to_hours(72) AS outtime, 3.0 AS los,
               (hash(i, 3) % 48 + 1)::BIGINT AS n_hours,
               hash(i, 2) % 10 = 0 AS in_hospital_mortality
        FROM range({n_stays}) t(i)
        """
    )
    store.raw_sql(
        f"CREATE TABLE labels AS SELECT 20_000_000 + i AS hadm_id, {labels} FROM range({n_stays}) t(i)"
    )


def _radiographs(store: Store, n_stays: int, every: int) -> ir.Table:
    """Return a table of radiographs, one in the window of every `every`th stay."""
    store.raw_sql(
        f"""
        CREATE TABLE radiographs AS
        SELECT 10_000_000 + i // 2 AS subject_id, 50_000_000 + i AS study_id,
               sha1('radiograph' || i) AS dicom_id,
               TIMESTAMP '2150-01-01' + to_hours(i % 10_000 * 100 + 24) AS studied_at, 'AP' AS view_position
        FROM range(0, {n_stays}, {every}) t(i)
        """
    )
    return store.table("radiographs")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(_IMAGE_FILES):
        Image.fromarray(rng.integers(256, size=(_SIDE, _SIDE), dtype=np.uint8)).save(folder / f"{i}.png")


if __name__ == "__main__":
    command(measure)
