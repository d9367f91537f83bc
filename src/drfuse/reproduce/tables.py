"""The paper's tables 1 to 4 from the predictions of runs, with the paper's numbers beside."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from drfuse.data import Cohort, Split, Subset, Task
from drfuse.evaluation import Comparison, SeededPrauc, compare, holm
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce import paper
from drfuse.reproduce.differences import differences
from drfuse.reproduce.paper import PaperNumber
from drfuse.reproduce.plan import TABLE3, takes_part
from drfuse.reproduce.results import Results, Setting
from drfuse.reproduce.systems import System

SETTINGS = (
    Setting("matched", "matched"),
    Setting("matched", "full"),
    Setting("full", "matched"),
    Setting("full", "full"),
)
"""The columns of table 2."""

MATCHED = SETTINGS[0]
_HIGHLIGHT = 0.05  # table 3: relative differences beyond this are marked


def table1(cohort: Cohort, task: Task) -> Table:
    """Return the number of samples of each split (table 1)."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    datasets: dict[Subset, str] = {"full": "full dataset", "matched": "matched subset"}

    def count(subset: Subset, split: Split) -> Number:
        rows = cohort.rows(split, subset)
        published = paper.samples(subset, split) if task.name == "phenotyping" else None
        return Number(float(task.eligible[rows].sum()), digits=0, paper=published)

    return Table(
        key="table1",
        title="Table 1: samples of the two datasets",
        caption="ICU stays in each split; a subject is in one split only. The matched subset has both "
        "modalities.",
        beside_paper=differences(cohort),
        columns=["dataset", "training", "validation", "test"],
        rows=[Row(title, [count(subset, split) for split in splits]) for subset, title in datasets.items()],
    )


def table2(results: Results) -> Table:
    """Return the macro PRAUC of every system in four settings (table 2)."""
    systems = [system for system in results.systems if takes_part(system, "table2")]
    scores = {setting: [results.score(system, setting) for system in systems] for setting in SETTINGS}
    published = results.is_of_the_paper
    best = {
        setting: max((score.mean.value for score in of_all if score is not None), default=np.nan)
        for setting, of_all in scores.items()
    }
    return Table(
        key="table2",
        title=f"Table 2: {_of_labels(results)} in four settings",
        caption=f"{_intervals(results)}. A dash: the system does not predict every stay of the test set, or "
        "that has no positive. Bold: the best of a column.",
        beside_paper=differences(results.cohort),
        groups=[("", 1), ("trained on matched", 2), ("trained on full", 2)],
        columns=["system", *(f"tested on {setting.test_on}" for setting in SETTINGS)],
        rows=[
            Row(
                system.title,
                [
                    _number(
                        scores[setting][row],
                        paper.macro_prauc(system.paper, setting.train_on, setting.test_on)
                        if published
                        else {},
                        best=best[setting],
                    )
                    for setting in SETTINGS
                ],
            )
            for row, system in enumerate(systems)
        ],
    )


def tests(results: Results, key: str, settings: Sequence[Setting], systems: Sequence[System]) -> Table | None:
    """Return how much each system differs from DrFuse in each setting, with Holm-corrected tests.

    None if there is no DrFuse, or nothing to hold against it.
    """
    drfuse = next((system for system in systems if system.name == "drfuse"), None)
    others = [system for system in systems if system is not drfuse]
    if drfuse is None or not others:
        return None
    compared: dict[Setting, list[Comparison | None]] = {}
    for setting in settings:
        ours = results.score(drfuse, setting)
        compared[setting] = [
            None
            if ours is None or (theirs := results.score(system, setting)) is None
            else compare(theirs, ours)
            for system in others
        ]
    corrected = {
        setting: holm([np.nan if one is None else one.p for one in of_all])
        for setting, of_all in compared.items()
    }

    return Table(
        key=key,
        title=f"{key.replace('table', 'Table ').replace('-tests', '')}, tested: difference from DrFuse",
        caption="Macro PRAUC of the system less that of DrFuse on the same resampled subjects, means over "
        "seeds: below zero, DrFuse is better. 95 % interval without bias, two-sided p, and p corrected for "
        f"the systems of its column by Holm's method. {_what_is_compared(chain(*compared.values()))}",
        columns=["system", *(str(setting) for setting in settings)],
        rows=[
            Row(
                system.title,
                [_difference(compared[setting][row], corrected[setting][row]) for setting in settings],
            )
            for row, system in enumerate(others)
        ],
    )


def table3(results: Results) -> Table:
    """Return each phenotype's PRAUC, trained and tested on the matched subset (table 3)."""
    scores = _table3_scores(results)
    praucs = {system: score.label_values.mean(axis=0) for system, score in scores.items()}
    unimodal = [
        of_labels for system, of_labels in praucs.items() if system.is_unimodal and not system.reference
    ]
    best = np.max(unimodal, axis=0) if unimodal else np.full(len(results.task.label_names), np.nan)
    in_test = results.cohort.rows("test", "matched")
    prevalence = results.task.labels[in_test][results.task.eligible[in_test]].mean(axis=0)
    published = results.is_of_the_paper
    ranked = [system for system in praucs if system.paper in TABLE3]
    ranks = dict(zip(ranked, _average_ranks([praucs[system] for system in ranked]), strict=True))
    comparable = published and len(ranked) == len(TABLE3)
    rows = [
        Row(
            name,
            [
                Number(float(prevalence[c]), paper=paper.prevalence(name) if published else None, digits=2),
                *(
                    _phenotype(
                        score.of_label(c),
                        np.nan if system.is_unimodal else best[c],
                        paper.phenotype_prauc(system.paper, name) if published else None,
                    )
                    for system, score in scores.items()
                ),
            ],
        )
        for c, name in enumerate(results.task.label_names)
    ]
    average = [
        Number(float(ranks[system]), paper=paper.average_rank(system.paper) if comparable else None, digits=2)
        if system in ranks
        else ""
        for system in scores
    ]
    return Table(
        key="table3",
        title="Table 3: PRAUC of each phenotype, trained and tested on matched"
        if published
        else "Table 3: PRAUC of each label, trained and tested on matched",
        caption="Mean over seeds. In percent, the relative difference from the better of the networks of one "
        "modality; marked where it is beyond ±5 %. Ranks are among the paper's systems in this table. "
        "Prevalence is that of the matched test set.",
        beside_paper=differences(results.cohort),
        columns=["phenotype" if published else "label", "prevalence", *(system.title for system in scores)],
        rows=[*rows, Row("average rank", ["", *average], rule_above=True)],
    )


def label_tests(results: Results) -> Table | None:
    """Return how much each system of table 3 differs from DrFuse label by label, with Holm-corrected tests.

    None if there is no DrFuse, or nothing to hold against it.
    """
    scores = _table3_scores(results)
    drfuse = next((score for system, score in scores.items() if system.name == "drfuse"), None)
    others = {system.title: score for system, score in scores.items() if system.name != "drfuse"}
    if drfuse is None or not others:
        return None
    labels = range(len(results.task.label_names))
    compared = [[compare(score.of_label(c), drfuse.of_label(c)) for c in labels] for score in others.values()]
    corrected = [holm([one.p for one in of_system]) for of_system in compared]
    return Table(
        key="table3-tests",
        title="Table 3, tested: difference from DrFuse",
        caption="PRAUC of the system less that of DrFuse on the same resampled subjects, means over seeds: "
        "below zero, DrFuse is better. 95 % interval without bias, two-sided p, and p corrected for the "
        f"labels of its column by Holm's method. {_what_is_compared(chain(*compared))}",
        columns=["label", *others],
        rows=[
            Row(name, [_difference(compared[s][c], corrected[s][c]) for s in range(len(others))])
            for c, name in enumerate(results.task.label_names)
        ],
    )


def _table3_scores(results: Results) -> dict[System, SeededPrauc]:
    return {
        system: score
        for system in _in_paper_order(results.systems)
        if (score := results.score(system, MATCHED)) is not None
    }


def table4(results: Results) -> Table:
    """Return the ablation: macro PRAUC of DrFuse's variants, trained on the matched subset (table 4).

    Above them stand the references that are in every table.
    """
    systems = ablated(results.systems)
    settings = [setting for setting in SETTINGS if setting.train_on == "matched"]
    published = results.is_of_the_paper
    return Table(
        key="table4",
        title="Table 4: what each part of DrFuse adds, trained on matched",
        caption=f"{_intervals(results)}. Logistic regressions are references, not variants.",
        beside_paper=differences(results.cohort),
        columns=["model", *(f"tested on {setting.test_on}" for setting in settings)],
        rows=[
            Row(
                system.ablation or system.title,
                [
                    _number(
                        results.score(system, setting),
                        paper.ablation(system.ablation, setting.test_on) if published else {},
                    )
                    for setting in settings
                ],
                rule_above=system.name == "drfuse",
            )
            for system in systems
        ],
    )


def ablated(systems: Sequence[System]) -> list[System]:
    """Return the systems of table 4, references first and DrFuse itself last."""
    chosen = [system for system in systems if takes_part(system, "table4")]
    return sorted(chosen, key=lambda system: system.name == "drfuse")


def _in_paper_order(systems: Sequence[System]) -> list[System]:
    """Return the systems of table 3 in its order, then the references and the user's own."""
    chosen = [system for system in systems if takes_part(system, "table3")]
    order = {name: place for place, name in enumerate(TABLE3)}
    return sorted(chosen, key=lambda system: order.get(system.paper or "", len(order)))


def _number(score: SeededPrauc | None, published: PaperNumber, best: float = np.nan) -> Number:
    if score is None:
        return Number(np.nan, **published)
    mean = score.mean
    return Number.of(mean, spread=score.spread, mark="best" if mean.value == best else "", **published)


def _phenotype(score: SeededPrauc, best: float, published: float | None) -> Number:
    """Return a PRAUC, with its relative difference from the better unimodal one."""
    number = _number(score, {} if published is None else {"paper": published})
    if not best > 0:
        return number
    relative = number.value / best - 1
    return replace(
        number,
        mark="better" if relative > _HIGHLIGHT else "worse" if relative < -_HIGHLIGHT else "",
        note=f"{100 * relative:+z.1f} %".replace("-", "−"),
    )


def _difference(one: Comparison | None, corrected: float) -> Number:
    if one is None or np.isnan(one.difference):
        return Number(np.nan)
    note = "" if np.isnan(one.p) else f"p {_p(one.p)}, corrected {_p(corrected)}"
    return Number(one.difference, one.low, one.high, note=note)


def _average_ranks(praucs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return each system's mean rank over the phenotypes that are defined.

    The best has rank 1. Systems that tie share the better rank, as in the paper: so ranked, the PRAUCs of its
    table 3 have the average ranks that it prints.
    """
    if not praucs:
        return np.empty(0)
    stacked = np.array(praucs)
    defined = stacked[:, np.isfinite(stacked).all(axis=0)]
    ranks: NDArray[np.float64] = rankdata(-defined, method="min", axis=0).mean(axis=1)
    return ranks


def _of_labels(results: Results) -> str:
    names = results.task.label_names
    return f"PRAUC of {names[0]}" if len(names) == 1 else f"macro PRAUC over {len(names)} labels"


def _intervals(results: Results) -> str:
    n = results.n_seeds
    resamples = f"95 % interval without bias from {results.n_resamples:,} half samples of the subjects"
    if n > 1:
        return f"{resamples}, and the variance between seeds; mean and ± standard deviation over {n} seeds"
    return f"{resamples}; one seed"


def _what_is_compared(compared: Iterable[Comparison | None]) -> str:
    """Return whether tests are of systems, or of one training of each."""
    counts_seeds = {one.counts_seeds for one in compared if one is not None}
    if counts_seeds == {True}:
        return "The variance between trainings counts, too."
    which = "Where a system has one seed, tests" if True in counts_seeds else "With one seed these tests"
    return f"{which} compare two trained models, not two systems: another seed may turn them."


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
