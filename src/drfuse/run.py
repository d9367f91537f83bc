"""A run on disk, which `drfuse train` writes and every later command reads."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from drfuse.arguments import as_annotated
from drfuse.errors import InputError, MissingInputError
from drfuse.files import atomic_file, beside, write_whole
from drfuse.subsets import Split, Subset
from drfuse.sums import changed_file, sha256
from drfuse.yaml_files import read_yaml

if TYPE_CHECKING:
    from drfuse.cohort import CohortSummary, Variable
    from drfuse.cohort.manifest import Manifest
    from drfuse.data import TaskName

logger = logging.getLogger(__name__)


class Run:
    """A run: the paths of its files, and what is in them.

    Attributes:
        folder: The run.
        config: Every option, defaults included; `drfuse train --config` repeats the run.
        facts: What a prediction needs besides the weights (see `RunFacts`).
        model: The weights of the best epoch.
        predictions: One row per stay (see `Predictions`).
        recalibration: How logits become probabilities, if there were validation stays to learn it from.
        sums: SHA-256 of the files above, by name (see `check`), and of `metrics`.
        metrics: What `drfuse evaluate` measured.
        metrics_table: The same as a table, one row per test set and phenotype.
        subgroups_table: Metrics of groups of patients, one row per test set and group.
        decision_curves_table: Net benefit, one row per test set, phenotype and threshold probability.
        conformal_table: Coverage of prediction sets, one row per test set, kind of stays and phenotype.
        external: A folder for each cohort of an external validation, with predictions and metrics.
        shift_table: In such a folder, how the cohort differs from that of the training.
        checkpoints: What an interrupted run resumes from.
        last_checkpoint: The state after the last complete epoch, or where a signal stopped the training.
        not_finite: The `stay_id` of each stay of the batch whose loss ended a training, if one did.
        logs: Losses and validation PRAUC of each epoch, for TensorBoard and as CSV (one folder per start).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.facts = folder / "config.json"
        self.model = folder / "model.safetensors"
        self.predictions = folder / "predictions.parquet"
        self.recalibration = folder / "recalibration.json"
        self.sums = folder / "sums.json"
        self.metrics = folder / "metrics.json"
        self.metrics_table = folder / "metrics.csv"
        self.subgroups_table = folder / "subgroups.csv"
        self.decision_curves_table = folder / "decision_curves.csv"
        self.conformal_table = folder / "conformal.csv"
        self.external = folder / "external"
        self.shift_table = folder / "shift.csv"
        self.checkpoints = folder / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.not_finite = folder / "not_finite.csv"
        self.logs = folder / "logs"

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Return a finished run.

        Raises:
            MissingInputError: If the folder is not a finished run.
            InputError: If one of its files is damaged.
        """
        run = cls(as_annotated("run", folder, Path))
        if not run.is_finished:
            raise run.unfinished(run.predictions)
        run.check()
        return run

    def check(self) -> None:
        """Check the files that decide a result against `sums.json`; each is read once (see `changed_file`).

        Raises:
            InputError: If one of them is not what drfuse wrote.
        """
        if not self.sums.is_file():
            if self.is_finished:
                _say_that_sums_are_missing()
            return
        stored = self._read_sums()
        summed = (self.config, self.facts, self.model, self.predictions, self.recalibration)
        present = {path.name: stored[path.name] for path in summed if path.name in stored and path.is_file()}
        if (changed := changed_file(self.folder, present)) is not None:
            remedy = "delete it and run `drfuse evaluate`" if changed == self.recalibration.name else _REMEDY
            raise InputError(f"{self.folder / changed} is damaged: it is not what drfuse wrote; {remedy}")

    def write_sums(self, predictions: Path | None = None) -> None:
        """Write `sums.json`; `predictions` are those that are about to appear in their place."""
        paths = {path.name: path for path in (self.config, self.facts, self.model, self.recalibration)}
        if predictions is not None:
            paths[self.predictions.name] = predictions
        self._write_sums({name: sha256(path) for name, path in paths.items() if path.is_file()})

    def update_sums(self, path: Path) -> None:
        """Write the new sum of a file that was written again, unless the run has no sums."""
        if self.sums.is_file():
            self._write_sums(self._read_sums() | {path.name: sha256(path)})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`, and its sum unless the run has no sums.

        Meanwhile there is no sum of it, so that a killed command leaves none of other metrics.
        """
        if self.sums.is_file():
            sums = self._read_sums()
            self._write_sums({name: sum_ for name, sum_ in sums.items() if name != self.metrics.name})
        write_whole(self.metrics, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        self.update_sums(self.metrics)

    def _write_sums(self, sums: Mapping[str, str]) -> None:
        write_whole(self.sums, json.dumps(sums, indent=2, ensure_ascii=False) + "\n")

    def _read_sums(self) -> dict[str, str]:
        try:
            sums: dict[str, str] = as_annotated(
                "its content", json.loads(self.sums.read_text("utf-8")), dict[str, str]
            )
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.sums} is damaged: {error}; {_REMEDY}") from error
        return sums

    def read_options(self) -> dict[str, Any]:
        """Return the options that `config.yaml` holds.

        Raises:
            InputError: If the file is missing or damaged.
        """
        return read_yaml(self.config)

    def read_facts(self) -> "RunFacts":
        """Return what a prediction needs besides the weights; see `RunFacts.read`."""
        return RunFacts.read(self.folder)

    def check_cohort(self, cohort: Path) -> "Manifest":
        """Return the manifest of the cohort that the run was trained on, whose stays are unchanged.

        Raises:
            MissingInputError: If `cohort` is not a cohort.
            InputError: If it is another cohort, or its stays are not those that `prepare` wrote.
        """
        from drfuse.cohort.manifest import Manifest

        manifest = Manifest.read(cohort)
        if sha256(cohort / "manifest.json") != self.read_facts().cohort:
            raise InputError(
                f"{cohort} is not the cohort that {self.folder} was trained on; choose a different --cohort"
            )
        stays = {name: sum_ for name, sum_ in manifest.files.items() if name == "stays.parquet"}
        if not stays or not (cohort / "stays.parquet").is_file() or changed_file(cohort, stays) is not None:
            raise InputError(f"{cohort}/stays.parquet is not what `drfuse prepare` wrote; run it again")
        return manifest

    def read_predictions(self, split: Split | None = None, logits_only: bool = False) -> "Predictions":
        """Return the predictions, of one split if it is given; see `Predictions.read`."""
        return Predictions.read(self.predictions, split, logits_only)

    def read_metrics(self) -> dict[str, Any]:
        """Return the content of `metrics.json`.

        Raises:
            MissingInputError: If `drfuse evaluate` has not measured the run.
            InputError: If the file is damaged.
        """
        if not self.metrics.is_file():
            raise MissingInputError(f"{self.folder} has no {self.metrics.name}; run `drfuse evaluate` on it")
        try:
            expected = self._read_sums().get(self.metrics.name) if self.sums.is_file() else None
            if expected is not None and sha256(self.metrics) != expected:
                raise InputError("it is not what drfuse wrote")
            stored: Any = json.loads(self.metrics.read_text("utf-8"))
            test_sets = stored.get("test") if isinstance(stored, dict) else None
            if not isinstance(test_sets, dict) or not all(
                isinstance(one, dict) for one in test_sets.values()
            ):
                raise InputError("it has no test sets")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.metrics} is damaged: {error}; run `drfuse evaluate` again") from error
        metrics: dict[str, Any] = stored
        return metrics

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished: its predictions are written last, and end with Parquet's mark."""
        with suppress(OSError), self.predictions.open("rb") as file:
            file.seek(-4, 2)
            return file.read() == b"PAR1"
        return False

    def unfinished(self, missing: Path) -> MissingInputError:
        """Return the error for a run without one of its files; it says where a replaced run is kept."""
        message = f"{self.folder} has no {missing.name}: it is not a finished run of `drfuse train`"
        folder = self.folder.resolve()
        if folder.name and Run(replaced := beside(folder, "replaced")).is_finished:
            message += f"; the finished run that it was to replace is in {replaced}"
        return MissingInputError(message)


_REMEDY = "copy it again, or train the run again"


@cache
def _say_that_sums_are_missing() -> None:
    logger.info("a run of an earlier version has no sums.json, so its files are read unchecked")


@dataclass(frozen=True)
class RunFacts:
    """The content of `config.json`: with the weights, all that a prediction needs.

    Attributes:
        drfuse: The version of drfuse that trained the run.
        cohort: Fingerprint of its cohort.
        model: `class_path`, and `init_args`: the arguments after the two sizes, defaults included. A
            pretrained backbone is its configuration.
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
        preset: How the cohort's values were read; like the next two, None in a run of an earlier version.
        before_hours: Hours before ICU admission from which height and weight count.
        view: View positions of its radiographs.
        cohort_summary: What its cohort was made of, and how many stays it has; like the next, None in a run
            of an earlier version.
        inputs: What was measured of the task's stays of the training split (see `summarize_inputs`).
    """

    drfuse: str
    cohort: str
    model: dict[str, Any]
    n_features: int
    task: "TaskName"
    label_names: list[str]
    variables: "list[Variable]"
    normalization: dict[str, dict[str, float]]
    window_hours: int
    image_size: int
    crop_size: int
    batch_size: int
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    best_epoch: int
    val_prauc_macro: float
    preset: str | None = None
    before_hours: int | None = None
    view: Sequence[str] | None = None
    cohort_summary: "CohortSummary | None" = None
    inputs: dict[str, dict[str, float | None]] | None = None

    @property
    def n_labels(self) -> int:
        """C, the number of labels."""
        return len(self.label_names)

    def write(self, path: Path) -> None:
        """Write `config.json`, with the SHA-256 of the facts."""
        facts = asdict(self)
        facts["sha256"] = sha256_of_json(facts)
        write_whole(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, run: Path) -> "RunFacts":
        """Return the facts of a finished run.

        Raises:
            MissingInputError: If `run` is not a finished run, an earlier version trained it, or it is a model
                that was saved without a run.
            InputError: If the facts or the weights are damaged.
        """
        from drfuse.cohort import Variable

        files = Run(as_annotated("run", run, Path))
        if not files.model.is_file():
            raise files.unfinished(files.model)
        if not files.facts.is_file():
            raise MissingInputError(
                f"{run} has no {files.facts.name}: an earlier version of drfuse trained it; train it again"
            )
        if ModelFacts.read(run) is not None:
            raise MissingInputError(
                f"{run} holds a model alone, without the variables, normalization and label names that a "
                "prediction needs; choose a run, or a folder that `drfuse export` wrote"
            )
        try:
            # opened twice, as safetensors says of a file that may not be read that there is none
            with files.model.open("rb"), safe_open(files.model, "numpy"):  # checks the file's length
                pass
        except SafetensorError as error:
            raise InputError(f"{files.model} is damaged: {error}; train the run again") from error
        try:
            stored = as_annotated("its content", json.loads(files.facts.read_text("utf-8")), dict[str, Any])
            sha256 = stored.pop("sha256", None)  # None in a run of an earlier version
            whole = sha256 in (None, sha256_of_json(stored))
            variables = as_annotated("variables", stored.get("variables"), Sequence[Mapping[str, Any]])
            nested = {
                "variables": [_from_json(Variable, one) for one in variables],
                "cohort_summary": _summary_from_json(stored.get("cohort_summary")),
            }
            facts: RunFacts = _from_json(cls, stored | nested)
            facts._check()
            if not whole:
                raise InputError("its values are not those that `drfuse train` wrote")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{files.facts} is damaged: {error}; train the run again") from error
        files.check()
        return facts

    def _check(self) -> None:
        """Raise InputError if a value is out of range, or the variables do not give `n_features`."""
        from drfuse.data import EhrFeatures

        n_features = len(EhrFeatures(self.variables, self.normalization))
        for name, least, most in (
            ("n_features", n_features, n_features),
            ("window_hours", 1, 8760),  # as in `prepare`, also the next
            ("image_size", 1, 4096),
            ("crop_size", 1, self.image_size),
            ("batch_size", 1, math.inf),
            ("best_epoch", 0, math.inf),
            ("val_prauc_macro", 0, 1),
        ):
            if not least <= (value := getattr(self, name)) <= most:
                raise InputError(f"{name} is {value}, which is out of range")
        as_annotated("preset", self.preset, Literal["extended", "benchmark"] | None)
        if self.before_hours is not None and not 0 <= self.before_hours <= 168:
            raise InputError(f"before_hours is {self.before_hours}, which is out of range")
        if len(set(as_annotated("label_names", self.label_names, Sequence[str]))) < self.n_labels:
            raise InputError("label_names has a name twice")
        _check_model(self.model)


def sha256_of_json(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of values, whatever their order and layout in a file."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _from_json(kind: Any, stored: Mapping[str, Any]) -> Any:
    """Return a dataclass with the stored fields.

    Raises:
        InputError: If a field is missing, unknown or not of its annotated type.
    """
    from drfuse.cohort import CohortSummary, Variable
    from drfuse.data import TaskName

    names = {"CohortSummary": CohortSummary, "Variable": Variable, "TaskName": TaskName}
    types = get_type_hints(kind, localns=names)
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if wrong := sorted((needed - stored.keys()) | (stored.keys() - types.keys())):
        raise InputError(f"{wrong[0]} is {'missing' if wrong[0] in needed else 'unknown'}")
    return kind(**{name: as_annotated(name, value, types[name]) for name, value in stored.items()})


def _summary_from_json(stored: Any) -> "CohortSummary | None":
    """Return a stored summary of a cohort.

    Raises:
        InputError: If it is not one.
    """
    from drfuse.cohort import CohortSummary, FlowStep

    if stored is None:
        return None
    summary = as_annotated("cohort_summary", stored, dict[str, Any])
    flow = as_annotated("cohort_summary.flow", summary.get("flow"), Sequence[Mapping[str, Any]])
    read: CohortSummary = _from_json(
        CohortSummary, summary | {"flow": [_from_json(FlowStep, step) for step in flow]}
    )
    return read


@dataclass(frozen=True)
class ModelFacts:
    """The content of `config.json` of a model that was saved without a run: enough to build it.

    Attributes:
        drfuse: The version of drfuse that wrote it.
        model: As in `RunFacts`.
        n_features: F, the features of an hour.
        n_labels: C, the number of labels.
    """

    drfuse: str
    model: dict[str, Any]
    n_features: int
    n_labels: int

    def write(self, path: Path) -> None:
        """Write `config.json`."""
        write_whole(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "ModelFacts | None":
        """Return the facts of a model that was saved without a run, or None if the folder holds none.

        Raises:
            InputError: If they are damaged.
        """
        path = Run(as_annotated("folder", folder, Path)).facts
        try:
            stored = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(stored, dict) or "n_labels" not in stored:
            return None
        try:
            facts: ModelFacts = _from_json(cls, stored)
            _check_model(facts.model)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; save the model again") from error
        return facts


def _check_model(model: Mapping[str, Any]) -> None:
    """Raise InputError unless a model is described by a class path and arguments."""
    as_annotated("model.class_path", model.get("class_path"), str)
    as_annotated("model.init_args", model.get("init_args"), dict[str, Any])


_STAY = ["subject_id", "stay_id", "split", "has_cxr"]
_OPTIONAL = ("logits_without_cxr", "logits_without_ehr", "modality_weights")
_FORM: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "use_dictionary": ["split"]}


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
        logits_without_ehr: Float32 (N, C), the logits with the EHR removed, if they were computed; NaN where
            there is no radiograph.
    """

    phenotypes: list[str]
    stays: pl.DataFrame
    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]
    modality_weights: NDArray[np.float32] | None
    logits_without_cxr: NDArray[np.float32] | None = None
    logits_without_ehr: NDArray[np.float32] | None = None

    def rows(self, split: Split, subset: Subset = "full") -> NDArray[np.bool_]:
        """Return a mask (N,) of the stays in a split: all of them, or those with a radiograph (`matched`)."""
        in_split = (self.stays["split"] == split).to_numpy()
        return in_split & self.stays["has_cxr"].to_numpy() if subset == "matched" else in_split

    def of_split(self, split: Split) -> "Predictions":
        """Return the predictions of the stays of one split."""
        rows = self.rows(split)
        arrays = {name: array[rows] for name, array in self._arrays.items()}
        return replace(self, stays=self.stays.filter(rows), **arrays)

    def as_split(self, split: Split) -> "Predictions":
        """Return the predictions as those of stays that are all in one split."""
        return replace(self, stays=self.stays.with_columns(split=pl.lit(split)))

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
        names = ("logits", "labels", *_OPTIONAL)
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def write(self, path: Path) -> None:
        """Write a Parquet file atomically."""
        with predictions_file(path) as append:
            append(self)

    def _table(self) -> pa.Table:
        """Return the predictions as a row group of their file."""
        table = self.stays
        for name, array in self._arrays.items():
            kind = pl.UInt8 if name == "labels" else pl.Float32
            table = table.with_columns(pl.Series(name, array, dtype=pl.Array(kind, array.shape[1:])))
        arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest())
        return arrow.replace_schema_metadata({"phenotypes": json.dumps(self.phenotypes)})

    @classmethod
    def read(cls, path: Path, split: Split | None = None, logits_only: bool = False) -> "Predictions":
        """Return the predictions in a file.

        Args:
            path: The file.
            split: The split to read; by default all.
            logits_only: Leave out the modality weights and the logits without a modality.

        Raises:
            MissingInputError: If the file is missing.
            InputError: If the file is damaged, or does not hold predictions.
        """
        if not path.is_file():
            raise Run(path.parent).unfinished(path)
        if path.name == (run := Run(path.parent)).predictions.name:
            run.check()
        try:
            phenotypes = json.loads((pq.read_metadata(path).metadata or {})[b"phenotypes"])
            stored = pl.scan_parquet(path, glob=False)
            names = ["logits", "labels", *([] if logits_only else _OPTIONAL)]
            names = [name for name in names if name not in _OPTIONAL or name in stored.collect_schema()]
            chosen = stored if split is None else stored.filter(pl.col("split") == split)
            table = chosen.select(*_STAY, *names).collect()
            arrays = {name: table[name].to_numpy() for name in names}
            found = cls(
                phenotypes=as_annotated("phenotypes", phenotypes, Sequence[str]),
                stays=table.select(_STAY),
                logits=arrays["logits"],
                labels=arrays["labels"],
                **{name: arrays.get(name) for name in _OPTIONAL},
            )
        except (pl.exceptions.PolarsError, pa.ArrowException, KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of what is read
                raise
            raise InputError(f"{path} holds no predictions of `drfuse train`; train the run again") from error
        if (problem := found._problem()) is not None:
            raise InputError(f"{path} holds no predictions of `drfuse train`: {problem}; train the run again")
        return found

    def _problem(self) -> str | None:
        """Return what no prediction can be, if there is something."""
        n, n_labels = self.stays.height, len(self.phenotypes)
        kinds = {"subject_id": pl.Int64, "stay_id": pl.Int64, "split": pl.String, "has_cxr": pl.Boolean}
        for name, kind in kinds.items():
            column = self.stays[name]
            is_kind = column.dtype.is_integer() if kind == pl.Int64 else column.dtype == kind
            if not is_kind or column.null_count():
                return f"{name} is of type {column.dtype} with {column.null_count()} nulls; expected {kind}"
        for name, array in self._arrays.items():
            shape = (n, n_labels, 3) if name == "modality_weights" else (n, n_labels)
            if array.shape != shape:
                return f"{name} has the shape {array.shape}, expected {shape}"
        found = {name: array.dtype.kind for name, array in self._arrays.items()}
        if wrong := [name for name, one in found.items() if one not in ("ui" if name == "labels" else "f")]:
            return f"{wrong[0]} is of type {self._arrays[wrong[0]].dtype}"
        logits = [array for name, array in self._arrays.items() if name.startswith("logits")]
        counts = {
            "stays have a split that is not train, validation or test": n
            - self.stays["split"].is_in(get_args(Split)).sum(),
            "stays occur more than once": n - self.stays["stay_id"].n_unique(),
            "labels are neither 0 nor 1": int((~np.isin(self.labels, (0, 1))).sum()),
            "logits are infinite": sum(int(np.isinf(array).sum()) for array in logits),
        }
        return next((f"{count} {what}" for what, count in counts.items() if count), None)

    @staticmethod
    def join(parts: Sequence[Path], path: Path, before: Callable[[Path], object] | None = None) -> None:
        """Write the predictions in several files to one, in the order given, and delete the parts.

        `before` is called with the whole file before it appears at `path`.
        """
        with atomic_file(path) as partial:
            with pq.ParquetWriter(partial, pq.read_schema(parts[0]), **_FORM) as whole:
                for part in map(pq.ParquetFile, parts):
                    for number in range(part.num_row_groups):
                        whole.write_table(part.read_row_group(number))
            if before is not None:
                before(partial)
        for part in parts:
            part.unlink()


@contextmanager
def predictions_file(
    path: Path, before: Callable[[Path], object] | None = None
) -> Iterator[Callable[[Predictions], None]]:
    """Yield a function that appends predictions to a new file, which appears when the context ends.

    What is appended is written at once, so that the predictions of a large cohort need not fit in memory.
    `before` is called with the whole file before it appears at `path`.
    """
    with atomic_file(path) as partial:
        with ExitStack() as opened:
            writer: pq.ParquetWriter | None = None

            def append(block: Predictions) -> None:
                nonlocal writer
                table = block._table()
                if writer is None:
                    writer = opened.enter_context(pq.ParquetWriter(partial, table.schema, **_FORM))
                writer.write_table(table)

            yield append
        if before is not None:
            before(partial)
