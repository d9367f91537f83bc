"""The choices and bounds of options that several layers share."""

from typing import Literal

from drfuse.errors import InputError

TaskName = Literal["phenotyping", "mortality", "los"]

Augmentation = bool | Literal["shifts"]
"""How training radiographs are changed at random: as published (True), only shifted, or not at all."""

_MOST_RESAMPLES = 100_000
"""More would fill the memory, and change no interval."""


def check_n_resamples(n_resamples: int) -> None:
    """Raise InputError if there are too few or too many resamples."""
    if not 1 <= n_resamples <= _MOST_RESAMPLES:
        raise InputError(f"n_resamples is {n_resamples}; expected 1 to {_MOST_RESAMPLES}")
