"""What the pages show: a cohort, and what runs predict of its stays."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drfuse.data.cohort import Cohort
from drfuse.data.opened import OpenedFiles
from drfuse.errors import InputError
from drfuse.run import Run

Floats = NDArray[np.float32]


class Opened:
    """A cohort of N stays and its runs.

    Attributes:
        cohort: The cohort.
        runs: The finished runs by name, the default first; none if only the cohort was given.
        reproduction: The folder of the runs' report, tables and figures, if they come from one.
    """

    def __init__(self, cohort: Cohort, runs: Mapping[str, Run], reproduction: Path | None = None) -> None:
        self.cohort, self.runs, self.reproduction = cohort, runs, reproduction
        self._files: dict[str, OpenedFiles] = {}
        self._read = lru_cache(maxsize=4)(self._read_run)

    def predicted(self, name: str) -> "Predicted":
        """Return what a run predicts, by default the first; the last few that were asked for are kept.

        Without any run, it holds the truth alone.

        Raises:
            InputError: If there is no such run, or it is damaged, or was trained on another cohort.
        """
        name = name or next(iter(self.runs), "")
        if name and name not in self.runs:
            raise InputError(f"there is no run {name!r}; choose one of {', '.join(self.runs) or 'none'}")
        return self._read(name)

    def answered_from_what_was_opened(self, answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that refuses an answer that may mix what was opened with what took its place.

        Its InputError, also in place of whatever the function raised of it, says what was replaced.
        """

        def answered(request: Any) -> Any:
            try:
                return answer(request)
            finally:
                self._check_unchanged()

        return answered

    def _check_unchanged(self) -> None:
        if self.cohort.changed_file() is not None:
            raise InputError(
                f"{self.cohort.folder} was replaced while it was shown; start `drfuse explore` again"
            )
        for name, files in list(self._files.items()):
            if files.first_changed() is not None:
                raise InputError(
                    f"the run {name} was replaced while it was shown; start `drfuse explore` again"
                )

    def _read_run(self, name: str) -> "Predicted":
        run = self.runs.get(name)
        if run is None:
            return _read(name, run, self.cohort)
        files = OpenedFiles.of(
            run.folder, [one.relative_to(run.folder).as_posix() for one in (run.model, run.predictions)]
        )
        found = _read(name, run, self.cohort)
        self._files[name] = files
        return found


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a run predicts of a cohort's N stays: C labels; NaN for stays that it does not predict.

    Attributes:
        name: The run's name; empty if there is none.
        labels: The C names.
        truth: Float32 (N, C), 0 or 1.
        probabilities: Float32 (N, C) by what the model is given, of `both`, `ehr` (the radiograph is taken
            away) and `cxr` (the record is); recalibrated if the run has learned how. Empty without a run.
        weights: Float32 (N, C, 3) over EHR-distinct, shared and CXR-distinct, if the model has them.
        recalibration: The method of the recalibration.
    """

    name: str
    labels: list[str]
    truth: Floats
    probabilities: dict[str, Floats]
    weights: Floats | None
    recalibration: str


def _read(name: str, run: Run | None, cohort: Cohort) -> Predicted:
    if run is None:
        return Predicted("", cohort.phenotypes, cohort.labels, {}, None, "none")
    from drfuse.evaluation import Recalibration
    from drfuse.inference.table import probabilities

    if run.read_facts().cohort != cohort.fingerprint:
        raise InputError(
            f"{cohort.folder} is not the cohort that {run.folder} was trained on; choose that one"
        )
    found = run.read_predictions()
    rows = np.searchsorted(cohort.stay_id, found.stays["stay_id"].to_numpy())
    recalibration = Recalibration.read(run.folder, found.phenotypes)

    def of_all(values: NDArray[np.generic]) -> Floats:
        spread = np.full((len(cohort), *values.shape[1:]), np.nan, np.float32)
        spread[rows] = values
        return spread

    logits = {
        "both": found.logits,
        "ehr": found.logits_without_cxr,
        "cxr": found.logits_without_ehr,
    }
    return Predicted(
        name,
        found.phenotypes,
        of_all(found.labels),
        {
            given: of_all(probabilities(one, recalibration))
            for given, one in logits.items()
            if one is not None
        },
        None if found.modality_weights is None else of_all(found.modality_weights),
        "none" if recalibration is None else recalibration.method,
    )


def open_folder(what: Path, cohort: Path | None = None) -> Opened:
    """Return what a folder holds: a cohort, a run, or runs of a reproduction or a demo.

    Raises:
        InputError: If it holds none of these, its cohort is not known, or the two do not fit together.
    """
    if (what / "manifest.json").is_file():
        if cohort is not None:
            raise InputError(f"{what} is a cohort itself; leave {cohort} out")
        return Opened(Cohort.open(what), {})
    if Run(what).is_finished:
        runs, reproduction = {what.resolve().name: Run(what)}, None
    else:
        folders = sorted((what / "runs").iterdir()) if (what / "runs").is_dir() else []
        folders = [one for one in folders if not one.is_symlink() and Run(one).is_finished]
        runs = {one.name: Run(one) for one in sorted(folders, key=_has_no_modality_weights)}
        reproduction = what
    if not runs:
        raise InputError(f"{what} is not a cohort, a finished run, or a folder of `reproduce` or `demo`")
    if cohort is None:
        cohort = what / "cohort"
        if not (cohort / "manifest.json").is_file():
            raise InputError(
                f"{what} lacks the cohort of its runs; choose it as well: `drfuse explore {what} COHORT`"
            )
    opened = Opened(Cohort.open(cohort), runs, reproduction)
    opened.predicted(next(iter(runs)))  # what does not fit together is refused now, not in the browser
    return opened


def _has_no_modality_weights(run: Path) -> bool:
    """Return whether a run comes after those that have most to show; so does a damaged one."""
    with suppress(OSError, pa.ArrowException):
        return "modality_weights" not in pq.read_schema(Run(run).predictions).names
    return True
