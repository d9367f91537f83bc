"""Tables must say what was measured and fit a terminal of 80 columns."""

import io
import math

from rich.console import Console
from rich.table import Table

from drfuse.cohort.manifest import FlowStep, Manifest
from drfuse.evaluation import Estimate, Evaluation, PhenotypeMetrics
from drfuse.report import flow_table, metrics_table


def rendered(table: Table) -> str:
    written = io.StringIO()
    Console(width=80, file=written).print(table)
    return written.getvalue()


def test_the_flow_names_each_criterion_and_split() -> None:
    manifest = Manifest(
        drfuse="0",
        sources={},
        options={},
        flow=[FlowStep("all ICU stays", 73181), FlowStep("age at least 18 years", 61234)],
        variables=[],
        phenotypes=[],
        splits={"train": {"stays": 40000, "with_cxr": 7000}, "test": {"stays": 21234, "with_cxr": 3000}},
        warnings={},
        files={},
    )
    lines = [line.split() for line in rendered(flow_table(manifest)).splitlines()]
    assert ["all", "ICU", "stays", "73,181"] in lines
    assert ["age", "at", "least", "18", "years", "61,234", "10,000"] in lines
    assert ["train", "40,000", "7,000"] in lines


def test_long_phenotypes_wrap_and_undefined_numbers_are_dashes() -> None:
    undefined = Estimate(math.nan, math.nan, math.nan)
    name = "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)"
    metrics = Evaluation(
        test_on="full",
        n_stays=11914,
        n_with_cxr=2136,
        n_subjects=9000,
        n_without_prediction=0,
        bootstrap_unit="subject",
        n_resamples=1000,
        seed=0,
        prauc_macro=Estimate(0.5, 0.4, 0.6),
        auroc_macro=Estimate(0.7, 0.6, 0.8),
        left_out=["gout"],
        phenotypes=[
            PhenotypeMetrics(name, 2000, Estimate(0.51, 0.41, 0.61), Estimate(0.71, 0.61, 0.81)),
            PhenotypeMetrics("gout", 0, undefined, undefined),
        ],
    )
    text = rendered(metrics_table(metrics))
    assert max(map(len, text.splitlines())) <= 80
    assert "0.510 (0.410, 0.610)   0.710" in text
    assert "11,914 stays of 9,000 subjects" in text
    assert "mean of 1 phenotypes" in text
    assert any(line.split() == ["gout", "0", "-", "-"] for line in text.splitlines())
