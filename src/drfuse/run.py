"""A run on disk, which `drfuse train` writes and every later command reads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from drfuse.errors import InputError, MissingInputError
from drfuse.files import atomic_file, write_whole
from drfuse.subsets import Split, Subset

if TYPE_CHECKING:
    from drfuse.cohort import Variable


class RunFiles:
    """The paths of a run's files.

    Attributes:
        folder: The run.
        config: Every option, defaults included; `drfuse train --config` repeats the run.
        facts: What a prediction needs besides the weights (see `RunFacts`).
        model: The weights of the best epoch.
        predictions: One row per stay (see `Predictions`).
        metrics: What `drfuse evaluate` measured.
        metrics_table: The same as a table, one row per test set and phenotype.
        subgroups_table: Metrics of groups of patients, one row per test set and group; written only if the
            cohort was given.
        checkpoints: What an interrupted run resumes from.
        last_checkpoint: The state after the last complete epoch.
        logs: Losses and validation PRAUC of each epoch, for TensorBoard and as CSV (one folder per start).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.facts = folder / "config.json"
        self.model = folder / "model.safetensors"
        self.predictions = folder / "predictions.parquet"
        self.metrics = folder / "metrics.json"
        self.metrics_table = folder / "metrics.csv"
        self.subgroups_table = folder / "subgroups.csv"
        self.checkpoints = folder / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.logs = folder / "logs"

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished: its predictions are written last."""
        return self.predictions.is_file()


@dataclass(frozen=True)
class RunFacts:
    """The content of `config.json`: with the weights, all that a prediction needs.

    Attributes:
        drfuse: The version of drfuse that trained the run.
        cohort: Fingerprint of its cohort.
        model: `class_path`, and `init_args`: the arguments after the two sizes, defaults included.
        n_features: F, the features of an hour.
        task: What is predicted.
        label_names: The C labels, in order.
        variables: The variables of an hour, in order, as the cohort's manifest describes them.
        normalization: `mean` and `std` of each continuous variable over the training split.
        window_hours: Hours of data after ICU admission.
        image_size: Side of the stored radiographs, in pixels.
        crop_size: Side of their centre crop, in pixels.
        batch_size: Stays predicted at a time.
        precision: Numeric precision of the training.
        best_epoch: The epoch whose weights were kept, from 0.
        val_prauc_macro: Its macro PRAUC on the validation split.
    """

    drfuse: str
    cohort: str
    model: dict[str, Any]
    n_features: int
    task: str
    label_names: list[str]
    variables: "list[Variable]"
    normalization: dict[str, dict[str, float]]
    window_hours: int
    image_size: int
    crop_size: int
    batch_size: int
    precision: str
    best_epoch: int
    val_prauc_macro: float

    def write(self, path: Path) -> None:
        """Write `config.json`."""
        write_whole(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, run: Path) -> "RunFacts":
        """Return the facts of a finished run.

        Raises:
            MissingInputError: If `run` is not a finished run, or an earlier version trained it.
            InputError: If the facts or the weights are damaged.
        """
        from drfuse.cohort import Variable

        files = RunFiles(Path(run))
        if not files.model.is_file():
            raise MissingInputError(
                f"{run} has no {files.model.name}: it is not a finished run of `drfuse train`"
            )
        if not files.facts.is_file():
            raise MissingInputError(
                f"{run} has no {files.facts.name}: an earlier version of drfuse trained it; train it again"
            )
        try:
            with safe_open(files.model, "numpy"):  # checks the file's length
                pass
        except SafetensorError as error:
            raise InputError(f"{files.model} is damaged: {error}; train the run again") from error
        try:
            fields = json.loads(files.facts.read_text(encoding="utf-8"))
            fields["variables"] = [Variable(**variable) for variable in fields["variables"]]
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{files.facts} is damaged: {error}; train the run again") from error


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run for N stays of a cohort: C phenotypes, or labels of another task.

    Attributes:
        phenotypes: The C names.
        stays: `subject_id`, `stay_id`, `split` and `has_cxr` of each stay.
        logits: Float32 (N, C); NaN where the model makes no prediction.
        labels: Uint8 (N, C).
        modality_weights: Float32 (N, C, 3) over EHR-distinct, shared and CXR-distinct, if the model has them.
        logits_without_cxr: Float32 (N, C), the logits with every radiograph removed, if they were computed.
    """

    phenotypes: list[str]
    stays: pl.DataFrame
    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]
    modality_weights: NDArray[np.float32] | None
    logits_without_cxr: NDArray[np.float32] | None = None

    def rows(self, split: Split, subset: Subset = "full") -> NDArray[np.bool_]:
        """Return a mask (N,) of the stays in a split: all of them, or those with a radiograph (`matched`)."""
        in_split = (self.stays["split"] == split).to_numpy()
        return in_split & self.stays["has_cxr"].to_numpy() if subset == "matched" else in_split

    def of_split(self, split: Split) -> "Predictions":
        """Return the predictions of the stays of one split."""
        rows = self.rows(split)
        arrays = {name: array[rows] for name, array in self._arrays.items()}
        return replace(self, stays=self.stays.filter(rows), **arrays)

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return the predictions of several parts of a cohort in one, in the order given."""
        arrays: dict[str, Any] = {
            name: np.concatenate([part._arrays[name] for part in parts]) for name in parts[0]._arrays
        }
        return replace(parts[0], stays=pl.concat([part.stays for part in parts]), **arrays)

    @property
    def _arrays(self) -> dict[str, Any]:
        """The arrays with one row per stay, by name."""
        names = ("logits", "labels", "logits_without_cxr", "modality_weights")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def write(self, path: Path) -> None:
        """Write a Parquet file atomically."""
        table = self.stays
        for name, array in self._arrays.items():
            kind = pl.UInt8 if name == "labels" else pl.Float32
            table = table.with_columns(pl.Series(name, array, dtype=pl.Array(kind, array.shape[1:])))
        with atomic_file(path) as partial:
            try:
                table.write_parquet(partial, metadata={"phenotypes": json.dumps(self.phenotypes)})
            except pl.exceptions.PolarsError as error:  # such as a full disk
                raise OSError(f"{path} cannot be written: {error}") from error

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Return the predictions in a file.

        Raises:
            MissingInputError: If the file is missing.
            InputError: If the file does not hold predictions.
        """
        if not path.is_file():
            raise MissingInputError(
                f"{path.parent} has no {path.name}: it is not a finished run of `drfuse train`"
            )
        try:
            table = pl.read_parquet(path, glob=False)
            phenotypes = json.loads((pq.read_metadata(path).metadata or {})[b"phenotypes"])
            optional = {
                name: table[name].to_numpy() if name in table.columns else None
                for name in ("modality_weights", "logits_without_cxr")
            }
            return cls(
                phenotypes=phenotypes,
                stays=table.select("subject_id", "stay_id", "split", "has_cxr"),
                logits=table["logits"].to_numpy(),
                labels=table["labels"].to_numpy(),
                **optional,
            )
        except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
            raise InputError(f"{path} holds no predictions of `drfuse train`; train the run again") from error
