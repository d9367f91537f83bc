"""What the terminal shows: log messages, in a command's own process and in those that it starts."""

import logging
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from drfuse.escapes import printable


class Terminal(Console):
    """A console that shows names as they are, and their control characters escaped, wherever they stand."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to render; it is escaped here, so that the columns of tables have its width.

        A word between colons does not become an emoji.
        """
        return super().render_str(printable(text), **options | {"emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of what is shown."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable(part.text))


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
