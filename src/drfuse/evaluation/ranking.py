"""PRAUC and AUROC over resamples, exactly as scikit-learn defines them, ties included.

One walk over a label's rows, in the order of their scores, counts for 64 resamples side by side: rows are
sorted once per label rather than once per resample, and the CPU adds many resamples at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    n = len(np.asarray(labels))
    if blocks is None:
        blocks = [np.ones((1, n), np.uint8)]
    everyone = np.ones((1, n), bool)
    prauc, auroc = prauc_auroc_of_groups(rank(labels, scores), everyone, blocks)
    return prauc[0], auroc[0]


def prauc_auroc_of_groups(
    rankings: Sequence["Ranking"], groups: NDArray[np.bool_], blocks: Iterable[Counts]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC and AUROC of each group, resample and label, both (G, R, C).

    `groups` (G, n) says which rows belong to each group; the rest is as in `prauc_auroc`.
    """
    shape = (len(groups), 2)
    measured = map_blocks(_kernel(), rankings, blocks, shape, groups)
    both = np.concatenate([np.empty((0, len(rankings), *shape)), *measured])
    prauc, auroc = both.transpose(3, 2, 0, 1)
    return prauc, auroc


def rank(labels: ArrayLike, scores: ArrayLike) -> list["Ranking"]:
    """Return how each label's scores rank the rows, from labels and scores (n, C).

    Raises:
        InputError: If the shapes differ, or a score is NaN.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise InputError(f"expected labels and scores (n, C); got {labels.shape} and {scores.shape}")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise InputError("some scores are NaN and have no rank; leave out the stays without a prediction")
    with _threads() as threads:
        return list(threads.map(Ranking.of, labels.T, scores.T))


def map_blocks(
    kernel: Callable[..., None],
    rankings: Sequence["Ranking"],
    blocks: Iterable[Counts],
    shape: tuple[int, ...],
    *arguments: Any,
) -> Iterator[NDArray[np.float64]]:
    """Yield what a kernel measures in each block of r resamples, (r, C, *shape).

    The kernel gets a label's ranking, how often each row of that order counts (n, 64), the arguments, and the
    array (*shape, 64) to write to.

    Raises:
        InputError: If a block has another number of rows than the rankings.
    """

    def measure(ranking: Ranking, lanes: Counts, of_label: NDArray[np.float64]) -> None:
        ranked = np.take(lanes, ranking.order, axis=0)  # so that the kernel reads memory in order
        kernel(*ranking, ranked, *arguments, of_label)

    with _threads() as threads:
        for block in blocks:
            if rankings and block.shape[1] != len(rankings[0].order):
                n = len(rankings[0].order)
                raise InputError(f"a resample counts {block.shape[1]} rows, but there are {n}")
            for start in range(0, len(block), LANES):
                some = block[start : start + LANES]
                lanes = _lanes(some)
                measured = np.empty((len(rankings), *shape, LANES))
                tasks = [
                    threads.submit(measure, ranking, lanes, of_label)
                    for ranking, of_label in zip(rankings, measured, strict=True)
                ]
                for task in tasks:
                    task.result()
                yield np.moveaxis(measured, -1, 0)[: len(some)]


def _threads() -> ThreadPoolExecutor:
    from numba import config

    return ThreadPoolExecutor(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


class Ranking(NamedTuple):
    """How one label's scores rank n rows: highest first, positives first among equal scores.

    Attributes:
        order: The rows in that order (n,).
        positive: Whether each is a positive (n,).
        closes: Whether each is the last of its score (n,).
    """

    order: NDArray[np.integer[Any]]
    positive: NDArray[np.bool_]
    closes: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: NDArray[Any], scores: NDArray[Any]) -> "Ranking":
        """Return the ranking of labels and scores (n,)."""
        positive = labels == 1
        order = np.lexsort((~positive, -scores))
        ranked = scores[order]
        closes = np.append(ranked[1:] != ranked[:-1], True)
        if len(order) < 2**32:
            order = order.astype(np.uint32)
        return cls(order, positive[order], closes)


def _lanes(block: Counts) -> Counts:
    """Return a block (r, n) of at most 64 resamples as (n, 64), filled up with zeros."""
    lanes = compact(block).T
    if len(block) < LANES:
        lanes = np.pad(lanes, ((0, 0), (0, LANES - len(block))))
    return np.ascontiguousarray(lanes)


@cache
def _kernel() -> Callable[..., None]:
    """Return `_walk` compiled."""
    return compiled(_walk, np.ones((1, 1), bool), np.empty((1, 2, LANES)))


def compiled(function: Callable[..., None], *arguments: Any) -> Callable[..., None]:
    """Return a kernel compiled, and cached on disk if numba finds a place to write.

    `arguments` are examples of its arguments after the ranking and the counts.
    """
    import numba

    def compile_it(keep: bool) -> Callable[..., None]:
        kernel: Callable[..., None] = numba.njit(nogil=True, error_model="numpy", cache=keep)(function)
        kernel(*Ranking.of(np.ones(1), np.ones(1)), np.ones((1, LANES), np.uint8), *arguments)
        return kernel

    try:
        return compile_it(keep=True)
    except (RuntimeError, OSError):  # no writable folder, or the disk is full
        return compile_it(keep=False)


def _walk(
    order: NDArray[np.integer[Any]],
    positive: NDArray[np.bool_],
    closes: NDArray[np.bool_],
    counts: Counts,
    groups: NDArray[np.bool_],
    measured: NDArray[np.float64],
) -> None:
    """Write the PRAUC and AUROC of one label into `measured` (G, 2, 64), for each column of `counts` (n, 64).

    `counts` are in the order of the ranking; `groups` (G, n) says which rows belong to each group. Both
    metrics are sums over the sets of equal scores with positives. AUROC is 1 minus the share of wrongly
    ordered pairs of a positive and a negative; a tied pair is half wrong. Sums of counts are exact in doubles
    up to 2^53.
    """
    n = len(order)
    places = np.empty(n, np.intp)
    last_of_score = np.empty(n, np.intp)  # where the rows of the same score end
    for i in range(n - 1, -1, -1):
        last_of_score[i] = i if closes[i] else last_of_score[i + 1]
    for g in range(len(groups)):
        size = 0
        for i in range(n):
            places[size] = i
            size += groups[g, order[i]]
        true, false, new, precisions, wrong = np.zeros((5, LANES))
        open_set = False  # whether positives of the current score are not summed up yet
        for k in range(size):
            place = places[k]
            drawn = counts[place]
            if positive[place]:
                open_set = True
                for lane in range(LANES):
                    new[lane] += drawn[lane]
                    wrong[lane] += drawn[lane] * false[lane]  # negatives of this score come after it
            else:
                for lane in range(LANES):
                    false[lane] += drawn[lane]
            if open_set and (k == size - 1 or places[k + 1] > last_of_score[place]):
                open_set = False
                for lane in range(LANES):
                    true[lane] += new[lane]
                    precisions[lane] += new[lane] * true[lane] / max(true[lane] + false[lane], 1.0)
                    wrong[lane] += new[lane] * false[lane]
                    new[lane] = 0.0
        for lane in range(LANES):
            pairs = true[lane] * false[lane]
            measured[g, 0, lane] = precisions[lane] / true[lane] if true[lane] > 0 else np.nan
            measured[g, 1, lane] = (pairs - wrong[lane] / 2) / pairs if pairs > 0 else np.nan
