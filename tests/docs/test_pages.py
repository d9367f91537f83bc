"""The README and the documentation: their code does what they say, on a simulated hospital."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from drfuse.cli import _COMMANDS, main
from drfuse.demo import Demo
from tests.docs.pages import PAGES, ROOT, Block, blocks, drfuse_arguments, quick

LANGUAGES = {"sh", "python", "yaml", "csv", "text"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_language_that_is_tested_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"line {block.line}: a block of {block.language or 'nothing'}"
        if block.language in ("yaml", "csv"):
            assert block.file, f"line {block.line}: say which file this is: <!-- file: NAME -->"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    names = re.findall(r"`drfuse ([a-z]\w*)", page.read_text(encoding="utf-8"))
    assert set(names) <= set(_COMMANDS)
    modules = re.findall(r"python -m benchmarks\.(\w+)", page.read_text(encoding="utf-8"))
    assert [name for name in modules if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 70


def test_the_picture_in_the_dark_has_other_colours_alone() -> None:
    light, dark = (
        re.sub(r"#[0-9a-f]{6}", "#", (ROOT / f"docs/assets/pipeline-{scheme}.svg").read_text())
        for scheme in ("light", "dark")
    )
    assert light == dark


def test_the_site_shows_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = re.findall(r"[\w/-]+\.md", config[config.index("\nnav:") :])
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents]
    assert sorted(shown) == pages


@pytest.fixture(scope="session")
def ward(small_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages take for granted; copy it, do not change it."""
    folder = tmp_path_factory.mktemp("ward")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("drfuse-demo", "first-demo", "demo"):
        shutil.copytree(small_demo.folder, folder / name)  # which `drfuse demo` takes up
    for hospital, seed in (("hospital", "0"), ("theirs", "9")):
        made = ["--out", str(folder / hospital), "--stays", "120", "--cxr-rate", "0.5", "--seed", seed]
        main([*quick(["simulate"], 0), *made])
    records, images = folder / "hospital/mimic-iv", folder / "hospital/mimic-cxr"
    shutil.copytree(records, folder / "mimic-iv-demo")
    shutil.copytree(images, folder / "mimic-cxr-demo")
    shutil.copytree(images, folder / "images")
    shutil.copy(next(images.rglob("*.jpg")), folder / "patient.jpg")
    (patient,) = (block.code for block in blocks(ROOT / "docs/predict.md") if block.file == "patient.csv")
    (folder / "patient.csv").write_text(patient)
    for raw, cohort in (("hospital", "cohort"), ("theirs", "their-cohort")):
        sources = [
            "--mimic-iv",
            str(folder / raw / "mimic-iv"),
            "--mimic-cxr",
            str(folder / raw / "mimic-cxr"),
        ]
        main(quick(["prepare", *sources, "--out", str(folder / cohort)], 0))
    for seed, run in (("0", "run"), ("1", "run-1"), ("2", "run-2")):
        main(quick(["train", str(folder / "cohort"), "--out", str(folder / run), "--seed", seed], 0))
    shutil.copytree(folder / "run", folder / "run-0")
    main(["export", str(folder / "run"), "--out", str(folder / "to-share")])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path,
    ward: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = list(blocks(page))
    shutil.copytree(ward, tmp_path / "ward")
    for words in (words for block in found for words in made_by(block)):
        shutil.rmtree(tmp_path / "ward" / words[words.index("--out") + 1], ignore_errors=True)
    monkeypatch.chdir(tmp_path / "ward")
    stay = pl.read_parquet(ward / "cohort/stays.parquet").filter("has_cxr")["stay_id"][0]
    names: dict[str, object] = {}
    for block in found:
        if block.file:
            Path(block.file).write_text(block.code)
        elif block.language == "sh":
            for words in block.commands:
                run_or_check(words, block, stay, monkeypatch)
        elif block.language == "python" and not block.not_run:
            exec(compile(block.code, f"{page}:{block.line}", "exec"), names)
    for name in ("my_module", "my_fusion"):
        sys.modules.pop(name, None)
    if page.name == "first-minutes.md":
        shown = capsys.readouterr().out
        assert "Estimate(value=0." in shown
        assert "shape: (25, 11)" in shown
        assert "(120, 25)" in shown


def made_by(block: Block) -> list[list[str]]:
    """Return the commands of a block that make a folder anew."""
    runs = block.language == "sh" and not block.not_run
    return [words for words in block.commands if "--out" in words and "demo" not in words] if runs else []


def run_or_check(words: list[str], block: Block, stay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of drfuse; of one that is not run, and of benchmarks, check the options."""
    arguments = drfuse_arguments(words)
    benchmark = words[:2] == ["python", "-m"] and words[2].startswith("benchmarks.")
    if arguments and not block.not_run:
        try:
            main(quick(arguments, stay))
        except SystemExit as stop:  # as `drfuse --version` ends
            if stop.code:
                raise
    elif arguments or benchmark:
        program, options = ("drfuse", arguments) if arguments else (words[2], words[3:])
        monkeypatch.setattr(sys, "argv", [program, *(options or []), "--print-config"])
        with pytest.raises(SystemExit) as end:
            main() if arguments else runpy.run_module(program, run_name="__main__")
        assert end.value.code == 0, words
    else:
        assert block.not_run, f"line {block.line}: {words[0]} cannot be tested; say why it is not run"
