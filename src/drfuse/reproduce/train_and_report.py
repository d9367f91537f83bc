"""Trains the missing runs of the paper's experiments, then writes tables, figures and a report."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from drfuse import __version__
from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.escapes import csv_of
from drfuse.evaluation.external import refuse_shared_subjects
from drfuse.files import file_lock, make_output_folder, make_own_folder, write_whole
from drfuse.report.figures import write_figure
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Row, Table, write_table
from drfuse.reproduce.experiments import experiments_of, sections_of, tables_for_terminal
from drfuse.reproduce.names import ExperimentName
from drfuse.reproduce.plan import plan
from drfuse.reproduce.reproduction import DECIDED, Reproduced
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System, choose_systems
from drfuse.training import TrainOptions
from drfuse.training.fit import data_module
from drfuse.training.matrix import RunSpec, check_models, train_all

logger = logging.getLogger(__name__)


def train_and_report(
    what: ExperimentName,
    cohort: Path,
    out: Path,
    seeds: Sequence[int],
    models: Sequence[str] | None,
    model_args: Mapping[str, Any],
    lr: float | None,
    n_resamples: int,
    workers: int,
    ray: bool | str,
    settings: Mapping[str, Mapping[str, float]] | None,
    also_test_on: Path | None,
    other_people: bool,
    options: TrainOptions,
) -> Reproduced:
    """Repeat experiments on a cohort; see `reproduce`."""
    opened, out = Cohort.open(cohort.resolve(), verify=True), out.resolve()
    other = None if also_test_on is None else _open_other(also_test_on, opened, other_people)
    if other is None and all(experiment.elsewhere for experiment in experiments_of(what).values()):
        raise InputError(f"{what} needs another cohort; name it with --also-test-on")
    systems = choose_systems(models)
    cells = plan(what, opened, out / "runs", systems, seeds, model_args, options, settings, lr)
    for train_on in sorted({cell.train_on for cell in cells}):  # bad input fails before anything is trained
        data = data_module(opened, options.changed(train_on=train_on))
        if not len(data.dataset.task.rows("test", train_on)):
            raise InputError(
                f"the test split of {opened.folder} has no stay in the {train_on} set; prepare a larger "
                "cohort, or one with a different --seed or --split-file"
            )
        check_models([spec for cell, spec in cells.items() if cell.train_on == train_on], data)
    make_output_folder(out)
    make_own_folder(out / "runs")
    failed = train_all(list(cells.values()), workers, ray)
    logger.info("measuring")
    results, damaged = Results.read(opened, Task.of(opened, options.task), systems, cells, n_resamples)
    failed += damaged
    if failed and not results.cells:
        raise InputError(f"there is no run to measure: {failed[0]}")
    if other is not None:
        results = results.measured_on(other, other_people, options.accelerator)
    sections = [*sections_of(what, results), _how_it_was_made(results, model_args, options, lr, failed)]
    report = out / ("report.html" if what == "all" else f"report-{what}.html")
    with file_lock(out / ".report.lock"):
        _write(report, results, sections)
    if failed:
        raise InputError(
            f"{len(failed)} runs failed, the first of them {failed[0]}; {report} has the others, and the "
            "same command trains those that are left"
        )
    tables = [table for section in sections for table in section.tables]
    return Reproduced(out, report, tables, tables_for_terminal(what, sections))


def _open_other(folder: Path, cohort: Cohort, other_people: bool) -> Cohort:
    """Return another cohort to measure runs on; what does not fit fails before anything is trained.

    Raises:
        InputError: If it was not prepared like `cohort`, or shares a subject that runs learn from.
    """
    other = Cohort.open(folder, verify=True)
    ours, theirs = cohort.manifest, other.manifest
    same = ("preset", "window_hours", "before_hours", "image_size", "view")
    differs = [name for name in same if ours.options.get(name) != theirs.options.get(name)]
    differs += [name for name in ("variables", "phenotypes") if getattr(ours, name) != getattr(theirs, name)]
    if differs:
        raise InputError(
            f"{folder} has a different {' and '.join(differs)} from {cohort.folder}; prepare both alike"
        )
    if not other_people:
        stays = cohort.columns("subject_id", "split")
        learned = stays.filter(pl.col("split") != "test")["subject_id"]
        refuse_shared_subjects(learned, other, cohort.folder)
    return other


def _how_it_was_made(
    results: Results,
    model_args: Mapping[str, Any],
    options: TrainOptions,
    lr: float | None,
    failed: Sequence[str],
) -> Section:
    """Return the section on the options of the runs, and on those that failed."""
    sources = results.cohort.manifest.sources.values()
    not_shared = {*DECIDED, "validate_on", "lr"}
    shared = {
        "cohort": results.cohort.folder.name,
        "made from": ", ".join(f"{one.get('folder')} ({one.get('release')})" for one in sources) or "unknown",
        "validate_on": options.validate_on or "the same as train_on",
        **{name: value for name, value in options.written().items() if name not in not_shared},
        **({} if lr is None else {"lr": lr}),
        **{f"model_args: {name}": value for name, value in model_args.items()},
        "drfuse": __version__,
    }
    settings = Table(
        key="settings",
        title="Options",
        caption="The options that all runs share.",
        columns=["option", "value"],
        rows=[Row(name, [str(value)]) for name, value in shared.items()],
    )
    systems = Table(
        key="systems",
        title="Systems",
        caption="The model of each system, its arguments besides those for all models, its learning rate and "
        "its weight decay. A solver fits a system without them: epochs, patience, precision, schedule and "
        "augmentation have no effect on it.",
        columns=["system", "model", "arguments", "learning rate", "weight decay"],
        rows=[_system(system, results, model_args) for system in results.systems if _runs(system, results)],
    )
    text = "The paper trained larger networks on MIMIC-IV, and its intervals resample stays, not subjects."
    if failed:
        text += f"\n\n{len(failed)} runs failed and are left out: {'; '.join(failed)}."
    return Section("settings", "How it was made", text, [settings, systems] if systems.rows else [settings])


def _system(system: System, results: Results, model_args: Mapping[str, Any]) -> Row:
    model = system.with_arguments(model_args)
    own = {name: value for name, value in model["init_args"].items() if model_args.get(name) != value}
    arguments = ", ".join(f"{name} {value}" for name, value in own.items())
    if system.first_stage:
        arguments += f"{'; ' if arguments else ''}starts from {' and '.join(system.first_stage.values())}"
    cells = [model["class_path"].rpartition(".")[2], arguments]
    for option in ("lr", "weight_decay"):
        used = sorted({getattr(spec.options, option) for spec in _runs(system, results)})
        cells.append("none" if system.is_fitted else ", ".join(f"{value:g}" for value in used))
    return Row(system.title, cells)


def _runs(system: System, results: Results) -> list[RunSpec]:
    return [spec for cell, spec in results.cells.items() if cell.system == system.name]


def _write(report: Path, results: Results, sections: Sequence[Section]) -> None:
    """Write the tables, the figures, the list of runs and the report."""
    out = report.parent
    for name in ("tables", "figures"):
        make_own_folder(out / name)
    for section in sections:
        for table in section.tables:
            write_table(table, out / "tables")
        for place, (_, figure) in enumerate(section.figures, start=1):
            stem = section.key if len(section.figures) == 1 else f"{section.key}-{place}"
            write_figure(figure, out / "figures", stem)
    write_whole(out / f"{report.stem.replace('report', 'runs')}.csv", _runs_as_csv(results))
    cohort, n_seeds = results.cohort, results.n_seeds
    facts = [
        ("cohort", f"{cohort.folder.name}, {len(cohort):,} stays, {len(cohort.cxr):,} with radiograph"),
        ("task", f"{results.task.name}, {len(results.task.label_names)} labels"),
        ("trained", f"{len(results.cells)} runs, {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}"),
        ("intervals", f"{results.n_resamples:,} resamples of subjects"),
        ("drfuse", __version__),
    ]
    write_whole(report, render_page("DrFuse, reproduced", facts, sections))


def _runs_as_csv(results: Results) -> str:
    """Return the runs as CSV, each with its best epoch on the validation split."""
    columns = ("system", "title", "train_on", "seed", "folder", "best_epoch", "val_prauc_macro")
    titles = {system.name: system.title for system in results.systems}
    rows = []
    for cell, spec in results.cells.items():
        facts = spec.run.read_facts()
        run = (cell.system, titles.get(cell.system, cell.system), cell.train_on, cell.seed, spec.folder.name)
        rows.append((*run, facts.best_epoch, facts.val_prauc_macro))
    return csv_of(pl.DataFrame(rows, schema=columns, orient="row"))
