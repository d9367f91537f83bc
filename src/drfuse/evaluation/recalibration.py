"""Maps logits to probabilities that agree better with outcomes; learned on the validation split."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from drfuse.arguments import as_annotated
from drfuse.errors import InputError
from drfuse.evaluation.resampling import number_units, too_few
from drfuse.files import write_whole
from drfuse.run import Predictions, Run, sha256_of_json

logger = logging.getLogger(__name__)

Method = Literal["none", "temperature", "platt", "isotonic"]
"""The methods, the simplest first."""

_FOLDS = 5
_TEMPERATURES = (0.05, 20.0)
_LARGEST_LOGIT = 30.0  # of those that a method learns from; its probability is within 1e-13 of 0 or 1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recalibration:
    """How the logits of a run become probabilities; the content of `recalibration.json`.

    A label's probability is read off its curve; without one, it is expit(slope * logit + intercept).

    Attributes:
        method: The method with the lowest log loss.
        label_names: The C labels, in order.
        slopes: The slope of each label (C,), at least 0: 1 without recalibration, 1 / T at temperature T.
        intercepts: The intercept of each label (C,).
        curves: By label, `logits` in ascending order and their `probabilities`, between which the curve is
            linear; beyond its ends it is constant. Empty unless the method is isotonic.
        few: The labels with too few positives or negatives for a map of their own. Where other labels have
            their own map, these have the temperature.
        log_loss: The cross-fitted log loss of each method, the mean over stays and labels.
        n_stays: Number of validation stays that it was learned from.
        n_subjects: Number of their subjects.
    """

    method: Method
    label_names: Sequence[str]
    slopes: Sequence[float]
    intercepts: Sequence[float]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    few: Sequence[str]
    log_loss: Mapping[str, float]
    n_stays: int
    n_subjects: int

    def apply(self, logits: ArrayLike) -> Floats:
        """Return probabilities (N, C) from logits (N, C); NaN stay NaN.

        Raises:
            InputError: If there are not C labels.

        >>> none = Recalibration("none", ["gout"], [1.0], [0.0], {}, [], {}, 0, 0)
        >>> none.apply([[0.0], [float("nan")]])
        array([[0.5],
               [nan]])
        """
        given = np.asarray(logits, np.float64)
        if given.ndim != 2 or given.shape[1] != len(self.label_names):
            raise InputError(
                f"expected the logits (N, {len(self.label_names)}) of the labels that the recalibration was "
                f"learned from; got the shape {given.shape}"
            )
        finite = np.clip(given, -1e6, 1e6)  # a slope of 0 times infinity would be NaN
        probabilities: Floats = expit(finite * self.slopes + self.intercepts)
        for label, curve in self.curves.items():
            c = self.label_names.index(label)
            probabilities[:, c] = np.interp(given[:, c], curve["logits"], curve["probabilities"])
        return probabilities

    def write(self, path: Path) -> None:
        """Write `recalibration.json`, with the SHA-256 of its content."""
        content = asdict(self)
        content["sha256"] = sha256_of_json(content)
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, run: Path, label_names: Sequence[str] | None = None) -> "Recalibration | None":
        """Return the recalibration of a run; None if it has none.

        Args:
            run: The run.
            label_names: The labels of the run, in order, which must be those that it was learned from.

        Raises:
            InputError: If the file is damaged, or of other labels.
        """
        path = Run(run).recalibration
        if not path.is_file():
            return None
        try:
            stored = as_annotated("its content", json.loads(path.read_text("utf-8")), dict[str, Any])
            sha256 = stored.pop("sha256", None)
            types = get_type_hints(cls)
            if wrong := sorted(types.keys() ^ stored.keys()):
                raise InputError(f"{wrong[0]} is {'missing' if wrong[0] in types else 'unknown'}")
            if sha256 != sha256_of_json(stored):
                raise InputError("its values are not those that drfuse wrote")
            found = cls(**{name: as_annotated(name, stored[name], kind) for name, kind in types.items()})
            found._check()
            if label_names is not None and list(found.label_names) != list(label_names):
                raise InputError("it was learned from other labels than the run predicts")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {error}; delete it and run `drfuse evaluate`") from error
        return found

    def _check(self) -> None:
        """Raise InputError if a value is out of range."""
        n_labels = len(self.label_names)
        for name, least in (("slopes", 0.0), ("intercepts", -np.inf)):
            values = np.array(getattr(self, name))
            if values.shape != (n_labels,) or not (np.isfinite(values) & (values >= least)).all():
                raise InputError(f"{name} are not {n_labels} finite numbers of at least {least}")
        for label, curve in self.curves.items():
            x, y = (np.array(curve.get(name, [])) for name in ("logits", "probabilities"))
            in_order = len(x) and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
            if label not in self.label_names or x.shape != y.shape or not in_order:
                raise InputError(f"the curve of {label} does not rise, or is not of a label")
            if not (0 <= y[0] <= y[-1] <= 1 and np.isfinite(x).all()):
                raise InputError(f"the curve of {label} leaves the range of probabilities")


def recalibrate(run: Run, predictions: Path | None = None) -> Recalibration | None:
    """Learn the recalibration of a run with `fit_recalibration`, and write its `recalibration.json`.

    Args:
        run: The run.
        predictions: Its predictions, if they are not in their place yet.

    Returns:
        The recalibration; None, with a warning, if it cannot be learned.
    """
    stored = Predictions.read(predictions or run.predictions, "validation", logits_only=True)
    found = fit_recalibration(stored)
    if found is None:
        message = "%s has too few predicted stays in the validation split to recalibrate its probabilities"
        logger.warning(message, run.folder)
        return None
    found.write(run.recalibration)
    run.update_sums(run.recalibration)
    return found


def fit_recalibration(predictions: Predictions) -> Recalibration | None:
    """Return the recalibration with the lowest log loss on the validation split, learned from all of it.

    Each method is judged on validation stays that it did not learn from: it is learned from four fifths of
    the subjects and applied to the others, in turn. On the stays that it learned from, an isotonic curve
    would always win. Of equally good methods, the simplest wins. The same predictions give the same result.

    Methods: none; one temperature for all labels (Guo et al., ICML 2017); Platt's logistic curve of each
    label, with his targets that are not quite 0 and 1 (Platt 1999, Section 2.2) and a slope of at least 0;
    isotonic regression of each label (Zadrozny & Elkan, KDD 2002), within Platt's targets, so that no log
    loss is infinite. Labels with positives or negatives of fewer than 5 subjects get the temperature instead
    of their own curve.

    Returns:
        The recalibration; None if the model predicts validation stays of fewer than two subjects, or none
        with a label.
    """
    validation = predictions.of_split("validation")
    predicted = ~np.isnan(validation.logits).any(axis=1)
    labels, logits = validation.labels[predicted], validation.logits[predicted].astype(np.float64)
    subjects, n_subjects = number_units(validation.stays["subject_id"].to_numpy()[predicted])
    if n_subjects < 2 or not labels.any():
        return None
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    names = validation.phenotypes
    held_out: dict[Method, Floats] = {method: np.empty(labels.shape) for method in get_args(Method)}
    for learn, judge in GroupKFold(min(_FOLDS, n_subjects)).split(logits, groups=subjects):
        for method, probabilities in held_out.items():
            one = _fit(method, names, labels[learn], logits[learn], subjects[learn])
            probabilities[judge] = one.apply(logits[judge])
    losses: dict[str, float] = {
        method: float(log_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1]))
        for method, probabilities in held_out.items()
    }
    best = min(held_out, key=lambda method: losses[method])
    return replace(_fit(best, names, labels, logits, subjects), log_loss=losses)


def _fit(
    method: Method,
    names: Sequence[str],
    labels: NDArray[np.uint8],
    logits: Floats,
    subjects: NDArray[np.intp],
) -> Recalibration:
    """Return one method's map of logits (n, C), without its log loss."""
    few = too_few(labels, subjects)
    finite = np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    needs_temperature = method == "temperature" or (method != "none" and few.any())
    slope = 1 / _temperature(labels, finite) if needs_temperature else 1.0
    slopes, intercepts = np.full(len(names), slope), np.zeros(len(names))
    curves = {}
    for c in np.flatnonzero(~few).tolist():
        if method == "platt":
            slopes[c], intercepts[c] = _platt(labels[:, c], finite[:, c])
        elif method == "isotonic":
            curves[names[c]] = _isotonic(labels[:, c], finite[:, c])
    return Recalibration(
        method=method,
        label_names=list(names),
        slopes=slopes.tolist(),
        intercepts=intercepts.tolist(),
        curves=curves,
        few=[name for name, is_few in zip(names, few, strict=True) if is_few],
        log_loss={},
        n_stays=len(labels),
        n_subjects=len(np.unique(subjects)),
    )


def _temperature(labels: NDArray[np.uint8], logits: Floats) -> float:
    """Return the temperature with the lowest log loss over stays and labels, from 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    def log_loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - labels * scaled).mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


def _platt(labels: NDArray[np.uint8], logits: Floats) -> tuple[float, float]:
    """Return slope and intercept of Platt's curve of one label."""
    from sklearn.linear_model import LogisticRegression

    least, most = _targets(labels)
    target = np.where(labels == 1, most, least)
    if np.ptp(logits) > 0:
        outcomes = np.repeat([1, 0], len(labels))
        model = LogisticRegression(C=np.inf, solver="newton-cholesky")
        model.fit(np.tile(logits, 2)[:, None], outcomes, np.concatenate([target, 1 - target]))
        if (slope := float(model.coef_[0, 0])) > 0:
            return slope, float(model.intercept_[0])
    return 0.0, float(logit(target.mean()))


def _isotonic(labels: NDArray[np.uint8], logits: Floats) -> dict[str, list[float]]:
    """Return the isotonic curve of one label."""
    from sklearn.isotonic import IsotonicRegression

    least, most = _targets(labels)
    curve = IsotonicRegression(y_min=least, y_max=most).fit(logits, labels)
    return {"logits": curve.X_thresholds_.tolist(), "probabilities": curve.y_thresholds_.tolist()}


def _targets(labels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return Platt's targets for a negative and a positive of one label (Platt 1999, Eq. 4 and 5)."""
    n_positive = int(labels.sum())
    return 1 / (len(labels) - n_positive + 2), (n_positive + 1) / (n_positive + 2)
