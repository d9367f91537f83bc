"""Table 3: where fusion helps and where it hurts, label by label."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from drfuse.evaluation import SeededPrauc, compare
from drfuse.report.figures import labels_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce import paper
from drfuse.reproduce.comparisons import SETTINGS, numbers_of, tests_table
from drfuse.reproduce.differences import differences
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System, paper_systems

IN_PAPER = ("ResNet50", "Transformer", "MedFuse", "MedFuse-II", "DrFuse")
"""The systems of the paper's table 3, in its order."""

_MATCHED = SETTINGS[0]
_HIGHLIGHT = 0.05  # larger relative differences are marked


def table3(results: Results) -> Table:
    """Return each system's PRAUC for each label, trained and tested on the matched subset."""
    scores = _scores(results)
    praucs = {system: score.label_values.mean(axis=0) for system, score in scores.items()}
    unimodal = [
        of_labels for system, of_labels in praucs.items() if system.is_unimodal and not system.reference
    ]
    best = np.max(unimodal, axis=0) if unimodal else np.full(len(results.task.label_names), np.nan)
    prevalence = results.prevalence("test", "matched")
    rows = []
    for c, name in enumerate(results.task.label_names):
        cells = [Number(float(prevalence[c]), paper=paper.prevalence(name), digits=2)]
        for system, score in scores.items():
            published = paper.phenotype_prauc(system.paper, name)
            cells.append(_cell(score.of_label(c), np.nan if system.is_unimodal else best[c], published))
        rows.append(Row(name, cells))
    ranked = [system for system in praucs if system.paper in IN_PAPER]
    ranks = dict(zip(ranked, _average_ranks([praucs[system] for system in ranked]), strict=True))
    comparable = results.is_of_the_paper and len(ranked) == len(IN_PAPER)
    average = [
        Number(float(ranks[system]), paper=paper.average_rank(system.paper) if comparable else None, digits=2)
        if system in ranks
        else ""
        for system in scores
    ]
    label = "phenotype" if results.is_of_the_paper else "label"
    return Table(
        key="table3",
        title=f"Table 3: PRAUC of each {label}, trained and tested on matched",
        caption="Mean over seeds. In percent: the relative difference from the better unimodal network, "
        "marked where it exceeds ±5 %. Ranks are among the paper's systems in this table. Prevalence is that "
        "of the matched test set.",
        beside_paper=differences(results.cohort),
        columns=[label, "prevalence", *(system.title for system in scores)],
        rows=[*rows, Row("average rank", ["", *average], rule_above=True)],
    )


def compare_labels(results: Results) -> list[Table]:
    """Return a table of how much each system differs from DrFuse on each label, with Holm-corrected tests.

    No table without DrFuse, or without a system to compare it with.
    """
    others = _scores(results)
    drfuse = others.pop(paper_systems()["drfuse"], None)
    if drfuse is None or not others:
        return []
    names = results.task.label_names
    compared = {
        system.title: [compare(score.of_label(c), drfuse.of_label(c)) for c in range(len(names))]
        for system, score in others.items()
    }
    return [tests_table("table3-tests", "Table 3", "PRAUC", "label", names, compared)]


def _takes_part(system: System) -> bool:
    """Return whether a system is in the paper's table 3, a reference, or the user's own."""
    return system.paper in IN_PAPER or system.reference or system.name not in paper_systems()


def _scores(results: Results) -> dict[System, SeededPrauc]:
    """Return the scores by system: the paper's in its order, then the references and the user's own."""
    places = {name: place for place, name in enumerate(IN_PAPER)}
    chosen = filter(_takes_part, results.systems)
    ordered = sorted(chosen, key=lambda system: places.get(system.paper or "", len(places)))
    return {system: score for system in ordered if (score := results.score(system, _MATCHED)) is not None}


def _cell(score: SeededPrauc, best: float, published: float | None) -> Number:
    """Return a PRAUC with its relative difference from `best`; without one if that is 0 or NaN."""
    number = Number.of(score.mean, spread=score.spread, paper=published)
    if not best > 0:
        return number
    relative = number.value / best - 1
    return replace(
        number,
        mark="better" if relative > _HIGHLIGHT else "worse" if relative < -_HIGHLIGHT else "",
        note=f"{100 * relative:+z.1f} %".replace("-", "−"),
    )


def _average_ranks(praucs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return each system's mean rank over the labels that every system has a PRAUC for; the best has rank 1.

    Tied systems share the better rank: this reproduces the average ranks of the paper's table 3.
    """
    if not praucs:
        return np.empty(0)
    stacked = np.array(praucs)
    defined = stacked[:, np.isfinite(stacked).all(axis=0)]
    ranks: NDArray[np.float64] = rankdata(-defined, method="min", axis=0).mean(axis=1)
    return ranks


def _measure(results: Results) -> Findings:
    table = table3(results)
    by_label = numbers_of(table, table.columns[1:])
    del by_label[table.rows[-1].header]  # the ranks
    prevalence = {label: numbers.pop("prevalence").value for label, numbers in by_label.items()}
    figure = labels_figure(by_label, prevalence)
    return Findings([table, *compare_labels(results)], [("PRAUC of each label by system", figure)])


EXPERIMENT = Experiment(
    title="Label by label",
    look_for="Where fusing the modalities helps, and where it hurts.",
    place=30,
    measure=_measure,
    trained_on=["matched"],
    takes_part=_takes_part,
    too_wide=["table3-tests"],
)
