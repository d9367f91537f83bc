"""PRAUC and AUROC over resamples, exactly as scikit-learn defines them, ties included.

One walk over a label's rows, in the order of their scores, counts for 64 resamples side by side: rows are
sorted once per label rather than once per resample, and the CPU adds many resamples at once.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drfuse.errors import InputError
from drfuse.evaluation.resampling import LANES, Counts, compact, resample


def bootstrap_prauc(
    labels: ArrayLike,
    scores: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    units: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return the PRAUC (R, C) of each bootstrap resample and label; NaN without a positive.

    `labels` and `scores` are those of `prauc_auroc`, the rest those of `resample`. Without `units`, each row
    is one.
    """
    drawn = np.arange(len(np.asarray(labels))) if units is None else units
    return prauc_auroc(labels, scores, resample(drawn, n_resamples, seed))[0]


def prauc_auroc(
    labels: ArrayLike, scores: ArrayLike, blocks: Iterable[Counts] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC (average precision) and AUROC of each resample and label, both (R, C).

    NaN where the resample has no positive of the label; AUROC also where it has no negative. Labels run in
    parallel on NUMBA_NUM_THREADS threads, by default one per CPU; the numbers do not depend on it.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C), higher for likelier; equal scores are one threshold.
        blocks: How often each row counts, in blocks (r, n) as `resample` yields them; by default once, and R
            is 1.

    Raises:
        InputError: If the shapes differ, or a score is NaN.

    >>> prauc_auroc([[0], [1], [1]], [[0.1], [0.8], [0.05]])
    (array([[0.83333333]]), array([[0.5]]))
    """
    from numba import config

    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise InputError(f"expected labels and scores (n, C); got {labels.shape} and {scores.shape}")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise InputError("some scores are NaN and have no rank; leave out the stays without a prediction")
    if blocks is None:
        blocks = [np.ones((1, len(labels)), np.uint8)]
    n_labels = labels.shape[1]
    walk = _kernel()
    measured = [np.empty((0, n_labels, 2))]
    with ThreadPoolExecutor(config.NUMBA_NUM_THREADS) as threads:  # type: ignore[attr-defined]
        rankings = list(threads.map(_Ranking.of, labels.T, scores.T))
        for block in blocks:
            if block.shape[1] != len(labels):
                raise InputError(f"a resample counts {block.shape[1]} rows, but there are {len(labels)}")
            for start in range(0, len(block), LANES):
                some = block[start : start + LANES]
                lanes = _lanes(some)
                both = np.empty((n_labels, 2, LANES))
                tasks = [
                    threads.submit(walk, *ranking, lanes, of_label)
                    for ranking, of_label in zip(rankings, both, strict=True)
                ]
                for task in tasks:
                    task.result()
                measured.append(both.transpose(2, 0, 1)[: len(some)])
    prauc, auroc = np.moveaxis(np.concatenate(measured), -1, 0)
    return prauc, auroc


class _Ranking(NamedTuple):
    """How one label's scores rank n rows: highest first, positives first among equal scores.

    Attributes:
        order: The rows in that order (n,).
        positive: Whether each is a positive (n,).
        closes: Whether each is the last of its score (n,).
    """

    order: NDArray[np.intp]
    positive: NDArray[np.bool_]
    closes: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: NDArray[Any], scores: NDArray[Any]) -> "_Ranking":
        positive = labels == 1
        order = np.lexsort((~positive, -scores))
        ranked = scores[order]
        return cls(order, positive[order], np.append(ranked[1:] != ranked[:-1], True))


def _lanes(block: Counts) -> Counts:
    """Return a block (r, n) of at most 64 resamples as (n, 64), filled up with zeros."""
    lanes = compact(block).T
    if len(block) < LANES:
        lanes = np.pad(lanes, ((0, 0), (0, LANES - len(block))))
    return np.ascontiguousarray(lanes)


@cache
def _kernel() -> Callable[..., None]:
    """Return `_walk` compiled, and cached on disk if numba finds a place to write."""
    import numba

    def compiled(keep: bool) -> Callable[..., None]:
        kernel: Callable[..., None] = numba.njit(nogil=True, error_model="numpy", cache=keep)(_walk)
        kernel(*_Ranking.of(np.ones(1), np.ones(1)), np.ones((1, LANES), np.uint8), np.empty((2, LANES)))
        return kernel

    try:
        return compiled(keep=True)
    except (RuntimeError, OSError):  # no writable folder, or the disk is full
        return compiled(keep=False)


def _walk(
    order: NDArray[np.intp],
    positive: NDArray[np.bool_],
    closes: NDArray[np.bool_],
    counts: Counts,
    measured: NDArray[np.float64],
) -> None:
    """Write the PRAUC and AUROC of one label into `measured` (2, 64), for each column of `counts` (n, 64).

    Both are sums over the groups of equal scores with positives. AUROC is 1 minus the share of wrongly
    ordered pairs of a positive and a negative; a tied pair is half wrong. Sums of counts are exact in doubles
    up to 2^53.
    """
    true, false, new, precisions, wrong = np.zeros((5, LANES))
    open_group = False  # whether positives of the current score are not summed up yet
    for i in range(len(order)):
        drawn = counts[order[i]]
        if positive[i]:
            open_group = True
            for lane in range(LANES):
                new[lane] += drawn[lane]
                wrong[lane] += drawn[lane] * false[lane]  # the group's own negatives come after it
        else:
            for lane in range(LANES):
                false[lane] += drawn[lane]
        if closes[i] and open_group:
            open_group = False
            for lane in range(LANES):
                true[lane] += new[lane]
                precisions[lane] += new[lane] * true[lane] / max(true[lane] + false[lane], 1.0)
                wrong[lane] += new[lane] * false[lane]
                new[lane] = 0.0
    for lane in range(LANES):
        pairs = true[lane] * false[lane]
        measured[0, lane] = precisions[lane] / true[lane] if true[lane] > 0 else np.nan
        measured[1, lane] = (pairs - wrong[lane] / 2) / pairs if pairs > 0 else np.nan
