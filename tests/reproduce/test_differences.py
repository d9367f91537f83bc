"""What captions say of a cohort beside the paper's numbers comes from its manifest."""

from dataclasses import replace
from typing import Any

import polars as pl

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.data import Cohort
from drfuse.reproduce import paper
from drfuse.reproduce.differences import differences
from drfuse.reproduce.experiments.table1 import table1
from drfuse.reproduce.experiments.table2 import table2
from drfuse.reproduce.experiments.table3 import table3
from drfuse.reproduce.experiments.table4 import table4
from tests.reproduce.samples import make_cohort, make_results

OF_THE_PAPER = {
    "window_hours": 48,
    "preset": "benchmark",
    "view": ["AP"],
    "phenotypes": "hcup.yaml",
    "split_file": "split.csv",
}


def made_with(
    names: list[str] | None = None, sources: dict[str, Any] | None = None, **options: Any
) -> Cohort:
    """Return a cohort as the paper's but for these options, with its 25 phenotypes but for these names."""
    cohort = make_cohort()
    names = paper.phenotypes() if names is None else names
    lacking = [pl.lit(False).alias(name) for name in names if name not in cohort.stays.columns]
    manifest = replace(
        cohort.manifest, options=OF_THE_PAPER | options, phenotypes=names, sources=sources or {}
    )
    return replace(cohort, manifest=manifest, table=cohort.stays.with_columns(lacking))


def test_a_cohort_made_as_the_paper_s_differs_in_its_stays() -> None:
    assert differences(made_with(sources={"mimic_iv": {"folder": "mimic-iv", "release": "1.0"}})) == (
        "The paper's numbers come from another cohort. This one: mimic-iv, release 1.0; 76 stays, 57 with a "
        "radiograph (the paper: 59,344 and 10,630); labels by hcup.yaml; the split of split.csv."
    )


def test_each_option_that_differs_is_named() -> None:
    said = differences(
        made_with(window_hours=24, preset="extended", view=["AP", "PA"], phenotypes=None, split_file=None)
    )
    assert "a window of 24 hours (the paper: 48)" in said
    assert "variables of the preset extended (published code: benchmark)" in said
    assert "radiographs of the views AP, PA (the paper: AP)" in said
    assert "labels by all codes of each HCUP CCS category (published code: a shorter list);" in said
    assert "a random split of its own" in said


def test_other_labels_are_counted() -> None:
    assert "labels by own.csv, 2 labels, 1 of them among the paper's 25" in differences(
        made_with(["Shock", "gout"], phenotypes="own.csv")
    )


def test_a_simulated_hospital_is_called_one() -> None:
    sources = {"mimic_iv": {"folder": "mimic-iv", "release": "2.0 or later", "simulated": True}}
    assert "This one: simulated records and radiographs; 76 stays" in differences(made_with(sources=sources))


def test_the_paper_s_phenotypes_are_the_shipped_ones() -> None:
    assert sorted(paper.phenotypes()) == sorted(read_phenotypes()["phenotype"].unique())


def test_every_table_beside_the_paper_s_numbers_says_it() -> None:
    results = make_results()
    said = differences(results.cohort)
    for table in (table1(results), table2(results), table3(results), table4(results)):
        assert table.full_caption.endswith(said), table.key
    others = make_results(task="mortality")  # the paper has none
    assert said not in table2(others).full_caption
