"""The README's code does what it says."""

import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of code of a document."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def test_the_quick_start_runs_from_raw_files_to_one_patient(
    small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (quick_start,) = (code for code in blocks(README, "python") if "predict_stays" in code)
    (patient,) = blocks(DOCS / "predict.md", "csv")
    shutil.copytree(small_cohort.parent / "mimic-iv", tmp_path / "mimic-iv-demo")
    (tmp_path / "patient.csv").write_text(patient, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(quick_start, str(README), "exec"), {})
    shown = capsys.readouterr().out
    assert "Estimate(value=0." in shown
    assert "shape: (25, 11)" in shown
    assert "(80, 25)" in shown
    statements = [
        line for line in quick_start.splitlines() if line and not line.startswith(("from", "import"))
    ]
    assert len(statements) <= 10


@pytest.mark.parametrize("document", [README, *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
