"""What an experiment of `drfuse reproduce` says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from drfuse.report.tables import Table
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System
from drfuse.subsets import Subset


@dataclass(frozen=True)
class Findings:
    """What an experiment shows.

    Attributes:
        tables: In their order.
        figures: Each with its caption in front, shown below the tables.
    """

    tables: Sequence[Table]
    figures: Sequence[tuple[str, Figure]] = ()


def is_not_a_variant(system: System) -> bool:
    """Return whether a system is one by itself, not DrFuse with one part changed."""
    return not system.is_variant


@dataclass(frozen=True)
class Experiment:
    """A part of `drfuse reproduce`: the constant `EXPERIMENT` of a file in `experiments/`, which names it.

    Attributes:
        title: Of its section in the report.
        look_for: A sentence on what to look for.
        place: Its place in the report, among those of the other experiments.
        measure: Makes its tables and figures of the finished runs.
        trained_on: The training sets of its runs. Without one it needs no run.
        takes_part: Whether it needs the runs of a system.
        too_wide: The keys of its tables that do not fit a terminal.
        headline: Whether the terminal shows its tables also when all experiments are asked for.
    """

    title: str
    look_for: str
    place: int
    measure: Callable[[Results], Findings]
    trained_on: Sequence[Subset] = ()
    takes_part: Callable[[System], bool] = is_not_a_variant
    too_wide: Sequence[str] = ()
    headline: bool = False

    def can_be_measured(self, results: Results) -> bool:
        """Return whether it has a finished run, or needs none."""
        return not self.trained_on or any(
            self.takes_part(system) and results.of(system, train_on)
            for system in results.systems
            for train_on in self.trained_on
        )
