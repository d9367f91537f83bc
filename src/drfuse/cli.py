"""The `drfuse` command: each sub-command is one function, whose signature and docstring are its options."""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._actions import ActionConfigFile  # the package exports it to no type checker
from rich.console import Console

from drfuse import __version__
from drfuse.errors import InputError
from drfuse.logs import log_to

_OPTION = re.compile(r"(?<![\w-])--[a-z]\w*(?:[.-]\w+)*")
_BOOLEANS = ("true", "false")


@dataclass(frozen=True)
class _Command:
    """A sub-command: the function behind it, how its result is shown, and which arguments are special.

    Attributes:
        function: Import path of the function.
        summary: What it does, in the list of commands.
        show: Shows what it returned.
        positional: Arguments without a name.
        python_only: Arguments that only a caller in Python can give.
    """

    function: str
    summary: str
    show: Callable[[Any, dict[str, Any], Console], None]
    positional: tuple[str, ...] = ()
    python_only: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        module, name = self.function.rsplit(".", 1)
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


@dataclass(frozen=True)
class _Signature:
    """What a command takes: its function's own parameters, and the fields of a dataclass of options.

    Such a dataclass is the annotation of a parameter; its fields become options of the command. The
    function's own parameters go before fields of the same name.

    Attributes:
        own: The annotation of each parameter by name, but for that of the dataclass and for `**changes`.
        group: Name of the parameter that takes the dataclass, if there is one.
        options: The dataclass.
        hidden: Fields of it that are no options of this command.
    """

    own: dict[str, Any]
    group: str | None = None
    options: Any = None
    hidden: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_Signature":
        """Return what a function takes."""
        own: dict[str, Any] = {}
        group, options, decided = None, None, ()
        for name, parameter in inspect.signature(function).parameters.items():
            kind = parameter.annotation
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            annotated = get_origin(kind) is Annotated
            if is_dataclass(bare := get_args(kind)[0] if annotated else kind):
                group, options = name, bare
                decided = get_args(kind)[1].names if annotated else ()
            else:
                own[name] = kind
        return cls(own, group, options, frozenset(own) | frozenset(decided))

    @property
    def kinds(self) -> dict[str, Any]:
        """The type of each option by name."""
        if self.options is None:
            return self.own
        flat = {one.name: one.type for one in fields(self.options) if one.name not in self.hidden}
        return flat | self.own


_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) "
    r"Given value type: (?:\w+|<class '[\w.]+'>) Given value: "
)
_NESTED = re.compile(r"NestedArg\(key='(.*?)', val='(.*?)'\)")


def _as_sentence(union: re.Match[str]) -> str:
    """Return what jsonargparse says of a value that fits none of several types, in one sentence.

    None, which is what an option is when it is left out, is not among them.
    """
    kinds = [re.sub(r"^[Ee]xpected an? ", "a value of type ", kind) for kind in union[1].split(" - ")]
    told = [
        kind.removeprefix("expected ").split(". Got value: ")[0]
        for kind in kinds
        if not kind.endswith(" NoneType")
    ]
    return f"expected {' or '.join(told)}. Got value: "


class _Parser(ArgumentParser):
    """A parser whose options are spelled with hyphens; underscores are understood too."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Say in one sentence what is wrong with the arguments, and end with exit code 2."""
        program = self.prog.replace(" [options]", "")
        problem = _PARAMETER.sub(_as_option, " ".join(message.split()))
        command = _COMMANDS.get(program.rpartition(" ")[2])
        positional = () if command is None else command.positional
        problem = re.sub(
            r'Parser key "([\w.]+)":',
            lambda key: f"{'' if key[1] in positional else '--'}{key[1]}:",
            problem,
        )
        problem = re.sub(r"Expected a (?:typing\.)?Literal\[(.*?)\]", r"expected one of \1", problem)
        problem = _NESTED.sub(r"\1=\2", _UNION.sub(_as_sentence, _readable(problem)))
        self.exit(2, f"{program}: error: {problem}; see `{program} --help`\n")

    def format_help(self, *arguments: Any) -> str:
        return _readable(super().format_help(*arguments))

    def format_usage(self) -> str:
        return _readable(super().format_usage())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `drfuse` command; wrong input ends in one sentence and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True)
    name = next((argument for argument in given if argument in _COMMANDS), None)
    if name is None:
        parser = _parser(None)
        parser.parse_args(given)
        parser.print_help()
        return
    sys.path.append(str(Path.cwd()))  # for a model of the user's own
    try:
        command = _COMMANDS[name]
        function = command.load()
        log_to(errors)
        parser = _parser(name)
        options = parser.parse_args(_as_parameters(given, function))
        called_with = _call_arguments(parser, options, name)
        result = function(**called_with)
    except (InputError, OSError) as error:  # what the user can put right: input, permissions, a full disk
        message = f"drfuse {name}: error: {error}"
        errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        errors.print(f"drfuse {name}: interrupted; the same command goes on or starts again")
        raise SystemExit(130) from None
    command.show(result, called_with, Console(markup=False))  # names of phenotypes and systems are no markup


def _parser(chosen: str | None) -> _Parser:
    """Return the parser; only the chosen command's function is imported, so that `--help` comes at once."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog="drfuse", description="Predictions from ICU records and chest radiographs.")
    parser.add_argument("--version", action="version", version=f"drfuse {__version__}")
    commands = parser.add_subcommands(required=False)
    for name, command in _COMMANDS.items():
        sub = _Parser(description=command.summary)
        if name == chosen:
            function = command.load()
            described = parse_from_object(function)
            sub.description = f"{described.short_description}\n\n{described.long_description or ''}".strip()
            helps = {parameter.arg_name: parameter.description for parameter in described.params}
            sub.add_argument("--config", action=ActionConfigFile, help="YAML file with options.")
            for positional in command.positional:
                kind = inspect.signature(function).parameters[positional].annotation
                sub.add_argument(positional, type=kind, help=helps[positional])
            signature = _Signature.of(function)
            others = set(inspect.signature(function).parameters) - signature.own.keys()
            sub.add_function_arguments(
                function, as_positional=False, skip={*command.positional, *command.python_only, *others}
            )
            if signature.options is not None:
                sub.add_class_arguments(signature.options, None, skip=set(signature.hidden))
        commands.add_subcommand(name, sub, help=command.summary)
    return parser


def _call_arguments(parser: ArgumentParser, options: Namespace, name: str) -> dict[str, Any]:
    arguments = dict(parser.instantiate(options)[name].items())
    arguments.pop("config", None)
    signature = _Signature.of(_COMMANDS[name].load())
    if signature.group is not None:
        flat = signature.kinds.keys() - signature.own.keys()
        arguments[signature.group] = signature.options(**{key: arguments.pop(key) for key in sorted(flat)})
    return arguments


def _as_parameters(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Return the arguments as jsonargparse reads them.

    Options are named like the function's parameters, a bare flag means true, and what follows an option that
    takes several values, up to the next option, becomes a list; after `=`, that is one value.
    """
    kinds = _Signature.of(function).kinds
    named: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        option, equals, value = argument.partition("=")
        if not _OPTION.fullmatch(option):
            named.append(argument)
            continue
        first, dot, key = option[2:].partition(".")
        first = first.replace("-", "_")
        of_systems = _is_by_name(kinds.get(first))
        name = f"{first}{dot}{key if of_systems else key.replace('-', '_')}"
        kind = kinds.get(name)
        is_bare = not left or left[0].startswith("-") or (kind is bool and left[0] not in _BOOLEANS)
        if bool in (kind, *get_args(kind)) and not equals and is_bare:
            equals, value = "=", "true"
        elif Sequence in (get_origin(kind), *map(get_origin, get_args(kind))):
            n_values = next((i for i, following in enumerate(left) if following.startswith("-")), len(left))
            if equals and not value.startswith("["):
                value = json.dumps([value])
            elif not equals and n_values and not left[0].startswith("["):
                equals, value = "=", json.dumps(left[:n_values])
                del left[:n_values]
        named.append(f"--{name}{equals}{value}")
    return named


def _is_by_name(kind: Any) -> bool:
    """Return whether an option's keys are names, like those of systems, and not parameters.

    >>> _is_by_name(dict[str, dict[str, float]] | None), _is_by_name(dict[str, Any] | None)
    (True, False)
    """
    mappings = [get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is dict]
    return any(get_origin(of_name) is dict for _, of_name in mappings)


def _as_option(parameter: re.Match[str]) -> str:
    """Return a parameter as the user writes it: jsonargparse says `prepare.mimic_iv` for --mimic-iv."""
    command, name = parameter.groups()
    return name if name in _COMMANDS[command].positional else f"--{name}"


def _readable(text: str) -> str:
    """Return jsonargparse's words with options as the user writes them and types without their modules."""
    text = re.sub(r"<class '(\w+)'>|\btyping\.|collections\.abc\.", r"\1", text)
    return _OPTION.sub(lambda option: option.group().replace("_", "-"), text)


def _show_cohort(manifest: Any, arguments: dict[str, Any], console: Console) -> None:
    from drfuse.report import flow_table

    console.print(flow_table(manifest))
    _say(console, f"wrote {arguments['out']}: {manifest.flow[-1].stays:,} stays")


def _show_run(result: Any, arguments: dict[str, Any], console: Console) -> None:  # noqa: ARG001
    if os.environ.get("RANK", "0") != "0":  # torchrun or srun runs the command once for every device
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
        f"wrote {arguments['out']}: {result.icu_stays:,} ICU stays, {result.eligible:,} to be included, "
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
    for place, what in (
        ("hospital", "raw files in MIMIC's layout, and truth.parquet"),
        ("cohort", "what `drfuse prepare` made of them"),
        ("runs", "trained models, predictions and metrics"),
    ):
        _say(console, f"wrote {result.folder / place}: {what}")


def _show_reproduced(result: Any, arguments: dict[str, Any], console: Console) -> None:  # noqa: ARG001
    from drfuse.report import paper_table

    for table in result.shown:
        console.print(paper_table(table))
    _say(console, f"wrote {result.report}, and its tables and figures beside")


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
        "drfuse.simulate.simulate",
        "Raw files of a simulated hospital, with the truth beside.",
        _show_simulation,
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
        "A cohort -> the paper's tables and figure, beside the paper's numbers.",
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
_PARAMETER = re.compile(rf"\b({'|'.join(_COMMANDS)})\.(\w+(?:\.\w+)*)")
