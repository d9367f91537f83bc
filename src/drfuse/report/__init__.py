"""What the other packages measured in, tables that people read out."""

from drfuse.report.terminal import contest_table, flow_table, metrics_table, weights_table

__all__ = ["contest_table", "flow_table", "metrics_table", "weights_table"]
