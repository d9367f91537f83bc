"""The files of the folder are the experiments: of the command, of its help and of the documentation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import drfuse
from drfuse.cli import main
from drfuse.report.page import Section
from drfuse.report.tables import Table
from drfuse.reproduce import experiments
from drfuse.reproduce.experiments import (
    EXPERIMENTS,
    experiments_of,
    find_experiments,
    sections_of,
    tables_for_terminal,
)
from drfuse.reproduce.experiments.table2 import table2
from drfuse.reproduce.experiments.table3 import table3
from drfuse.reproduce.experiments.table4 import table4
from drfuse.reproduce.names import ExperimentName
from drfuse.reproduce.results import Setting
from tests.reproduce.samples import (
    DIED,
    HAS_CXR,
    MAIN,
    STAYED,
    TEST,
    VARIANTS,
    column_of,
    macro,
    make_results,
    number,
    predict,
    published,
)

PACKAGE = Path(experiments.__file__).parent
NEW = """
from drfuse.report.figures import settled, styled
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from matplotlib.figure import Figure


@styled()
def draw(counts):
    figure = Figure()
    figure.add_subplot().bar(range(len(counts)), counts)
    return settled(figure)


def measure(results):
    counts = results.task.labels[results.task.rows("test", "full")].sum(axis=0)
    rows = [Row(name, [Number(float(n), digits=0)]) for name, n in zip(results.task.label_names, counts)]
    table = Table("positives", "Positives of each label", "In the test split.", ["label", "stays"], rows)
    return Findings([table], [("Positives", draw(counts))])


EXPERIMENT = Experiment("Positives", "How rare the labels are.", place=15, measure=measure)
"""


def in_terminal(what: str) -> list[str]:
    """Return the keys of the tables that the command shows of finished runs."""
    named = {
        "table1": ["table1"],
        "table2": ["table2", "table2-tests"],
        "table3": ["table3", "table3-tests"],
        "table4": ["table4", "table4-tests"],
        "calibration": ["calibration"],
        "subgroups": ["subgroups-drfuse", "subgroups-mmtm"],
    }
    chosen = experiments_of(what)
    sections = [
        Section(name, "", "", [Table(key, "", "", ["system"], []) for key in keys])
        for name, keys in [*named.items(), ("settings", ["settings", "systems"])]
        if name in chosen or name == "settings"
    ]
    return [table.key for table in tables_for_terminal(what, sections)]


def test_every_file_is_an_experiment_in_the_order_of_the_report() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(EXPERIMENTS) == files
    assert list(EXPERIMENTS)[:4] == ["table1", "table2", "table3", "table4"]
    places = [experiment.place for experiment in EXPERIMENTS.values()]
    assert places == sorted(set(places))


def test_all_stands_for_every_other_experiment() -> None:
    assert get_args(ExperimentName) == (*sorted(EXPERIMENTS), "all")
    assert list(experiments_of("all")) == list(EXPERIMENTS)
    assert list(experiments_of("table3")) == ["table3"]


def test_the_help_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    choices = ",".join(f"'{name}'" for name in (*sorted(EXPERIMENTS), "all"))
    assert f"Literal[{choices}]" in re.sub(r"\s", "", capsys.readouterr().out)


def test_the_documentation_names_every_experiment() -> None:
    page = (Path(__file__).parents[3] / "docs/table2.md").read_text(encoding="utf-8")
    sentence = re.search(r"\n\n((?:`\w+`(?:, | and |,?\s))+)each do one of them", page)
    assert sentence is not None
    assert re.findall(r"`(\w+)`", sentence[1]) == list(EXPERIMENTS)


def test_a_file_that_is_added_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "positives.py").write_text(NEW, encoding="utf-8")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    module = f"{experiments.__name__}.positives"
    monkeypatch.setattr(experiments, "positives", None, raising=False)  # so that what its import leaves
    monkeypatch.setitem(sys.modules, module, experiments)  # behind is removed after the test
    del sys.modules[module]
    monkeypatch.setattr(experiments, "EXPERIMENTS", find_experiments())
    assert list(experiments.EXPERIMENTS)[:3] == ["table1", "positives", "table2"]
    (section,) = sections_of("positives", make_results(["transformer"]))
    assert (section.key, section.title) == ("positives", "Positives")
    assert section.text == "How rare the labels are."
    assert [table.key for table in section.tables] == ["positives"]
    assert [row.header for row in section.tables[0].rows] == make_results(["transformer"]).task.label_names
    assert [caption for caption, _ in section.figures] == ["Positives"]


@pytest.mark.slow
def test_the_command_offers_a_file_that_is_added_and_writes_what_it_makes(
    small_cohort: Path, tmp_path: Path
) -> None:
    package = tmp_path / "src" / "drfuse"
    shutil.copytree(
        Path(drfuse.__file__).parent, package, copy_function=os.symlink, ignore=lambda *_: ["__pycache__"]
    )
    (package / "reproduce" / "experiments" / "positives.py").write_text(NEW, encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "drfuse", "reproduce", "positives", str(small_cohort), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    shown = subprocess.run(
        [*command, "--crop-size", "32"], capture_output=True, text=True, check=False, env=environment
    )
    assert shown.returncode == 0, shown.stderr
    assert "Positives of each label" in shown.stdout
    assert {path.name for path in (out / "tables").glob("*.csv")} == {"positives.csv", "settings.csv"}
    assert {path.name for path in (out / "figures").iterdir()} == {"positives.svg", "positives.png"}
    assert "How rare the labels are." in (out / "report-positives.html").read_text(encoding="utf-8")


def test_all_shows_the_headlines_alone() -> None:
    assert in_terminal("all") == ["table1", "table2", "table4"]


@pytest.mark.parametrize(
    ("what", "keys"),
    [
        ("table2", ["table2"]),
        ("table3", ["table3"]),
        ("calibration", ["calibration"]),
        ("subgroups", ["subgroups-drfuse", "subgroups-mmtm"]),
    ],
)
def test_what_was_asked_for_is_shown_unless_it_is_too_wide(what: str, keys: list[str]) -> None:
    assert in_terminal(what) == keys


def test_an_experiment_without_a_finished_run_has_no_section() -> None:
    results = make_results(["mmtm"], seeds=1)
    assert not EXPERIMENTS["table4"].can_be_measured(results)
    assert EXPERIMENTS["calibration"].can_be_measured(results)
    assert EXPERIMENTS["table1"].can_be_measured(results)
    assert sections_of("figure3", results) == []


def test_other_tasks_have_no_numbers_of_the_paper() -> None:
    results = make_results([*MAIN, *VARIANTS], task="mortality")
    for table in (table2(results), table3(results), table4(results)):
        assert published(table.numbers) == [None] * 3 * len(table.numbers)
    assert table3(results).columns[0] == "label"
    assert table2(results).title == "Table 2: PRAUC of death in hospital in four settings"


def test_a_task_is_measured_on_the_stays_that_take_part() -> None:
    results = make_results(["transformer"], seeds=1, task="mortality")
    scores = predict("transformer", DIED[:, None].astype("f4"), "full", 0, ["death in hospital"]).logits
    rows = TEST & STAYED & HAS_CXR
    found = number(table2(results), "Transformer", column_of(Setting("full", "matched")))
    assert found.value == pytest.approx(macro(DIED[rows, None], scores[rows]))
    prevalence = number(table3(results), "death in hospital", "prevalence")
    assert prevalence.value == pytest.approx(DIED[rows].mean())
