"""Trains and measures every system on a cohort, and makes the paper's tables and figure from them.

Each file in `experiments` chooses its systems and makes its tables and figures. `plan` lists the runs,
`drfuse.training.matrix` trains them, `results` measures their predictions, and `train_and_report` does
it all. `reproduction` has the command's options.
"""

from drfuse.reproduce.reproduction import Reproduced, reproduce

__all__ = ["Reproduced", "reproduce"]
