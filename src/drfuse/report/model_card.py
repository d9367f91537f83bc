"""What a run knows in, a model card for the Hugging Face hub out."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from drfuse.cohort.manifest import CohortSummary
from drfuse.errors import InputError
from drfuse.escapes import printable
from drfuse.evaluation.metrics import METRICS
from drfuse.evaluation.subgroups import PAIRED
from drfuse.report.tables import Number, Row, Table, escape_markdown, to_markdown
from drfuse.run import RunFacts

Origin = Literal["simulated", "mimic", "unknown"]
"""Where the data of a training are from."""

SHARING: dict[Origin, str] = {
    "simulated": "These weights were trained on a simulated hospital: no patient's data are behind them.",
    "mimic": (
        "These weights were trained on MIMIC: they may be shared only as a credentialed PhysioNet project."
    ),
    "unknown": (
        "It is not known what these weights were trained on. If it was MIMIC, they may be shared only as a "
        "credentialed PhysioNet project."
    ),
}
"""By the origin of their data, who may have the weights."""
_PHYSIONET = "physionet-credentialed-health-data-license-1.5.0"
_TASKS = {
    "phenotyping": ("phenotyping", "the diagnoses of an ICU stay"),
    "mortality": ("death in hospital", "death in hospital of an ICU patient"),
    "los": ("length of stay", "the length of an ICU stay"),
}
"""By task, its title and what it predicts."""
_FEWEST_STAYS = 10
"""Smaller groups are not in a card, which goes to strangers."""


def origin_of(summary: CohortSummary | None) -> Origin:
    """Return where the data of a cohort are from; unknown without its summary."""
    if summary is not None and summary.simulated:
        return "simulated"
    is_mimic = summary is not None and any(name.startswith("mimic") for name in summary.releases)
    return "mimic" if is_mimic else "unknown"


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Attributes:
        facts: The run's facts.
        summary: What its cohort was made of, if that is known.
        options: The options of its training by name, without paths.
        started: The modalities whose encoder started from the weights of another run.
        reads: The modalities that the model reads.
        test_sets: What `drfuse evaluate` measured on each test set, as in `metrics.json`; may be empty.
        has_recalibration: Whether the run has a `recalibration.json`.
        license_id: The licence of the weights as the hub spells it, if it is known; that of weights trained
            on MIMIC is not asked for.
    """

    facts: RunFacts
    summary: CohortSummary | None
    options: Mapping[str, Any]
    started: Sequence[str]
    reads: Sequence[str]
    test_sets: Mapping[str, Mapping[str, Any]]
    has_recalibration: bool
    license_id: str | None = None

    @property
    def class_name(self) -> str:
        """The model's class, without its module."""
        name: str = self.facts.model["class_path"].rpartition(".")[2]
        return name

    @property
    def title(self) -> str:
        """The title of the card, which is also the model's name in its front matter."""
        return f"{self.class_name} for {_TASKS[self.facts.task][0]}"

    @property
    def origin(self) -> Origin:
        """Where the data of the training are from."""
        return origin_of(self.summary)


def model_card(card: CardFacts) -> ModelCard:
    """Return a model card in the hub's form; names from the run are escaped, so that they show as they are.

    Raises:
        InputError: If a measurement is missing or not of its type.
    """
    is_mimic = card.origin == "mimic"
    try:
        measured = [_measured(test_on, found) for test_on, found in card.test_sets.items()]
        results = [one for test_on, found in card.test_sets.items() for one in _results(card, test_on, found)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"its measurements are not of this version of drfuse ({error!r})") from error
    data = ModelCardData(
        library_name="drfuse",
        license="other" if is_mimic else card.license_id,
        license_name=_PHYSIONET if is_mimic else None,
        license_link="LICENSE.md" if is_mimic else None,
        tags=["drfuse", "ehr", "chest-x-ray", "intensive-care", "medical"],
        metrics=list(METRICS) if results else None,
        model_name=card.title,
        eval_results=results or None,
    )
    environment = Environment(
        loader=PackageLoader("drfuse.report"),
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "table": lambda table: Markup(to_markdown(table))}
    text = environment.get_template("model_card.md").render(
        card=card,
        facts=card.facts,
        summary=card.summary,
        sharing=SHARING[card.origin],
        predicted=_TASKS[card.facts.task][1],
        reads=card.reads,
        counts=[] if card.summary is None else _counts(card.summary),
        options=_options(card.options),
        measured=measured,
        variables=", ".join(variable.name for variable in card.facts.variables),
        init_args=json.dumps(card.facts.model["init_args"]),
        is_ours=card.facts.model["class_path"].startswith("drfuse.models."),
    )
    return ModelCard(printable(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n"))


def _code(text: str) -> Markup:
    """Return text on one line as Markdown code.

    >>> print(_code("a `b`"))
    `` a `b` ``
    """
    line = " ".join(text.split())
    longest = max((len(ticks) for ticks in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return Markup(f"{fence} {line} {fence}" if longest else f"`{line}`")


def _counts(summary: CohortSummary) -> list[Table]:
    """Return the inclusion flow and the splits of a cohort as tables."""
    flow = [Row(step.criterion, [Number(step.stays, digits=0)]) for step in summary.flow]
    splits = [
        Row(name, [Number(split[of], digits=0) for of in ("stays", "with_cxr")])
        for name, split in summary.splits.items()
    ]
    return [
        Table(
            "flow",
            "Who is in",
            "Each criterion counts the stays that are left.",
            ["criterion", "stays"],
            flow,
        ),
        Table("splits", "Splits", "", ["split", "stays", "with radiograph"], splits),
    ]


def _options(options: Mapping[str, Any]) -> Table:
    rows = [Row(name, [json.dumps(value)]) for name, value in options.items()]
    return Table("options", "Options of the training", "", ["option", "value"], rows)


def _measured(test_on: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of a test set: counts, and tables of its measurements.

    Raises:
        KeyError: If a measurement is missing.
    """
    names = [name for name in METRICS if f"{name}_macro" in found]
    of_labels = [
        Row(
            one["phenotype"],
            [Number(one["n_positive"], digits=0), *(_number(one[name]) for name in names)],
        )
        for one in found["phenotypes"]
    ]
    macro = Row(
        "mean of the labels", ["", *(_number(found[f"{name}_macro"]) for name in names)], rule_above=True
    )
    subgroups = found.get("subgroups") or {"groups": [], "specificity": math.nan}
    groups = [
        Row(
            f"{one['attribute']}: {one['group']}{' (few positives)' if one['few'] else ''}",
            [Number(one["n_stays"], digits=0), *(_number(one[name]) for name in _OF_A_GROUP)],
        )
        for one in subgroups["groups"]
        if PAIRED not in one["attribute"] and one["n_stays"] >= _FEWEST_STAYS
    ]
    metrics = Table(
        "metrics",
        f"Metrics on the {test_on} test set",
        "",
        ["label", "positive", *(METRICS[name].title for name in names)],
        [*of_labels, macro],
    )
    counts = ("n_stays", "n_with_cxr", "n_subjects", "n_without_prediction", "n_resamples")
    return {
        **{name: f"{found[name]:,}" for name in counts},
        "test_on": test_on,
        "unit": found["bootstrap_unit"],
        "intervals": found["intervals"],
        "metrics": metrics,
        "groups": _groups(test_on, subgroups["specificity"], groups) if groups else None,
        "calibration": _calibration(test_on, found),
    }


_OF_A_GROUP = {
    "auroc_macro": "AUROC",
    "auroc_gap": "AUROC less that of all others",
    "prauc_macro": "PRAUC",
    "tpr_macro": "true positive rate",
    "tpr_gap": "true positive rate less that of all others",
}


def _groups(test_on: str, specificity: float, rows: Sequence[Row]) -> Table:
    caption = (
        "Means over the labels. True positive rates are those at thresholds that give all stays a "
        f"specificity of {specificity}. PRAUC rises with prevalence, so it does not compare groups. "
        f"Groups of fewer than {_FEWEST_STAYS} stays are left out."
    )
    columns = ["group", "stays", *_OF_A_GROUP.values()]
    return Table("groups", f"Groups in the {test_on} test set", caption, columns, rows)


def _calibration(test_on: str, found: Mapping[str, Any]) -> list[Table]:
    """Return the errors, and the curve of all labels together, of predictions and recalibrated ones."""
    kinds = {"as predicted": found["calibration"]}
    if found.get("recalibrated"):
        kinds[f"recalibrated ({found['recalibration']})"] = found["recalibrated"]
    errors = [
        Row(title, [_number(of[name]) for of in kinds.values()])
        for name, title in (
            ("error", "calibration error"),
            ("ece", "ECE as published"),
            ("ece_if_calibrated", "ECE if the predictions were calibrated"),
            ("brier", "Brier score"),
        )
    ]
    curve = [
        Row(
            f"{bins[0]['low']:.1f} to {bins[0]['high']:.1f}",
            [cell for one in bins for cell in (_number(one["predicted"]), _number(one["observed"]))],
        )
        for bins in zip(*(of["reliability"] for of in kinds.values()), strict=True)
    ]
    heads = [f"{kind}: {what}" for kind in kinds for what in ("mean", "share that came true")]
    title = f"Reliability in the {test_on} test set"
    return [
        Table("calibration", f"Calibration in the {test_on} test set", "", ["", *kinds], errors),
        Table("reliability", title, "All labels together.", ["probability", *heads], curve),
    ]


def _number(found: Mapping[str, float | None] | float | None) -> Number:
    """Return a number of `metrics.json`, with its interval if it has one."""
    if not isinstance(found, Mapping):
        return Number(math.nan if found is None else float(found))
    value = found["value"]
    return Number(math.nan if value is None else float(value), found["low"], found["high"])


def _results(card: CardFacts, test_on: str, found: Mapping[str, Any]) -> list[EvalResult]:
    """Return the metrics of a test set for the front matter's `model-index`; undefined ones are left out."""
    kinds = {"simulated": "simulated hospital", "mimic": "MIMIC-IV", "unknown": "unknown"}
    numbers = {name: _number(found[f"{name}_macro"]) for name in METRICS if f"{name}_macro" in found}
    return [
        EvalResult(
            task_type="multi-label-classification",
            task_name=card.title,
            dataset_type=kinds[card.origin].lower().replace(" ", "-"),
            dataset_name=f"{kinds[card.origin]}, {test_on} test set",
            dataset_config=test_on,
            dataset_split="test",
            dataset_args={"n_stays": found["n_stays"], "n_subjects": found["n_subjects"]},
            metric_type=name,
            metric_name=f"macro {METRICS[name].title}",
            metric_value=round(number.value, 6),
            metric_args={"interval": 0.95} | _ends(number),
        )
        for name, number in numbers.items()
        if not math.isnan(number.value)
    ]


def _ends(number: Number) -> dict[str, float]:
    """Return the ends of a number's interval, if it has one."""
    ends = {"low": number.low, "high": number.high}
    return {name: round(end, 6) for name, end in ends.items() if end is not None}
