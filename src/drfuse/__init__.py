"""drfuse: raw ICU records and chest radiographs in, predictions of phenotypes and their evaluation out.

Every sub-package is one step of the way: `cohort`, `data`, `models`, `training`, `inference`, `evaluation`.
"""

from importlib.metadata import version

__version__ = version("drfuse")
