"""The paper's experiments on a cohort: train what is missing, then write tables, figures and a report."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import polars as pl
from filelock import FileLock
from matplotlib.figure import Figure

from drfuse import __version__
from drfuse.data import Cohort, CohortDataModule, Task, TaskName
from drfuse.errors import InputError, check_choice
from drfuse.evaluation import Subgroups
from drfuse.files import write_whole
from drfuse.report.figures import (
    intervals_figure,
    missing_curve_figure,
    phenotypes_figure,
    reliability_figure,
    representations_figure,
    subgroups_figure,
    write_figure,
)
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Number, Row, Table, write_table
from drfuse.reproduce import beyond, tables
from drfuse.reproduce.plan import Cell, Experiment, experiments_of, plan, takes_part
from drfuse.reproduce.representations import FIGURE3, cosine, divergences, probe_origin, represent, tsne
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import choose_systems
from drfuse.training import Precision, read_facts
from drfuse.training.matrix import RunSpec, train_all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduced:
    """What was written.

    Attributes:
        folder: Where it lies.
        report: The page that holds everything.
        tables: The tables, in their order.
    """

    folder: Path
    report: Path
    tables: list[Table]


def reproduce(
    what: Experiment,
    cohort: Path,
    out: Path,
    seeds: Sequence[int] = (0,),
    models: Sequence[str] | None = None,
    model_args: dict[str, Any] | None = None,
    epochs: int = 100,
    patience: int = 10,
    lr: float | None = None,
    batch_size: int = 16,
    matched_cxr_dropout: float = 0.3,
    crop_size: int = 224,
    augment: bool = True,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    num_workers: int = 0,
    task: TaskName = "phenotyping",
    n_resamples: int = 1000,
    workers: int = 1,
    ray: bool | str = False,
) -> Reproduced:
    """Repeat the paper's experiments on a cohort, with the paper's numbers beside the measured ones.

    Every run that is needed is trained once, whichever experiments need it: one that is finished is never
    done again, one that was interrupted goes on, and two commands may share a folder. Then tables (Markdown,
    LaTeX, CSV), figures (SVG, PNG) and one page with all of them, `report.html`, are written.

    Args:
        what: An experiment, or `all` of them: the paper's tables and its figure; `missing`, what is lost as
            radiographs go missing; `calibration`; `subgroups` by age, sex, race and admission.
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder for the runs and what is made of them.
        seeds: A training of every system for each.
        models: Systems by name, or YAML files of your own; all of the paper by default.
        model_args: Arguments for every model that takes them, such as dim or cxr_backbone.
        epochs: The most epochs to train.
        patience: Stop a training after this many epochs without a better validation PRAUC.
        lr: Learning rate of all systems; by default, each one's published one.
        batch_size: Stays a batch.
        matched_cxr_dropout: With training on matched, the share of radiographs taken away from each batch.
        crop_size: Side of the centre crop of the radiographs, in pixels.
        augment: Whether training radiographs are flipped, rotated, scaled and shifted at random.
        precision: Numbers to compute with.
        accelerator: `cpu`, `gpu`, or `auto` for the fastest there is.
        num_workers: Processes that make batches, for each run.
        task: What is predicted; the paper has numbers for phenotyping.
        n_resamples: Bootstrap resamples behind each interval and test.
        workers: Runs at a time, each in a process of its own.
        ray: Spread the runs over a Ray cluster, by its address or, without one, on this machine.

    Returns:
        The tables, and where the report lies.

    Raises:
        InputError: If the cohort or an option cannot be used, or runs failed; the others are kept.
    """
    check_choice("what", what, get_args(Experiment))
    if not seeds or n_resamples < 1:
        raise InputError("expected at least one seed, and n_resamples of at least 1")
    opened, out = Cohort.open(Path(cohort).resolve(), verify=True), Path(out).resolve()
    systems = choose_systems(models)
    options = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "matched_cxr_dropout": matched_cxr_dropout,
        "crop_size": crop_size,
        "augment": augment,
        "precision": precision,
        "accelerator": accelerator,
        "num_workers": num_workers,
        "task": task,
    } | ({} if lr is None else {"lr": lr})
    cells = plan(what, opened, out / "runs", systems, list(dict.fromkeys(seeds)), model_args or {}, options)
    for train_on in sorted({cell.train_on for cell in cells}):  # what is wrong fails before the training
        data = CohortDataModule(opened, train_on, batch_size, matched_cxr_dropout, crop_size, task=task)
        if not data.dataset.task.eligible[opened.rows("test", train_on)].any():
            raise InputError(
                f"the test split of {opened.folder} has no stay in the {train_on} set; prepare a larger "
                "cohort, or one with another --seed or --split-file"
            )
    train_all(list(cells.values()), workers, ray)
    logger.info("measuring")
    results = Results.read(opened, Task.of(opened, task), systems, cells, n_resamples)
    sections = [
        section
        for name in experiments_of(what)
        if name == "table1" or any(takes_part(system, name) for system in systems)
        for section in _SECTIONS[name](results)
    ]
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".report.lock"):
        _write(out, results, sections, options)
    return Reproduced(out, out / "report.html", [table for section in sections for table in section.tables])


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
    figure = phenotypes_figure(by_label, prevalence)
    text = "Where fusing the modalities helps, and where it harms."
    return [Section("table3", "Label by label", text, [table], [("PRAUC of each label by system", figure)])]


def _table4(results: Results) -> list[Section]:
    settings = [setting for setting in tables.SETTINGS if setting.train_on == "matched"]
    tested = tables.tests(results, "table4-tests", settings, tables.ablated(results.systems))
    text = "DrFuse without one of its parts."
    return [
        Section("table4", "Ablation", text, [tables.table4(results), *([] if tested is None else [tested])])
    ]


def _figure3(results: Results) -> list[Section]:
    cell, spec = next(
        (cell, spec)
        for cell, spec in results.cells.items()
        if (cell.system, cell.train_on) == ("drfuse", "matched")
    )
    rows = results.cohort.rows("test", "matched")
    rows = rows[results.task.eligible[rows]]
    h = represent(spec.folder, results.cohort, rows, spec.options["crop_size"])
    shown = {title: h[name] for name, title in FIGURE3.items()}
    subjects = results.cohort.stays["subject_id"].to_numpy()[rows]
    own, another = divergences(h["ehr_shared"], h["cxr_shared"])
    measured = [
        (
            "a linear probe tells EHR from CXR by the shared ones (0.5: cannot)",
            probe_origin(h["ehr_shared"], h["cxr_shared"], subjects),
        ),
        (
            "a linear probe tells EHR from CXR by the distinct ones",
            probe_origin(h["ehr_distinct"], h["cxr_distinct"], subjects),
        ),
        ("divergence of a stay's two shared ones, share of the largest", own),
        ("divergence of two different stays' shared ones", another),
        ("cosine of EHR shared and EHR distinct (0: orthogonal)", cosine(h["ehr_shared"], h["ehr_distinct"])),
        ("cosine of CXR shared and CXR distinct", cosine(h["cxr_shared"], h["cxr_distinct"])),
    ]
    table = Table(
        key="figure3-numbers",
        title="What Figure 3 cannot show",
        caption=f"The {len(rows):,} matched test stays, DrFuse trained on matched, seed {cell.seed}. Probes "
        "are fitted and scored in five folds of whole subjects.",
        columns=["of the representations", "value"],
        rows=[Row(name, [Number(value, digits=4)]) for name, value in measured],
    )
    text = "The shared representations should lie together, the distinct ones apart from all others."
    figure = representations_figure(tsne(shown))
    caption = "Figure 3: t-SNE of DrFuse's representations of the matched test set"
    return [Section("figure3", "Representations", text, [table], [(caption, figure)])]


def _missing(results: Results) -> list[Section]:
    found: list[Table] = []
    figures: list[tuple[str, Figure]] = []
    for train_on in ("matched", "full"):
        curves = beyond.missing_curves(results, train_on)
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
    caption = f"Macro PRAUC of {shown.title} in groups of patients"
    return [Section("subgroups", "Subgroups", text, beyond.subgroup_tables(measured), [(caption, figure)])]


def _by_group(found: Subgroups) -> dict[str, dict[str, Number]]:
    rows: dict[str, dict[str, Number]] = {}
    for one in found.groups:
        note = f"{one.n_stays:,} stays{', few positives' if one.few else ''}"
        rows.setdefault(one.attribute, {})[one.group] = Number.of(one.prauc_macro, note=note)
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


def _write(out: Path, results: Results, sections: Sequence[Section], options: dict[str, Any]) -> None:
    """Write every table and figure on its own, the list of runs, and the report."""
    for name in ("tables", "figures"):
        (out / name).mkdir(exist_ok=True)
    for section in sections:
        for table in section.tables:
            write_table(table, out / "tables")
        for place, (_, figure) in enumerate(section.figures, start=1):
            stem = section.key if len(section.figures) == 1 else f"{section.key}-{place}"
            write_figure(figure, out / "figures", stem)
    write_whole(out / "runs.csv", _list_of_runs(results.cells).write_csv())
    name, n_stays = results.cohort.folder.name, len(results.cohort)
    facts = [
        (
            "cohort",
            f"{name}, {n_stays:,} stays, {len(results.cohort.cxr):,} with radiograph",
        ),
        ("task", f"{results.task.name}, {len(results.task.label_names)} labels"),
        (
            "trained",
            f"{len(results.cells)} runs, {results.n_seeds} {'seed' if results.n_seeds == 1 else 'seeds'}",
        ),
        ("training", f"up to {options['epochs']} epochs, batches of {options['batch_size']}"),
        ("learning rate", f"{options['lr']:g} for all" if "lr" in options else "each system's published one"),
        ("intervals", f"{results.n_resamples:,} resamples of subjects"),
        ("drfuse", __version__),
    ]
    write_whole(out / "report.html", render_page("DrFuse, reproduced", facts, sections))


def _list_of_runs(cells: Mapping[Cell, RunSpec]) -> pl.DataFrame:
    """Return a row a run: what it is, where it lies, and how it went on the validation split."""
    columns = ["system", "train_on", "seed", "folder", "best_epoch", "val_prauc_macro"]
    rows = [
        (
            cell.system,
            cell.train_on,
            cell.seed,
            spec.folder.name,
            *map(read_facts(spec.folder).get, columns[4:]),
        )
        for cell, spec in cells.items()
    ]
    return pl.DataFrame(rows, schema=columns, orient="row")
