"""drfuse: raw ICU records and chest radiographs in, phenotype predictions and their evaluation out.

Each sub-package is one step: `cohort`, `data`, `models`, `training`, `inference`, `evaluation`.
"""

import sys

if sys.argv[:1] == ["-m"] and {"drfuse", "-mdrfuse"} & {*sys.orig_argv} and not sys.flags.safe_path:
    del sys.path[0]  # the current folder, which may be one that came from someone else

from importlib.metadata import version

__version__ = version("drfuse")
