"""The inclusion flow of a cohort for the terminal: not in `drfuse.report`, whose imports take 0.2 s."""

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
