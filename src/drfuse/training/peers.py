"""The processes of one training end together: a process that ends early takes the others with it."""

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from drfuse.errors import InputError

logger = logging.getLogger(__name__)

SECONDS_TO_MEET = 60
"""How long a process waits for the others to start."""

_SECONDS_TO_LEAVE = 10
_SECONDS_TO_TELL = 5
_ALWAYS = timedelta(days=365)
_DONE, _FAILED = 0, 1

_ENDED = (
    "another process of this training failed or was killed, so this one ends as well; the other's message "
    "says why, and the same command resumes the run"
)

_numbers = itertools.count()
_watches: list["_Watch"] = []


class PeerEndedError(InputError):
    """Another process of the training ended before its work was done."""


class _Watch:
    """Watches the process before this one in a ring, and tells the one after it how this one ends.

    The connections of a process that dies are closed, which a thread of the next process sees at once, even
    while that process computes or waits elsewhere. What it sees it tells the next one.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.has_failed = False
        self._before, self._after = (rank - 1) % size, (rank + 1) % size
        self._group, self._number = _ring(), next(_numbers)
        self._word = torch.zeros(1, dtype=torch.int64)
        self._lock, self._has_told, self._has_left = threading.Lock(), False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def leave(self, word: int) -> None:
        """Say how this process ends; if its work is done, wait until that of the process before it is.

        Raises:
            PeerEndedError: If this process's work is done, but another one failed.
        """
        self._has_left.set()
        self._tell(word)
        self._thread.join(None if word == _DONE else _SECONDS_TO_TELL)
        if word == _DONE and self.has_failed:
            raise PeerEndedError(_ENDED)

    def _watch(self) -> None:
        heard = torch.zeros(1, dtype=torch.int64)
        try:
            work = dist.irecv(heard, self._before, self._group, tag=self._number)
            if work is not None:  # it is only in a process outside of the group
                work.wait(_ALWAYS)
        except RuntimeError:  # the connection was closed
            heard.fill_(_FAILED)
        if heard.item() == _DONE:
            return
        self.has_failed = True
        self._tell(_FAILED)
        if not self._has_left.wait(_SECONDS_TO_LEAVE):  # what it waits for may never come
            logger.error(_ENDED)
            os._exit(2)

    def _tell(self, word: int) -> None:
        with self._lock, suppress(RuntimeError):  # the next process has ended
            if not self._has_told:
                self._has_told = True
                self._word.fill_(word)
                work = dist.isend(self._word, self._after, self._group, tag=self._number)
                if work is not None:
                    work.wait(timedelta(seconds=_SECONDS_TO_TELL))


@cache
def _ring() -> dist.ProcessGroup:
    """Return connections between the processes that nothing else uses."""
    ring: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=SECONDS_TO_MEET))
    return ring


def watch_peers(rank: int, size: int) -> None:
    """Watch the other processes until `ends_with_peers` ends, or until this process does."""
    if not _watches:
        _watches.append(_Watch(rank, size))


@contextmanager
def ends_with_peers() -> Iterator[None]:
    """Fail in this block if another process of the training does, and have the others fail if this one does.

    It ends when the block has ended in every process. A process whose block goes on for seconds after another
    one failed is ended from within.

    Raises:
        PeerEndedError: If another process failed, or was killed.
    """
    n_earlier, word = len(_watches), _FAILED
    try:
        yield
        word = _DONE
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        logger.debug("a process is gone", exc_info=True)
        raise PeerEndedError(_ENDED) from None
    finally:
        started = _watches[n_earlier:]
        del _watches[n_earlier:]
        for watch in started:
            watch.leave(word)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another process does not answer."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
