"""Predicts the stays of a cohort with a trained run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from drfuse.data import Batch, Cohort, EhrFeatures, StayDataset, TaskName
from drfuse.data.augmentation import CxrTransform
from drfuse.data.dataset import CxrContent
from drfuse.data.loader import EvaluationBatches, explain_killed_workers, split_rows
from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.models import FusionModel
from drfuse.run import Predictions, RunFacts, RunFiles

_CANNOT_LOAD = (KeyError, TypeError, ValueError, RuntimeError, OSError)
_Returned = TypeVar("_Returned")
_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def load(run: Path) -> "Predictor":
    """Return the model of a finished run with its best weights, ready to predict.

    Raises:
        MissingInputError: If `run` is not a finished run.
        InputError: If its files do not fit together, or the model's class cannot be imported.
    """
    facts = RunFacts.read(run)
    try:
        kind = import_class(facts.model["class_path"], FusionModel)
        model: FusionModel = kind(facts.n_features, len(facts.label_names), **facts.model["init_args"])
        model.load_state_dict(load_file(RunFiles(Path(run)).model))
    except _CANNOT_LOAD as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model of {run} cannot be loaded: {reason}; train it again") from error
    return Predictor(model.eval(), facts)


@dataclass(frozen=True)
class Predictor:
    """A trained model with what it needs to read a cohort.

    Attributes:
        model: The model, in evaluation mode, on `device`.
        facts: The facts of its run.
        device: Where it predicts.
    """

    model: FusionModel
    facts: RunFacts
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def to(self, device: torch.device) -> Self:
        """Return a predictor on another device; the model itself moves, in the memory layout of training."""
        self.model.to(device)
        if self.facts.precision in _HALF:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, device=device)

    def predict(
        self,
        cohort: Cohort,
        rows: NDArray[np.int64] | None = None,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Predictions:
        """Return logits with and without the radiograph, and the modality weights, of N stays.

        For a stay without a radiograph, both logits are the same. On a CPU, predictions for the run's own
        cohort equal its `predictions.parquet` to the bit.

        Args:
            cohort: The cohort, which need not be the one of the training.
            rows: Rows of stays with known labels (N,); by default all of them.
            num_workers: Processes that make batches; 0 makes them in this one.
            progress: Whether to show a progress bar.

        Raises:
            InputError: If the cohort's variables, hours, image size or labels are not the model's, or `rows`
                is empty or holds a stay without known labels.
        """
        dataset = self._dataset(cohort)
        known = dataset.task.rows()
        rows = known if rows is None else rows
        if not len(rows) or not np.isin(rows, known).all():
            raise InputError(
                f"rows: expected at least one, each of a stay of {cohort.folder} with known labels"
            )
        batches = split_rows(rows, self.facts.batch_size)
        parts = self._map(partial(predict_batch, self.model), dataset, batches, num_workers, progress)
        stay_id, logits, without, weights = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        at = np.searchsorted(cohort.stays["stay_id"].to_numpy(), stay_id)
        return Predictions(
            phenotypes=self.facts.label_names,
            stays=cohort.stays.select("subject_id", "stay_id", "split", "has_cxr")[at],
            logits=logits,
            labels=dataset.task.labels[at].astype("uint8"),
            modality_weights=weights if weights.shape[1] else None,
            logits_without_cxr=without,
        )

    def represent(self, cohort: Cohort, batches: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float32]]:
        """Return the model's representations by name for batches of rows, in order.

        Each is (N, D) for the N stays, or (M, D) for the M radiographs among them.

        Raises:
            InputError: If the cohort does not fit the model.
        """
        parts = self._map(lambda batch: self.model(batch).representations, self._dataset(cohort), batches)
        return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in parts[0]}

    def _map(
        self,
        function: Callable[[Batch], _Returned],
        dataset: StayDataset,
        batches: Sequence[Sequence[int]],
        num_workers: int = 0,
        progress: bool = False,
    ) -> list[_Returned]:
        """Return a function's result for each batch, computed in the precision of the training."""
        half = _HALF.get(self.facts.precision)
        if half == torch.float16 and self.device.type == "cpu":  # CPUs do not train in float16
            half = None
        transform = CxrTransform(self.facts.crop_size)
        read = EvaluationBatches(dataset, transform, batches, num_workers, self.device)
        shown = track(read, "predicting", len(batches), disable=not progress, transient=True)
        with (
            explain_killed_workers(),
            torch.inference_mode(),
            torch.autocast(self.device.type, half, enabled=half is not None),
        ):
            return [function(batch) for batch in shown]

    def _dataset(self, cohort: Cohort) -> StayDataset:
        """Return the dataset of a cohort that fits the model, with the features of the training."""
        facts, manifest = self.facts, cohort.manifest
        expected: dict[str, tuple[Any, Any, str]] = {
            "variables": (manifest.variables, facts.variables, "the same preset and version of drfuse"),
            "hours": (manifest.options["window_hours"], facts.window_hours, "--window-hours"),
        }
        is_frozen = any(encoder.kept is not None for encoder in self.model.shared_encoders().cxr)
        cxr: CxrContent = "nothing" if "cxr" not in self.model.reads else "rows" if is_frozen else "pixels"
        if cxr == "pixels" and len(cohort.cxr):
            expected["image size"] = (cohort.image_size, facts.image_size, "--image-size")
        for what, (found, needed, option) in expected.items():
            if found != needed:
                shown = "" if what == "variables" else f" ({found}, not {needed})"
                raise InputError(
                    f"{cohort.folder} has different {what}{shown} from the cohort that the model was trained "
                    f"on; prepare it with {option}"
                )
        features = EhrFeatures(facts.variables, facts.normalization)
        dataset = StayDataset(cohort, cast(TaskName, facts.task), cxr, features)
        if dataset.task.label_names != facts.label_names:
            raise InputError(
                f"{cohort.folder} has different labels from those that the model predicts; prepare it with "
                "the same --phenotypes"
            )
        return dataset


def predict_batch(model: FusionModel, batch: Batch) -> tuple[Tensor, ...]:
    """Return the predictions for B stays, on the CPU, in float32.

    They are the stays' ids (B,), logits (B, C), logits with every radiograph removed (B, C), and modality
    weights (B, C, 3), or (B, 0) if the model has none.
    """
    output = model(batch)
    without, weights = output.logits, output.modality_weights
    if len(batch.cxr_of):  # only stays with a radiograph need the second pass
        blind = model(batch.matched_without_cxr())
        without = without.index_copy(0, batch.cxr_of, blind.logits)
    results = (output.logits, without, output.logits[:, :0] if weights is None else weights)
    return (batch.stay_id.cpu(), *(tensor.float().cpu() for tensor in results))
