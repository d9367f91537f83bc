"""Raw hospital tables and images in, a cohort on disk out.

In: MIMIC-IV as released or in a database, and MIMIC-CXR-JPG as released. Out: a folder with `manifest.json`,
`stays.parquet`, `ehr.npy`, `cxr.npy`, `normalization.json` and `inputs.parquet` (see `docs/formats.md`).
Queries are Ibis expressions. The database runs them; on files, DuckDB does.
"""

from drfuse.cohort.manifest import CohortSummary, FlowStep, Manifest
from drfuse.cohort.preparation import prepare
from drfuse.cohort.variables import Variable, load_variables

__all__ = ["CohortSummary", "FlowStep", "Manifest", "Variable", "load_variables", "prepare"]
