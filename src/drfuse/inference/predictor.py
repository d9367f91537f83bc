"""Predicts the stays of a cohort with a trained run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from drfuse.data import Batch, Cohort, EhrFeatures, StayDataset, Task
from drfuse.data.augmentation import CxrTransform
from drfuse.data.dataset import CxrContent
from drfuse.data.loader import EvaluationBatches, explain_killed_workers, split_rows
from drfuse.errors import InputError, check_choice
from drfuse.logs import tracked
from drfuse.models import FusionModel
from drfuse.models.hub import load_model
from drfuse.models.losses import at_least_float32
from drfuse.run import Predictions, RunFacts

if TYPE_CHECKING:
    from drfuse.evaluation import Recalibration
    from drfuse.inference.explanation import Explanation

_Returned = TypeVar("_Returned")
_STAYS_A_BLOCK = 32_768
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Outputs(NamedTuple):
    """What a model says of N stays.

    Attributes:
        rows: Their rows in the cohort (N,).
        logits: Float32 (N, C); NaN where the model makes no prediction.
        logits_without_cxr: The same with every radiograph removed.
        logits_without_ehr: The same with the EHR removed; NaN without a radiograph.
        modality_weights: Float32 (N, C, 3) over EHR-distinct, shared and CXR-distinct; None if the model has
            none.
    """

    rows: NDArray[np.int64]
    logits: NDArray[np.float32]
    logits_without_cxr: NDArray[np.float32]
    logits_without_ehr: NDArray[np.float32]
    modality_weights: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """A trained model with what it needs to read a cohort.

    Attributes:
        model: The model, in evaluation mode, on `device`.
        facts: The facts of its run.
        device: Where it predicts.
        recalibration: How its logits become probabilities; None if the run has not learned it.
    """

    model: FusionModel
    facts: RunFacts
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    recalibration: "Recalibration | None" = None

    @classmethod
    def open(cls, run: Path) -> "Predictor":
        """Return the model of a finished run with its best weights, ready to predict.

        Nothing in the run is executed or imported, and no path in it is followed: the model's class must be
        one of drfuse's, or one that this program has imported. The folder may also be what `drfuse export`
        made of a run.

        Raises:
            MissingInputError: If `run` is not a finished run.
            InputError: If its files do not fit together, or the model's class is not imported.
        """
        from drfuse.evaluation import Recalibration

        facts = RunFacts.read(run)
        model = load_model(Path(run), facts, FusionModel)  # type: ignore[type-abstract]
        recalibration = Recalibration.read(Path(run), facts.label_names)
        return cls(model, facts, recalibration=recalibration).to(torch.device("cpu"))

    def to(self, device: torch.device) -> Self:
        """Return a predictor on another device; the model itself moves, in the memory layout of training."""
        self.model.to(device)
        if self.facts.precision in _HALF:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, device=device)

    def predict(
        self,
        cohort: Cohort | Path,
        rows: NDArray[np.int64] | None = None,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Predictions:
        """Return logits with and without the radiograph, and the modality weights, of N stays.

        For a stay without a radiograph, both logits are the same. On the CPU of the training, predictions
        for the run's own cohort equal its `predictions.parquet` to the bit; after a training on several
        devices, or with `freeze_cxr` or `compile`, they differ by the rounding of its precision.

        Args:
            cohort: The cohort or its folder; it need not be the one of the training.
            rows: Row numbers of stays with known labels (N,); by default all of them.
            num_workers: Processes that make batches; 0 makes them in this one.
            progress: Whether to show a progress bar.

        Raises:
            InputError: If the cohort was not prepared like that of the training, or `rows` is empty, not of
                whole numbers, or holds a stay without known labels.
        """
        return Predictions.concatenate(list(self.predict_blocks(cohort, rows, num_workers, progress)))

    def predict_blocks(
        self,
        cohort: Cohort | Path,
        rows: NDArray[np.int64] | None = None,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Iterator[Predictions]:
        """Yield what `predict` returns in blocks of about 32,768 stays, so that it need not fit in memory.

        The arguments are those of `predict`.

        Raises:
            InputError: As `predict`, when the first block is asked for.
        """
        dataset = self.dataset(cohort)
        cohort, known = dataset.cohort, dataset.task.rows()
        rows = known if rows is None else _row_numbers(rows, known, f"{cohort.folder} with known labels")
        stays = cohort.columns("subject_id", "stay_id", "split", "has_cxr")
        for block in self.outputs(dataset, split_rows(rows, self.facts.batch_size), num_workers, progress):
            yield Predictions(
                phenotypes=self.facts.label_names,
                stays=stays[block.rows],
                logits=block.logits,
                labels=dataset.task.labels_of(block.rows).astype("uint8"),
                modality_weights=block.modality_weights,
                logits_without_cxr=block.logits_without_cxr,
                logits_without_ehr=block.logits_without_ehr,
            )

    def outputs(
        self,
        dataset: StayDataset,
        batches: Sequence[Sequence[int]],
        num_workers: int = 0,
        progress: bool = False,
    ) -> Iterator[Outputs]:
        """Yield what the model says of batches of rows of `dataset(...)`, in blocks of about 32,768 stays."""
        mean_hour = dataset.features.mean_record(1)[0].to(self.device)
        predict = partial(predict_batch, self.model, mean_hour=mean_hour)
        predicted = self._map(predict, dataset, batches, num_workers, progress)
        largest = max(map(len, batches), default=1)
        while parts := list(islice(predicted, max(1, _STAYS_A_BLOCK // largest))):
            stay_id, logits, without_cxr, without_ehr, weights = (
                torch.cat(part).numpy() for part in zip(*parts, strict=True)
            )
            rows = np.searchsorted(dataset.cohort.stay_id, stay_id)
            yield Outputs(rows, logits, without_cxr, without_ehr, weights if weights.shape[1] else None)
            dataset.cohort.release()

    def predict_stays(self, ehr: Path | pl.DataFrame, cxr: Path | None = None) -> pl.DataFrame:
        """Return the probabilities of single patients, a row for each stay and phenotype.

        A stay without a radiograph is predicted from its record alone.

        Args:
            ehr: Their measurements, as `drfuse.cohort.patients.read_patients` takes them.
            cxr: Their radiographs.

        Returns:
            The columns of `drfuse.inference.table.prediction_table`.

        Raises:
            InputError: If a file cannot be read, or the stays do not fit the model.
        """
        from drfuse.inference.inputs import open_stays
        from drfuse.inference.table import prediction_table

        with open_stays(self.facts, ehr=ehr, cxr=cxr) as stays:
            dataset = self.dataset(stays, labelled=False)
            batches = split_rows(dataset.task.rows(), self.facts.batch_size)
            tables = [
                prediction_table(stays, self.facts.label_names, [block], [self.recalibration])
                for block in self.outputs(dataset, batches)
            ]
        if not tables:
            raise InputError("no stay can be predicted: none outlasts the window")
        return pl.concat(tables)

    def explain(self, cohort: Cohort | Path, stay_id: int, phenotype: str | None = None) -> "Explanation":
        """Return why a stay of a cohort is predicted as it is; see `explain_stay`, which has more options.

        A stay without a radiograph owes its prediction to its record alone.

        Args:
            cohort: The cohort or its folder; its labels are not needed.
            stay_id: The stay.
            phenotype: Whose hours, variables and regions are attributed; by default the likeliest.

        Raises:
            InputError: If the cohort does not fit the model, or has no such stay or phenotype.
        """
        from drfuse.inference.explanation import explain_stay

        cohort = cohort if isinstance(cohort, Cohort) else Cohort.open(cohort)
        return explain_stay(self, cohort, cohort.row_of(stay_id), phenotype)

    def represent(
        self, cohort: Cohort | Path, batches: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the model's representations by name for batches of rows, in order.

        Each is (N, D) for the N stays, or (M, D) for the M radiographs among them.

        Raises:
            InputError: If the cohort does not fit the model, or has no such rows.
        """
        dataset = self.dataset(cohort)
        for batch in batches:
            _row_numbers(batch, np.arange(len(dataset)), str(dataset.cohort.folder))
        parts = list(self._map(lambda batch: self.model(batch).representations, dataset, batches))
        return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in parts[0]}

    def _map(
        self,
        function: Callable[[Batch], _Returned],
        dataset: StayDataset,
        batches: Sequence[Sequence[int]],
        num_workers: int = 0,
        progress: bool = False,
    ) -> Iterator[_Returned]:
        """Yield a function's result for each batch, computed in the precision of the training."""
        half = _HALF.get(self.facts.precision)
        if half == torch.float16 and self.device.type == "cpu":  # CPUs do not train in float16
            half = None
        transform = CxrTransform(self.facts.crop_size)
        read = EvaluationBatches(dataset, transform, batches, num_workers, self.device)
        shown = tracked(read, "predicting", len(batches), shown=progress)
        with explain_killed_workers():
            for batch in shown:
                with (
                    torch.inference_mode(),
                    torch.autocast(self.device.type, half, enabled=half is not None),
                ):
                    result = function(batch)
                yield result
        dataset.cohort.check_unchanged()

    def dataset(self, cohort: Cohort | Path, labelled: bool = True) -> StayDataset:
        """Return the dataset of a cohort that fits the model, with the features of the training.

        The hours before admission must fit as well: they decide how often a stay's first hour has a height
        and a weight, which the model sees in its observation masks.

        Args:
            cohort: The cohort or its folder.
            labelled: Whether the cohort must have the labels that the model predicts; otherwise, they are
                taken as unknown.

        Raises:
            InputError: If the cohort does not fit the model.
        """
        cohort = cohort if isinstance(cohort, Cohort) else Cohort.open(cohort)
        facts, manifest, reads = self.facts, cohort.manifest, self.model.reads
        if manifest.variables != facts.variables:
            raise InputError(
                f"{cohort.folder} has different variables from the cohort that the model was trained on; "
                "prepare it with the same version of drfuse"
            )
        options = {**manifest.options, "image_size": cohort.image_size}
        names = ["window_hours"]
        names += ["preset", "before_hours"] if "ehr" in reads else []
        names += ["image_size", "view"] if "cxr" in reads and len(cohort.cxr) else []
        for name in names:
            found, needed = options.get(name), getattr(facts, name)
            if name == "view" and needed and found:
                found, needed = sorted(set(found)), sorted(set(needed))
            if needed is not None and found != needed:  # an earlier version did not store them all
                raise InputError(
                    f"{cohort.folder} has a different {name} ({found}, not {needed}) from the cohort that "
                    f"the model was trained on; prepare it with the same --{name.replace('_', '-')}"
                )
        is_frozen = any(encoder.kept is not None for encoder in self.model.shared_encoders().cxr)
        cxr: CxrContent = "nothing" if "cxr" not in reads else "rows" if is_frozen else "pixels"
        features = EhrFeatures(facts.variables, facts.normalization)
        task = (
            Task.of(cohort, facts.task)
            if labelled
            else Task.unlabelled(cohort, facts.task, facts.label_names)
        )
        if task.label_names != facts.label_names:
            raise InputError(
                f"{cohort.folder} has different labels from those that the model predicts; prepare it with "
                "the same --phenotypes"
            )
        return StayDataset(cohort, task, cxr, features)


def _row_numbers(rows: Any, allowed: NDArray[np.int64], of: str) -> NDArray[np.int64]:
    """Return rows as an array (N,); raise InputError unless they are whole numbers, all of them allowed."""
    with suppress(ValueError):  # lists of different lengths
        numbers = np.asarray(rows)
        if (
            numbers.ndim == 1
            and numbers.dtype.kind in "iu"
            and len(numbers)
            and np.isin(numbers, allowed).all()
        ):
            return numbers
    shown = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
    raise InputError(
        f"rows: expected at least one, each of a stay of {of}, got {shown}; if you have a mask, "
        "pass numpy.flatnonzero(mask)"
    )


def find_device(accelerator: str) -> torch.device:
    """Return the device that `cpu`, `gpu` or `auto`, a GPU if there is one, stands for.

    Raises:
        InputError: If there is no GPU and one is asked for.
    """
    check_choice("accelerator", accelerator, ("auto", "cpu", "gpu"))
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise InputError(
            "accelerator is gpu, and PyTorch finds none; leave it out, or install its CUDA build"
        )
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")


def predict_batch(model: FusionModel, batch: Batch, mean_hour: Tensor) -> tuple[Tensor, ...]:
    """Return the predictions for B stays, on the CPU, in float32.

    They are the stays' ids (B,), logits (B, C), logits with every radiograph removed (B, C), those with the
    EHR removed (B, C), and modality weights (B, C, 3), or (B, 0) if the model has none. `mean_hour` (F,) is
    an hour of a record that says nothing.
    """
    with ExitStack() as remembering:
        for encoder in model.shared_encoders().cxr:
            remembering.enter_context(encoder.remembering())
        output = model(batch)
        weights = output.modality_weights
        without_cxr, without_ehr = output.logits, torch.full_like(output.logits, torch.nan)
        if len(batch.cxr_of):  # only stays with a radiograph need the other passes
            alone = model.logits_without_ehr(batch, mean_hour)
            without_ehr = without_ehr.index_copy(0, batch.cxr_of, at_least_float32(alone))
            blind = model(batch.matched_without_cxr()).logits
            without_cxr = without_cxr.index_copy(0, batch.cxr_of, blind)
    results = (output.logits, without_cxr, without_ehr, output.logits[:, :0] if weights is None else weights)
    return (batch.stay_id.cpu(), *(tensor.float().cpu() for tensor in results))
