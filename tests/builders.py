"""Small inputs made in memory or straight on disk: batches, models and cohorts."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from drfuse.cohort.manifest import FlowStep, Manifest
from drfuse.cohort.variables import load_variables
from drfuse.data import Batch
from drfuse.models import DrFuse, FusionModel
from drfuse.sums import sha256

TINY_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
TINY_SIZES: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "feedforward": 16,
    "dropout": 0.0,
    "cxr_backbone": TINY_BACKBONE,
    "fusion_dim": 12,
    "n_variables": 2,
    "n_components": 5,
    "side": 8,
}
"""Arguments that make a shipped model tiny; a model takes those that its constructor has."""

N_FEATURES, N_LABELS = 5, 3
PHENOTYPES = ["gout", "shock", "sepsis"]


def make_batch(
    cxr_of: Sequence[int] = (0, 2),
    n_hours: Sequence[int] = (6, 3, 1, 5),
    image_size: int = 16,
    seed: int = 0,
) -> Batch:
    """Return random stays of the given hours, with radiographs at the rows `cxr_of`."""
    generator = torch.Generator().manual_seed(seed)
    hours = torch.tensor(n_hours)
    ehr = torch.randn(len(hours), max(n_hours), N_FEATURES, generator=generator)
    ehr[torch.arange(max(n_hours)) >= hours[:, None]] = 0.0
    return Batch(
        stay_id=torch.arange(100, 100 + len(hours)),
        ehr=ehr,
        n_hours=hours,
        cxr=torch.randn(len(cxr_of), 1, image_size, image_size, generator=generator),
        cxr_of=torch.tensor(cxr_of, dtype=torch.int64),
        cxr_row=torch.arange(len(cxr_of)),
        labels=torch.randint(2, (len(hours), N_LABELS), generator=generator).float(),
    )


def take_stays(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the batch of some stays only, in the given order, padded to the longest of them."""
    at = torch.tensor(rows)
    place = {int(row): image for image, row in enumerate(batch.cxr_of)}
    kept = [row for row in rows if row in place]
    return Batch(
        stay_id=batch.stay_id[at],
        ehr=batch.ehr[at, : int(batch.n_hours[at].max())],
        n_hours=batch.n_hours[at],
        cxr=batch.cxr[[place[row] for row in kept]],
        cxr_of=torch.tensor([list(rows).index(row) for row in kept], dtype=torch.int64),
        cxr_row=batch.cxr_row[[place[row] for row in kept]],
        labels=batch.labels[at],
    )


def tiny_model(kind: type[FusionModel], seed: int = 0, **options: Any) -> FusionModel:
    """Return a tiny model of a class for `make_batch`, in training mode."""
    torch.manual_seed(seed)
    taken = inspect.signature(kind).parameters
    sizes = {name: value for name, value in TINY_SIZES.items() if name in taken}
    return kind(N_FEATURES, N_LABELS, **(sizes | options))


def tiny_drfuse(seed: int = 0, **options: Any) -> DrFuse:
    """Return a DrFuse for `make_batch`, in training mode, without dropout unless it is asked for."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"dim": 8, "heads": 2, "dropout": 0.0, "cxr_backbone": TINY_BACKBONE}
    return DrFuse(N_FEATURES, N_LABELS, **(defaults | options))


def n_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def write_cohort(
    folder: Path,
    splits: Sequence[str] = ("train",) * 6 + ("validation",) * 3 + ("test",) * 3,
    with_cxr: Sequence[int] = (0, 2, 3, 6, 8, 10),
    window_hours: int = 8,
    image_size: int = 12,
    seed: int = 0,
    los: Sequence[float] | None = None,
) -> Path:
    """Write a cohort of random values: a stay for each of `splits`, radiographs for the rows `with_cxr`.

    Every pixel of the radiograph of row r is r. Stay r has the id 1000 + 10 r. ICU stays last `los` days;
    without it, those that fill the window last longer. The patients of every third row die.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    variables = load_variables()
    n = len(splits)
    n_hours = rng.integers(1, window_hours + 1, n)
    low, high = (np.array([getattr(v, name) for v in variables]) for name in ("valid_low", "valid_high"))
    ehr = low + (high - low) * rng.random((n, window_hours, len(variables)))
    categorical = np.array([variable.kind == "categorical" for variable in variables])
    ehr = np.where(categorical, np.round(ehr), ehr)
    hidden = rng.random(ehr.shape) < 0.6
    hidden |= (np.arange(window_hours) >= n_hours[:, None])[..., None]
    np.save(folder / "ehr.npy", np.where(hidden, np.nan, ehr).astype(np.float32))
    pixels = np.array(with_cxr, np.uint8)[:, None, None]
    np.save(folder / "cxr.npy", np.broadcast_to(pixels, (len(with_cxr), image_size, image_size)))
    cxr_row = {row: image for image, row in enumerate(with_cxr)}
    stays = pl.DataFrame(
        {
            "subject_id": [900 + row for row in range(n)],
            "stay_id": [1000 + 10 * row for row in range(n)],
            "n_hours": n_hours.astype(np.int16),
            "has_cxr": [row in cxr_row for row in range(n)],
            "cxr_row": pl.Series([cxr_row.get(row) for row in range(n)], dtype=pl.Int32),
            "split": list(splits),
            **{name: rng.integers(2, size=n).astype(bool) for name in PHENOTYPES},
            "los": n_hours / 24 + (n_hours == window_hours) if los is None else los,
            "in_hospital_mortality": np.arange(n) % 3 == 0,
        }
    )
    stays.write_parquet(folder / "stays.parquet")
    normalization = {
        variable.name: {"mean": variable.normal * 0.9, "std": 0.05 * variable.normal + 1.0}
        for variable in variables
        if variable.kind == "continuous"
    }
    (folder / "normalization.json").write_text(json.dumps(normalization), encoding="utf-8")
    Manifest(
        drfuse="0",
        sources={},
        options={"window_hours": window_hours, "image_size": image_size},
        flow=[FlowStep("all ICU stays", n)],
        variables=list(variables),
        phenotypes=PHENOTYPES,
        splits={},
        warnings={},
        files={path.name: sha256(path) for path in sorted(folder.iterdir())},
    ).write(folder)
    return folder


def left_in(folder: Path) -> set[str]:
    """Return the names of what lies in a folder, but for locks, which stay."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}
