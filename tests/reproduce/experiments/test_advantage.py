"""The advantage of the radiograph in made-up predictions, against plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from drfuse.reproduce.experiments import EXPERIMENTS
from drfuse.reproduce.experiments.advantage import advantage_table, advantages_of_systems, agreement
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Predictions
from tests.reproduce.samples import MATCHED_TEST, PHENOTYPES, TEST, by_title, results_of


def advantage_of(run: Predictions) -> np.ndarray:
    assert run.logits_without_cxr is not None
    assert run.logits_without_ehr is not None
    p, ehr, cxr = (
        1 / (1 + np.exp(-logits[MATCHED_TEST[TEST]].astype(float)))
        for logits in (run.logits, run.logits_without_cxr, run.logits_without_ehr)
    )
    return np.asarray(p * np.log(cxr / ehr) + (1 - p) * np.log((1 - cxr) / (1 - ehr)))


def test_the_table_has_shares_means_and_agreement(four_systems: Results) -> None:
    rows = by_title(advantage_table(advantages_of_systems(four_systems)))
    seeds = [advantage_of(run) for run in four_systems.predictions["drfuse", "full"]]
    found = [number.value for number in rows["DrFuse"]]
    of_labels = [spearmanr(seeds[0][:, c], seeds[1][:, c]).statistic for c in range(len(PHENOTYPES))]
    expected = [
        np.mean([(one > 0).mean() for one in seeds]),
        np.mean(seeds),
        np.mean([one.std(axis=0) for one in seeds]),
        np.mean(of_labels),
    ]
    assert found == pytest.approx(expected, rel=1e-5)
    assert not rows.keys() & {paper_systems()[name].title for name in ("transformer", "resnet50")}


def test_one_seed_agrees_with_nothing() -> None:
    assert math.isnan(agreement(np.zeros((1, 5, 2))))
    ranked = np.arange(10.0).reshape(1, 5, 2)
    assert agreement(np.concatenate([ranked, np.exp(ranked)])) == pytest.approx(1)
    assert agreement(np.concatenate([ranked, -ranked])) == pytest.approx(-1)


def test_runs_of_earlier_versions_are_left_out(four_systems: Results) -> None:
    earlier = [replace(one, logits_without_ehr=None) for one in four_systems.predictions["drfuse", "full"]]
    assert advantages_of_systems(results_of({("drfuse", "full"): earlier})) == {}


def test_the_figure_has_a_column_for_each_system(four_systems: Results) -> None:
    ((_, figure),) = EXPERIMENTS["advantage"].measure(four_systems).figures
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["DrFuse"]
    assert [label.get_text() for label in axes.get_yticklabels()] == PHENOTYPES
