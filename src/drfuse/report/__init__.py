"""Measurements in; tables, figures and a page out.

Import `figures` and `page` as modules: they load matplotlib.
"""

from drfuse.report.tables import Number, Row, Table, to_csv, to_latex, to_markdown, write_table
from drfuse.report.terminal import (
    contest_table,
    evaluation_tables,
    external_table,
    metrics_table,
    missing_of_stay,
    paper_table,
    predictions_table,
    probabilities_table,
    sets_table,
    shift_table,
    subgroups_table,
    trials_table,
    weights_table,
)

__all__ = [
    "Number",
    "Row",
    "Table",
    "contest_table",
    "evaluation_tables",
    "external_table",
    "metrics_table",
    "missing_of_stay",
    "paper_table",
    "predictions_table",
    "probabilities_table",
    "sets_table",
    "shift_table",
    "subgroups_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "trials_table",
    "weights_table",
    "write_table",
]
