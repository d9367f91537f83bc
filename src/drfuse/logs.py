"""What the terminal shows beside results: log messages and progress bars, on standard error."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.text import Text

from drfuse.escapes import printable, without_secrets
from drfuse.failures import traceback_of

_Item = TypeVar("_Item")


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


ERRORS = Terminal(stderr=True)
"""Standard error, the same for messages and bars, so that a message appears above a bar."""


def progress_bars(*columns: str | ProgressColumn, shown: bool = True) -> Progress:
    """Return progress bars that vanish at their end; none is shown where nobody looks, such as in a file."""
    looked_at = ERRORS.is_terminal or ERRORS.is_jupyter
    return Progress(*columns, console=ERRORS, transient=True, disable=not (shown and looked_at))


def tracked(
    items: Iterable[_Item], title: str, total: int | None = None, shown: bool = True
) -> Iterator[_Item]:
    """Yield items, with a progress bar over them.

    Args:
        items: The items.
        title: What is done with them.
        total: How many there are; needed for a generator, which has no length.
        shown: Whether to show the bar.
    """
    with progress_bars(shown=shown) as progress:
        yield from progress.track(items, total, description=title)


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
