"""The experiments of `drfuse reproduce`, a file each: the file's name is the experiment's.

To add one, put a file here that defines `EXPERIMENT`. The command then offers it, trains what it needs, and
writes its tables and figures.
"""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal

from drfuse.report.page import Section
from drfuse.report.tables import Table
from drfuse.reproduce.experiment import Experiment
from drfuse.reproduce.results import Results


def find_experiments() -> dict[str, Experiment]:
    """Return the experiment of each file of this package by name, in the order of the report."""
    found: dict[str, Experiment] = {
        module.name: import_module(f"{__name__}.{module.name}").EXPERIMENT
        for module in iter_modules(__path__)
    }
    return dict(sorted(found.items(), key=lambda item: item[1].place))


EXPERIMENTS = find_experiments()

if TYPE_CHECKING:
    ExperimentName = str
else:
    ExperimentName = Literal[(*EXPERIMENTS, "all")]
    """What `drfuse reproduce` can be asked for."""


def experiments_of(what: ExperimentName) -> dict[str, Experiment]:
    """Return the experiments that a name stands for."""
    return EXPERIMENTS if what == "all" else {what: EXPERIMENTS[what]}


def sections_of(what: ExperimentName, results: Results) -> list[Section]:
    """Return the sections of the report; an experiment without a finished run has none."""
    sections = []
    for name, experiment in experiments_of(what).items():
        if experiment.can_be_measured(results):
            found = experiment.measure(results)
            text = experiment.look_for
            sections.append(Section(name, experiment.title, text, found.tables, found.figures))
    return sections


def tables_for_terminal(what: ExperimentName, sections: Sequence[Section]) -> list[Table]:
    """Return the tables that the command shows: of all experiments, only those of the headlines."""
    chosen = experiments_of(what)
    return [
        table
        for section in sections
        if section.key in chosen and (what != "all" or chosen[section.key].headline)
        for table in section.tables
        if table.key not in chosen[section.key].too_wide
    ]
