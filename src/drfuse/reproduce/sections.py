"""Each experiment as a part of the report: its tables, its figures, and a sentence on what to look for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drfuse.data import Subset
from drfuse.evaluation import Subgroups
from drfuse.report.figures import (
    intervals_figure,
    labels_figure,
    missing_curve_figure,
    reliability_figure,
    representations_figure,
    subgroups_figure,
)
from drfuse.report.page import Section
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce import beyond, tables
from drfuse.reproduce.plan import TRAINED_ON, Experiment, experiments_of, takes_part
from drfuse.reproduce.representations import (
    FIGURE3,
    FOLDS,
    Representation,
    cosine,
    divergences,
    probe_origin,
    represent,
    tsne,
)
from drfuse.reproduce.results import Results

_FIGURE3 = ("drfuse", "matched")  # the system, and what it is trained on


def sections_of(what: Experiment, results: Results) -> list[Section]:
    """Return the parts of the report that an experiment fills; one without a finished run has none."""
    return [
        section
        for name in experiments_of(what)
        if name == "table1" or _has_runs(results, name)
        for section in _SECTIONS[name](results)
    ]


def _has_runs(results: Results, experiment: str) -> bool:
    return any(
        takes_part(system, experiment) and results.of(system, train_on)
        for system in results.systems
        for train_on in TRAINED_ON[experiment]
    )


def _table1(results: Results) -> list[Section]:
    table = tables.table1(results.cohort, results.task)
    return [Section("table1", "Samples", "Who is in the two datasets.", [table])]


def _table2(results: Results) -> list[Section]:
    table = tables.table2(results)
    numbers = {
        row.header: {
            str(setting): cell
            for setting, cell in zip(tables.SETTINGS, row.cells, strict=True)
            if isinstance(cell, Number)
        }
        for row in table.rows
    }
    main = [system for system in results.systems if takes_part(system, "table2")]
    tested = tables.tests(results, "table2-tests", tables.SETTINGS, main)
    return [
        Section(
            "table2",
            "All systems",
            "Trained on the matched subset or on the full dataset, and tested on both.",
            [table, *([] if tested is None else [tested])],
            [("Macro PRAUC of every system in the four settings", intervals_figure(numbers))],
        )
    ]


def _table3(results: Results) -> list[Section]:
    table = tables.table3(results)
    by_label = {
        row.header: {
            system: cell
            for system, cell in zip(table.columns[2:], row.cells[1:], strict=True)
            if isinstance(cell, Number)
        }
        for row in table.rows[:-1]
    }
    prevalence = {row.header: row.cells[0].value for row in table.rows if isinstance(row.cells[0], Number)}
    figure = labels_figure(by_label, prevalence)
    text = "Where fusing the modalities helps, and where it harms."
    tested = tables.label_tests(results)
    found = [table, *([] if tested is None else [tested])]
    return [Section("table3", "Label by label", text, found, [("PRAUC of each label by system", figure)])]


def _table4(results: Results) -> list[Section]:
    settings = [setting for setting in tables.SETTINGS if setting.train_on == "matched"]
    tested = tables.tests(results, "table4-tests", settings, tables.ablated(results.systems))
    text = "DrFuse without one of its parts."
    return [
        Section("table4", "Ablation", text, [tables.table4(results), *([] if tested is None else [tested])])
    ]


def _figure3(results: Results) -> list[Section]:
    rows = results.cohort.rows("test", "matched")
    rows = rows[results.task.eligible[rows]]
    subjects = results.cohort.stays["subject_id"].to_numpy()[rows]
    specs = [spec for cell, spec in results.cells.items() if (cell.system, cell.train_on) == _FIGURE3]
    of_seeds = [represent(spec.folder, results.cohort, rows, spec.options["crop_size"]) for spec in specs]
    measured = [_representation_numbers(h, subjects) for h in of_seeds]
    table = Table(
        key="figure3-numbers",
        title="What Figure 3 cannot show",
        caption=f"The {len(rows):,} matched test stays, DrFuse trained on matched, "
        f"{'one seed' if len(specs) == 1 else f'mean and ± standard deviation over {len(specs)} seeds'}. "
        f"Probes are fitted and scored in {FOLDS} folds of whole subjects.",
        columns=["of the representations", "value"],
        rows=[
            Row(name, [Number(float(np.mean(values)), spread=_spread(values), digits=4)])
            for name, values in ((name, [one[name] for one in measured]) for name in measured[0])
        ],
    )
    text = "The shared representations should lie together, the distinct ones apart from all others."
    figure = representations_figure(tsne({title: of_seeds[0][name] for name, title in FIGURE3.items()}))
    caption = "Figure 3: t-SNE of DrFuse's representations of the matched test set, first seed"
    return [Section("figure3", "Representations", text, [table], [(caption, figure)])]


def _representation_numbers(h: Mapping[str, Representation], subjects: NDArray[Any]) -> dict[str, float]:
    own, another = divergences(h["ehr_shared"], h["cxr_shared"])
    return {
        "a linear probe tells EHR from CXR by the shared ones (0.5: cannot)": probe_origin(
            h["ehr_shared"], h["cxr_shared"], subjects
        ),
        "a linear probe tells EHR from CXR by the distinct ones": probe_origin(
            h["ehr_distinct"], h["cxr_distinct"], subjects
        ),
        "divergence of a stay's two shared ones, share of the largest": own,
        "divergence of two different stays' shared ones": another,
        "cosine of EHR shared and EHR distinct (0: orthogonal)": cosine(h["ehr_shared"], h["ehr_distinct"]),
        "cosine of CXR shared and CXR distinct": cosine(h["cxr_shared"], h["cxr_distinct"]),
    }


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _missing(results: Results) -> list[Section]:
    found: list[Table] = []
    figures: list[tuple[str, Figure]] = []
    train_ons: tuple[Subset, ...] = ("matched", "full")
    for train_on in train_ons:
        if not (curves := beyond.missing_curves(results, train_on)):
            continue
        found.append(beyond.missing_table(curves, train_on))
        figure = missing_curve_figure({system.title: curve for system, curve in curves.items()})
        figures.append((f"Macro PRAUC as radiographs go missing, trained on {train_on}", figure))
    text = "Radiographs are taken away at random from stays that have one: the same stays, ever less known."
    return [Section("missing", "Missing radiographs", text, found, figures)]


def _calibration(results: Results) -> list[Section]:
    measured = beyond.calibrations(results)
    figure = reliability_figure({system.title: one.reliability for system, one in measured.items()})
    text = "Whether a predicted 30 % happens in 30 % of the cases."
    return [
        Section(
            "calibration",
            "Calibration",
            text,
            [beyond.calibration_table(results, measured)],
            [("Observed share by predicted probability, all labels together", figure)],
        )
    ]


def _subgroups(results: Results) -> list[Section]:
    measured = beyond.groups_measured(results)
    shown = next((system for system in measured if system.name == "drfuse"), next(iter(measured)))
    figure = subgroups_figure(_by_group(measured[shown]))
    text = "Whether the systems serve all groups of patients alike."
    caption = f"Macro AUROC of {shown.title} in groups of patients"
    return [Section("subgroups", "Subgroups", text, beyond.subgroup_tables(measured), [(caption, figure)])]


def _by_group(found: Subgroups) -> dict[str, dict[str, Number]]:
    rows: dict[str, dict[str, Number]] = {}
    for one in found.groups:
        note = f"{one.n_stays:,} stays{', few positives' if one.few else ''}"
        rows.setdefault(one.attribute, {})[one.group] = Number.of(one.auroc_macro, note=note)
    return rows


_SECTIONS: dict[str, Callable[[Results], list[Section]]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "figure3": _figure3,
    "missing": _missing,
    "calibration": _calibration,
    "subgroups": _subgroups,
}
