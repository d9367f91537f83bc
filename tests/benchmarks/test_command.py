"""The command line of benchmarks: the options and errors of `drfuse`, and what is printed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.command import command
from benchmarks.results import Report
from drfuse.errors import InputError


def measure(first_sizes: Sequence[int], out: Path | None = None, quick_one: bool = False) -> str:
    """Measure nothing.

    Args:
        first_sizes: How large.
        out: Where to.
        quick_one: How fast.
    """
    if 0 in first_sizes:
        raise InputError("a size is 0; expected numbers above 0")
    return f"{list(first_sizes)} {out} {quick_one}"


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["--first-sizes", "1", "2", "--quick-one"], "[1, 2] None True"),
        (["--first_sizes", "[1, 2]", "--quick_one", "true"], "[1, 2] None True"),
        (["--first-sizes=3", "--out", "a"], "[3] a False"),
    ],
)
def test_options_have_hyphens_or_underscores(
    given: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command(measure, given)
    assert capsys.readouterr().out == f"{printed}\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the following arguments are required: --first-sizes"),
        (["--first-sizes", "large"], "--first-sizes: Expected a int. Got value: large"),
        (["--first-sizes", "1", "--quickly"], "unrecognized arguments: --quickly"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(measure, given)
    assert stop.value.code == 2
    program = "python -m benchmarks.test_command"
    assert capsys.readouterr().err == f"{program}: error: {said}; see `{program} --help`\n"


def test_wrong_input_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(measure, ["--first-sizes", "0"])
    assert stop.value.code == 2
    said = "python -m benchmarks.test_command: error: a size is 0; expected numbers above 0\n"
    assert capsys.readouterr().err == said


def test_a_report_is_printed_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    def report() -> Report:
        """Report nothing."""
        return Report("Nothing", "By looking.")

    command(report, [])
    assert capsys.readouterr().out == "## Nothing\n\nBy looking.\n"
