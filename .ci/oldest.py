"""Prints constraints for pip: the lowest version that pyproject.toml allows of each dependency.

PyTorch alone is taken from constraints.txt: of older versions, PyPI has no build without CUDA.
"""

import re
import tomllib
from pathlib import Path

root = Path(__file__).parents[1]
project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
    lowest = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
    if lowest and lowest[1] != "torch":
        print(f"{lowest[1]}=={lowest[2]}")  # noqa: T201
tested = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
print(next(line for line in tested if line.startswith("torch==")))  # noqa: T201
