"""The figures of all experiments; the same input gives the same bytes."""

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
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from drfuse.errors import InputError
from drfuse.escapes import printable
from drfuse.evaluation import DecisionPoint, Estimate, MissingPoint, ReliabilityBin
from drfuse.files import atomic_file, write_whole
from drfuse.report.tables import Number

HIGHLIGHT = "DrFuse"
INK, QUIET, FAINT = "#1f2933", "#6b7785", "#d9dee4"
ACCENT = "#c2410c"
# Hues of Okabe and Ito (2008), which people with colour vision deficiency can tell apart, darkened where they
# are pale on white. In grey print, the markers tell the systems apart.
HUES = ("#0072b2", "#009e73", "#b0578d", "#a87400", "#3b9fd6", "#555f6b")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
# Light: shared, dark: distinct; blue: EHR, orange: CXR.
REPRESENTATIONS = {
    "EHR shared": ("#56b4e9", "o"),
    "CXR shared": ("#e69f00", "X"),
    "EHR distinct": ("#004c7a", "^"),
    "CXR distinct": ("#b03a00", "s"),
}
HOLLOW: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
MOST_VECTOR_POINTS = 2000  # more points become an image inside the SVG, which is far smaller


@contextmanager
def styled() -> Iterator[None]:
    """Set fonts and colours; decorates every function that draws a figure."""
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
            "savefig.bbox": "tight",  # the titles of the first row touch the edge
        }
    ):
        yield


@styled()
def representations_figure(points: Mapping[str, NDArray[np.floating[Any]]]) -> Figure:
    """Draw the two-dimensional map of the representations (DrFuse, AAAI 2024, Figure 3).

    Args:
        points: The points (N, 2) of some or all of `EHR shared`, `CXR shared`, `EHR distinct` and
            `CXR distinct`.

    Raises:
        InputError: If `points` has another name.
    """
    if unknown := set(points) - set(REPRESENTATIONS):
        raise InputError(f"{min(unknown)!r} is not a representation; expected {', '.join(REPRESENTATIONS)}")
    total = sum(map(len, points.values()))
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for name, (colour, marker) in REPRESENTATIONS.items():
        if name in points:
            x, y = points[name].T
            axes.scatter(
                x,
                y,
                s=float(np.clip(20000 / max(total, 1), 7, 28)),
                c=colour,
                marker=marker,
                linewidths=0,
                alpha=0.7,
                label=name,
                rasterized=total > MOST_VECTOR_POINTS,
            )
            handles.append(Line2D([], [], color=colour, marker=marker, ls="", markersize=7, label=name))
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(handles=handles, loc="outside upper center", ncols=4, handletextpad=0.3)
    return settled(figure)


@styled()
def missing_curve_figure(curves: Mapping[str, Sequence[MissingPoint]]) -> Figure:
    """Draw macro PRAUC over the share of missing radiographs, one panel for each system.

    A panel shows its system and DrFuse in colour with their intervals, and the others as grey lines.
    """
    named = [name for name in curves if name != HIGHLIGHT] or list(curves)
    figure, panels = _panels(named, most_columns=4, height=2.3)
    for axes, own in zip(panels, named, strict=True):
        axes.set_title(own, color=_colour(own))
        for name, curve in curves.items():
            share = [point.share for point in curve]
            value, low, high = _values_and_ends([point.prauc_macro for point in curve])
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
    figure.supxlabel("share of missing radiographs", fontsize=9)
    figure.supylabel("macro PRAUC", fontsize=9)
    if HIGHLIGHT in curves:
        line: dict[str, Any] = {"markersize": 4, "linewidth": 2}
        handles = [
            Line2D([], [], color=ACCENT, marker="o", label=HIGHLIGHT, **line),
            Line2D([], [], color=HUES[0], marker="s", label="the system in the panel's title", **line),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return settled(figure)


@styled()
def reliability_figure(
    curves: Mapping[str, Sequence[ReliabilityBin]],
    recalibrated: Mapping[str, Sequence[ReliabilityBin]] | None = None,
) -> Figure:
    """Draw how often a label occurs at each predicted probability, one panel for each system.

    Perfect calibration is the diagonal. The grey bars show how many predictions are in each bin, relative to
    the fullest bin. Recalibrated probabilities are hollow; a system may lack them.
    """
    hollow: dict[str, Any] = {"color": INK, "linewidth": 0.8, **HOLLOW}
    figure, panels = _panels(curves, most_columns=4)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle="--", zorder=1)
        axes.set_title(name, color=_colour(name))
        if filled := [one for one in curve if one.n_predictions]:
            predicted, count = np.array([(one.predicted, one.n_predictions) for one in filled]).T
            observed, low, high = _values_and_ends([one.observed for one in filled])
            axes.bar(predicted, 0.2 * count / max(count.max(), 1), width=0.035, color=FAINT, zorder=0)
            colour = _colour(name)
            axes.vlines(predicted, low, high, color=colour, linewidth=1.2, zorder=2)
            axes.plot(predicted, observed, color=colour, marker="o", markersize=4, linewidth=1.2, zorder=3)
        if filled := [one for one in (recalibrated or {}).get(name, []) if one.n_predictions]:
            predicted = np.array([one.predicted for one in filled])
            observed, low, high = _values_and_ends([one.observed for one in filled])
            axes.vlines(predicted, low, high, color=INK, linewidth=0.8, zorder=4)
            axes.plot(predicted, observed, zorder=5, **hollow)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    figure.supxlabel("mean predicted probability", fontsize=9)
    figure.supylabel("observed share", fontsize=9)
    if recalibrated:
        handles = [
            Line2D([], [], color=HUES[0], marker="o", markersize=4, linewidth=1.2, label="raw logits"),
            Line2D([], [], label="recalibrated", **hollow),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return settled(figure)


@styled()
def net_benefit_figure(curves: Mapping[str, Sequence[DecisionPoint]]) -> Figure:
    """Draw net benefit over the threshold probability, one panel for each system (decision curves).

    The grey line is treating every stay, the dashed one treating none.
    """
    figure, panels = _panels(curves, most_columns=4, height=2.3)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.set_title(name, color=_colour(name))
        threshold = [point.threshold for point in curve]
        value, low, high = _values_and_ends([point.net_benefit for point in curve])
        treat_all = np.array([point.treat_all for point in curve])
        axes.axhline(0, color=QUIET, linewidth=0.9, linestyle="--", zorder=1)
        axes.plot(threshold, treat_all, color=QUIET, linewidth=1.2, zorder=2)
        axes.fill_between(threshold, low, high, color=_colour(name), alpha=0.18, linewidth=0, zorder=2)
        axes.plot(threshold, value, color=_colour(name), linewidth=2, zorder=4)
        axes.set(xlim=(0, 0.95), xticks=[0, 0.3, 0.6, 0.9])
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    tops = [point.net_benefit.value for curve in curves.values() for point in curve]
    if np.isfinite(tops).any():
        panels[0].set_ylim(
            -0.2 * np.nanmax(tops), 1.2 * np.nanmax(tops)
        )  # shared; treating all goes far below
    figure.supxlabel("threshold probability", fontsize=9)
    figure.supylabel("net benefit", fontsize=9)
    handles = [
        Line2D([], [], color=HUES[0], linewidth=2, label="the system"),
        Line2D([], [], color=QUIET, linewidth=1.2, label="treating all"),
        Line2D([], [], color=QUIET, linewidth=0.9, linestyle="--", label="treating none"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return settled(figure)


@styled()
def intervals_figure(rows: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Draw macro PRAUC with its interval, one panel for each setting and one row for each system (Table 2).

    Args:
        rows: Numbers by system and setting; a system may lack a setting. Measured values are drawn filled,
            the paper's hollow.
    """
    settings = list(dict.fromkeys(setting for numbers in rows.values() for setting in numbers))
    figure, panels = _panels(settings, most_columns=2, height=0.6 + 0.27 * len(rows))
    for axes, setting in zip(panels, settings, strict=True):
        axes.set_title(setting)
        for place, (name, numbers) in enumerate(rows.items()):
            if setting in numbers:
                _draw_interval(axes, place, _colour(name), numbers[setting])
        _name_rows(axes, list(rows))
    figure.supxlabel("macro PRAUC, 95 % interval", fontsize=9)
    if any(number.paper is not None for numbers in rows.values() for number in numbers.values()):
        handles = [
            Line2D([], [], color=INK, marker="o", markersize=5, linewidth=1.8, label="measured"),
            Line2D([], [], color=QUIET, linewidth=0.9, label="the paper", **HOLLOW),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return settled(figure)


@styled()
def labels_figure(
    rows: Mapping[str, Mapping[str, Number]], prevalence: Mapping[str, float] | None = None
) -> Figure:
    """Draw the PRAUC of each label by system, sorted by DrFuse's with the highest on top (Table 3).

    Args:
        rows: PRAUC by label and system; a label may lack a system.
        prevalence: By label, the share of stays that have it, which is the PRAUC of guessing.
    """
    systems = list(dict.fromkeys(system for numbers in rows.values() for system in numbers))
    undefined = Number(np.nan)
    leading = HIGHLIGHT if HIGHLIGHT in systems else systems[-1] if systems else ""
    best = {name: numbers.get(leading, undefined).value for name, numbers in rows.items()}
    order = sorted(rows, key=lambda name: np.nan_to_num(best[name], nan=-1.0), reverse=True)
    figure = Figure(figsize=(9, 1.3 + 0.31 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    values = np.array([[rows[name].get(system, undefined).value for system in systems] for name in order])
    values = values.reshape(len(order), len(systems))  # also when it is empty
    at = np.arange(len(order))
    known = np.isfinite(values).any(axis=1)
    if known.any():
        low, high = np.nanmin(values[known], axis=1), np.nanmax(values[known], axis=1)
        axes.hlines(at[known], low, high, color=FAINT, linewidth=3, zorder=1)
    others = [name for name in systems if name != HIGHLIGHT]
    for system, column in zip(systems, values.T, strict=True):
        look: dict[str, Any] = {"color": ACCENT, "marker": "o", "markersize": 7.5, "zorder": 5}
        if system in others:
            place = others.index(system)
            colour, marker = HUES[place % len(HUES)], MARKERS[place % len(MARKERS)]
            look = {"color": colour, "marker": marker, "markersize": 5, "zorder": 3}
        axes.plot(column, at, linestyle="", mec="white", mew=0.5, label=system, **look)
    if prevalence is not None:
        chance = [prevalence.get(name, np.nan) for name in order]
        look = {"color": QUIET, "marker": "|", "markersize": 9, "zorder": 2}
        axes.plot(chance, at, linestyle="", label="guessing (prevalence)", **look)
    _name_rows(axes, [textwrap.fill(name, 48) for name in order])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="PRAUC")
    axes.set_xlim(left=0)
    columns = min(len(systems) + (prevalence is not None), 6) or 1
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, markerscale=1.1)
    return settled(figure)


@styled()
def advantage_figure(labels: Sequence[str], shares: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw for which share of the stays the radiograph tells more, a row a label and a column a system.

    Args:
        labels: The C labels.
        shares: By system, the share for each label (C,).
    """
    table = np.column_stack(list(shares.values()))
    figure = Figure(figsize=(3.6 + 0.62 * len(shares), 0.9 + 0.24 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    # blue: the EHR tells more, orange: the radiograph, as in the other figures
    colours = LinearSegmentedColormap.from_list("advantage", ["#004c7a", "#f7f7f5", "#b03a00"])
    axes.imshow(table, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(table):
        colour = "white" if abs(share - 0.5) > 0.3 else INK
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(shares)), [textwrap.fill(printable(name), 12) for name in shares])
    axes.set_yticks(range(len(labels)), [textwrap.shorten(printable(name), 44) for name in labels])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("% of stays: orange where the radiograph tells more, blue where the EHR does")
    return settled(figure)


@styled()
def subgroups_figure(rows: Mapping[str, Mapping[str, Number]]) -> Figure:
    """Draw one system's macro AUROC in groups of patients, one panel for each attribute.

    Args:
        rows: AUROC by attribute and group, such as `sex` and `female`; its note, such as the number of stays,
            follows the group's name.
    """
    heights = [len(groups) + 1.2 for groups in rows.values()]
    figure = Figure(figsize=(7.4, 0.6 + 0.27 * sum(heights)), layout="constrained")
    if not rows:
        return figure
    panels = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (attribute, groups) in zip(panels, rows.items(), strict=True):
        axes.set_title(attribute)
        for place, number in enumerate(groups.values()):
            _draw_interval(axes, place, HUES[0], number)
        _name_rows(axes, [f"{name} ({one.note})" if one.note else name for name, one in groups.items()])
    panels[-1].set_xlabel("macro AUROC, 95 % interval")
    return settled(figure)


@styled()
def figure_to_svg(figure: Figure) -> str:
    """Return a figure as an SVG document with real text and without a date."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "\n".join(line.rstrip() for line in printable(written.getvalue()).split("\n")).rstrip() + "\n"


@styled()
def write_figure(figure: Figure, folder: Path, stem: str) -> None:
    """Write a figure to `<stem>.svg` and `<stem>.png` in a folder."""
    write_whole(folder / f"{stem}.svg", figure_to_svg(figure))
    with atomic_file(folder / f"{stem}.png") as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def settled(figure: Figure) -> Figure:
    """Freeze the layout of a figure and return it; otherwise each drawing shifts the layout slightly."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _colour(system: str) -> str:
    return ACCENT if system == HIGHLIGHT else HUES[0]


def _values_and_ends(estimates: Sequence[Estimate]) -> NDArray[np.float64]:
    """Return the values, lower ends and upper ends of estimates (3, n)."""
    return np.array([(one.value, one.low, one.high) for one in estimates]).reshape(-1, 3).T


def _panels(
    names: Collection[str], most_columns: int, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of panels, and one panel for each name.

    Args:
        names: The panels.
        most_columns: Most panels in a row; fewer if that fills the rows more evenly.
        height: Height of a panel in inches; None for panels that are about square.
    """
    n_rows = max(math.ceil(len(names) / most_columns), 1)
    n_columns = max(math.ceil(len(names) / n_rows), 1)
    width = min(9.2, 4.6 * n_columns)
    size = (width, n_rows * (height or width / n_columns) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    panels, unused = list(grid[: len(names)]), grid[len(names) :]
    for axes in unused:
        axes.remove()
    for axes in panels:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, panels


def _draw_interval(axes: Axes, row: int, colour: str, number: Number) -> None:
    """Draw a number with its interval, and the paper's hollow and slightly below."""
    at, below = (row, row) if number.paper is None else (row - 0.17, row + 0.2)
    if number.low is not None and number.high is not None:
        axes.hlines(at, number.low, number.high, color=colour, linewidth=1.8, zorder=3)
    axes.plot(number.value, at, color=colour, marker="o", markersize=5, linestyle="", zorder=4)
    if number.paper is not None:
        if number.paper_low is not None and number.paper_high is not None:
            axes.hlines(below, number.paper_low, number.paper_high, color=QUIET, linewidth=0.9, zorder=2)
        axes.plot(number.paper, below, color=QUIET, linestyle="", zorder=4, **HOLLOW)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows 0, 1, ... of a panel from the top down, DrFuse in bold."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for label in axes.get_yticklabels():
        if label.get_text() == HIGHLIGHT:
            label.set(fontweight="bold", color=ACCENT)
