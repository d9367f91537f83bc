"""A folder, a file or a name that came from someone else is data: none of it is run."""

import csv
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from rich.table import Table as ScreenTable

from drfuse.cli import main
from drfuse.command_line import run_command
from drfuse.errors import InputError
from drfuse.escapes import csv_of, for_spreadsheet
from drfuse.imports import import_class, import_here, importable_here, modules_from_here
from drfuse.inference.predict import _check_out
from drfuse.logs import Terminal, log_to
from drfuse.models import FusionModel
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Row, Table, to_csv, to_latex, to_markdown

CLEARS_SCREEN, REVERSES = "a\x1b[2J\x9b31m", "a\u202eb"

MODULE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
"""A module that leaves a trace where it lies."""

OWN_MODEL = "from tests.training.own_model import FirstHour\nclass Mine(FirstHour): pass\n"


@pytest.mark.parametrize("name", [CLEARS_SCREEN, REVERSES, "a\x00\x07\x08\r\x7f", "a\ud800", "a\u2028\ufeff"])
def test_a_terminal_and_a_report_show_a_name_escaped(name: str) -> None:
    screen = io.StringIO()
    terminal = Terminal(file=screen, width=200)
    shown = ScreenTable(title=name)
    shown.add_column(name)
    shown.add_row(name)
    for one in (name, shown):
        terminal.print(one, markup=False)
    with terminal.status(name):
        pass
    table = Table("key", name, name, [name, name], [Row(name, [name])])
    page = render_page(name, [(name, name)], [Section("key", name, name, [table])])
    for text in (screen.getvalue(), page, to_markdown(table), to_latex(table), to_csv(table)):
        assert "\\" in text or "textbackslash" in text
        assert not {*name} & {*text} - {"a", "b", "\r", "[", "2", "J", "3", "1", "m"}


def test_a_terminal_shows_words_between_colons_as_they_are() -> None:
    screen = io.StringIO()
    shown = ScreenTable(":heart:")
    shown.add_row(":heart:")
    for one in (":heart:", shown):
        Terminal(file=screen, width=200).print(one, markup=False)
    assert screen.getvalue().count(":heart:") == 3


@pytest.mark.parametrize("name", [CLEARS_SCREEN, "a\nb: error: c"])
def test_an_error_and_a_log_show_a_name_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate", f"/nowhere/{name}"], ["evaluate", "run", "--test-on", name]):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "\x1b[2J" not in said


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("+8.2 %", "+8.2 %"),
        ("", ""),
        ("a=b", "a=b"),
        (CLEARS_SCREEN, "a\\x1b[2J\\x9b31m"),
    ],
)
def test_no_spreadsheet_runs_a_cell(text: str, written: str) -> None:
    assert for_spreadsheet(text) == written
    table = pl.DataFrame({"name": [text, "b", None], "value": [-1.5, 2.0, None]})
    rows = list(csv.reader(io.StringIO(csv_of(table), newline="")))
    assert rows == [["name", "value"], [written, "-1.5"], ["b", "2.0"], ["", ""]]
    (_, cells) = csv.reader(
        io.StringIO(to_csv(Table("key", "", "", ["", text], [Row(text, [text])])), newline="")
    )
    assert [cells[0], cells[1], cells[-2]] == [written] * 3


@pytest.mark.parametrize(
    ("name", "content", "is_replaced"),
    [
        ("a.csv", "stay_id,phenotype,probability,low\n1,a,0.5,0.5\n", True),
        ("a.csv", "", True),
        ("a.csv", "stay_id,notes\n", False),
        ("a.csv", "\ud800", False),
        ("a.parquet", "stay_id,phenotype,probability\n", False),
    ],
)
def test_only_a_table_of_predictions_is_replaced(
    tmp_path: Path, name: str, content: str, is_replaced: bool
) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    if is_replaced:
        _check_out(tmp_path / name, overwrite=True)
        return
    with pytest.raises(InputError, match="is not a table of `drfuse predict`; choose a different --out"):
        _check_out(tmp_path / name, overwrite=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which has modules in the place of those that libraries look for."""
    monkeypatch.chdir(tmp_path)
    for name in ("coverage", "email", "csv", "tensorflow", "apex"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    return tmp_path


def test_the_current_folder_is_searched_for_the_named_class_alone(here: Path) -> None:
    (here / "mine_a.py").write_text(OWN_MODEL.replace("class", "import helps_mine_a\nclass"))
    (here / "helps_mine_a.py").touch()
    path = list(sys.path)
    assert import_class("mine_a.Mine", FusionModel).__name__ == "Mine"
    assert sys.path == path
    found = modules_from_here()
    assert found["mine_a"] == str(here)
    with importable_here(["drfuse.models.DrFuse", "DrFuse"]):
        assert sys.path == path
    del sys.modules["mine_a"]
    assert "mine_a" not in modules_from_here()
    os.chdir("/")
    import_here(found)
    assert "mine_a" in sys.modules
    assert sys.path == path
    assert not (here / "ran").exists()


def searched() -> list[str]:
    """Return the folders that modules are looked for in."""
    return list(sys.path)


def test_a_command_does_not_search_the_current_folder(here: Path) -> None:
    folders, _ = run_command(searched, "drfuse searched", [])
    assert str(here) not in folders
    assert "" not in folders


@pytest.mark.parametrize("words", [["-m", "drfuse", "evaluate", "."], ["-m", "drfuse", "--version"]])
def test_a_command_imports_nothing_from_the_current_folder(here: Path, words: list[str]) -> None:
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, *words], check=False, capture_output=True, env=environment, timeout=60)
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"model": {"class_path": "evil.Model"}},
            "names the class evil.Model, whose code .* add --model evil",
        ),
        ({"model": "evil.Model"}, "names the class evil.Model"),
        ({"optimizer": "evil.Adam"}, "names the class evil.Adam, whose code .* add --optimizer evil.Adam"),
        (
            {"model": {"class_path": "drfuse.models.DrFuse", "init_args": {"a": [{"class_path": "evil.B"}]}}},
            "evil.B",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_options_of_a_run_import_nothing(
    here: Path, command: str, options: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "evil.py").write_text(MODULE)
    (here / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(SystemExit) as ended:
        main([command, "cohort", "--out", "run", "--config", "config.yaml"])
    assert ended.value.code == 2
    answer = capsys.readouterr().err
    assert re.search(said, answer)
    assert not (here / "ran").exists()


@pytest.mark.parametrize("typed", [["--model", "mine_b.Mine"], ["--model=mine_b.Mine"]])
def test_a_class_that_is_named_on_the_command_line_is_imported(
    here: Path, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine_b.py").write_text(OWN_MODEL)
    options = {"model": {"class_path": "mine_b.Mine", "init_args": {"scale": 0.5}}}
    (here / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(SystemExit):
        main(["train", "cohort", "--out", "run", "--config", "config.yaml", *typed, "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"] == options["model"]


def test_a_log_of_another_process_is_escaped() -> None:
    screen = io.StringIO()
    before = logging.getLogger().handlers[:]
    logging.getLogger().handlers[:] = []
    try:
        log_to(Terminal(file=screen))
        logging.getLogger("drfuse.any").warning("of %s", CLEARS_SCREEN)
    finally:
        logging.getLogger().handlers[:] = before
    assert "of a\\x1b[2J\\x9b31m" in screen.getvalue()
