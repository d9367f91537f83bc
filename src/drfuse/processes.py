"""Processes that drfuse starts end with the one that started them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent(number: int = 0) -> None:  # noqa: ARG001 - PyTorch gives its loader processes a number
    """End this process as soon as the one that started it ends, even if that was killed.

    The parent's pipe alone does not tell: processes that are forked later hold it open as well. PyTorch looks
    only between two batches, so that a loader process that waits to hand one over would stay, with all that
    it shares with its parent: connections, locks and memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    started_by = os.getppid()

    def watch() -> None:
        while os.getppid() == started_by and not wait([parent.sentinel], _SECONDS_BETWEEN_LOOKS):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
