"""drfuse: raw ICU records and chest radiographs in, phenotype predictions and their evaluation out.

Each sub-package is one step: `cohort`, `data`, `models`, `training`, `inference`, `evaluation`.
"""

from importlib.metadata import version

__version__ = version("drfuse")
