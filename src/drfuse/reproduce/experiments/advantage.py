"""Which modality each system's own predictions say tells more, stay by stay."""

import logging
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from drfuse.evaluation import modality_advantage
from drfuse.report.figures import advantage_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings, is_not_a_variant
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import System

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]


def advantages_of_systems(results: Results) -> dict[System, Floats]:
    """Return the advantage (S, n, C) of the radiograph in each system's predictions, by seed.

    They are of the systems trained on full, over the matched test stays. Systems that predict nothing from
    one of the modalities alone are left out, as are runs of earlier versions, which did not store these
    predictions.
    """
    found = {}
    for system, runs in results.by_system("full").items():
        rows, of_seeds = runs[0].rows("test", "matched"), []
        for run in runs:
            if run.logits_without_cxr is None or run.logits_without_ehr is None:
                logger.warning(
                    "%s is left out of the table of advantages: a run lacks predictions from one modality "
                    "alone, because of its model or because an earlier version made it",
                    system.title,
                )
                break
            three = (run.logits, run.logits_without_cxr, run.logits_without_ehr)
            of_seeds.append(modality_advantage(*(logits[rows] for logits in three)))
        if len(of_seeds) == len(runs) and np.isfinite(of_seeds).all():
            found[system] = np.array(of_seeds)
    return found


def agreement(of_seeds: Floats) -> float:
    """Return how alike the seeds rank the stays of a label: mean Spearman correlation; NaN with one seed.

    Args:
        of_seeds: The advantage by seed (S, n, C).
    """
    ranks = rankdata(of_seeds, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(ranks).sum(axis=1))  # (S, C)
    pairs = list(combinations(range(len(ranks)), 2))
    with np.errstate(invalid="ignore"):
        correlations = np.array([(ranks[i] * ranks[j]).sum(axis=0) / (scale[i] * scale[j]) for i, j in pairs])
    defined = correlations[np.isfinite(correlations)]  # a label of equal advantages has no ranks
    return float(defined.mean()) if len(defined) else float("nan")


def advantage_table(advantages: Mapping[System, Floats]) -> Table:
    """Return how often the radiograph tells more, how much more on average, and how far seeds agree."""
    rows = []
    for system, of_seeds in advantages.items():
        shares, means = (of_seeds > 0).mean(axis=(1, 2)), of_seeds.mean(axis=(1, 2))
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else None
        numbers = [
            Number(float(shares.mean()), spread=spread),
            Number(float(means.mean())),
            Number(float(of_seeds.std(axis=1).mean())),
            Number(agreement(of_seeds)),
        ]
        rows.append(Row(system.title, numbers))
    return Table(
        key="advantage",
        title="Which modality tells more, by the predictions of each system",
        caption="Over the matched test stays and labels, trained on full. The advantage of the radiograph "
        "is the gain in log-likelihood, in nats, that a system expects when it predicts from the radiograph "
        "alone in place of the EHR alone. Shown: the share above 0 (± standard deviation over seeds), the "
        "mean, the mean standard deviation from stay to stay within a label, and how alike the seeds rank "
        "the stays of a label (Spearman; a solver fits equal seeds). Left out: systems that predict "
        "nothing from one modality alone, or of which a run of an earlier version lacks that.",
        columns=["system", "radiograph tells more", "mean", "from stay to stay", "seeds agree"],
        rows=rows,
    )


def _measure(results: Results) -> Findings:
    advantages = advantages_of_systems(results)
    if not advantages:
        return Findings([])
    shares = {system.title: (of_seeds > 0).mean(axis=(0, 1)) for system, of_seeds in advantages.items()}
    caption = "Share of the stays with a radiograph for which it tells more than the EHR"
    return Findings(
        [advantage_table(advantages)], [(caption, advantage_figure(results.task.label_names, shares))]
    )


EXPERIMENT = Experiment(
    title="Which modality tells more",
    look_for="How far each system leans on the radiograph, and whether that differs from patient to patient.",
    place=65,
    measure=_measure,
    trained_on=["full"],
    takes_part=lambda system: is_not_a_variant(system) and not system.is_unimodal,
)
