"""What an experiment of `drfuse reproduce` defines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from drfuse.report.tables import Table
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System
from drfuse.subsets import Subset


@dataclass(frozen=True)
class Findings:
    """The tables of an experiment, then its figures as (caption, figure)."""

    tables: Sequence[Table]
    figures: Sequence[tuple[str, Figure]] = ()


def is_not_a_variant(system: System) -> bool:
    """Return whether a system is more than DrFuse with one part changed (table 4)."""
    return not system.is_variant


@dataclass(frozen=True)
class Experiment:
    """An experiment: the constant `EXPERIMENT` of a file in `experiments/`, named after the file.

    Attributes:
        title: Title of its section in the report.
        look_for: A sentence on what the reader should look for.
        place: Sort key: the report shows experiments in ascending order.
        measure: Makes the tables and figures from the finished runs.
        trained_on: The training sets of its runs; empty if it needs no run.
        takes_part: Whether the experiment uses a system.
        too_wide: Keys of the tables that do not fit a terminal.
        headline: Whether the terminal shows its tables even after `drfuse reproduce all`.
        elsewhere: Whether it measures the runs on another cohort, which the user must name.
    """

    title: str
    look_for: str
    place: int
    measure: Callable[[Results], Findings]
    trained_on: Sequence[Subset] = ()
    takes_part: Callable[[System], bool] = is_not_a_variant
    too_wide: Sequence[str] = ()
    headline: bool = False
    elsewhere: bool = False

    def can_be_measured(self, results: Results) -> bool:
        """Return whether the experiment has what it needs: a finished run and, perhaps, another cohort."""
        if self.elsewhere and results.elsewhere is None:
            return False
        return not self.trained_on or any(
            self.takes_part(system) and results.of(system, train_on)
            for system in results.systems
            for train_on in self.trained_on
        )
