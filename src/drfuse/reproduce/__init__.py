"""A cohort in, the paper's tables and figure out: every system, trained, measured and put side by side.

Each file in `experiments` says which systems it needs, and makes its tables and figures. `plan` lists the
runs, `drfuse.training.matrix` trains them, `results` measures their predictions, and `reproduction` writes it
all.
"""

from drfuse.reproduce.reproduction import Reproduced, reproduce

__all__ = ["Reproduced", "reproduce"]
