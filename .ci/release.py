"""Writes a version into pyproject.toml, and heads the changes in CHANGELOG.md with it and the day."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

root = Path(__file__).parents[1]
version = sys.argv[1] if len(sys.argv) == 2 else ""
if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
    sys.exit("give the version: make release VERSION=1.2.3")
if subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True).stdout:
    sys.exit("there are changes that are not committed; commit them first")

project, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
changes = changelog.read_text(encoding="utf-8")
if not re.search(r"^## Unreleased\n+(?!## )\S", changes, re.MULTILINE):
    sys.exit("CHANGELOG.md has nothing under Unreleased; say there what changed")
day = datetime.now(UTC).date()
headed = changes.replace("## Unreleased\n", f"## Unreleased\n\n## {version} ({day})\n", 1)
text, n = re.subn(
    r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(encoding="utf-8"), count=1
)
if n != 1:
    sys.exit('pyproject.toml has no line version = "..."; add one')
project.write_text(text, encoding="utf-8")
changelog.write_text(headed, encoding="utf-8")
