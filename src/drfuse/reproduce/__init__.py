"""A cohort in, the paper's tables and figure out: every system, trained, measured and put side by side.

`plan` says which runs an experiment needs, `drfuse.training.matrix` trains them, `results` measures their
predictions, `tables`, `representations` and `beyond` make of these what `build` writes.
"""

from drfuse.reproduce.build import Reproduced, reproduce

__all__ = ["Reproduced", "reproduce"]
