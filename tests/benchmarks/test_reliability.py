"""The document of what is promised has its counts from pytest and from the benchmarks."""

from pathlib import Path

import pytest

from benchmarks.reliability import reliability
from benchmarks.results import Report, Target


@pytest.mark.slow
def test_the_document_has_every_part(tmp_path: Path) -> None:
    Report("Faults", "How.", [Target("lost", 0, "faults", at_most=0)]).write(tmp_path / "faults.json")
    reliability(tmp_path / "reliability.md", inputs_per_file=1, faults=tmp_path / "faults.json")
    text = (tmp_path / "reliability.md").read_text(encoding="utf-8")
    assert "| lost | at most 0 faults | 0 faults | yes |" in text
    rows = dict(line.strip("| ").rsplit(" | ", 1)[::-1] for line in text.splitlines() if "`pytest " in line)
    modules = {path.name for path in Path(__file__).parents[1].joinpath("reliability").glob("test_*.py")}
    assert set(rows) == {f"`pytest tests/reliability/{name}`" for name in modules}
    assert all(int(row.rsplit(" | ", 1)[1]) > 0 for row in rows.values())
    assert "| `cohort/manifest.json` | 1 |" in text
