"""Figures show every number they are given, and their files never differ without reason."""

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from drfuse.errors import InputError
from drfuse.evaluation import DecisionPoint, Estimate, MissingPoint, ReliabilityBin
from drfuse.report import Number
from drfuse.report.figures import (
    figure_to_svg,
    intervals_figure,
    labels_figure,
    missing_curve_figure,
    net_benefit_figure,
    reliability_figure,
    representations_figure,
    subgroups_figure,
    write_figure,
)

pytestmark = pytest.mark.filterwarnings("error")

GROUPS = ("EHR shared", "CXR shared", "EHR distinct", "CXR distinct")


def curve(value: float) -> list[MissingPoint]:
    return [
        MissingPoint(share, 0, 0.0, Estimate(value - 0.1 * share, value - 0.2, value + 0.1))
        for share in (0, 0.5, 1)
    ]


def points_of(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.column_stack(line.get_data())]


def lines_of(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each named line."""
    return {str(line.get_label()): points_of(line) for line in axes.get_lines()}


def small_figure() -> Figure:
    return intervals_figure({"DrFuse": {"full": Number(0.42, 0.39, 0.44, paper=0.419)}})


def test_each_representation_is_a_point() -> None:
    rng = np.random.default_rng(0)
    points = {name: rng.normal(size=(5 + place, 2)) for place, name in enumerate(GROUPS)}
    (axes,) = representations_figure(points).axes
    drawn = {str(dots.get_label()): np.asarray(dots.get_offsets()) for dots in axes.collections}
    assert list(drawn) == list(GROUPS)
    for name in GROUPS:
        np.testing.assert_array_equal(drawn[name], points[name])
    assert not any(dots.get_rasterized() for dots in axes.collections)


def test_groups_differ_in_colour_and_shape() -> None:
    figure = representations_figure({name: np.zeros((1, 2)) for name in GROUPS})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(GROUPS)
    assert len({line.get_marker() for line in legend.get_lines()}) == 4
    assert len({line.get_color() for line in legend.get_lines()}) == 4


def test_many_points_become_an_image_within_the_svg() -> None:
    figure = representations_figure({"EHR shared": np.random.default_rng(0).normal(size=(3000, 2))})
    assert figure_to_svg(figure).count("<image") == 1


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(InputError, match="'other' is not a representation"):
        representations_figure({"other": np.zeros((1, 2))})


def test_each_panel_holds_all_lines_and_two_bands() -> None:
    systems = {name: curve(0.3 + 0.01 * place) for place, name in enumerate("abcd")} | {"DrFuse": curve(0.5)}
    panels = missing_curve_figure(systems).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b", "c", "d"]
    for panel in panels:
        assert set(lines_of(panel)) == set(systems)
        np.testing.assert_allclose(lines_of(panel)["DrFuse"], [(0, 0.5), (0.5, 0.45), (1, 0.4)])
        assert len(panel.collections) == 2


@pytest.mark.parametrize("systems", [["DrFuse"], ["MedFuse"]])
def test_a_curve_alone_has_a_panel_of_its_own(systems: list[str]) -> None:
    (panel,) = missing_curve_figure({name: curve(0.4) for name in systems}).axes
    assert panel.get_title(loc="left") == systems[0]
    assert len(panel.collections) == 1


def test_reliability_has_a_panel_a_diagonal_and_bars_for_each_system() -> None:
    bins = [
        ReliabilityBin(0.0, 0.2, 30, 0.1, Estimate(0.2, 0.15, 0.25)),
        ReliabilityBin(0.2, 0.4, 0, np.nan, Estimate(np.nan, np.nan, np.nan)),
        ReliabilityBin(0.6, 0.8, 10, 0.7, Estimate(0.6, 0.5, 0.7)),
    ]
    panels = reliability_figure({"DrFuse": bins, "MedFuse": bins[:1], "empty": []}).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["DrFuse", "MedFuse", "empty"]
    assert [len(panel.get_lines()) for panel in panels] == [2, 2, 1]
    assert [len(panel.patches) for panel in panels] == [2, 1, 0]
    np.testing.assert_allclose(points_of(panels[0].get_lines()[1]), [(0.1, 0.2), (0.7, 0.6)])
    heights = [patch.get_height() for patch in panels[0].patches if isinstance(patch, Rectangle)]
    assert heights[0] / heights[1] == pytest.approx(3)


def test_recalibrated_probabilities_are_hollow_beside_the_raw() -> None:
    raw = [ReliabilityBin(0.0, 0.2, 30, 0.1, Estimate(0.2, 0.15, 0.25))]
    better = [ReliabilityBin(0.0, 0.2, 30, 0.18, Estimate(0.2, 0.15, 0.25))]
    figure = reliability_figure({"DrFuse": raw, "MedFuse": raw}, {"DrFuse": better})
    first, second = figure.axes
    assert [points_of(line)[0] for line in first.get_lines()[1:]] == [(0.1, 0.2), (0.18, 0.2)]
    assert [line.get_markerfacecolor() == "white" for line in first.get_lines()[1:]] == [False, True]
    assert len(second.get_lines()) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["raw logits", "recalibrated"]


def test_net_benefit_is_drawn_with_treating_all_and_none() -> None:
    curve = [
        DecisionPoint(
            threshold, Estimate(value, value - 0.01, value + 0.01), 0.2 - threshold, Estimate(0, 0, 0)
        )
        for threshold, value in ((0.1, 0.2), (0.5, 0.05))
    ]
    panels = net_benefit_figure({"DrFuse": curve, "MedFuse": curve}).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["DrFuse", "MedFuse"]
    none, everyone, system = panels[0].get_lines()
    assert {y for _, y in points_of(none)} == {0}
    assert points_of(everyone) == [(0.1, 0.1), (0.5, -0.3)]
    assert points_of(system) == [(0.1, 0.2), (0.5, 0.05)]
    low, high = panels[0].get_ylim()
    assert low > -0.3
    assert high > 0.21  # treating all may leave the panel


def test_measured_and_published_values_stand_in_every_setting() -> None:
    rows = {
        "MedFuse": {"matched": Number(0.43, 0.4, 0.46, paper=0.427), "full": Number(0.33)},
        "DrFuse": {"matched": Number(0.45, 0.42, 0.5, paper=0.0, paper_low=0.0, paper_high=0.1)},
    }
    matched, full = intervals_figure(rows).axes
    drawn = matched.get_lines()
    assert [points_of(line)[0][0] for line in drawn] == [0.43, 0.427, 0.45, 0.0]
    assert [line.get_markerfacecolor() == "white" for line in drawn] == [False, True, False, True]
    assert len(matched.collections) == 3  # two measured intervals and a published one
    assert [points_of(line)[0][0] for line in full.get_lines()] == [0.33]


def test_phenotypes_are_sorted_and_an_undefined_one_is_last() -> None:
    rows = {
        "low": {"MedFuse": Number(0.3), "DrFuse": Number(0.1)},
        "undefined": {"MedFuse": Number(math.nan), "DrFuse": Number(math.nan)},
        "high": {"MedFuse": Number(0.2), "DrFuse": Number(0.4)},
    }
    (axes,) = labels_figure(rows, {"high": 0.15}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["high", "low", "undefined"]
    drawn = lines_of(axes)
    assert drawn["DrFuse"][:2] == [(0.4, 0), (0.1, 1)]
    assert drawn["MedFuse"][:2] == [(0.2, 0), (0.3, 1)]
    assert drawn["guessing (prevalence)"][0] == (0.15, 0.0)
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first row is the upper one


def test_twelve_systems_look_different() -> None:
    rows = {"Shock": {f"system {n}": Number(n / 20) for n in range(11)} | {"DrFuse": Number(0.6)}}
    (axes,) = labels_figure(rows).axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 12
    assert len({marker for _, marker in looks}) == 12  # in grey print, too


def test_groups_of_patients_carry_their_notes() -> None:
    rows = {
        "sex": {"female": Number(0.4, 0.3, 0.5, note="10 stays"), "male": Number(0.45)},
        "age": {"18–44": Number(0.5)},
    }
    first, second = subgroups_figure(rows).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["female (10 stays)", "male"]
    assert (len(first.get_lines()), len(second.get_lines())) == (2, 1)


@pytest.mark.parametrize(
    "draw",
    [
        missing_curve_figure,
        reliability_figure,
        net_benefit_figure,
        intervals_figure,
        labels_figure,
        subgroups_figure,
    ],
)
def test_nothing_to_draw_is_an_empty_figure(draw: Callable[..., Figure]) -> None:
    assert "<svg" in figure_to_svg(draw({}))


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_figure(small_figure(), tmp_path / folder, "table2")
    for name in ("table2.svg", "table2.png"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first == second
    assert (tmp_path / "first" / "table2.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["table2.png", "table2.svg"]


def test_drawing_a_figure_does_not_change_it() -> None:
    figure = reliability_figure(
        {name: [ReliabilityBin(0.0, 0.2, 30, 0.1, Estimate(0.2, 0.15, 0.25))] for name in "abcde"}
    )
    assert figure_to_svg(figure) == figure_to_svg(figure)


def test_text_is_text_and_nothing_is_dated() -> None:
    hostile = "a & <b> $x$ _y_"
    text = figure_to_svg(intervals_figure({hostile: {"full": Number(0.42)}}))
    texts = [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(text).iter()
        if node.tag.endswith("text")
    ]
    assert hostile in texts
    assert "metadata" not in text
