"""PRAUC and AUROC over resamples, exactly as scikit-learn defines them, ties included."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS_AT_A_TIME = 1_000_000  # of a (resamples, stays) array


def resample(units: ArrayLike, n_resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield how often each of n rows is drawn, in blocks (r, n) that add up to `n_resamples`.

    Whole units are drawn with replacement, as many as there are; the rows of a unit come and go together.

    Args:
        units: The unit of each row (n,): the subject, say, since one person may have many stays.
        n_resamples: How many resamples.
        seed: Seed of the draws.
    """
    names, unit_of_row = np.unique(np.asarray(units), return_inverse=True)
    n_units = len(names)
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _CELLS_AT_A_TIME // max(1, len(unit_of_row)))
    for start in range(0, n_resamples, at_a_time):
        n = min(at_a_time, n_resamples - start)
        drawn = generator.integers(0, n_units, size=(n, n_units)) + n_units * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_units).reshape(n, n_units)
        yield counts.astype(np.int32)[:, unit_of_row]


def prauc_auroc(
    labels: ArrayLike, scores: ArrayLike, blocks: Iterable[NDArray[np.int32]] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC (average precision) and AUROC of each resample and label, both (R, C).

    NaN where the resample has no positive of the label; AUROC also where it has no negative.

    Args:
        labels: (n, C), 0 or 1.
        scores: (n, C), higher for likelier; equal scores are one threshold.
        blocks: How often each row counts, in blocks (r, n) as `resample` yields them; without them each
            row counts once, and R is 1.

    >>> prauc_auroc([[0], [1], [1]], [[0.1], [0.8], [0.05]])
    (array([[0.83333333]]), array([[0.5]]))
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if blocks is None:
        blocks = [np.ones((1, len(labels)), np.int32)]
    rankings = [_Ranking.of(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    pairs = []
    for block in blocks:
        counts = np.ascontiguousarray(block.T)  # (n, r): a row of it is gathered and added at once
        pairs.append([_weighted_prauc_auroc(ranking, counts) for ranking in rankings])
    prauc, auroc = np.concatenate([np.moveaxis(np.array(pair), 0, -1) for pair in pairs], axis=1)
    return prauc, auroc


@dataclass(frozen=True)
class _Ranking:
    """How one label's scores rank n rows, best first; equal scores make a group.

    Attributes:
        order: The rows from the best score on (n,).
        positives: Where the positives stand in that order, ascending (p,).
        first_of_group: The first positive of each group that has one, as an index into `positives`.
        above: Rows that stand before each of those groups.
        through: Rows up to the end of each of those groups.
    """

    order: NDArray[np.intp]
    positives: NDArray[np.intp]
    first_of_group: NDArray[np.intp]
    above: NDArray[np.intp]
    through: NDArray[np.intp]

    @classmethod
    def of(cls, labels: NDArray[Any], scores: NDArray[Any]) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        positives = np.flatnonzero(labels[order] == 1)
        group = np.searchsorted(starts, positives, side="right") - 1
        groups, first_of_group = np.unique(group, return_index=True)
        ends = np.append(starts[1:], len(order))
        return cls(order, positives, first_of_group, starts[groups], ends[groups])


def _weighted_prauc_auroc(
    ranking: _Ranking, counts: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC and AUROC (r,) of one label for each column of `counts` (n, r).

    Both are sums over positives, the second one over the pairs of a positive and a negative that are in the
    right order: so only the groups of equal scores that hold positives are looked at.
    """
    if not len(ranking.positives):
        undefined = np.full(counts.shape[1], np.nan)
        return undefined, undefined
    counted = counts[ranking.order]
    rows = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), counted.cumsum(axis=0, dtype=np.int64)])
    above, through = rows[ranking.above], rows[ranking.through]  # (g, r) rows before and up to each group
    new_true = np.add.reduceat(counted[ranking.positives], ranking.first_of_group, axis=0, dtype=np.int64)
    true = new_true.cumsum(axis=0)
    n_true, n_false = true[-1], rows[-1] - true[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(through > 0, true / through, 0.0)
        prauc = (new_true * precision).sum(axis=0) / n_true
        false, false_above = through - true, above - (true - new_true)
        right = new_true * (n_false - (false + false_above) / 2)  # a tied pair is half right
        auroc = right.sum(axis=0) / (n_true * n_false)
    return prauc, auroc
