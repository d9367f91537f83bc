"""Attributions of single stays, computed in the background while a page waits for them."""

import logging
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from drfuse.errors import InputError, check_choice, describe_os_error
from drfuse.explore.opened import Opened

if TYPE_CHECKING:
    from drfuse.inference import Predictor

logger = logging.getLogger(__name__)

_MOST_KEPT = 50
_FIRST_EVALUATIONS = 76
"""Evaluations of the model if 32 steps of integrated gradients are enough for record and radiograph."""


@dataclass
class _Job:
    """One explanation: how far it is, and in the end what it found or why it failed."""

    evaluated: int = 0
    result: dict[str, Any] | None = None
    problem: str = ""
    is_over: bool = False
    future: "Future[None] | None" = None


class _ClosingError(Exception):
    """The server ends while an explanation is computed."""


class Explanations:
    """Explains stays one after the other; the last ones are kept."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._jobs: OrderedDict[tuple[str, int, str], _Job] = OrderedDict()
        self._starting = Lock()
        # one at a time: an explanation changes the model while it lasts
        self._worker = ThreadPoolExecutor(1, "explanations")
        self._is_closing = False
        self._predictor = lru_cache(maxsize=2)(self._open)

    def state(self, run: str, stay_id: int, label: str) -> dict[str, Any]:
        """Return how far the explanation of a stay's label is; it is started if it was not.

        Returns:
            `share` (0 to 1) and `evaluated` (how often the model was), `result` once there is one, and
            `problem`, a sentence, if there is none.

        Raises:
            InputError: If there is no such run, stay or label.
        """
        if run not in self._opened.runs:
            raise InputError(f"there is no run {run!r}")
        if label:
            check_choice("label", label, self._opened.predicted(run).labels)
        row, key = self._opened.cohort.row_of(stay_id), (run, stay_id, label)
        with self._starting:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job()
                if len(self._jobs) > _MOST_KEPT:
                    _, forgotten = self._jobs.popitem(last=False)
                    if forgotten.future is not None:
                        forgotten.future.cancel()
                job.future = self._worker.submit(self._work, job, run, row, label)
        expected = _FIRST_EVALUATIONS
        while job.evaluated > expected:  # steps are doubled until the attributions add up
            expected *= 2
        share = 1.0 if job.is_over else job.evaluated / (expected + 1)
        if job.is_over and job.problem:  # told now; who asks again wants another try
            with self._starting:
                if self._jobs.get(key) is job:
                    del self._jobs[key]
        return {"share": share, "evaluated": job.evaluated, "result": job.result, "problem": job.problem}

    def close(self) -> None:
        """End what is being computed: PyTorch must not be at work when Python ends."""
        self._is_closing = True
        self._worker.shutdown(cancel_futures=True)

    def _work(self, job: _Job, run: str, row: int, label: str) -> None:
        try:
            job.result = self._explain(job, run, row, label)
        except _ClosingError:
            pass
        except (InputError, OSError) as error:
            job.problem = describe_os_error(error)
        except Exception:
            logger.exception("an explanation failed")
            job.problem = "it failed; the terminal of `drfuse explore` says why"
        finally:
            job.is_over = True

    def _explain(self, job: _Job, run: str, row: int, label: str) -> dict[str, Any]:
        from drfuse.inference import explain_stay

        predictor = self._predictor(run)

        def count(_module: Any, _inputs: Any, output: Any) -> None:
            job.evaluated += len(output.logits)
            if self._is_closing:
                raise _ClosingError

        hook = predictor.model.register_forward_hook(count)
        try:
            found = explain_stay(predictor, self._opened.cohort, row, label or None)
        finally:
            hook.remove()
        said = found.as_json()
        (of_label,) = (one for one in said["phenotypes"] if one["name"] == found.phenotype)
        facts = predictor.facts
        return {
            "label": found.phenotype,
            "of_label": of_label,
            "record": said["record"],
            "image": said["image"],
            "crop": facts.crop_size / facts.image_size,
            "notes": found.notes,
        }

    def _open(self, run: str) -> "Predictor":
        from drfuse.inference import Predictor

        return Predictor.open(self._opened.runs[run].folder)
