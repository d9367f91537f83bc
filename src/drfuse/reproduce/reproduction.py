"""`drfuse reproduce`. The work is in `train_and_report`, which is imported only when it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from drfuse.arguments import check_arguments
from drfuse.choices import check_n_resamples
from drfuse.cohort.manifest import Manifest
from drfuse.errors import InputError
from drfuse.reproduce.names import ExperimentName
from drfuse.training.options import DEFAULTS, TrainOptions, Without, refuse_decided

if TYPE_CHECKING:
    from drfuse.report.tables import Table

DECIDED = ("train_on", "seed", "init_ehr", "init_cxr", "devices", "nodes")
"""Training options that an experiment sets itself, for each run."""


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` wrote.

    Attributes:
        folder: The output folder.
        report: The page with all tables and figures.
        tables: The tables, in the order of the page.
        shown: The tables that the command shows in the terminal.
    """

    folder: Path
    report: Path
    tables: list["Table"]
    shown: list["Table"]


@check_arguments
def reproduce(
    what: ExperimentName,
    cohort: Path,
    out: Path,
    seeds: Sequence[int] = (0,),
    models: Sequence[str] | None = None,
    model_args: dict[str, Any] | None = None,
    lr: float | None = None,
    n_resamples: int = 1000,
    workers: int = 1,
    ray: bool | str = False,
    settings: dict[str, dict[str, float]] | None = None,
    also_test_on: Path | None = None,
    other_people: bool = False,
    options: Annotated[TrainOptions, Without(*DECIDED)] = DEFAULTS,
    **changes: Any,
) -> Reproduced:
    """Repeat the paper's experiments on a cohort, with the paper's numbers beside the measured ones.

    Each run is trained once, however many experiments need it. Finished runs are kept, interrupted ones
    resume, and two commands may share a folder. Then it writes the tables (Markdown, LaTeX, CSV), the figures
    (SVG, PNG) and one page with all of them, `report.html`.

    Args:
        what: An experiment, or `all`: the paper's tables and its figure; `missing`, what is lost as
            radiographs go missing; `calibration`; `decisions`, their net benefit; `subgroups` by age, sex,
            race, admission and radiograph; `external`, another cohort.
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder for the runs, the tables, the figures and the report.
        seeds: Seeds; every system is trained once with each.
        models: Systems by name, or your own as YAML files; by default, all systems of the paper.
        model_args: Arguments for every model that takes them, such as dim or cxr_backbone.
        lr: Learning rate of all systems; by default, each system's published one.
        n_resamples: Half samples of the subjects behind each interval and test.
        workers: Runs at a time, each in its own process.
        ray: Spread the runs over a Ray cluster: its address, or true for a new one on this machine. The
            cluster then decides how many run at a time.
        settings: By system name, its own `lr` and `weight_decay`, such as those that `benchmarks/search.py`
            found; they override the options of all runs. A variant of DrFuse without its own uses DrFuse's.
        also_test_on: Another cohort: every run is also measured on all of its stays (docs/external.md).
        other_people: A subject of that cohort and one of `cohort` with the same id are different people.
        options: How each run is trained.
        changes: Options by name that override those in `options`.

    Returns:
        The tables, and where the report is.

    Raises:
        InputError: If the cohort or an option cannot be used, or if runs failed; the report has the others.
    """
    check_n_resamples(n_resamples)
    if not seeds:
        raise InputError("seeds is empty; expected at least one seed")
    if workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    options = options.changed(**changes)
    refuse_decided(options, DECIDED, "reproduce")
    Manifest.read(cohort)  # a wrong folder is refused before PyTorch is imported, which takes seconds
    from drfuse.reproduce.train_and_report import train_and_report

    return train_and_report(
        what,
        cohort,
        out,
        list(dict.fromkeys(seeds)),
        models,
        model_args or {},
        lr,
        n_resamples,
        workers,
        ray,
        settings,
        also_test_on,
        other_people,
        options,
    )
