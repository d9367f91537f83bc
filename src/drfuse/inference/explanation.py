"""Why a run predicts what it predicts for one stay."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drfuse.cohort.manifest import Variable
from drfuse.data import Batch, Cohort
from drfuse.data.augmentation import CxrTransform
from drfuse.data.loader import EvaluationBatches
from drfuse.errors import InputError
from drfuse.inference.attributions import (
    MOST_STEPS,
    CxrMethod,
    EhrMethod,
    ImageAttribution,
    NoGradientError,
    RecordAttribution,
    attribute_image,
    attribute_record,
    logits_with,
)
from drfuse.inference.predictor import Predictor
from drfuse.inference.table import probabilities
from drfuse.models import MODALITIES

Given = Literal["both", "ehr", "cxr", "neither"]
"""What a prediction is given of a stay. Without its EHR, the record is the mean one; without its CXR, there
is no radiograph."""

GIVEN: tuple[Given, ...] = ("both", "ehr", "cxr", "neither")

_DIGITS = 6  # that count, in JSON


@dataclass(frozen=True)
class Explanation:
    """Why a run predicts what it predicts for one stay of T hours, V variables and C phenotypes.

    Attributes:
        model: Name of the model's class.
        stay_id: The stay.
        phenotypes: The C names.
        phenotype: The one that `record` and `image` explain.
        has_cxr: Whether the stay has a radiograph that the model reads.
        logits: By what is given, (C,); NaN where the model makes no prediction. All are computed in float32,
            so that they may differ from those of a run in half precision by its rounding.
        probabilities: The same as probabilities, recalibrated if the run has learned how.
        modality_weights: (C, 3) over `MODALITIES`, if the model has them.
        variables: The V variables.
        values: (T, V), what was observed, in physical units; NaN where nothing was.
        record: What the parts of the record contributed, given the radiograph; None if `notes` say why not.
        cxr: (H, W), the radiograph as the model sees it, from 0 (black) to 1; None without one.
        image: What its parts contributed, given the record; None if `notes` say why not.
        notes: Sentences on what could not be computed, or must be read with care.
    """

    model: str
    stay_id: int
    phenotypes: list[str]
    phenotype: str
    has_cxr: bool
    logits: dict[Given, NDArray[np.float32]]
    probabilities: dict[Given, NDArray[np.float64]]
    modality_weights: NDArray[np.float32] | None
    variables: list[Variable]
    values: NDArray[np.float32]
    record: RecordAttribution | None
    cxr: NDArray[np.float32] | None
    image: ImageAttribution | None
    notes: list[str]

    @property
    def shapley(self) -> NDArray[np.float32]:
        """The Shapley values (C, 2) of EHR and radiograph; see `shapley_values`."""
        return shapley_values(self.logits)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the radiograph's pixels, as JSON has it; NaN becomes None."""
        weights = self.modality_weights
        return {
            "model": self.model,
            "stay_id": self.stay_id,
            "phenotype": self.phenotype,
            "has_cxr": self.has_cxr,
            "phenotypes": [
                {
                    "name": name,
                    "logits": {given: _plain(self.logits[given][c]) for given in GIVEN},
                    "probabilities": {given: _plain(self.probabilities[given][c]) for given in GIVEN},
                    "shapley": dict(zip(("ehr", "cxr"), _plain(self.shapley[c]), strict=True)),
                    "modality_weights": None
                    if weights is None
                    else dict(zip(MODALITIES, _plain(weights[c]), strict=True)),
                }
                for c, name in enumerate(self.phenotypes)
            ],
            "variables": [asdict(variable) for variable in self.variables],
            "values": _plain(self.values),
            "record": None
            if self.record is None
            else {
                "method": self.record.method,
                "hours": _plain(self.record.hours),
                "variables": _plain(self.record.variables),
                "completeness": _completeness(self.record),
            },
            "image": None
            if self.image is None
            else {
                "method": self.image.method,
                "pixels": _plain(self.image.pixels),
                "completeness": _completeness(self.image),
            },
            "notes": self.notes,
        }


def explain_stay(
    predictor: Predictor,
    cohort: Cohort,
    row: int,
    phenotype: str | None = None,
    ehr_method: EhrMethod = "integrated-gradients",
    cxr_method: CxrMethod = "integrated-gradients-grey",
    most_steps: int = MOST_STEPS,
) -> Explanation:
    """Explain the prediction for one stay.

    The stay is also predicted without its radiograph, with its record reduced to the mean, and without both.
    The mean record needs nothing but the run: each of the stay's hours has every continuous variable at its
    mean over the training split, every category at its normal value, and nothing observed.

    Args:
        predictor: The run.
        cohort: The stay's cohort.
        row: The stay's row in the cohort.
        phenotype: Whose logit the attributions explain; by default the likeliest.
        ehr_method: How to attribute it to hours and variables.
        cxr_method: How to attribute it to regions of the radiograph.
        most_steps: The most steps of integrated gradients.

    Raises:
        InputError: If the cohort does not fit the model, there is no such row or phenotype, or the stay is
            not predicted.
    """
    model, names = predictor.model, predictor.facts.label_names
    dataset = predictor.dataset(cohort, labelled=False)
    if not 0 <= row < len(dataset):
        raise InputError(f"row is {row}; {cohort.folder} has rows 0 to {len(dataset) - 1}")
    if not dataset.task.eligible[row]:
        raise InputError(
            f"stay {cohort.stay_id[row]} ended within the window, so its {predictor.facts.task} is not "
            "predicted; choose a longer one"
        )
    transform = CxrTransform(predictor.facts.crop_size)
    (stay,) = EvaluationBatches(dataset, transform, [[row]], device=predictor.device)
    baseline = dataset.features.mean_record(stay.ehr.shape[1]).to(predictor.device)
    logits, weights = _predict(predictor, stay, baseline)
    if np.isnan(logits["both"]).all():
        raise InputError(
            f"{type(model).__name__} makes no prediction for stay {int(stay.stay_id)}, which has no "
            "radiograph; choose a stay with one, or another run"
        )
    likely = {given: probabilities(one[None], predictor.recalibration)[0] for given, one in logits.items()}
    label = _label(phenotype, names, likely["both"])
    notes: list[str] = []
    record, image = None, None
    if "ehr" in model.reads:
        variable_of = dataset.features.variable_of
        try:
            record = attribute_record(model, stay, baseline, variable_of, label, ehr_method, most_steps)
        except NoGradientError as error:
            notes.append(f"{ehr_method} is not possible: {type(model).__name__} {error}; occlusion is shown.")
            record = attribute_record(model, stay, baseline, variable_of, label, "occlusion")
    else:
        notes.append(f"{type(model).__name__} does not read the record.")
    side = predictor.facts.crop_size
    black, white = (float(transform(torch.full((1, 1, side, side), grey)).mean()) for grey in (0, 255))
    if "cxr" not in model.reads:
        notes.append(f"{type(model).__name__} does not read radiographs.")
    elif not len(stay.cxr):
        notes.append("The stay has no radiograph, so the record has all of the Shapley value.")
    else:
        try:
            image = attribute_image(model, stay, black, label, cxr_method, most_steps)
        except NoGradientError as error:
            notes.append(
                f"{cxr_method} is not possible: {type(model).__name__} {error}; choose another method."
            )
    notes += _incomplete("record", record) + _incomplete("radiograph", image)
    if np.isnan(logits["neither"]).all():
        notes.append("Without a radiograph the model makes no prediction, so there are no Shapley values.")
    n_hours = stay.ehr.shape[1]
    return Explanation(
        model=type(model).__name__,
        stay_id=int(stay.stay_id),
        phenotypes=list(names),
        phenotype=names[label],
        has_cxr=len(stay.cxr) > 0,
        logits=logits,
        probabilities=likely,
        modality_weights=weights,
        variables=list(predictor.facts.variables),
        values=np.array(cohort.ehr[row, :n_hours]),
        record=record,
        cxr=((stay.cxr[0, 0] - black) / (white - black)).cpu().numpy() if len(stay.cxr) else None,
        image=image,
        notes=notes,
    )


def shapley_values(logits: Mapping[Given, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the Shapley values (C, 2) of EHR and radiograph in a game whose payoff is a logit.

    A modality's value is the mean of what it adds to the logit when it comes first, and when it comes second.
    They are exact, and add up to the logit given both minus that given neither.

    >>> game = {"both": 4.0, "ehr": 2.0, "cxr": 1.0, "neither": 0.0}
    >>> shapley_values({given: np.array([logit]) for given, logit in game.items()})
    array([[2.5, 1.5]])
    """
    both, ehr, cxr, neither = (logits[given] for given in GIVEN)
    of_ehr = ((ehr - neither) + (both - cxr)) / 2
    of_cxr = ((cxr - neither) + (both - ehr)) / 2
    return np.stack([of_ehr, of_cxr], axis=-1)


def _predict(
    predictor: Predictor, stay: Batch, baseline: Tensor
) -> tuple[dict[Given, NDArray[np.float32]], NDArray[np.float32] | None]:
    """Return the logits by what is given, and the modality weights (C, 3) of the stay as it is."""
    no_cxr = stay.cxr[:0]
    of: dict[Given, tuple[Tensor, Tensor]] = {
        "both": (stay.ehr, stay.cxr),
        "ehr": (stay.ehr, no_cxr),
        "cxr": (baseline[None], stay.cxr),
        "neither": (baseline[None], no_cxr),
    }
    with torch.no_grad():
        logits = {
            given: logits_with(predictor.model, stay, *inputs)[0].cpu().numpy()
            for given, inputs in of.items()
        }
        weights = predictor.model(stay).modality_weights
    return logits, None if weights is None else weights[0].cpu().numpy()


def _label(phenotype: str | None, names: list[str], likely: NDArray[np.float64]) -> int:
    if phenotype is None:
        return int(likely.argmax())
    if phenotype not in names:
        raise InputError(f"phenotype is {phenotype!r}; expected one of {', '.join(names)}")
    return names.index(phenotype)


def _incomplete(what: str, found: RecordAttribution | ImageAttribution | None) -> list[str]:
    """Return a sentence if integrated gradients do not add up to the difference that they explain."""
    if found is None or found.completeness is None or not found.completeness.steps:
        return []
    of = found.completeness
    if of.is_met:
        return []
    return [
        f"The attributions of the {what} add up to {of.total:+.3f}, but the logit differs by "
        f"{of.difference:+.3f}. After {of.steps} steps the gap is {of.share:.0%} of that difference, so read "
        "them with care."
    ]


def _completeness(found: RecordAttribution | ImageAttribution) -> dict[str, Any] | None:
    of = found.completeness
    return None if of is None else asdict(of) | {"gap": of.gap, "share": of.share}


def _plain(values: Any) -> Any:
    """Return a number or an array as nested lists, of 6 digits that count; NaN becomes None."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [_plain(part) for part in array]
    return float(f"{array:.{_DIGITS}g}") if np.isfinite(array) else None
