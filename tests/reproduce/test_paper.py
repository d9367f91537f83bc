"""What the paper printed, against what was read off it, and against numbers copied by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.reproduce import paper
from drfuse.reproduce.systems import paper_systems


def test_the_shipped_numbers_are_those_read_off_the_paper(shared: Path) -> None:
    read_off = json.loads((shared / "reference" / "paper_tables.json").read_text(encoding="utf-8"))
    assert paper._tables() == read_off


def test_samples() -> None:
    assert [paper.samples("full", split) for split in ("train", "validation", "test")] == [42628, 4802, 11914]
    assert [paper.samples("matched", split) for split in ("train", "validation", "test")] == [7637, 857, 2136]


@pytest.mark.parametrize(
    ("system", "train_on", "test_on", "numbers"),
    [
        ("Transformer", "matched", "matched", (0.408, 0.368, 0.455)),
        ("MMTM", "matched", "full", (0.359, 0.342, 0.379)),
        ("DAFT", "full", "matched", (0.430, 0.389, 0.477)),
        ("MedFuse", "full", "full", (0.405, 0.385, 0.427)),
        ("DrFuse", "full", "matched", (0.470, 0.420, 0.512)),
    ],
)
def test_macro_prauc(system: str, train_on: str, test_on: str, numbers: tuple[float, float, float]) -> None:
    found = paper.macro_prauc(system, train_on, test_on)
    assert (found["paper"], found["paper_low"], found["paper_high"]) == numbers


def test_ablation() -> None:
    assert paper.ablation("w/o attn. ranking", "matched") == {
        "paper": 0.438,
        "paper_low": 0.396,
        "paper_high": 0.485,
    }
    assert paper.ablation("MSE alignment", "full")["paper"] == 0.375
    for test_on in ("matched", "full"):
        assert paper.ablation("DrFuse", test_on) == paper.macro_prauc("DrFuse", "matched", test_on)


def test_phenotypes() -> None:
    assert paper.phenotype_prauc("DrFuse", "Conduction disorders") == 0.619
    assert paper.phenotype_prauc("ResNet50", "Shock") == 0.342
    assert paper.prevalence("Fluid and electrolyte disorders") == 0.45
    assert paper.average_rank("DrFuse") == 2.04


def test_every_phenotype_of_a_cohort_has_the_paper_s_numbers_under_its_name() -> None:
    names = read_phenotypes()["phenotype"].unique()
    assert len(names) == 25
    assert None not in [paper.prevalence(name) for name in names]
    assert None not in [paper.phenotype_prauc("DrFuse", name) for name in names]


def test_the_mean_over_the_phenotypes_is_the_macro_prauc() -> None:
    names = read_phenotypes()["phenotype"].unique()
    for system in ("Transformer", "MedFuse", "MedFuse-II", "DrFuse"):
        praucs = [paper.phenotype_prauc(system, name) for name in names]
        macro = paper.macro_prauc(system, "matched", "matched")["paper"]
        assert np.mean(np.array(praucs, float)) == pytest.approx(macro, abs=0.0006)


def test_what_the_paper_does_not_have_is_nothing() -> None:
    assert paper.macro_prauc(None, "full", "full") == paper.macro_prauc("ResNet50", "full", "full") == {}
    assert paper.ablation(None, "full") == {}
    assert paper.phenotype_prauc(None, "Shock") is None
    assert paper.phenotype_prauc("DrFuse", "gout") is None
    assert paper.prevalence("gout") is None
    assert paper.average_rank(None) is None


def test_every_system_with_a_name_in_the_paper_has_its_numbers() -> None:
    for system in paper_systems().values():
        if system.paper is not None and system.name != "resnet50":
            assert paper.macro_prauc(system.paper, "full", "full")
        if system.ablation is not None:
            assert paper.ablation(system.ablation, "matched")
    assert paper.average_rank(paper_systems()["resnet50"].paper) == 3.96
