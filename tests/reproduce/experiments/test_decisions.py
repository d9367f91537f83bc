"""Net benefit of predictions made by hand: each number against plain loops."""

from pathlib import Path

import numpy as np
import pytest

from drfuse.reproduce.experiments import EXPERIMENTS
from drfuse.reproduce.experiments.decisions import curves_of_systems, net_benefit_table
from drfuse.reproduce.results import Results
from drfuse.reproduce.systems import paper_systems
from tests.reproduce.samples import (
    LINES,
    MATCHED_TEST,
    TEST,
    by_title,
    draw_labels,
    with_recalibrations,
)


def net_benefit(labels: np.ndarray, treated: np.ndarray, threshold: float) -> float:
    true, false = (treated & (labels == 1)).mean(), (treated & (labels == 0)).mean()
    return float(true - false * threshold / (1 - threshold))


@pytest.mark.parametrize("recalibrated", [False, True])
def test_net_benefit_is_the_mean_over_labels_and_seeds(
    four_systems: Results, tmp_path: Path, recalibrated: bool
) -> None:
    maps = {"drfuse": LINES} if recalibrated else {}
    results = with_recalibrations(four_systems, tmp_path, maps)
    table = net_benefit_table(curves_of_systems(results))
    rows = by_title(table)
    assert table.columns == ["system", "5%", "10%", "20%", "30%", "50%"]
    for name, predicted in (("drfuse", TEST), ("resnet50", MATCHED_TEST)):
        title, labels = paper_systems()[name].title, draw_labels()[predicted]
        for t, threshold in enumerate((0.05, 0.1, 0.2, 0.3, 0.5)):
            expected = []
            for seed, run in enumerate(results.predictions[name, "full"]):
                z = run.logits[predicted[TEST]].astype(float)
                if name in maps:
                    z = z * LINES[seed].slopes + LINES[seed].intercepts
                expected.append(net_benefit(labels, 1 / (1 + np.exp(-z)) >= threshold, threshold))
            assert rows[title][t].value == pytest.approx(np.mean(expected))
            everyone = net_benefit(labels, np.ones(labels.shape, bool), threshold)
            assert rows[f"{title}: treating all"][t].value == pytest.approx(everyone)


def test_the_section_has_a_panel_for_each_system(four_systems: Results) -> None:
    ((_, figure),) = EXPERIMENTS["decisions"].measure(four_systems).figures
    titles = [paper_systems()[name].title for name in ("transformer", "resnet50", "drfuse")]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
