"""Raw hospital tables and images in, a cohort on disk out.

In: MIMIC-IV as released or in a database, and MIMIC-CXR-JPG as released. Out: a folder with `manifest.json`,
`stays.parquet`, `ehr.npy`, `cxr.npy`, `normalization.json` and `inputs.parquet` (see `docs/formats.md`).
Queries are Ibis expressions. The database runs them; on files, DuckDB does.
"""

from typing import TYPE_CHECKING, Any

from drfuse.cohort.manifest import CohortSummary, FlowStep, Manifest, Variable

if TYPE_CHECKING:
    from drfuse.cohort.preparation import prepare
    from drfuse.cohort.variables import load_variables

__all__ = ["CohortSummary", "FlowStep", "Manifest", "Variable", "load_variables", "prepare"]


def __getattr__(name: str) -> Any:
    """Import what needs Ibis and DuckDB when it is asked for; a manifest is read without them."""
    if name == "prepare":
        from drfuse.cohort.preparation import prepare

        return prepare
    if name == "load_variables":
        from drfuse.cohort.variables import load_variables

        return load_variables
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
