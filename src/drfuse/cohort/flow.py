"""What a cohort has and lacks, for the terminal: not in `drfuse.report`, whose imports take 0.2 s."""

from rich import box
from rich.table import Table

from drfuse.cohort.manifest import Manifest


def flow_table(manifest: Manifest) -> Table:
    """Return the inclusion flow of a cohort, and the number of stays in each split."""
    table = Table(title="Who is in", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("criterion")
    for name in ("stays", "with radiograph"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(split["with_cxr"] for split in manifest.splits.values())
    for step in manifest.flow:
        last = step is manifest.flow[-1]
        table.add_row(step.criterion, f"{step.stays:,}", f"{total:,}" if last else "", end_section=last)
    for name, split in manifest.splits.items():
        table.add_row(name, f"{split['stays']:,}", f"{split['with_cxr']:,}")
    return table


def gaps(manifest: Manifest) -> str:
    """Return what shares of the stays lack events, a radiograph or labels, as far as that is known."""
    n_stays = max(1, manifest.flow[-1].stays)
    without = manifest.warnings.get("stays_without", {})  # not in a manifest of an earlier version
    shares = [f"{what} {100 * count / n_stays:.1f} %" for what, count in without.items()]
    return f"stays without {', without '.join(shares)}" if shares else ""
