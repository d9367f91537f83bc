"""What makes the encoders of one modality as good as linear models, or not, at a few thousand stays?

`python -m benchmarks.encoders --out DIR` trains the Transformer, the LSTM and the ResNet on development
hospitals, each with one thing changed at a time, and judges them and the linear baselines on stays that
trained nothing. It also fits logistic regressions on the hourly features that the Transformer reads, pooled
in several ways, which shows what the pooling loses. It goes on where it was interrupted, and writes
`DIR/encoders.md`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.command import command
from benchmarks.development import BACKBONE, development_cohorts, unseen_prauc
from benchmarks.results import markdown_table
from drfuse.data import Batch, Cohort, CohortDataModule, Subset
from drfuse.errors import InputError
from drfuse.evaluation import macro_mean, prauc_auroc
from drfuse.models.ehr_encoders import mean_over_hours
from drfuse.models.linear import LogisticHead
from drfuse.run import Predictions
from drfuse.training.matrix import RunSpec, specify, train_all

SHARED: dict[str, Any] = {
    "epochs": 15,
    "patience": 4,
    "lr": 5e-4,
    "batch_size": 32,
    "crop_size": 64,
    "augment": False,
    "precision": "bf16-mixed",
}
"""Options of every training where a trial says nothing else: those of `small.yaml` before it was tuned."""

TRANSFORMER = {"dim": 128, "feedforward": 256}
POOLED = {**TRANSFORMER, "pooling": "mean-max-last"}

Trial = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""A class of `drfuse.models`, its arguments, and options of `train`."""

EHR_TRIALS: dict[str, Trial] = {
    "logistic regression on five summaries": ("LogisticEhr", {}, {}),
    "Transformer": ("EhrTransformer", TRANSFORMER, {}),
    "Transformer, pooled": ("EhrTransformer", POOLED, {}),
    "pooled, cosine schedule": ("EhrTransformer", POOLED, {"schedule": "cosine"}),
    "pooled, cosine, lr 1e-3": ("EhrTransformer", POOLED, {"schedule": "cosine", "lr": 1e-3}),
    "pooled, cosine, dropout 0.1": ("EhrTransformer", {**POOLED, "dropout": 0.1}, {"schedule": "cosine"}),
    "pooled, lr 2e-4": ("EhrTransformer", POOLED, {"lr": 2e-4}),
    "pooled, lr 1e-3": ("EhrTransformer", POOLED, {"lr": 1e-3}),
    "pooled, dropout 0.1": ("EhrTransformer", {**POOLED, "dropout": 0.1}, {}),
    "pooled, weight decay 0.3": ("EhrTransformer", POOLED, {"weight_decay": 0.3}),
    "pooled, width 64": ("EhrTransformer", {**POOLED, "dim": 64, "feedforward": 128}, {}),
    "LSTM": ("EhrLstm", {"dim": 128}, {}),
    "LSTM, pooled": ("EhrLstm", {"dim": 128, "pooling": "mean-max-last"}, {}),
}
"""Encoders of the record, trained on all stays."""

_RESNET: tuple[str, Mapping[str, Any]] = ("CxrResNet", {"dim": 128, "cxr_backbone": BACKBONE})
CXR_TRIALS: dict[str, Trial] = {
    "logistic regression on 120 components": ("LogisticCxr", {}, {}),
    "ResNet": (*_RESNET, {}),
    "published augmentation": (*_RESNET, {"augment": True}),
    "shifts": (*_RESNET, {"augment": "shifts"}),
    "weight decay 0.3": (*_RESNET, {"weight_decay": 0.3}),
    "shifts, weight decay 0.3": (*_RESNET, {"augment": "shifts", "weight_decay": 0.3}),
    "shifts, cosine": (*_RESNET, {"augment": "shifts", "schedule": "cosine"}),
    "shifts, cosine, lr 1e-3": (*_RESNET, {"augment": "shifts", "schedule": "cosine", "lr": 1e-3}),
    "shifts, cosine, lr 2e-3": (*_RESNET, {"augment": "shifts", "schedule": "cosine", "lr": 2e-3}),
    "shifts, lr 2e-4": (*_RESNET, {"augment": "shifts", "lr": 2e-4}),
    "shifts, lr 1e-3": (*_RESNET, {"augment": "shifts", "lr": 1e-3}),
    "shifts, 30 epochs": (*_RESNET, {"augment": "shifts", "epochs": 30, "patience": 8}),
}
"""Encoders of the radiograph, trained on the stays that have one."""


def encoders(
    out: Path,
    hospitals: Sequence[int] = (101, 102),
    stays: int = 3000,
    cxr_rate: float = 0.5,
    image_size: int = 64,
    workers: int = 1,
    epochs: int | None = None,
) -> str:
    """Train every trial on every development hospital, and write what each reaches.

    Args:
        out: Folder for hospitals, cohorts, runs and the result.
        hospitals: Seeds of the development hospitals.
        stays: Of each hospital.
        cxr_rate: Share of them with a radiograph.
        image_size: Side of the radiographs, in pixels.
        workers: Runs at a time.
        epochs: The most epochs of every trial, in place of its own.

    Returns:
        The tables, as Markdown.

    Raises:
        InputError: If a hospital is one that is measured, or was made with other options, or a run failed.
    """
    cohorts = development_cohorts(out, hospitals, stays, cxr_rate, image_size)
    given = {"crop_size": image_size} | ({} if epochs is None else {"epochs": epochs})
    runs: dict[str, list[RunSpec]] = defaultdict(list)
    for cohort in cohorts:
        for train_on, trials in (("full", EHR_TRIALS), ("matched", CXR_TRIALS)):
            for title, (model, arguments, options) in trials.items():
                described = {"class_path": f"drfuse.models.{model}", "init_args": dict(arguments)}
                trained = {**SHARED, **options, **given, "train_on": train_on}
                runs[title].append(specify(cohort, out / "runs", title, described, **trained))
    if failed := train_all([spec for specs in runs.values() for spec in specs], workers):
        raise InputError(f"{len(failed)} runs failed, the first of them {failed[0]}")

    def row(title: str, test_on: Subset) -> dict[str, Any]:
        predictions = [Predictions.read(spec.run.predictions) for spec in runs[title]]
        return _row(title, unseen_prauc(predictions, test_on))

    regressions = [_pooled_regressions(cohort) for cohort in cohorts]
    tables = {
        "**Record**, all stays": [row(title, "full") for title in EHR_TRIALS],
        "**Radiograph**, stays that have one": [row(title, "matched") for title in CXR_TRIALS],
        "**Logistic regression on the hours that the Transformer reads**, all stays": [
            _row(title, [praucs[title] for praucs in regressions]) for title in regressions[0]
        ],
    }
    text = "\n\n".join(part for head, rows in tables.items() for part in (head, markdown_table(rows)))
    (out / "encoders.md").write_text(text + "\n", encoding="utf-8")
    return text


def _row(title: str, praucs: Sequence[float]) -> dict[str, Any]:
    each = "; ".join(f"{prauc:.3f}" for prauc in praucs)
    return {"macro PRAUC": title, "mean": f"{np.mean(praucs):.3f}", "hospitals": each}


def _pooled_regressions(cohort: Cohort) -> dict[str, float]:
    """Return the macro PRAUC, by what is kept of the hours, of logistic regressions on unseen stays.

    The penalty is chosen as that of the linear baselines is, on the validation split.
    """
    data = CohortDataModule(cohort, crop_size=cohort.image_size, batch_size=256)
    data.read_only(["ehr"])
    test = data.dataset.task.rows("test")
    splits = {"train": data.train_rows, "validation": data.validation_rows, "test": test}
    batches = {name: list(data.batches(rows)) for name, rows in splits.items()}
    labels = {
        name: torch.cat([batch.labels for batch in of]).double().numpy() for name, of in batches.items()
    }
    praucs = {}
    values_of = data.dataset.features.values_of
    pooled: dict[str, Callable[[Batch], Tensor]] = {
        "mean over the hours": lambda batch: _pooled(batch, ("mean",)),
        "mean and last hour": lambda batch: _pooled(batch, ("mean", "last")),
        "mean, maximum and last hour": lambda batch: _pooled(batch, ("mean", "maximum", "last")),
        "mean and last hour, categories as numbers": lambda batch: _pooled_numbers(batch, values_of),
    }
    for title, pool in pooled.items():
        inputs: dict[str, NDArray[np.float64]] = {
            name: torch.cat([pool(batch) for batch in of]).double().numpy() for name, of in batches.items()
        }
        head = LogisticHead(inputs["train"].shape[1], labels["train"].shape[1])
        head.fit(inputs["train"], labels["train"], inputs["validation"], labels["validation"])
        with torch.no_grad():
            logits = head(torch.from_numpy(inputs["test"]).float()).numpy()
        praucs[title] = float(macro_mean(prauc_auroc(labels["test"], logits)[0])[0])
    return praucs


def _pooled(batch: Batch, parts: Sequence[str]) -> Tensor:
    """Return what is kept of the hours (B, T, F) of a batch, side by side."""
    padded = torch.arange(batch.ehr.shape[1]) >= batch.n_hours[:, None]
    pooled = {
        "mean": mean_over_hours(batch.ehr, padded),
        "maximum": batch.ehr.masked_fill(padded[..., None], -torch.inf).amax(dim=1),
        "last": batch.ehr[torch.arange(len(batch)), batch.n_hours - 1],
    }
    return torch.cat([pooled[part] for part in parts], dim=1)


def _pooled_numbers(batch: Batch, values_of: Tensor) -> Tensor:
    """Return mean and last hour of the V variables, and the shares of hours in which they were observed."""
    observed = replace(batch, ehr=batch.ehr[..., -values_of.shape[1] :])
    numbers = replace(batch, ehr=batch.ehr @ values_of)
    return torch.cat([_pooled(numbers, ("mean", "last")), _pooled(observed, ("mean",))], dim=1)


if __name__ == "__main__":
    command(encoders)
