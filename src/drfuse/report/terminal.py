"""Tables that fit a terminal."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from drfuse.evaluation import Conformal, Estimate, Evaluation
from drfuse.evaluation.external import Shift
from drfuse.evaluation.metrics import METRICS
from drfuse.evaluation.recalibration import Method
from drfuse.evaluation.subgroups import FEW
from drfuse.report.tables import Number
from drfuse.report.tables import Table as NumberTable
from drfuse.subsets import Subset

RECALIBRATED: dict[Method, str] = {
    "none": "not needed",
    "temperature": "temperature",
    "platt": "Platt",
    "isotonic": "isotonic",
}
"""The methods of recalibration, for tables."""
_SHOWN_THRESHOLDS = (0.1, 0.2, 0.5)
_MOST_COLUMNS = 6
"""How many columns of numbers fit a terminal of 80 characters."""
_WIDTH, _SHORTEST_NAME = 80, 22
"""Characters of a terminal, and those that a row header gets at least."""
_MOST_STAYS = 5
"""How many stays have a column beside each other."""
_WIDTH_OF_METRICS = 20
"""Characters for the metrics after the first, which leave room for the labels."""


def evaluation_tables(measured: Evaluation) -> list[Table]:
    """Return what was measured on one test set: metrics, probabilities, prediction sets, groups."""
    tables = [metrics_table(measured), probabilities_table(measured)]
    if measured.conformal is not None:
        tables.append(sets_table(measured, measured.conformal))
    if measured.subgroups is not None:
        tables.append(subgroups_table(measured))
    return tables


def metrics_table(measured: Evaluation) -> Table:
    """Return the metrics of each label on one test set, and their means.

    The first metric has its interval. Others follow while there is room; the caption has the means of all.
    """
    unit = {"subject": "subjects", "stay": "stays"}[measured.bootstrap_unit]
    n_stays = f"{measured.n_stays:,}"
    if measured.n_without_prediction:
        n_stays += f" of {measured.n_stays + measured.n_without_prediction:,}"
    (first, *others) = measured.metrics
    widths = accumulate(max(len(METRICS[name].title), 5) + 2 for name in others)
    points = [name for name, width in zip(others, widths, strict=True) if width <= _WIDTH_OF_METRICS]
    table = _table(
        f"{measured.test_on} test set: {n_stays} stays of {measured.n_subjects:,} subjects, "
        f"{measured.n_with_cxr:,} with radiograph",
        "label",
        "positive",
        f"{METRICS[first].title} (95 % interval)",
        *(METRICS[name].title for name in points),
    )

    def cells(found: Mapping[str, Estimate]) -> list[str]:
        return [_with_interval(found[first]), *(_point(found[name]) for name in points)]

    for label, n_positive in measured.n_positive.items():
        of_label = {name: one.by_label[label] for name, one in measured.metrics.items()}
        table.add_row(label, f"{n_positive:,}", *cells(of_label))
    table.add_section()
    n_averaged = len(measured.n_positive) - len(measured.left_out)
    macro = {name: one.macro for name, one in measured.metrics.items()}
    table.add_row(f"mean of {n_averaged} labels", "", *cells(macro), style="bold")
    drawn = "bootstrap percentiles" if measured.intervals == "bootstrap" else "bias-corrected intervals"
    table.caption = "\n".join(
        [
            f"mean {METRICS[first].title} without its bias {macro[first].corrected:.3f}; "
            f"{drawn} from {measured.n_resamples:,} resamples of {unit}",
            *(f"mean {METRICS[name].title} {_with_interval(macro[name])}" for name in others),
        ]
    )
    return table


def probabilities_table(measured: Evaluation) -> Table:
    """Return the calibration of raw and recalibrated probabilities; the caption has the mean net benefit."""
    title = f"{measured.test_on} test set, probabilities of all labels"
    columns = ("calibration error", "Brier score", "ECE (by chance)")
    table = _table(title, "recalibrated", *columns, wide=True)
    method, mapped = measured.recalibration, measured.recalibrated
    rows = {RECALIBRATED["none"] if method == "none" else "no": measured.calibration}
    if method is not None and method != "none" and mapped is not None:
        rows[RECALIBRATED[method]] = mapped
    for name, one in rows.items():
        ece = f"{one.ece:.3f} ({one.ece_if_calibrated:.3f})"
        table.add_row(name, _with_interval(one.error), _with_interval(one.brier), ece)
    lines = ["95 % intervals; by chance: the ECE that calibrated predictions would have"]
    curves = measured.decision_curves
    lines += [
        f"mean net benefit at threshold {one.threshold:g}: {_with_interval(one.net_benefit)}, "
        f"of treating all {one.treat_all:.3f}"
        for one in ([] if curves is None else curves.macro)
        if one.threshold in _SHOWN_THRESHOLDS
    ]
    table.caption = "\n".join(lines)
    return table


def sets_table(measured: Evaluation, found: Conformal) -> Table:
    """Return how often the prediction sets of one test set contain the outcome, the mean over the labels."""
    title = f"{measured.test_on} test set, prediction sets that promise {found.sets.coverage:.0%}"
    columns = ("positives covered", "negatives covered", "decisive", "both")
    table = _table(title, "stays", *columns, wide=True)
    table.caption = "means over the labels, 95 % intervals; decisive: presence or absence alone"
    for one in found.measured:
        if one.phenotype == "macro":
            covered = _with_interval(one.positives), _with_interval(one.negatives)
            table.add_row(one.stays, *covered, _point(one.decisive), _point(one.undecided))
    return table


def subgroups_table(metrics: Evaluation) -> Table:
    """Return the macro AUROC and the gaps of each group of patients of one test set, without pairs.

    Raises:
        ValueError: If no groups were measured.
    """
    found = metrics.subgroups
    if found is None:
        raise ValueError("no groups were measured; evaluate the run with its cohort")
    title = f"{metrics.test_on} test set, groups of patients"
    columns = ("stays", "AUROC (interval)", "TPR gap (interval)", "FPR gap")
    table = _table(title, "group", *columns, wide=True)
    table.caption = (
        f"95 % intervals; gaps: true and false positive rate at specificity {found.specificity:g}, minus "
        f"those of all others; TPR of all: {_with_interval(found.tpr_macro)}"
    )
    groups = [one for one in found.groups if not one.is_pair]
    for attribute, of_attribute in groupby(groups, lambda one: one.attribute):
        table.add_row(attribute, style="bold")
        for one in of_attribute:
            gaps = _with_interval(one.tpr_gap, "+.3f"), _point(one.fpr_gap, "+.3f")
            name = f" {one.group}{' *' if one.few else ''}"
            table.add_row(name, f"{one.n_stays:,}", _with_interval(one.auroc_macro), *gaps)
        table.add_section()
    if any(one.few for one in groups):
        table.caption = f"{table.caption}\n* the median label has fewer than {FEW} positives"
    return table


def contest_table(contestants: Mapping[str, Mapping[Subset, tuple[Evaluation, Evaluation]]]) -> Table:
    """Return the macro PRAUC of models next to that of the perfect model of the same modalities.

    Args:
        contestants: By model and test set, the evaluation of the model and of the perfect one. A model has no
            entry for a test set whose stays it cannot all predict.
    """
    sets: dict[Subset, Evaluation] = {}
    for measured in contestants.values():
        sets |= {test_set: model for test_set, (model, _) in measured.items()}
    columns = [column for test_set in sets for column in (f"{test_set} test set", "best")]
    title = "Macro PRAUC (95 % interval), next to the best possible"
    table = _table(title, "model", *columns, wide=True)
    for name, measured in contestants.items():
        cells: list[str] = []
        for test_set in sets:
            if test_set in measured:
                model, perfect = measured[test_set]
                cells += [_with_interval(model.prauc_macro), _point(perfect.prauc_macro)]
            else:
                cells += ["-", "-"]
        table.add_row(name, *cells)
    stays = ", ".join(f"{test_set}: {one.n_stays:,} stays" for test_set, one in sets.items())
    table.caption = f"{stays}; best: a perfect reader of the same modalities"
    return table


def weights_table(stay_id: int, phenotypes: pl.DataFrame) -> Table:
    """Return the modality weights of one simulated stay.

    Args:
        stay_id: The stay.
        phenotypes: Rows of `phenotype`, `probability`, `present`, `ehr_distinct`, `shared`, `cxr_distinct`
            and `cxr_advantage`.
    """
    columns = ("likeliest phenotypes", "prob.", "has it", "EHR", "shared", "CXR", "better")
    table = _table(f"Modality weights of stay {stay_id}", *columns)
    table.caption = "better: the modality that truly says more about this phenotype of this patient"
    for row in phenotypes.iter_rows(named=True):
        weights = [f"{row[name]:.2f}" for name in ("ehr_distinct", "shared", "cxr_distinct")]
        better = "CXR" if row["cxr_advantage"] > 0 else "EHR"
        present = "yes" if row["present"] else "no"
        table.add_row(row["phenotype"], f"{row['probability']:.2f}", present, *weights, better)
    return table


def predictions_table(predicted: pl.DataFrame, with_range: bool) -> Group:
    """Return what was predicted of a few stays.

    One stay has a row for each phenotype, the most probable first, with what its sources contributed.
    Several have a column each, up to five in a table.

    Args:
        predicted: The columns of `drfuse.inference.table.prediction_table`.
        with_range: Whether several runs predicted, so that a probability has a range.
    """
    stays = predicted["stay_id"].unique(maintain_order=True)
    if len(stays) > 1:
        parts = np.array_split(stays.to_numpy(), math.ceil(len(stays) / _MOST_STAYS))
        return Group(*(_probabilities(predicted.filter(pl.col("stay_id").is_in(part))) for part in parts))
    has_cxr, weights = predicted["has_cxr"][0], ("weight_ehr", "weight_shared", "weight_cxr")
    columns = {"probability": "%", "low": "from", "high": "to"} if with_range else {"probability": "%"}
    if has_cxr:
        columns["probability_without_cxr"] = "no CXR"
    shown = dict(zip(weights, ("EHR", "shared", "CXR"), strict=True))
    if predicted[weights[0]].is_null().all():
        shown = {}
    table = _table(f"Stay {stays[0]}", "phenotype", *columns.values(), *shown.values(), wide=True)
    if shown:
        table.caption = "weights: of the record alone, of what both show, of the radiograph alone"
    for row in predicted.sort("probability", descending=True, nulls_last=True).iter_rows(named=True):
        of_row = [_percent(row[name]) for name in columns]
        table.add_row(row["phenotype"], *of_row, *(f"{row[name]:.2f}" for name in shown))
    return Group(_cut_names(table))


def _probabilities(predicted: pl.DataFrame) -> Table:
    """Return the probabilities of a few stays, a column each."""
    stays = predicted["stay_id"].unique(maintain_order=True)
    table = _table("Probabilities, in %", "phenotype", *map(str, stays), wide=True)
    for (phenotype,), rows in predicted.group_by("phenotype", maintain_order=True):
        table.add_row(str(phenotype), *map(_percent, rows["probability"]))
    return _cut_names(table)


def _cut_names(table: Table) -> Table:
    """Cut long row headers off so that the numbers after them fit, if they can still be told apart."""
    header, *numbers = table.columns
    room = _WIDTH - 2 - sum(max(len(str(column.header)), 4) + 3 for column in numbers)
    header.max_width = max(room, _SHORTEST_NAME)
    names = list(header.cells)
    header.no_wrap = len({str(name)[: header.max_width - 1] for name in names}) == len(names)
    return table


def external_table(own: Sequence[Evaluation], elsewhere: Sequence[Evaluation]) -> Table:
    """Return the mean metrics of a run on its own test sets and, beside them, on another cohort."""
    (name, *_) = {one.external.cohort for one in elsewhere if one.external is not None}
    table = _table("On another cohort", "mean of labels", "own test set", name, wide=True)
    there = {one.test_on: one for one in elsewhere}
    for one in (one for one in own if one.test_on in there):
        both = (one, there[one.test_on])
        table.add_row(f"{one.test_on}: stays", *(f"{of.n_stays:,}" for of in both), style="bold")
        for key, metric in METRICS.items():
            table.add_row(f"  {metric.title}", *(_with_interval(of.metrics[key].macro) for of in both))
        errors = (_with_interval((of.recalibrated or of.calibration).error) for of in both)
        table.add_row("  calibration error", *errors, end_section=True)
    return table


def shift_table(shift: Sequence[Shift], most: int = 8) -> Group:
    """Return how the stays of another cohort differ from those of the training.

    Of the variables and of the labels, the `most` that differ most are shown, the largest difference first.
    """
    columns = ("observed", "here", "mean", "here", "SD")
    inputs = _table("How its stays differ from those of the training", "variable", *columns, wide=True)
    inputs.caption = "observed: hours with a value; SD: difference of the means, in standard deviations"
    variables = sorted(
        (one for one in shift if one.kind == "variable"), key=lambda one: -abs(one.difference or 0)
    )
    for one in variables[:most]:
        means = ("-" if value is None else f"{value:.4g}" for value in (one.trained_mean, one.mean))
        apart = "-" if one.difference is None else f"{one.difference:+.2f}"
        inputs.add_row(one.name, _share(one.trained_share), _share(one.share), *means, apart)
    shares = _table("", "share of stays with", "training", "here", wide=True)
    for one in (one for one in shift if one.kind == "radiograph"):
        shares.add_row("a radiograph", _share(one.trained_share), _share(one.share), end_section=True)
    labels = [one for one in shift if one.kind == "label"]
    for one in sorted(labels, key=lambda one: -abs((one.share or 0) - (one.trained_share or 0)))[:most]:
        shares.add_row(one.name, _share(one.trained_share), _share(one.share))
    return Group(inputs, shares)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def missing_of_stay(stay: Mapping[str, Any]) -> str:
    """Return a sentence on what was missing of a stay, a row of `prediction_table`."""
    radiograph = "with a radiograph" if stay["has_cxr"] else "without a radiograph"
    unobserved = stay["unobserved"].replace("; ", ", ") or "nothing"
    return f"stay {stay['stay_id']}: {radiograph}; never observed: {unobserved}"


def _percent(probability: float | None) -> str:
    return "-" if probability is None else f"{100 * probability:.1f}"


def paper_table(table: NumberTable) -> Group:
    """Return a table of numbers next to the paper's, without intervals; a wide table is split into parts."""
    n_columns = len(table.columns) - 1
    n_parts = math.ceil(n_columns / _MOST_COLUMNS)
    parts = [_columns_of(table, part.tolist()) for part in np.array_split(np.arange(n_columns), n_parts)]
    parts[0].title, parts[0].title_justify = table.title, "left"
    if not table.has_paper:
        return Group(*parts)
    caption = ". ".join(filter(None, ["in brackets: the paper", table.beside_paper]))
    return Group(*parts, Text(f"{caption}\n", style="table.caption"))


def _columns_of(table: NumberTable, places: Sequence[int]) -> Table:
    """Return these columns of a table, counted from the first after the row headers."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = table.full_columns
    shown.add_column(heads[0], overflow="fold")
    for place in places:
        shown.add_column(heads[1 + place], justify="right", overflow="fold")
    for row in table.rows:
        if row.rule_above:
            shown.add_section()
        cells = [row.cells[place] for place in places]
        shown.add_row(row.header, *(cell if isinstance(cell, str) else _beside_paper(cell) for cell in cells))
    return shown


def trials_table(trials: pl.DataFrame, most: int = 10) -> Table:
    """Return the first `most` trials of a search, best first."""
    title = f"The best of {trials.height} trials, by validation macro PRAUC"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown = trials.drop("run").head(most)
    for name in shown.columns:
        table.add_column(name, justify="right")
    for row in shown.rows():
        cells = ["-" if one is None else f"{one:.4g}" if isinstance(one, float) else str(one) for one in row]
        table.add_row(*cells)
    return table


def _table(title: str, rows: str, *numbers: str, wide: bool = False) -> Table:
    """Return an empty table; a wide one has no padding at its edges, and its row headers do not wrap."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=not wide,
        collapse_padding=wide,
    )
    table.add_column(rows, no_wrap=wide)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _beside_paper(number: Number) -> str:
    text = number.shown
    return f"{text.value} [{text.paper}]" if text.paper else text.value


def _with_interval(estimate: Estimate, form: str = ".3f") -> str:
    if math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.low):
        return f"{estimate.value:{form}} (-)"
    return f"{estimate.value:{form}} ({estimate.low:{form}}, {estimate.high:{form}})"


def _point(estimate: Estimate, form: str = ".3f") -> str:
    return "-" if math.isnan(estimate.value) else f"{estimate.value:{form}}"
