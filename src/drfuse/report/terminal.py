"""Tables that fit a terminal."""

import math

from rich import box
from rich.table import Table

from drfuse.cohort.manifest import Manifest
from drfuse.evaluation.evaluate import Estimate, Evaluation


def flow_table(manifest: Manifest) -> Table:
    """Return the inclusion flow of a cohort, and the stays of each split."""
    table = Table(title="Who is in", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("criterion")
    table.add_column("stays", justify="right")
    table.add_column("with radiograph", justify="right")
    total = sum(split["with_cxr"] for split in manifest.splits.values())
    for step in manifest.flow:
        last = step is manifest.flow[-1]
        table.add_row(step.criterion, f"{step.stays:,}", f"{total:,}" if last else "", end_section=last)
    for name, split in manifest.splits.items():
        table.add_row(name, f"{split['stays']:,}", f"{split['with_cxr']:,}")
    return table


def metrics_table(metrics: Evaluation) -> Table:
    """Return the PRAUC and AUROC of each phenotype of one test set, and their means."""
    unit = {"subject": "subjects", "stay": "stays"}[metrics.bootstrap_unit]
    table = Table(
        title=f"{metrics.test_on} test set: {metrics.n_stays:,} stays of {metrics.n_subjects:,} subjects, "
        f"{metrics.n_with_cxr:,} with radiograph",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("phenotype")
    table.add_column("positive", justify="right", no_wrap=True)
    table.add_column("PRAUC (95 % interval)", justify="right", no_wrap=True)
    table.add_column("AUROC", justify="right", no_wrap=True)
    for one in metrics.phenotypes:
        table.add_row(one.phenotype, f"{one.n_positive:,}", _with_interval(one.prauc), _point(one.auroc))
    table.add_section()
    n_averaged = len(metrics.phenotypes) - len(metrics.left_out)
    macro = (_with_interval(metrics.prauc_macro), _point(metrics.auroc_macro))
    table.add_row(f"mean of {n_averaged} phenotypes", "", *macro, style="bold")
    resampled = f"intervals from {metrics.n_resamples:,} resamples of {unit}"
    table.caption = f"mean AUROC {_with_interval(metrics.auroc_macro)}; {resampled}"
    return table


def _with_interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.3f} ({estimate.low:.3f}, {estimate.high:.3f})"


def _point(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.value) else f"{estimate.value:.3f}"
