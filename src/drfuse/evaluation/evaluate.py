"""A run's predictions -> metrics, calibration, net benefit, prediction sets and groups of patients."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from drfuse.choices import check_n_resamples
from drfuse.errors import InputError, MissingInputError, check_choice
from drfuse.escapes import csv_of
from drfuse.evaluation.calibration import Calibration, calibration
from drfuse.evaluation.conformal import Conformal, ConformalSets, SetCoverage, measure_sets
from drfuse.evaluation.decisions import DecisionCurves, decision_curves_in
from drfuse.evaluation.estimate import Estimate, Intervals, macro_of_seeds
from drfuse.evaluation.external import External, predict_elsewhere
from drfuse.evaluation.metrics import METRICS, Metric, Resampled
from drfuse.evaluation.recalibration import Method, Recalibration, recalibrate
from drfuse.evaluation.resampling import Resamples, mask_interval, too_few
from drfuse.evaluation.subgroups import (
    GROUPED_BY,
    GroupMetrics,
    Subgroups,
    group_by_radiograph,
    groups_of,
    subgroups_in,
)
from drfuse.files import write_whole
from drfuse.run import Predictions, Run
from drfuse.subsets import Subset

logger = logging.getLogger(__name__)

_LAST = (
    "calibration",
    "recalibration",
    "recalibrated",
    "decision_curves",
    "conformal",
    "subgroups",
    "external",
)
"""What comes after the metrics in `metrics.json`."""


@dataclass(frozen=True)
class Measured:
    """One metric on one test set.

    Attributes:
        macro: The mean over the labels where it is defined.
        by_label: The metric of each label, in order.
    """

    macro: Estimate
    by_label: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """How well a run predicts the stays of one test set.

    Attributes:
        test_on: All stays of the test split (`full`), or those with a radiograph (`matched`).
        n_stays: Evaluated stays.
        n_with_cxr: Evaluated stays with a radiograph.
        n_subjects: Subjects of the evaluated stays.
        n_without_prediction: Stays left out because the model does not predict them.
        bootstrap_unit: What was resampled: `subject` or `stay`.
        intervals: How it was resampled.
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        metrics: Each metric of `evaluation/metrics.py`, by name.
        n_positive: Number of stays with each label, in order.
        calibration: How well the probabilities of all labels agree with outcomes.
        recalibration: The method of the run's recalibration, if it has one.
        recalibrated: The calibration of the recalibrated probabilities.
        decision_curves: Net benefit of the recalibrated probabilities, or of the others if there are none.
        conformal: Prediction sets, learned on the validation split, and their coverage; None without
            predictions of that split.
        subgroups: The metrics of groups of patients, if any attribute is known.
        external: The cohort of the stays, if it is not the run's own.
    """

    test_on: Subset
    n_stays: int
    n_with_cxr: int
    n_subjects: int
    n_without_prediction: int
    bootstrap_unit: str
    intervals: Intervals
    n_resamples: int
    seed: int
    metrics: dict[str, Measured]
    n_positive: dict[str, int]
    calibration: Calibration
    recalibration: Method | None = None
    recalibrated: Calibration | None = None
    decision_curves: DecisionCurves | None = None
    conformal: Conformal | None = None
    subgroups: Subgroups | None = None
    external: External | None = None

    @property
    def prauc_macro(self) -> Estimate:
        """The paper's metric: the mean PRAUC over the labels with a positive."""
        return self.metrics["prauc"].macro

    @property
    def left_out(self) -> list[str]:
        """Labels without a positive; no mean includes them."""
        return [label for label, n_positive in self.n_positive.items() if not n_positive]


def evaluate(
    run: Path,
    test_on: Subset | None = None,
    n_resamples: int = 1000,
    bootstrap_unit: Literal["subject", "stay"] = "subject",
    seed: int = 0,
    cohort: Path | None = None,
    intervals: Intervals = "half-sampling",
    on: Path | None = None,
    other_people: bool = False,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> list[Evaluation]:
    """Measure how well a run predicts the test split, from its `predictions.parquet`.

    Writes `metrics.json`, `metrics.csv`, `decision_curves.csv`, `conformal.csv` and `subgroups.csv` into the
    run; they keep test sets that were measured before. A run of an earlier version gets its
    `recalibration.json`. docs/statistics.md explains each interval and how often it contains the truth.

    Args:
        run: Folder that `drfuse train` wrote.
        test_on: All stays of the test split (`full`), or those with a radiograph (`matched`); default both.
        n_resamples: Number of resamples behind each interval.
        bootstrap_unit: Resample subjects, since one person may have many stays, or single stays, as the
            published code does.
        seed: Seed of the resampling.
        cohort: Folder of the cohort that the run was trained on, to measure groups of patients by age, sex,
            race and admission type, and pairs of these; without it, only stays with and without radiograph.
        intervals: `half-sampling` draws halves of the subjects without replacement, and corrects the bias of
            PRAUC. `bootstrap` gives the percentile intervals of the published code, which are too high.
        on: Another cohort, to measure the run on all of its stays as well (docs/external.md). The results go
            to `external/` in the run.
        other_people: A subject of that cohort and one of the run with the same id are different people;
            without it, a cohort with a subject of the run's training or validation split is refused.
        accelerator: Where the stays of `on` are predicted: `cpu`, `gpu`, or `auto` for a GPU if there is one.

    Returns:
        The metrics of each test set; those of `on` come last.

    Raises:
        InputError: If `run` is not a finished run, a test set has no stay or no positive, or `cohort` lacks
            stays of the run.
    """
    check_n_resamples(n_resamples)
    if seed < 0:
        raise InputError(f"seed is {seed}; expected at least 0")
    files = Run(Path(run))
    files.check()
    predictions = files.read_predictions("test", logits_only=True)
    validation = files.read_predictions("validation", logits_only=True)
    recalibration = Recalibration.read(files.folder) or recalibrate(files)
    elsewhere = None if on is None else predict_elsewhere(files, Path(on), other_people, accelerator)

    measure = partial(
        evaluate_test_set,
        n_resamples=n_resamples,
        bootstrap_unit=bootstrap_unit,
        seed=seed,
        intervals=intervals,
        recalibration=recalibration,
        sets=_conformal_sets(validation),
    )
    if cohort is not None and files.facts.is_file():  # a run of an earlier version does not know its cohort
        files.check_cohort(Path(cohort))
    attributes = None if cohort is None else _attributes(Path(cohort), predictions)
    metrics = _measure_sets(predictions, test_on, partial(measure, attributes=attributes))
    _write(files, metrics)
    if on is not None and elsewhere is not None:
        files, external = elsewhere
        predictions = files.read_predictions("test", logits_only=True)
        there = partial(measure, attributes=_attributes(Path(on), predictions))
        found = _measure_sets(predictions, test_on, there)
        found = [dataclasses.replace(one, external=external) for one in found]
        _write(files, found)
        metrics += found
    return metrics


def _measure_sets(
    predictions: Predictions, test_on: Subset | None, measure: Callable[[Predictions, Subset], Evaluation]
) -> list[Evaluation]:
    """Return what `measure` finds of each test set; without `test_on`, the matched one may have no stay."""
    test_sets: tuple[Subset, ...] = ("matched", "full") if test_on is None else (test_on,)
    metrics = []
    for test_set in test_sets:
        try:
            measured = measure(predictions, test_set)
        except InputError as error:
            if test_on is not None or test_set == "full":
                raise
            logger.warning("skipping the matched test set: %s", error)
            continue
        if measured.left_out:
            message = "labels without a positive in the %s test set, left out of its mean: %s"
            logger.warning(message, test_set, ", ".join(measured.left_out))
        if measured.n_without_prediction:
            message = "%d stays of the %s test set have no prediction and are left out"
            logger.warning(message, measured.n_without_prediction, test_set)
        metrics.append(measured)
    return metrics


def evaluate_test_set(
    predictions: Predictions,
    test_on: Subset,
    n_resamples: int = 1000,
    bootstrap_unit: Literal["subject", "stay"] = "subject",
    seed: int = 0,
    attributes: pl.DataFrame | None = None,
    intervals: Intervals = "half-sampling",
    recalibration: Recalibration | None = None,
    sets: ConformalSets | None = None,
) -> Evaluation:
    """Return the metrics of one test set.

    `attributes` are the groups of each stay of `predictions`, as `groups_of` returns them; without them, only
    stays with and without radiograph are compared. Recalibrated probabilities are measured if
    `recalibration` is given, prediction sets if `sets` are. The other arguments are those of `evaluate`.

    Raises:
        InputError: If the test set has no predicted stay, or no positive of any label.
    """
    check_choice("test_on", test_on, get_args(Subset))
    check_choice("bootstrap_unit", bootstrap_unit, ("subject", "stay"))
    check_choice("intervals", intervals, get_args(Intervals))
    stays = predictions.stays
    chosen = predictions.rows("test", test_on)
    predicted = chosen & ~np.isnan(predictions.logits).any(axis=1)
    if chosen.any() and not predicted.any():
        raise InputError(f"the run predicts none of the {chosen.sum()} stays of the {test_on} test set")
    labels, logits = predictions.labels[predicted], predictions.logits[predicted]
    n_positive = labels.sum(axis=0, dtype=np.int64)
    if not n_positive.any():
        raise InputError(
            f"the {test_on} test set has {len(labels)} stays and no positive of any label; choose a run on a "
            "larger cohort"
        )
    units = stays[f"{bootstrap_unit}_id"].to_numpy()[predicted]
    title = f"resampling the {test_on} test set"
    resamples = Resamples.draw(units, n_resamples, seed, intervals, title)
    resampled = Resampled(labels, logits, resamples)
    few = too_few(labels, units)
    evaluated = stays.filter(predicted)
    names = predictions.phenotypes
    raw = expit(logits, dtype=np.float64)
    recalibrated = None if recalibration is None else recalibration.apply(logits)
    groups = group_by_radiograph(evaluated["has_cxr"].to_numpy())
    if attributes is not None:
        groups = pl.concat([attributes.filter(predicted), groups], how="horizontal")
    return Evaluation(
        test_on=test_on,
        n_stays=evaluated.height,
        n_with_cxr=int(evaluated["has_cxr"].sum()),
        n_subjects=evaluated["subject_id"].n_unique(),
        n_without_prediction=int((chosen & ~predicted).sum()),
        bootstrap_unit=bootstrap_unit,
        intervals=intervals,
        n_resamples=n_resamples,
        seed=seed,
        metrics={
            name: _measured(metric, resampled, names, few, intervals) for name, metric in METRICS.items()
        },
        n_positive=dict(zip(names, n_positive.tolist(), strict=True)),
        calibration=calibration(labels, raw, units, seed=seed),
        recalibration=None if recalibration is None else recalibration.method,
        recalibrated=None if recalibrated is None else calibration(labels, recalibrated, units, seed=seed),
        decision_curves=decision_curves_in(
            resamples,
            labels,
            raw if recalibrated is None else recalibrated,
            names,
            units,
            intervals=intervals,
        ),
        conformal=None
        if sets is None
        else measure_sets(sets, labels, logits, evaluated["has_cxr"].to_numpy(), names, units),
        subgroups=subgroups_in(resamples, labels, logits, groups, units, intervals=intervals)
        if groups.columns
        else None,
    )


def _conformal_sets(validation: Predictions) -> ConformalSets | None:
    """Return prediction sets learned from the predictions of the validation split, if there are any."""
    predicted = ~np.isnan(validation.logits).any(axis=1)
    if not predicted.any():
        return None
    has_cxr = validation.stays["has_cxr"].to_numpy()[predicted]
    return ConformalSets.learn(validation.labels[predicted], validation.logits[predicted], has_cxr)


def _measured(
    metric: Metric, stays: Resampled, names: Sequence[str], few: NDArray[np.bool_], intervals: Intervals
) -> Measured:
    """Return a metric of C named labels; NaN without a positive, no interval where `few` (C,) is True."""
    found = np.where(stays.labels.any(axis=0), metric.measure(stays), np.nan)
    values, drawn = found[:1], found[1:]
    macro = Estimate.of(*macro_of_seeds(values, drawn[:, None]), intervals, metric.bounded)
    return Measured(
        macro=mask_interval(macro, few),
        by_label={
            name: mask_interval(Estimate.of(values[0, c], drawn[:, c], intervals, metric.bounded), few[c])
            for c, name in enumerate(names)
        },
    )


def _attributes(cohort: Path, predictions: Predictions) -> pl.DataFrame:
    """Return the groups of each test stay of a run, from the cohort that it was trained on."""
    path = cohort / "stays.parquet"
    if not path.is_file():
        raise MissingInputError(
            f"{cohort} has no stays.parquet, so it is not a cohort; choose one that `drfuse prepare` wrote"
        )
    ids = ["subject_id", "stay_id"]
    of_run = predictions.stays.select(ids)
    try:
        stored = pl.scan_parquet(path, glob=False)
        columns = set(stored.collect_schema())
        needed = (
            stored.select(*ids, *sorted(columns & set(GROUPED_BY))) if set(ids) <= columns else of_run.clear()
        )
        stays = needed.lazy().join(of_run.lazy(), on=ids, how="semi").collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} is damaged; run `drfuse prepare` again") from error
    if missing := of_run.join(stays, on=ids, how="anti").height:
        raise InputError(
            f"{cohort} lacks {missing} of the {of_run.height} test stays of the run; choose the "
            "--cohort that it was trained on"
        )
    return groups_of(of_run.join(stays, on=ids, how="left", maintain_order="left"))


def _write(files: Run, measured: list[Evaluation]) -> None:
    """Write `metrics.json` and the tables, keeping test sets that were measured before.

    Numbers that are not finite become null.
    """
    new: dict[str, Any] = {one.test_on: _plain(_as_json(one)) for one in measured}
    sets, tables = new, _tables(files, new)
    if files.metrics.is_file():
        try:
            sets = files.read_metrics()["test"] | new
            tables = _tables(files, sets)
        except (ValueError, LookupError, TypeError, AttributeError):  # perhaps of an earlier version
            logger.warning("%s was damaged; it now holds only these test sets", files.metrics)
            sets = new
    for path in reversed(tables):  # a command that is killed leaves no table of other metrics
        path.unlink(missing_ok=True)
    files.write_metrics({"test": sets})
    for path, rows in tables.items():
        _write_table(path, rows)


def _tables(files: Run, sets: Mapping[str, Any]) -> dict[Path, list[dict[str, Any]]]:
    """Return the rows of each table that belongs to `metrics.json`."""
    by_label = [
        {"test_on": test_on}
        | {"phenotype": one["phenotype"], "n_stays": of_set["n_stays"], "n_positive": one["n_positive"]}
        | _columns(one, METRICS)
        for test_on, of_set in sets.items()
        for one in [
            *of_set["phenotypes"],
            {"phenotype": "macro", "n_positive": None}
            | {name: of_set.get(f"{name}_macro") for name in METRICS},
        ]
    ]
    curves = [
        {"test_on": test_on, "phenotype": name}
        | {"threshold": point["threshold"], "treat_all": point["treat_all"]}
        | _columns(point, ["net_benefit", "gain"])
        for test_on, of_set in sets.items()
        if (found := of_set.get("decision_curves"))
        for name, curve in [*found["by_label"].items(), ("macro", found["macro"])]
        for point in curve
    ]
    return {
        files.metrics_table: by_label,
        files.decision_curves_table: curves,
        files.conformal_table: _rows(SetCoverage, sets, "conformal", "measured"),
        files.subgroups_table: _rows(GroupMetrics, sets, "subgroups", "groups"),
    }


def _rows(kind: Any, sets: Mapping[str, Any], measured: str, part: str) -> list[dict[str, Any]]:
    """Return the rows of a table: of each test set, the stored objects of a class."""
    fields = dataclasses.fields(kind)
    estimates = [field.name for field in fields if field.type is Estimate]
    return [
        {"test_on": test_on}
        | {field.name: one[field.name] for field in fields if field.type is not Estimate}
        | _columns(one, estimates)
        for test_on, of_set in sets.items()
        if of_set.get(measured)
        for one in of_set[measured][part]
    ]


def _as_json(measured: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the layout of `metrics.json`."""
    fields = dataclasses.asdict(measured)
    metrics, n_positive = fields.pop("metrics"), fields.pop("n_positive")
    last = {name: fields.pop(name) for name in _LAST}
    return {
        **fields,
        **{f"{name}_macro": one["macro"] for name, one in metrics.items()},
        "left_out": measured.left_out,
        "phenotypes": [
            {"phenotype": label, "n_positive": n_positive[label]}
            | {name: one["by_label"][label] for name, one in metrics.items()}
            for label in n_positive
        ],
        **last,
    }


def _columns(measured: Mapping[str, Any], names: Iterable[str]) -> dict[str, float | None]:
    """Return estimates as columns, such as `prauc`, `prauc_low`, `prauc_high` and `prauc_bias`.

    Metrics that an earlier version did not measure are None.
    """
    return {
        name if end == "value" else f"{name}_{end}": (measured.get(name) or {}).get(end)
        for name in names
        for end in ("value", "low", "high", "bias")
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a CSV file; without rows, remove what it held, which is no longer in `metrics.json`."""
    if rows:
        write_whole(path, csv_of(pl.DataFrame(rows, infer_schema_length=None)))
    else:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return None if isinstance(value, float) and not math.isfinite(value) else value
