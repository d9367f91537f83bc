"""The closed choices of options that several layers share."""

from typing import Literal

TaskName = Literal["phenotyping", "mortality", "los"]

Augmentation = bool | Literal["shifts"]
"""How training radiographs are changed at random: as published (True), only shifted, or not at all."""
