"""Which stays are meant: those of a split, and of these all or the ones with a radiograph."""

from typing import Literal

Split = Literal["train", "validation", "test"]
Subset = Literal["full", "matched"]
"""All stays (`full`), or those with a radiograph (`matched`)."""
