"""The names of splits, and of the subsets of stays within them."""

from typing import Literal

Split = Literal["train", "validation", "test"]
Subset = Literal["full", "matched"]
"""All stays (`full`), or those with a radiograph (`matched`)."""
