"""The `drfuse` command: each sub-command is one function; its signature and docstring give the options."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from drfuse import __version__
from drfuse.command_line import Parser, run_command


@dataclass(frozen=True)
class _Command:
    """A sub-command.

    Attributes:
        function: Import path of the function that it runs.
        summary: Its line in the list of commands.
        show: Prints the function's result.
        positional: Parameters given by position, not as options.
        python_only: Parameters that the command line does not offer.
    """

    function: str
    summary: str
    show: Callable[[Any, dict[str, Any], Console], None]
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
    command.show(result, called_with, Console(markup=False))  # a phenotype's name may contain brackets


def _overview() -> Parser:
    """Return the parser of `drfuse --help`, which is fast because it imports no command."""
    parser = Parser(prog="drfuse", description="Predictions from ICU records and chest radiographs.")
    parser.add_argument("--version", action="version", version=f"drfuse {__version__}")
    commands = parser.add_subcommands(required=False)
    for name, command in _COMMANDS.items():
        commands.add_subcommand(name, Parser(description=command.summary), help=command.summary)
    return parser


def _show_cohort(manifest: Any, arguments: dict[str, Any], console: Console) -> None:
    from drfuse.report import flow_table

    console.print(flow_table(manifest))
    _say(console, f"wrote {arguments['out']}: {manifest.flow[-1].stays:,} stays")


def _show_run(result: Any, arguments: dict[str, Any], console: Console) -> None:  # noqa: ARG001
    if os.environ.get("RANK", "0") != "0":  # torchrun and srun run the command once per device
        return
    _say(
        console,
        f"wrote {result.folder}: best epoch {result.best_epoch + 1} of {result.epochs}, "
        f"validation macro PRAUC {result.val_prauc:.3f}",
    )


def _show_metrics(metrics: Any, arguments: dict[str, Any], console: Console) -> None:
    from drfuse.report import metrics_table, subgroups_table

    for measured in metrics:
        console.print(metrics_table(measured))
        if measured.subgroups is not None:
            console.print(subgroups_table(measured))
    tables = "metrics.csv" if arguments["cohort"] is None else "metrics.csv, subgroups.csv"
    _say(console, f"wrote {arguments['run'] / 'metrics.json'} and {tables}")


def _show_simulation(result: Any, arguments: dict[str, Any], console: Console) -> None:
    _say(
        console,
        f"wrote {arguments['out']}: {result.icu_stays:,} ICU stays, {result.eligible:,} of them eligible, "
        f"{result.with_cxr:,} of those with a radiograph; {result.events:,} events, {result.images:,} images",
    )


def _show_demo(result: Any, arguments: dict[str, Any], console: Console) -> None:  # noqa: ARG001
    from drfuse.report import contest_table, weights_table

    contest = {
        one.name: {on: (one.measured[on], one.ceiling[on]) for on in one.measured}
        for one in result.contestants
    }
    console.print(contest_table(contest))
    console.print(weights_table(result.patient.stay_id, result.patient.likeliest))
    for name, content in (
        ("hospital", "raw files in MIMIC's layout, and truth.parquet"),
        ("cohort", "the cohort that `drfuse prepare` made from them"),
        ("runs", "trained models, predictions and metrics"),
    ):
        _say(console, f"wrote {result.folder / name}: {content}")


def _show_reproduced(result: Any, arguments: dict[str, Any], console: Console) -> None:  # noqa: ARG001
    from drfuse.report import paper_table

    for table in result.shown:
        console.print(paper_table(table))
    _say(console, f"wrote {result.report}, with its tables and figures next to it")


def _show_tuned(result: Any, arguments: dict[str, Any], console: Console) -> None:
    from drfuse.report import trials_table

    console.print(trials_table(result.trials))
    _say(
        console,
        f"wrote {result.folder / 'trials.csv'}, and the best run's options for "
        f"`drfuse train {arguments['cohort']} --config {result.best} --out RUN`",
    )


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)


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
