"""`drfuse tune`. The work is in `search`, which is imported only when it is needed."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from drfuse.arguments import check_arguments
from drfuse.cohort.manifest import Manifest
from drfuse.errors import InputError, check_choice
from drfuse.training.options import DEFAULTS, TrainOptions, Without, refuse_decided

if TYPE_CHECKING:
    import polars as pl

Sampler = Literal["grid", "tpe"]

DECIDED = ("init_ehr", "init_cxr", "devices", "nodes")
"""Options of a training that a search sets itself for each run."""

_NAMES = ("alignment_weight", "orthogonality_weight", "auxiliary_weight", "lr")


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        folder: Folder of the search.
        trials: One row per trial, the best first: its hyper-parameters, `val_prauc_macro` (the last one of a
            pruned trial), `state` and `run`.
        best: File with the options of the best run, for `drfuse train --config`.
    """

    folder: Path
    trials: "pl.DataFrame"
    best: Path


@check_arguments
def tune(
    cohort: Path,
    out: Path,
    sampler: Sampler = "grid",
    trials: int = 50,
    storage: str | None = None,
    alignment_weight: Sequence[float] = (0.0, 0.1, 1.0),
    orthogonality_weight: Sequence[float] = (0.0, 0.1, 1.0),
    auxiliary_weight: Sequence[float] = (0.0, 0.5, 1.0),
    lr: Sequence[float] = (1e-4, 1e-3),
    model_args: dict[str, Any] | None = None,
    workers: int = 1,
    ray: bool | str = False,
    options: Annotated[TrainOptions, Without(*DECIDED)] = DEFAULTS,
    **changes: Any,
) -> Tuned:
    """Search for DrFuse's loss weights and learning rate; the best is chosen by validation macro PRAUC.

    The defaults are the paper's grid of 54 runs. An interrupted search resumes when it is started again, and
    machines that share `out` can work on the same search.

    Args:
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder for the runs, `trials.csv` and `best.yaml`, which `drfuse train --config` reads.
        sampler: Train every point of the `grid`, or let `tpe` propose points within its bounds and stop
            trainings with little promise.
        trials: With `tpe`, how many trainings to finish or stop, including those of earlier commands.
        storage: With `tpe`, URL of the database that holds the study; by default a file in `out`.
        alignment_weight: Values of lambda_1.
        orthogonality_weight: Values of lambda_2.
        auxiliary_weight: Values of lambda_3.
        lr: Learning rates.
        model_args: Other arguments of the model.
        workers: Runs at a time, each in its own process.
        ray: Run on a Ray cluster: its address, or true for a new one on this machine. A grid then uses the
            whole cluster; `tpe` trains `workers` runs at a time.
        options: How each run is trained; `seed` is also the sampler's.
        changes: Options by name, in place of those in `options`.

    Raises:
        InputError: If the cohort or an option cannot be used, or runs failed.
    """
    options = options.changed(**changes)
    refuse_decided(options, DECIDED, "tune")
    check_choice("sampler", sampler, get_args(Sampler))
    grid = dict(zip(_NAMES, (alignment_weight, orthogonality_weight, auxiliary_weight, lr), strict=True))
    for name, values in grid.items():
        if not values or not all(0 <= one < math.inf and (one or name != "lr") for one in values):
            least = "above 0" if name == "lr" else "of at least 0"
            raise InputError(f"--{name.replace('_', '-')} is {list(values)}; expected finite numbers {least}")
    if trials < 1 or workers < 1:
        raise InputError(f"trials is {trials}, workers is {workers}; expected at least 1 of each")
    if storage is not None and sampler == "grid":
        raise InputError("--storage is only for --sampler tpe; leave it out, or add --sampler tpe")
    if storage is not None and "://" not in storage and re.search("[:@=]", storage):
        raise InputError(  # as the name of a file, it would show its password
            "--storage is neither the URL of a database, such as postgresql://user:password@host/name, nor "
            "the name of a file, which has no colon, @ or ="
        )
    if clash := sorted((model_args or {}).keys() & grid.keys()):
        raise InputError(f"{clash[0]} is searched for; give its values as --{clash[0].replace('_', '-')}")
    Manifest.read(cohort)  # a wrong folder is refused before PyTorch is imported, which takes seconds
    from drfuse.training.search import run_search

    return run_search(cohort, out, grid, sampler, trials, storage, model_args or {}, workers, ray, options)
