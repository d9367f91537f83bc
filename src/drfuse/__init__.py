"""drfuse: raw ICU records and chest radiographs in, predictions that know which source to trust out.

Every sub-package is one step of the way: `cohort`, `data`, `models`, `training`, `evaluation`.
"""

from importlib.metadata import version

__version__ = version("drfuse")
