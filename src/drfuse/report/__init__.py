"""What the other packages measured in, what people read out: tables, figures and a page.

The modules `figures` and `page` draw with matplotlib, so they are imported by their own names.
"""

from drfuse.report.tables import Number, Row, Table, to_csv, to_latex, to_markdown, write_table
from drfuse.report.terminal import (
    contest_table,
    flow_table,
    metrics_table,
    paper_table,
    subgroups_table,
    trials_table,
    weights_table,
)

__all__ = [
    "Number",
    "Row",
    "Table",
    "contest_table",
    "flow_table",
    "metrics_table",
    "paper_table",
    "subgroups_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "trials_table",
    "weights_table",
    "write_table",
]
