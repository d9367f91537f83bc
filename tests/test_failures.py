"""How commands end when they cannot go on."""

import errno
import threading

import pytest
from rich.console import Console

from drfuse.failures import explained_failures


@pytest.mark.parametrize(
    ("error", "shown"), [(OSError(errno.ENOSPC, "No space left on device"), 0), (ValueError("a bug"), 1)]
)
def test_a_thread_that_a_full_disk_ends_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, shown: int
) -> None:
    said: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def fail() -> None:
        raise error

    with explained_failures("drfuse train", Console(stderr=True)):
        (thread := threading.Thread(target=fail)).start()
        thread.join()
    assert len(said) == shown
    assert threading.excepthook == said.append
