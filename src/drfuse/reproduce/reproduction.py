"""The paper's experiments on a cohort: train what is missing, then write tables, figures and a report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from filelock import FileLock

from drfuse import __version__
from drfuse.arguments import check_arguments
from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.files import make_folder, write_whole
from drfuse.report.figures import write_figure
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Row, Table, write_table
from drfuse.reproduce.experiments import ExperimentName, sections_of, tables_for_terminal
from drfuse.reproduce.plan import plan
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System, choose_systems
from drfuse.training import TrainOptions
from drfuse.training.matrix import RunSpec, check_models, train_all
from drfuse.training.options import DEFAULTS, Without, refuse_decided

logger = logging.getLogger(__name__)

DECIDED = ("train_on", "seed", "init_ehr", "init_cxr", "devices", "nodes")
"""Training options that an experiment sets itself, for each run."""


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` wrote.

    Attributes:
        folder: The output folder.
        report: The page with all tables and figures.
        tables: The tables, in the order of the page.
        shown: The tables that the command shows in the terminal.
    """

    folder: Path
    report: Path
    tables: list[Table]
    shown: list[Table]


@check_arguments
def reproduce(
    what: ExperimentName,
    cohort: Path,
    out: Path,
    seeds: Sequence[int] = (0,),
    models: Sequence[str] | None = None,
    model_args: dict[str, Any] | None = None,
    lr: float | None = None,
    n_resamples: int = 1000,
    workers: int = 1,
    ray: bool | str = False,
    settings: dict[str, dict[str, float]] | None = None,
    options: Annotated[TrainOptions, Without(*DECIDED)] = DEFAULTS,
    **changes: Any,
) -> Reproduced:
    """Repeat the paper's experiments on a cohort, with the paper's numbers beside the measured ones.

    Each run is trained once, however many experiments need it. Finished runs are kept, interrupted ones
    resume, and two commands may share a folder. Then it writes the tables (Markdown, LaTeX, CSV), the figures
    (SVG, PNG) and one page with all of them, `report.html`.

    Args:
        what: An experiment, or `all`: the paper's tables and its figure; `missing`, what is lost as
            radiographs go missing; `calibration`; `decisions`, their net benefit; `subgroups` by age, sex,
            race, admission and radiograph.
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder for the runs, the tables, the figures and the report.
        seeds: Seeds; every system is trained once with each.
        models: Systems by name, or your own as YAML files; by default, all systems of the paper.
        model_args: Arguments for every model that takes them, such as dim or cxr_backbone.
        lr: Learning rate of all systems; by default, each system's published one.
        n_resamples: Half samples of the subjects behind each interval and test.
        workers: Runs at a time, each in its own process.
        ray: Spread the runs over a Ray cluster: its address, or true for a new one on this machine. The
            cluster then decides how many run at a time.
        settings: By system name, its own `lr` and `weight_decay`, such as those that `benchmarks/search.py`
            found; they override the options of all runs. A variant of DrFuse without its own uses DrFuse's.
        options: How each run is trained.
        changes: Options by name that override those in `options`.

    Returns:
        The tables, and where the report is.

    Raises:
        InputError: If the cohort or an option cannot be used, or if runs failed; the report has the others.
    """
    if not seeds or n_resamples < 1:
        raise InputError(
            f"got {len(seeds)} seeds and n_resamples {n_resamples}; expected at least one seed, and "
            "n_resamples of at least 1"
        )
    options = options.changed(**changes)
    refuse_decided(options, DECIDED, "reproduce")
    opened, out = Cohort.open(cohort.resolve(), verify=True), out.resolve()
    systems = choose_systems(models)
    seeds, model_args = list(dict.fromkeys(seeds)), model_args or {}
    cells = plan(what, opened, out / "runs", systems, seeds, model_args, options, settings, lr)
    from drfuse.training.fit import data_module  # not sooner, because Lightning takes seconds to import

    for train_on in sorted({cell.train_on for cell in cells}):  # bad input fails before anything is trained
        data = data_module(opened, options.changed(train_on=train_on))
        if not len(data.dataset.task.rows("test", train_on)):
            raise InputError(
                f"the test split of {opened.folder} has no stay in the {train_on} set; prepare a larger "
                "cohort, or one with a different --seed or --split-file"
            )
        check_models([spec for cell, spec in cells.items() if cell.train_on == train_on], data)
    failed = train_all(list(cells.values()), workers, ray)
    logger.info("measuring")
    results, damaged = Results.read(opened, Task.of(opened, options.task), systems, cells, n_resamples)
    failed += damaged
    if failed and not results.cells:
        raise InputError(f"there is no run to measure: {failed[0]}")
    sections = [*sections_of(what, results), _how_it_was_made(results, model_args, options, lr, failed)]
    report = out / ("report.html" if what == "all" else f"report-{what}.html")
    make_folder(out)
    with FileLock(out / ".report.lock"):
        _write(report, results, sections)
    if failed:
        raise InputError(
            f"{len(failed)} runs failed, the first of them {failed[0]}; {report} has the others, and the "
            "same command trains those that are left"
        )
    tables = [table for section in sections for table in section.tables]
    return Reproduced(out, report, tables, tables_for_terminal(what, sections))


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
        (out / name).mkdir(exist_ok=True)
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
    columns = ("system", "train_on", "seed", "folder", "best_epoch", "val_prauc_macro")
    rows = []
    for cell, spec in results.cells.items():
        facts = spec.run.read_facts()
        run = (cell.system, cell.train_on, cell.seed, spec.folder.name)
        rows.append((*run, facts.best_epoch, facts.val_prauc_macro))
    return pl.DataFrame(rows, schema=columns, orient="row").write_csv()
