"""What the terminal shows: log messages, in a command's own process and in those that it starts."""

import logging
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from drfuse.escapes import printable, without_secrets
from drfuse.failures import traceback_of


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


class _Formatter(logging.Formatter):
    """Formats log messages, of libraries as well, without passwords and cells of tables."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))

    def formatException(  # noqa: N802 - the name is logging's
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "" if ei[1] is None else traceback_of(ei[1])


def handler_of(console: Console) -> logging.Handler:
    """Return what shows log messages on a console."""
    handler = RichHandler(console=console, show_time=False, show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    return handler


def log_to(console: Console, level: int = logging.INFO) -> None:
    """Show our log messages on a console, and warnings of libraries that the user can do something about."""
    logging.basicConfig(handlers=[handler_of(console)])
    logging.getLogger("drfuse").setLevel(level)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between lightning and torch
    warnings.filterwarnings("ignore", ".*did not find any unused parameters.*")


def hide_lightning() -> None:
    """Hide what Lightning says of devices, and its tips. Its import sets the level, so call this later."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
