"""The document holds what was measured, and keeps what was written by hand."""

from pathlib import Path

import pytest

from benchmarks.results import Target, target_rows
from benchmarks.run import document

TARGETS = target_rows([Target("speed", 2.0, at_least=1)])


def test_notes_written_by_hand_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    document(out, ["## First\n\n| a |"], TARGETS)
    first = out.read_text(encoding="utf-8")
    assert "| speed | at least 1 times | 2.00 times | yes |" in first
    out.write_text(
        first.replace("Nothing is explained yet.", "Gzip is slow: {why}.\n\nMore."), encoding="utf-8"
    )
    document(out, ["## Second"], TARGETS)
    second = out.read_text(encoding="utf-8")
    assert "Gzip is slow: {why}.\n\nMore." in second
    assert ("## First" in second, "## Second" in second) == (False, True)
    document(out, ["## Second"], TARGETS)
    assert out.read_text(encoding="utf-8") == second


def test_a_document_without_its_marks_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    out.write_text("notes that nobody may lose", encoding="utf-8")
    with pytest.raises(ValueError, match="lost the marks"):
        document(out, [], TARGETS)
    assert out.read_text(encoding="utf-8") == "notes that nobody may lose"
