"""Logging to the terminal, in a command's own process and in those that it starts."""

import logging
import warnings

from rich.console import Console
from rich.logging import RichHandler


def log_to(console: Console, level: int = logging.INFO) -> None:
    """Show our log messages on a console, and warnings of libraries that the user can do something about."""
    logging.basicConfig(
        format="%(message)s",
        handlers=[RichHandler(console=console, show_time=False, show_path=False)],
    )
    logging.getLogger("drfuse").setLevel(level)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between lightning and torch
    warnings.filterwarnings("ignore", ".*did not find any unused parameters.*")


def hide_lightning() -> None:
    """Hide what Lightning says of devices, and its tips. Its import sets the level, so call this later."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
