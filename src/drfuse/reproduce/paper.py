"""The paper's numbers (Yao et al., AAAI 2024, tables 1 to 4)."""

import json
from functools import cache
from importlib import resources
from typing import Any, TypedDict


class PaperNumber(TypedDict, total=False):
    """A number and its interval, as arguments of `drfuse.report.Number`; empty if the paper has none."""

    paper: float
    paper_low: float
    paper_high: float


@cache
def _tables() -> dict[str, Any]:
    text = resources.files("drfuse.reproduce").joinpath("paper.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def samples(subset: str, split: str) -> float:
    """Return the number of stays in a split of a dataset (table 1)."""
    return float(_tables()["table1_samples"][subset][split])


def stays() -> tuple[int, int]:
    """Return how many stays the paper's cohort has, and how many have a radiograph (section 4.1)."""
    counted = _tables()["table1_samples"]
    return counted["stays"], counted["stays_with_cxr"]


def phenotypes() -> list[str]:
    """Return the names of the paper's phenotypes (table 3)."""
    return [row["phenotype"] for row in _tables()["table3_prauc_by_phenotype"]]


def macro_prauc(system: str | None, train_on: str, test_on: str) -> PaperNumber:
    """Return a system's macro PRAUC (table 2)."""
    models = _tables()["table2_macro_prauc"]["models"]
    return _with_interval(models[system][f"{train_on}->{test_on}"]) if system in models else {}


def ablation(variant: str | None, test_on: str) -> PaperNumber:
    """Return the macro PRAUC of a variant of DrFuse (table 4)."""
    variants = _tables()["table4_ablation_trained_on_matched"]
    return _with_interval(variants[variant][test_on]) if variant in variants else {}


def phenotype_prauc(system: str | None, phenotype: str) -> float | None:
    """Return a system's PRAUC for a phenotype (table 3); None if the paper has none."""
    rows = {row["phenotype"]: row for row in _tables()["table3_prauc_by_phenotype"]}
    prauc: float | None = rows.get(phenotype, {}).get(system)
    return prauc


def prevalence(phenotype: str) -> float | None:
    """Return the prevalence of a phenotype (table 3); None if the paper has none."""
    return phenotype_prauc("prevalence", phenotype)


def average_rank(system: str | None) -> float | None:
    """Return a system's average rank (table 3); None if the paper has none."""
    rank: float | None = _tables()["table3_average_rank"].get(system)
    return rank


def _with_interval(number: dict[str, Any]) -> PaperNumber:
    low, high = number["ci"]
    return {"paper": number["prauc"], "paper_low": low, "paper_high": high}
