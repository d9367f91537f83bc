"""What the other packages measured in, tables that people read out."""

from drfuse.report.terminal import flow_table, metrics_table

__all__ = ["flow_table", "metrics_table"]
