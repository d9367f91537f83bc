"""The `drfuse` command: each sub-command is one function; its signature and docstring give the options."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drfuse import __version__
from drfuse.command_line import Parser, run_command
from drfuse.logs import Terminal


@dataclass(frozen=True)
class _Command:
    """A sub-command.

    Attributes:
        function: Import path of the function that it runs.
        summary: Its line in the list of commands.
        show: Yields tables and sentences that show the function's result.
        positional: Parameters given by position, not as options.
        python_only: Parameters that the command line does not offer.
    """

    function: str
    summary: str
    show: Callable[[Any, dict[str, Any]], Iterator[Any]]
    positional: tuple[str, ...] = ()
    python_only: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `drfuse` command; invalid input ends in one sentence and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in _COMMANDS:
        overview = _overview()
        overview.parse_args(given)
        overview.print_help()
        return
    name, *rest = given
    command = _COMMANDS[name]
    result, called_with = run_command(
        command.function, f"drfuse {name}", rest, command.positional, command.python_only
    )
    console = Terminal(markup=False)  # a phenotype's name may contain brackets
    for shown in command.show(result, called_with):
        if isinstance(shown, str):
            console.print(shown, soft_wrap=True, highlight=False)
        else:
            console.print(shown)


def _overview() -> Parser:
    """Return the parser of `drfuse --help`, which is fast because it imports no command."""
    parser = Parser(prog="drfuse", description="Predictions from ICU records and chest radiographs.")
    parser.add_argument("--version", action="version", version=f"drfuse {__version__}")
    commands = parser.add_subcommands(required=False)
    for name, command in _COMMANDS.items():
        commands.add_subcommand(name, Parser(description=command.summary), help=command.summary)
    return parser


def _show_cohort(manifest: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    from drfuse.cohort.flow import flow_table, gaps

    yield flow_table(manifest)
    if line := gaps(manifest):
        yield line
    yield f"wrote {arguments['out']}: {manifest.flow[-1].stays:,} stays"


def _show_run(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    if os.environ.get("RANK", "0") == "0":  # torchrun and srun run the command once per device
        yield (
            f"wrote {result.folder}: best epoch {result.best_epoch + 1} of {result.epochs}, "
            f"validation macro PRAUC {result.val_prauc:.3f}"
        )


def _show_metrics(metrics: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    from drfuse.report import evaluation_tables, external_table, shift_table

    for measured in metrics:
        yield from evaluation_tables(measured)
    yield f"wrote {arguments['run'] / 'metrics.json'}, and its tables as CSV files beside it"
    elsewhere = [measured for measured in metrics if measured.external is not None]
    if elsewhere:
        yield external_table([measured for measured in metrics if measured.external is None], elsewhere)
        yield shift_table(elsewhere[0].external.shift)
        yield f"wrote {elsewhere[0].external.folder}: predictions, metrics and shift.csv of {arguments['on']}"


def _show_predictions(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    from drfuse.report import missing_of_stay, predictions_table

    if result.table is not None:
        yield predictions_table(result.table, len(result.runs) > 1)
        yield from map(missing_of_stay, result.table.unique("stay_id", maintain_order=True).to_dicts())
    methods = " and ".join(
        dict.fromkeys("not recalibrated" if one is None else one for one in result.methods)
    )
    yield f"{result.n_stays:,} stays predicted by {len(result.runs)} run(s); recalibration: {methods}"
    if result.out is not None:
        yield f"wrote {result.out}"


def _show_explanation(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    from drfuse.report.explanation import PAGE, explanation_tables

    yield from explanation_tables(result.explanation)
    yield from result.explanation.notes
    if result.out is not None:
        yield f"wrote {result.out / PAGE}, with its figures and JSON next to it"


def _show_stopped(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    yield "stopped"


def _show_simulation(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    yield (
        f"wrote {arguments['out']}: {result.icu_stays:,} ICU stays, {result.eligible:,} of them eligible, "
        f"{result.with_cxr:,} of those with a radiograph; {result.events:,} events, {result.images:,} images"
    )


def _show_demo(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    from drfuse.report import contest_table, weights_table

    contest = {
        one.name: {on: (one.measured[on], one.ceiling[on]) for on in one.measured}
        for one in result.contestants
    }
    yield contest_table(contest)
    yield weights_table(result.patient.stay_id, result.patient.likeliest)
    yield f"wrote {result.folder / 'hospital'}: raw files in MIMIC's layout, and truth.parquet"
    yield f"wrote {result.folder / 'cohort'}: the cohort that `drfuse prepare` made from them"
    yield f"wrote {result.folder / 'runs'}: trained models, predictions and metrics"
    yield f"wrote {result.report}: all of this as a page, with pictures"
    yield f"to look at every stay: drfuse explore {shlex.quote(str(result.folder))}"


def _show_reproduced(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    from drfuse.report import paper_table

    yield from map(paper_table, result.shown)
    yield f"wrote {result.report}, with its tables and figures next to it"


def _show_exported(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:  # noqa: ARG001
    yield f"wrote {result.folder}: {', '.join(result.files)}"
    yield result.sharing


def _show_tuned(result: Any, arguments: dict[str, Any]) -> Iterator[Any]:
    from drfuse.report import trials_table

    yield trials_table(result.trials)
    yield (
        f"wrote {result.folder / 'trials.csv'}, and the best run's options for "
        f"`drfuse train {arguments['cohort']} --config {result.best} --out RUN`"
    )


_COMMANDS = {
    "demo": _Command("drfuse.demo.demo", "The whole system on a simulated hospital.", _show_demo),
    "simulate": _Command(
        "drfuse.simulate.simulate", "Raw files of a simulated hospital, and the truth.", _show_simulation
    ),
    "prepare": _Command(
        "drfuse.cohort.prepare", "Raw MIMIC-IV and MIMIC-CXR-JPG files -> a cohort.", _show_cohort
    ),
    "train": _Command(
        "drfuse.training.train",
        "A cohort -> a trained run with its predictions.",
        _show_run,
        ("cohort",),
        ("callbacks",),
    ),
    "evaluate": _Command(
        "drfuse.evaluation.evaluate", "A run -> PRAUC and AUROC with intervals.", _show_metrics, ("run",)
    ),
    "predict": _Command(
        "drfuse.inference.predict.predict",
        "Runs and stays, or single patients -> probabilities, and what each source contributed.",
        _show_predictions,
        ("run", "cohort"),
    ),
    "export": _Command(
        "drfuse.export.export",
        "A run -> a folder to hand on, with a model card.",
        _show_exported,
        ("run",),
    ),
    "explain": _Command(
        "drfuse.explain.explain",
        "A run and one stay -> what each modality, hour, variable and region contributed.",
        _show_explanation,
        ("run", "cohort"),
    ),
    "explore": _Command(
        "drfuse.explore.explore",
        "A cohort, a run or a reproduction -> pages in the browser, on this machine alone.",
        _show_stopped,
        ("what", "cohort"),
    ),
    "reproduce": _Command(
        "drfuse.reproduce.reproduce",
        "A cohort -> the paper's tables and figure, next to the paper's numbers.",
        _show_reproduced,
        ("what", "cohort"),
    ),
    "tune": _Command(
        "drfuse.training.tune.tune",
        "A cohort -> the best loss weights and learning rate.",
        _show_tuned,
        ("cohort",),
    ),
}
