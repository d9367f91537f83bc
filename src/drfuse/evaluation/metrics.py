"""PRAUC and AUROC over resamples, exactly as scikit-learn defines them, ties included."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS_AT_A_TIME = 4_000_000  # of a (resamples, stays) array


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
    pairs = [
        [_weighted_prauc_auroc(labels[:, c], scores[:, c], counts) for c in range(labels.shape[1])]
        for counts in blocks
    ]
    prauc, auroc = np.concatenate([np.moveaxis(np.array(pair), 0, -1) for pair in pairs], axis=1)
    return prauc, auroc


def _weighted_prauc_auroc(
    labels: NDArray[Any], scores: NDArray[Any], counts: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PRAUC and AUROC (r,) of one label (n,) for each row of `counts` (r, n)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # one threshold a score
    counted = counts[:, order]
    n_above = counted.cumsum(axis=1)[:, last_of_ties].astype(np.float64)
    true = (counted * (labels[order] == 1)).cumsum(axis=1)[:, last_of_ties].astype(np.float64)
    false = n_above - true
    new_true, new_false = (np.diff(hits, axis=1, prepend=0.0) for hits in (true, false))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(n_above > 0, true / n_above, 0.0)
        prauc = (new_true * precision).sum(axis=1) / true[:, -1]
        auroc = (new_false * (true - new_true / 2)).sum(axis=1) / (true[:, -1] * false[:, -1])
    return prauc, auroc
