"""The names of the experiments, found without importing them."""

from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal

_FILES = iter_modules([str(Path(__file__).parent / "experiments")])

if TYPE_CHECKING:
    ExperimentName = str
else:
    ExperimentName = Literal[(*sorted(file.name for file in _FILES), "all")]
    """The choices of `drfuse reproduce`."""
