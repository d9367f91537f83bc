"""The experiments of `drfuse reproduce`: one file each, which gives the experiment its name.

To add one, put a file here that defines `EXPERIMENT`; the command finds it by itself.
"""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from drfuse.report.page import Section
from drfuse.report.tables import Table
from drfuse.reproduce.experiment import Experiment
from drfuse.reproduce.names import ExperimentName
from drfuse.reproduce.results import Results


def find_experiments() -> dict[str, Experiment]:
    """Return the experiments by name, in the order of the report."""
    names = [module.name for module in iter_modules(__path__)]
    found: dict[str, Experiment] = {name: import_module(f"{__name__}.{name}").EXPERIMENT for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].place))


EXPERIMENTS = find_experiments()


def experiments_of(what: ExperimentName) -> dict[str, Experiment]:
    """Return the experiments that a name stands for: itself, or every one for `all`."""
    return EXPERIMENTS if what == "all" else {what: EXPERIMENTS[what]}


def sections_of(what: ExperimentName, results: Results) -> list[Section]:
    """Return the sections of the report; an experiment without a finished run has none."""
    sections = []
    for name, one in experiments_of(what).items():
        if one.can_be_measured(results):
            found = one.measure(results)
            sections.append(Section(name, one.title, one.look_for, found.tables, found.figures))
    return sections


def tables_for_terminal(what: ExperimentName, sections: Sequence[Section]) -> list[Table]:
    """Return the tables that fit the terminal; for `all`, only those of the headline experiments."""
    chosen = experiments_of(what)
    return [
        table
        for section in sections
        if section.key in chosen and (what != "all" or chosen[section.key].headline)
        for table in section.tables
        if table.key not in chosen[section.key].too_wide
    ]
