"""How much worse predictions get without radiographs: macro PRAUC by the share that is removed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from drfuse.errors import InputError
from drfuse.evaluation.estimate import Estimate, Intervals, macro_of_seeds, stack_seeds
from drfuse.evaluation.ranking import prauc_auroc
from drfuse.evaluation.resampling import Resamples, mask_interval, too_few


@dataclass(frozen=True)
class MissingPoint:
    """How well stays are predicted when a share of their radiographs is removed.

    Attributes:
        share: The share.
        n_without_cxr: Number of stays that lost their radiograph.
        n_guessed: Of those, the stays that the model cannot predict and that get the prevalence instead; the
            mean over the draws.
        prauc_macro: Macro PRAUC, the mean over the draws.
    """

    share: float
    n_without_cxr: int
    n_guessed: float
    prauc_macro: Estimate


def missing_curve(
    labels: ArrayLike,
    logits_with: ArrayLike,
    logits_without: ArrayLike,
    units: ArrayLike,
    shares: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    prevalence: ArrayLike | None = None,
    n_draws: int = 5,
    n_resamples: int = 1000,
    seed: int = 0,
    intervals: Intervals = "half-sampling",
) -> list[MissingPoint]:
    """Return the macro PRAUC of n stays with a radiograph by the share of radiographs that is removed.

    Each draw puts the stays in a random order, and a share removes the first radiographs of it, so a larger
    share also removes those of a smaller one. A stay that cannot be predicted without its radiograph gets
    each label's prevalence; for a model of radiographs alone, the PRAUC at share 1 is the prevalence. The
    interval is over stays; draws are averaged, and the same in each resample.

    Args:
        labels: (n, C), 0 or 1.
        logits_with: The logits of each stay with its radiograph (n, C); or those of S seeds (S, n, C), whose
            results are averaged.
        logits_without: The same without the radiograph; NaN where the model then predicts nothing.
        units: The unit of each stay (n,) that is drawn as a whole: the subject.
        shares: Shares of the radiographs to remove, each from 0 to 1.
        prevalence: Prevalence of each label (C,) to guess with, such as that of the training split; by
            default, that of `labels`.
        n_draws: Number of random orders.
        n_resamples: Number of resamples.
        seed: Seed of the orders and the resamples.
        intervals: How to draw the resamples.

    Raises:
        InputError: If a stay has no prediction with its radiograph, a share is not from 0 to 1, or `n_draws`
            is less than 1.
    """
    present, seen, n_seeds = stack_seeds(labels, logits_with)
    _, unseen, _ = stack_seeds(labels, logits_without)
    n, n_columns = present.shape
    if np.isnan(seen).any():
        raise InputError("a stay has no prediction with its radiograph; pass stays with a radiograph only")
    if n_draws < 1 or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"expected at least 1 draw and shares from 0 to 1; got {n_draws} and {list(shares)}")
    prior = np.asarray(labels).mean(axis=0) if prevalence is None else np.asarray(prevalence, np.float64)
    with np.errstate(divide="ignore"):
        guess = np.tile(np.log(prior) - np.log1p(-prior), n_seeds)
    guessed = np.isnan(unseen).any(axis=1)
    fallback = np.where(guessed[:, None], guess, unseen)
    generator = np.random.default_rng(seed)
    places = np.stack([generator.permutation(n) for _ in range(n_draws)])  # each stay's place in each order
    blocks = Resamples.draw(units, n_resamples, seed, intervals)
    few = too_few(labels, units)
    points = []
    for share in shares:
        n_removed = round(share * n)
        n_orders = n_draws if 0 < n_removed < n else 1  # at the ends all orders agree
        removed = places[:n_orders] < n_removed  # (draws, n)
        of_orders = [
            prauc_auroc(present, np.where(lost[:, None], fallback, seen), blocks)[0] for lost in removed
        ]
        prauc = np.stack(of_orders, axis=1).reshape(-1, n_orders * n_seeds, n_columns // n_seeds)
        value, drawn = (
            macro.reshape(-1, n_orders, n_seeds).mean(axis=1) for macro in macro_of_seeds(prauc[0], prauc[1:])
        )
        estimate = mask_interval(Estimate.of(value[0], drawn, intervals), few)
        n_guessed = float((removed & guessed).sum(axis=1).mean())
        points.append(MissingPoint(float(share), n_removed, n_guessed, estimate))
    return points
