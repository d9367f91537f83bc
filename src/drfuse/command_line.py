"""Turns a function into a command: its signature and docstring give the options and their help.

`drfuse` and the benchmarks share it. Options are spelled with hyphens (underscores work too), a bare flag
means true, a list needs no brackets, and invalid input ends in one sentence and exit code 2.
"""

import inspect
import json
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast, get_args, get_origin

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace, _typehints, set_parsing_settings
from jsonargparse._actions import ActionConfigFile  # type checkers do not find it in the package itself

from drfuse.errors import InputError
from drfuse.escapes import on_one_line, without_secrets
from drfuse.failures import DEBUG, explained_failures, split_debug
from drfuse.files import private
from drfuse.imports import (
    ClassOf,
    LazyClass,
    describe_error,
    failed_to_import,
    import_class,
    importable_here,
)
from drfuse.logs import ERRORS, log_to
from drfuse.yaml_files import read_yaml

_OPTION = re.compile(r"(?<![\w-])--[a-z]\w*(?:[.-]\w+)*")
_BOOLEANS = ("true", "false")
_UNREAD_CLASS = str | dict[str, Any]
_CLASS_OPTIONS = ("model", "optimizer")
_TRUSTED = ("drfuse.", "torch.")
"""The packages whose classes a file of options may name."""
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) "
    r"Given value type: (?:\w+|<class '[\w.]+'>) Given value: "
)
_NESTED = re.compile(r"NestedArg\(key='(.*?)', val='(.*?)'\)")


_OF_A_CLASS = re.compile(
    r"(--[\w-]+): Type Callable\[.*?\] expects a function or a callable class: "
    r"(?:--|Option ')([\w.-]+)(?:: (.*?)|' is not accepted)\.* Got value: Namespace\(class_path=.*"
)
_NO_ARGUMENT = "this class has no such argument"
_NOT_A_NAME = re.compile(r"Expected a dot import path string: (\w+)")
_NOT_A_CLASS = re.compile(
    r"Type Callable\[.*\] expects a function or a callable class: (.*?)\.+ Got value: (.*)"
)


class _Exit(SystemExit):
    """Raised by a parser after it has shown an error or its help."""


class Parser(ArgumentParser):
    """A parser that writes options with hyphens and reports an error in one sentence.

    Attributes:
        positional: Parameters given by position, not as options.
        class_names: Classes that may be chosen by name alone.
    """

    positional: Sequence[str] = ()
    class_names: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong with the arguments and end with exit code 2.

        Raises:
            ArgumentError: Instead, if this parser reads the arguments of a class for another parser.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        problem = re.sub(
            r'Parser key "([\w.]+)"(?=:)|(?<=arguments are required: )(.*)',
            lambda found: ", ".join(map(self._spelled, (found[1] or found[2]).split(", "))),
            " ".join(message.split()),
        )
        problem = re.sub(r"Expected a (?:typing\.)?Literal\[(.*?)\]", r"expected one of \1", problem)
        problem = problem.replace("'functools.partial' object has no attribute '__name__'", "it is a partial")
        problem = _NESTED.sub(r"\1=\2", _UNION.sub(_union_error, _readable(problem)))
        names = ", ".join(self.class_names)
        problem = _NOT_A_NAME.sub(rf"expected one of {names}, or the import path of a class, got \1", problem)
        problem = _OF_A_CLASS.sub(lambda found: f"{found[1]}.{found[2]}: {found[3] or _NO_ARGUMENT}", problem)
        problem = _NOT_A_CLASS.sub(r"expected the import path of a class, got \2 (\1)", problem)
        problem = on_one_line(without_secrets(problem))
        self.exit(2, f"{self.prog}: error: {problem}; see `{self.prog} --help`\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:  # noqa: D102
        self._print_message(message or "", sys.stderr)
        raise _Exit(status)

    def format_help(self, *arguments: Any) -> str:  # noqa: D102
        return _readable(super().format_help(*arguments))

    def format_usage(self) -> str:  # noqa: D102
        return _readable(super().format_usage())

    def _spelled(self, parameter: str) -> str:
        return parameter if parameter in self.positional else f"--{parameter}"


def run_command(
    function: Callable[..., Any] | str,
    program: str,
    arguments: Sequence[str] | None = None,
    positional: Sequence[str] = (),
    python_only: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """Return a function's result, called with arguments from the command line, and those arguments.

    Args:
        function: The function, or its import path.
        program: How the user starts it: `drfuse train`.
        arguments: The words after the program's name; by default those in `sys.argv`.
        positional: Parameters given by position, not as options.
        python_only: Parameters that the command line does not offer.

    Raises:
        SystemExit: With exit code 2 after invalid input, 130 or 143 after an interruption; stderr says why.
    """
    given, debug = split_debug(list(sys.argv[1:] if arguments is None else arguments))
    with explained_failures(program, ERRORS, debug):
        if isinstance(function, str):  # imported here, so that an interruption is caught as well
            module, _, name = function.rpartition(".")
            with ERRORS.status(f"{program}: loading"):
                function = cast(Callable[..., Any], getattr(import_module(module), name))
        log_to(ERRORS)
        parameters = _as_parameters(given, function)
        classes = _Signature.of(function).classes
        named = _named_classes(parameters, classes) if classes else []

        def parse(with_classes: bool) -> dict[str, Any]:
            parser = _parser(function, program, positional, python_only, with_classes)
            return dict(parser.instantiate(parser.parse_args(parameters)).items())

        def load(name: str) -> Any:
            with ERRORS.status(f"{program}: loading"):
                return _import_classes(parse, classes, named)[name]

        shown = re.compile(rf"--(print|({'|'.join(classes)})\.help)")  # what shows the options of a class
        if classes and any(map(shown.match, parameters)):
            _import_classes(parse, classes, named)
        called_with = _call_arguments(parse(with_classes=False), function)
        called_with |= {name: LazyClass(partial(load, name)) for name in classes}
        with private():
            return function(**called_with), called_with


def _import_classes(
    parse: Callable[[bool], dict[str, Any]], classes: Mapping[str, ClassOf], named: Sequence[str]
) -> dict[str, Any]:
    """Return the options with their classes imported; modules of the named ones may be in the current folder.

    Raises:
        InputError: If a module of a class cannot be imported.
    """
    for one in classes.values():  # before the current folder is searched
        import_module(one.package)
    try:
        with importable_here(named):
            return parse(True)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, or end the program
        if isinstance(error, OSError | InputError) or not failed_to_import(error):
            raise
        raise InputError(f"an import failed ({describe_error(error)})") from error


def _named_classes(parameters: Sequence[str], options: Iterable[str]) -> list[str]:
    """Return the import paths that were typed for options that take a class.

    >>> _named_classes(["--model=mine.A", "--model.dim=3", "cohort.v2", "--model", "mine.B"], ["model"])
    ['mine.A', 'mine.B']
    """
    option = re.compile(rf"--({'|'.join(options)})(\.class_path|\.help)?(=(?P<value>.*))?", re.DOTALL)
    typed = [
        following if found["value"] is None else found["value"]
        for word, following in zip_longest(parameters, parameters[1:], fillvalue="")
        if (found := option.fullmatch(word))
    ]
    return [path for value in typed for path in re.findall(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+", value)]


def _check_classes(file: Path, options: dict[str, Any], named: Sequence[str]) -> None:
    """Check that a file of options names no class but those of drfuse, PyTorch and the command line.

    The file may be of a run that came from someone else.

    Raises:
        InputError: If it does.
    """
    left, seen = list[Any]([options]), set[int]()
    while left:
        one = left.pop()
        if not isinstance(one, dict | list) or id(one) in seen:  # YAML can repeat a value, even inside itself
            continue
        seen.add(id(one))
        left += one.values() if isinstance(one, dict) else one
        for key, path in one.items() if isinstance(one, dict) else ():
            is_class = key in ("class_path", *_CLASS_OPTIONS) and isinstance(path, str) and "." in path
            if is_class and not path.startswith(_TRUSTED) and path not in named:
                option = key if key in _CLASS_OPTIONS else "model"
                raise InputError(
                    f"{file} names the class {path}, whose code would be run; if you trust it, add "
                    f"--{option} {path}"
                )


def _forget_other_class(_parser: Any, earlier: Any, value: Any) -> None:
    """Drop the values of a class that another one replaces; jsonargparse would keep those that both have."""
    if earlier and "class_path" in earlier and earlier["class_path"] != value["class_path"]:
        earlier["init_args"] = cast(Any, Namespace)()


_typehints.discard_init_args_on_class_path_change = _forget_other_class


def _parser(
    function: Callable[..., Any],
    program: str,
    positional: Sequence[str],
    python_only: Sequence[str],
    with_classes: bool,
) -> Parser:
    """Return a function's parser; without classes, it takes any value for their options, and is fast."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    described = parse_from_object(function)
    description = f"{described.short_description}\n\n{described.long_description or ''}".strip()
    helps = {parameter.arg_name: parameter.description for parameter in described.params}
    parser = Parser(prog=program, description=description)
    parser.positional = positional
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options.")
    parser.add_argument(
        DEBUG, action="store_true", default=SUPPRESS, help="If something fails, show where it was raised."
    )
    signature = _Signature.of(function)
    parameters = inspect.signature(function).parameters
    for name in positional:
        shown: dict[str, Any] = {} if get_origin(signature.own[name]) is Literal else {"metavar": name}
        if parameters[name].default is None:
            shown |= {"nargs": "?", "default": None}
        parser.add_argument(name, type=signature.own[name], help=helps[name], **shown)
    for name, one in signature.classes.items():
        kind, default = signature.own[name], parameters[name].default
        if with_classes:
            base = getattr(import_module(one.package), one.base)
            kind, default = Callable[[*one.given], base], import_class(default, base)
        parser.class_names = one.names()
        known = f"{helps[name]} {', '.join(parser.class_names)}."
        parser.add_argument(f"--{name}", type=kind, default=default, help=known)
    others = parameters.keys() - signature.own.keys()
    skipped: set[str | int] = {*positional, *python_only, *others, *signature.classes}
    parser.add_function_arguments(function, as_positional=False, skip=skipped)
    if signature.options is not None:
        parser.add_class_arguments(signature.options, None, skip=set(signature.hidden))
    return parser


@dataclass(frozen=True)
class _Signature:
    """The options of a command: its function's parameters and the fields of a dataclass of options.

    The dataclass is the annotation of one parameter. Where a field and a parameter share a name, the
    parameter wins.

    Attributes:
        own: Annotations of the parameters by name, without the dataclass's and `**changes`.
        classes: Those of them that take a class.
        group: Name of the parameter that takes the dataclass, if there is one.
        options: The dataclass.
        hidden: Its fields that this command does not offer.
    """

    own: dict[str, Any]
    classes: dict[str, ClassOf]
    group: str | None = None
    options: Any = None
    hidden: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_Signature":
        """Return the signature of a function."""
        own: dict[str, Any] = {}
        classes: dict[str, ClassOf] = {}
        group, options, decided = None, None, ()
        for name, parameter in inspect.signature(function).parameters.items():
            kind = parameter.annotation
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            annotated = get_origin(kind) is Annotated
            if is_dataclass(bare := get_args(kind)[0] if annotated else kind):
                group, options = name, bare
                decided = get_args(kind)[1].names if annotated else ()
            elif annotated and isinstance(get_args(kind)[1], ClassOf):
                own[name], classes[name] = _UNREAD_CLASS, get_args(kind)[1]
            else:
                own[name] = kind
        return cls(own, classes, group, options, frozenset((*own, *decided)))

    @property
    def kinds(self) -> dict[str, Any]:
        """The type of each option by name."""
        if self.options is None:
            return self.own
        flat = {one.name: one.type for one in fields(self.options) if one.name not in self.hidden}
        return flat | self.own


def _call_arguments(arguments: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Return the function's arguments: fields of its dataclass are put back into one."""
    arguments.pop("config", None)
    signature = _Signature.of(function)
    if signature.group is not None:
        flat = signature.kinds.keys() - signature.own.keys()
        arguments[signature.group] = signature.options(**{key: arguments.pop(key) for key in sorted(flat)})
    return arguments


def _as_parameters(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Return the arguments in jsonargparse's syntax.

    Hyphens in an option's name become underscores, a bare flag becomes `=true`, and the words after an option
    that takes several values, up to the next option, become a list; after `=` that is a single value.
    Files of options go first, because the last value of an option wins and typed ones go before a file's.
    """
    kinds = _Signature.of(function).kinds
    files: list[str] = []
    named: list[str] = []
    left = list(arguments)
    classes = _named_classes(left, _CLASS_OPTIONS)
    while left:
        argument = left.pop(0)
        option, equals, value = argument.partition("=")
        if re.fullmatch("--conf?i?g?", option) and (equals or left):
            files.append(value if equals else left.pop(0))
            _check_classes(Path(files[-1]), read_yaml(Path(files[-1])), classes)
            continue
        if not _OPTION.fullmatch(option):
            named.append(argument)
            continue
        first, dot, key = option[2:].partition(".")
        first = first.replace("-", "_")
        name = f"{first}{dot}{key if _has_free_keys(kinds.get(first)) else key.replace('-', '_')}"
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
    return [*(f"--config={file}" for file in files), *named]


def _has_free_keys(kind: Any) -> bool:
    """Return whether an option's keys are free text, such as names of systems, and not parameters.

    >>> _has_free_keys(dict[str, dict[str, float]] | None), _has_free_keys(dict[str, Any] | None)
    (True, False)
    """
    mappings = [get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is dict]
    return any(get_origin(of_name) is dict for _, of_name in mappings)


def _union_error(union: re.Match[str]) -> str:
    """Return one sentence for a value that fits none of several types; None is not offered as a choice."""
    kinds = [re.sub(r"^[Ee]xpected an? ", "a value of type ", kind) for kind in union[1].split(" - ")]
    expected = [
        kind.removeprefix("expected ").split(". Got value: ")[0]
        for kind in kinds
        if not kind.endswith(" NoneType")
    ]
    return f"expected {' or '.join(expected)}. Got value: "


def _readable(text: str) -> str:
    """Return jsonargparse's text with hyphens in options and without the modules of types."""
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>|\btyping\.|collections\.abc\.", r"\1", text)
    return _OPTION.sub(lambda option: option.group().replace("_", "-"), text)
