"""Where the stays to predict come from: a cohort, a hospital's records, or files of single patients."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import polars as pl

from drfuse.cohort import prepare
from drfuse.cohort.patients import read_patients
from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.files import scratch_folder
from drfuse.run import RunFacts

logger = logging.getLogger(__name__)


@contextmanager
def open_stays(
    facts: RunFacts,
    cohort: Path | None = None,
    mimic_iv: str | Path | None = None,
    mimic_cxr: Path | None = None,
    ehr: Path | pl.DataFrame | None = None,
    cxr: Path | None = None,
    temp_dir: Path | None = None,
) -> Iterator[Cohort]:
    """Yield the stays of exactly one of `cohort`, `mimic_iv` and `ehr`, read as a run's own cohort was.

    Args:
        facts: The facts of the run.
        cohort: A cohort.
        mimic_iv: Records as `prepare` takes them; they need no diagnoses.
        mimic_cxr: The radiographs of the same hospital.
        ehr: Measurements of single patients, as `read_patients` takes them.
        cxr: Their radiographs.
        temp_dir: Where the stays of `mimic_iv` are kept meanwhile; by default the system's place.

    Raises:
        InputError: If not exactly one is given, or it cannot be read.
    """
    sources = {"COHORT": cohort, "--mimic-iv": mimic_iv, "--ehr": ehr}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"expected stays from one of COHORT, --mimic-iv and --ehr, got {' and '.join(given) or 'none'}"
        )
    if mimic_cxr is not None and mimic_iv is None:
        raise InputError("--mimic-cxr needs --mimic-iv; give both")
    if cxr is not None and ehr is None:
        raise InputError("--cxr needs --ehr; give both")
    options: dict[str, Any] = {
        name: value
        for name in ("preset", "window_hours", "before_hours", "image_size")
        if (value := getattr(facts, name)) is not None  # an earlier version did not store them all
    }
    if cohort is not None:
        yield Cohort.open(cohort)
    elif ehr is not None:
        patients = read_patients(ehr, cxr, **options)
        if patients.n_unused:
            logger.warning(
                "%d records give no value: outside of the window, of an item that the model does not read, "
                "not a number, or an outlier",
                patients.n_unused,
            )
        yield Cohort.of_patients(patients, facts.normalization, **options, view=facts.view)
    elif mimic_iv is not None:
        if facts.view is not None:
            options["view"] = facts.view
        with scratch_folder(Path(temp_dir or gettempdir()) / "drfuse") as folder:
            out = folder / "cohort"
            prepare(mimic_iv, out, mimic_cxr, **options, labels=False)
            yield Cohort.open(out)
