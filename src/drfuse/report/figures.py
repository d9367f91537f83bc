"""The paper's figures and those of the further experiments; the same input gives the same bytes."""

import io
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from drfuse.errors import InputError
from drfuse.evaluation import Estimate, MissingPoint, ReliabilityBin
from drfuse.files import atomic_file, write_whole
from drfuse.report.tables import Number

HIGHLIGHT = "DrFuse"
INK, QUIET, FAINT = "#1f2933", "#6b7785", "#d9dee4"
ACCENT = "#c2410c"
# Hues of Okabe and Ito (2008), which people with a colour vision deficiency tell apart, darkened where they
# are pale on white; the markers tell the systems apart in grey print.
HUES = ("#0072b2", "#009e73", "#b0578d", "#a87400", "#3b9fd6", "#555f6b")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
# Light is shared and dark is distinct; blue is of the record and orange of the radiograph.
REPRESENTATIONS = {
    "EHR shared": ("#56b4e9", "o"),
    "CXR shared": ("#e69f00", "X"),
    "EHR distinct": ("#004c7a", "^"),
    "CXR distinct": ("#b03a00", "s"),
}
MOST_VECTOR_POINTS = 2000  # more of them are an image within the SVG, which is smaller by far


@contextmanager
def styled() -> Iterator[None]:
    """Give figures their fonts and colours: every function that draws one is decorated with it."""
    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "drfuse",
            "text.parse_math": False,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "axes.edgecolor": QUIET,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.dpi": 200,
            "savefig.bbox": "tight",  # titles of the first row stand at the very edge
        }
    ):
        yield


@styled()
def representations_figure(points: Mapping[str, NDArray[np.floating[Any]]]) -> Figure:
    """Draw the two-dimensional map of the representations (DrFuse, AAAI 2024, Figure 3).

    Args:
        points: Of `EHR shared`, `CXR shared`, `EHR distinct` and `CXR distinct`, or some of them: the points
            (N, 2). A stay without a radiograph has no CXR points.

    Raises:
        InputError: If a group has another name.
    """
    if unknown := set(points) - set(REPRESENTATIONS):
        raise InputError(f"no group is named {min(unknown)!r}; expected {', '.join(REPRESENTATIONS)}")
    total = sum(map(len, points.values()))
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.add_subplot()
    for name, (colour, marker) in REPRESENTATIONS.items():
        if name in points:
            axes.scatter(
                points[name][:, 0],
                points[name][:, 1],
                s=float(np.clip(20000 / max(total, 1), 7, 28)),
                c=colour,
                marker=marker,
                linewidths=0,
                alpha=0.7,
                label=name,
                rasterized=total > MOST_VECTOR_POINTS,
            )
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axes.set_aspect("equal", adjustable="datalim")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=name)
        for name, (colour, marker) in REPRESENTATIONS.items()
        if name in points
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, handletextpad=0.3)
    return settled(figure)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    """Return a number and the ends of its interval."""
    return estimate.value, estimate.low, estimate.high


@styled()
def missing_curve_figure(curves: Mapping[str, Sequence[MissingPoint]]) -> Figure:
    """Draw macro PRAUC over the share of radiographs taken away, a panel for each system.

    Each panel holds its system's line and band, those of DrFuse, and all other lines in grey.
    """
    named = [name for name in curves if name != HIGHLIGHT] or list(curves)
    figure, panels = _panels(named, most_columns=4, height=2.3)
    drawn = {
        name: np.array([(one.share, *_ends(one.prauc_macro)) for one in curve]).reshape(-1, 4).T
        for name, curve in curves.items()
    }
    for axes, own in zip(panels, named, strict=True):
        axes.set_title(own, color=_colour(own))
        for name, (share, value, low, high) in drawn.items():
            if name in (own, HIGHLIGHT):
                axes.fill_between(share, low, high, color=_colour(name), alpha=0.18, linewidth=0, zorder=2)
                style: dict[str, Any] = {"color": _colour(name), "linewidth": 2, "zorder": 4}
                style |= {"marker": "o" if name == HIGHLIGHT else "s", "markersize": 4}
            else:
                style = {"color": "#b4bcc6", "linewidth": 0.8, "zorder": 1}
            axes.plot(share, value, label=name, **style)
        axes.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.grid(axis="x", visible=False)
    figure.supxlabel("share of the radiographs taken away", fontsize=9)
    figure.supylabel("macro PRAUC", fontsize=9)
    if HIGHLIGHT in curves:
        handles = [
            Line2D([], [], color=_colour(name), marker=marker, markersize=4, linewidth=2, label=label)
            for name, marker, label in (
                (HIGHLIGHT, "o", HIGHLIGHT),
                ("", "s", "the system named above its panel"),
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return settled(figure)


@styled()
def reliability_figure(curves: Mapping[str, Sequence[ReliabilityBin]]) -> Figure:
    """Draw how often predicted probabilities come true, a panel for each system.

    On the diagonal, three in ten of the stays predicted at 30 % have the label. The grey bars show how many
    predictions are in each bin, relative to the fullest.
    """
    figure, panels = _panels(curves, most_columns=4)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle="--", zorder=1)
        axes.set_title(name, color=_colour(name))
        if filled := [one for one in curve if one.n_predictions]:
            predicted, count = np.array([(one.predicted, one.n_predictions) for one in filled]).T
            observed, low, high = np.array([_ends(one.observed) for one in filled]).T
            axes.bar(predicted, 0.2 * count / max(count.max(), 1), width=0.035, color=FAINT, zorder=0)
            colour = _colour(name)
            axes.vlines(predicted, low, high, color=colour, linewidth=1.2, zorder=2)
            axes.plot(predicted, observed, color=colour, marker="o", markersize=4, linewidth=1.2, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.supxlabel("mean predicted probability", fontsize=9)
    figure.supylabel("share that came true", fontsize=9)
    return settled(figure)


@styled()
def intervals_figure(rows: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Draw macro PRAUC with its interval, a panel for each setting and a line for each system (Table 2).

    Args:
        rows: By system and setting: what was measured, filled, and what the paper published, hollow. A system
            may lack a setting.
    """
    settings = list(dict.fromkeys(setting for numbers in rows.values() for setting in numbers))
    figure, panels = _panels(settings, most_columns=2, height=0.6 + 0.27 * len(rows))
    names = list(rows)
    for axes, setting in zip(panels, settings, strict=True):
        axes.set_title(setting)
        numbers = [
            (place, name, row[setting]) for place, (name, row) in enumerate(rows.items()) if setting in row
        ]
        _forest(axes, [(place, _colour(name), number) for place, name, number in numbers])
        _name_rows(axes, names)
    figure.supxlabel("macro PRAUC, 95 % interval", fontsize=9)
    _legend_of_forest(figure, [number for row in rows.values() for number in row.values()])
    return settled(figure)


@styled()
def labels_figure(
    rows: Mapping[str, Mapping[str, Number]], prevalence: Mapping[str, float] | None = None
) -> Figure:
    """Draw the PRAUC of each label by system, the best predicted by DrFuse on top (Table 3).

    Args:
        rows: By label and system: the PRAUC.
        prevalence: Of each label: the share of stays that have it, which is the PRAUC of guessing.
    """
    systems = list(dict.fromkeys(system for numbers in rows.values() for system in numbers))
    looks = _looks(systems)
    leading = HIGHLIGHT if HIGHLIGHT in systems else systems[-1] if systems else ""
    best = {name: numbers[leading].value for name, numbers in rows.items() if leading in numbers}
    order = sorted(rows, key=lambda name: np.nan_to_num(best.get(name, np.nan), nan=-1.0), reverse=True)
    figure = Figure(figsize=(9, 1.3 + 0.31 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    values = np.array(
        [
            [rows[name][system].value if system in rows[name] else np.nan for system in systems]
            for name in order
        ]
    ).reshape(len(order), len(systems))
    at = np.arange(len(order))
    known = np.isfinite(values).any(axis=1)
    if known.any():
        low, high = np.nanmin(values[known], axis=1), np.nanmax(values[known], axis=1)
        axes.hlines(at[known], low, high, color=FAINT, linewidth=3, zorder=1)
    for system, column in zip(systems, values.T, strict=True):
        colour, marker = looks[system]
        axes.plot(
            column,
            at,
            color=colour,
            marker=marker,
            linestyle="",
            markersize=7.5 if system == HIGHLIGHT else 5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=system,
            zorder=5 if system == HIGHLIGHT else 3,
        )
    if prevalence is not None:
        chance = [prevalence.get(name, np.nan) for name in order]
        axes.plot(
            chance,
            at,
            color=QUIET,
            marker="|",
            linestyle="",
            markersize=9,
            label="guessing (prevalence)",
            zorder=2,
        )
    _name_rows(axes, [textwrap.fill(name, 48) for name in order])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="PRAUC")
    axes.set_xlim(left=0)
    columns = min(len(systems) + (prevalence is not None), 6) or 1
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, markerscale=1.1
    )
    return settled(figure)


@styled()
def subgroups_figure(rows: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Draw one system's macro AUROC in groups of patients, a panel for each way of grouping.

    Args:
        rows: By the way of grouping and the group, such as `sex` and `female`: what was measured; a note,
            such as the count of stays, stands beside the group's name.
    """
    heights = [len(groups) + 1.2 for groups in rows.values()]
    figure = Figure(figsize=(7.4, 0.6 + 0.27 * sum(heights)), layout="constrained")
    if not rows:
        return figure
    panels = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (grouping, groups) in zip(panels, rows.items(), strict=True):
        axes.set_title(grouping)
        _forest(axes, [(row, HUES[0], number) for row, number in enumerate(groups.values())])
        named = [f"{name} ({number.note})" if number.note else name for name, number in groups.items()]
        _name_rows(axes, named)
    panels[-1].set_xlabel("macro AUROC, 95 % interval")
    return settled(figure)


@styled()
def figure_to_svg(figure: Figure) -> str:
    """Return a figure as an SVG document, in which text stays text and no date is written."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


@styled()
def write_figure(figure: Figure, folder: Path, stem: str) -> None:
    """Write a figure into a folder, as `<stem>.svg` and `<stem>.png`."""
    write_whole(folder / f"{stem}.svg", figure_to_svg(figure))
    with atomic_file(folder / f"{stem}.png") as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})


def settled(figure: Figure) -> Figure:
    """Fix the layout of a figure, because each drawing would otherwise shift it slightly."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _colour(system: str) -> str:
    return ACCENT if system == HIGHLIGHT else HUES[0]


def _looks(systems: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and marker of each system: DrFuse alone has a warm colour."""
    others = [name for name in systems if name != HIGHLIGHT]
    looks = {
        name: (HUES[place % len(HUES)], MARKERS[place % len(MARKERS)]) for place, name in enumerate(others)
    }
    return looks | {HIGHLIGHT: (ACCENT, "o")}


def _panels(
    names: Collection[str], most_columns: int, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of a grid of panels, and as many of them as there are names.

    Args:
        names: Of the panels.
        most_columns: Panels in a row, or fewer where that leaves no row nearly empty.
        height: Of a panel in inches; without it, panels are about square.
    """
    n_rows = max(math.ceil(len(names) / most_columns), 1)
    n_columns = max(math.ceil(len(names) / n_rows), 1)
    width = min(9.2, 4.6 * n_columns)
    size = (width, n_rows * (height or width / n_columns) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.remove()
    for axes in grid[: len(names)]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, list(grid[: len(names)])


def _forest(axes: Axes, lines: Sequence[tuple[int, str, Number]]) -> None:
    """Draw numbers with their intervals, each in its row; the paper's are hollow and a little lower."""
    for row, colour, number in lines:
        at, below = (row, row) if number.paper is None else (row - 0.17, row + 0.2)
        if number.low is not None and number.high is not None:
            axes.hlines(at, number.low, number.high, color=colour, linewidth=1.8, zorder=3)
        axes.plot(number.value, at, color=colour, marker="o", markersize=5, linestyle="", zorder=4)
        if number.paper is None:
            continue
        if number.paper_low is not None and number.paper_high is not None:
            axes.hlines(below, number.paper_low, number.paper_high, color=QUIET, linewidth=0.9, zorder=2)
        hollow: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
        axes.plot(number.paper, below, color=QUIET, linestyle="", zorder=4, **hollow)


def _legend_of_forest(figure: Figure, numbers: Sequence[Number]) -> None:
    if any(number.paper is not None for number in numbers):
        handles = [
            Line2D([], [], color=INK, marker="o", markersize=5, linewidth=1.8, label="measured"),
            Line2D(
                [], [], color=QUIET, marker="D", markersize=4.5, markerfacecolor="white", linewidth=0.9,
                label="the paper",
            ),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper right", ncols=2)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of a panel from the top down, DrFuse in bold."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for label in axes.get_yticklabels():
        if label.get_text() == HIGHLIGHT:
            label.set(fontweight="bold", color=ACCENT)
