"""An explanation of one prediction in; tables on screen, figures, JSON and a page out. Loads matplotlib."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich import box
from rich.table import Table as ScreenTable

from drfuse.files import atomic_folder, write_whole
from drfuse.report.figures import INK, QUIET, REPRESENTATIONS, settled, styled, write_figure
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Number, Row, Table

if TYPE_CHECKING:
    from drfuse.inference import Explanation
    from drfuse.inference.attributions import Completeness, RecordAttribution

JSON = "explanation.json"
PAGE = "explanation.html"
CONTENTS = {
    JSON,
    PAGE,
    *(f"{stem}.{kind}" for stem in ("modalities", "record", "radiograph") for kind in ("png", "svg")),
}
"""Every file that `write_explanation` may write."""

_MOST_PHENOTYPES = 10  # of the figure of modalities
_MOST_VARIABLES = 8  # of the table on screen
_LONGEST_NAME = 34  # characters of a phenotype on screen
_MOST_HOURS_WITH_VALUES = 60  # more would be too narrow for text
_COLOURS = {"EHR": REPRESENTATIONS["EHR distinct"][0], "radiograph": REPRESENTATIONS["CXR distinct"][0]}
_SIGNED = "RdBu_r"
_MOST_OPAQUE = 0.75
_NAMES = {
    "integrated-gradients": "integrated gradients",
    "gradient-x-input": "gradient times input",
    "occlusion": "occlusion",
    "grad-cam": "Grad-CAM",
    "integrated-gradients-black": "integrated gradients from black",
    "integrated-gradients-grey": "integrated gradients from grey",
}


def write_explanation(explanation: "Explanation", out: Path, overwrite: bool = False) -> None:
    """Write an explanation to a folder: its JSON, its figures as PNG and SVG, and a page.

    Raises:
        InputError: If `out` may not be replaced.
    """
    figures = explanation_figures(explanation)
    with atomic_folder(Path(out), "explanation", JSON, CONTENTS, overwrite) as folder:
        folder.chmod(0o700)  # it holds what was measured in a patient
        text = json.dumps(explanation.as_json(), ensure_ascii=False, allow_nan=False)
        write_whole(folder / JSON, text + "\n")
        for stem, (_, figure) in figures.items():
            write_figure(figure, folder, stem)
        write_whole(folder / PAGE, explanation_page(explanation, figures))


def explanation_figures(explanation: "Explanation") -> dict[str, tuple[str, Figure]]:
    """Return the figures that the explanation has, with their captions, by file stem."""
    of = explanation.phenotype
    figures = {
        "modalities": (
            "Shapley values of the two modalities on the logit of the likeliest phenotypes: how much each "
            "moves it from a mean record without a radiograph. The diamond is their sum.",
            modalities_figure(explanation),
        )
    }
    if explanation.record is not None:
        figures["record"] = (
            f"What each hour of the record contributed to the logit of {of} "
            f"({_NAMES[explanation.record.method]}): red raises it, blue lowers it. Numbers are the values "
            "that were observed; the bars add up their rows.",
            record_figure(explanation),
        )
    if explanation.image is not None:
        figures["radiograph"] = (
            f"The radiograph as the model sees it, and the regions that moved the logit of {of} "
            f"({_NAMES[explanation.image.method]}): red raises it, blue lowers it.",
            radiograph_figure(explanation),
        )
    return figures


@styled()
def modalities_figure(explanation: "Explanation") -> Figure:
    """Draw the Shapley values of both modalities for the likeliest phenotypes, and for the one explained."""
    shown = _likeliest(explanation)[:_MOST_PHENOTYPES]
    c = explanation.phenotypes.index(explanation.phenotype)
    if c not in shown:
        shown = [*shown[:-1], c]
    values = explanation.shapley[shown]
    figure = Figure(figsize=(8.2, 1.2 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    at = np.arange(len(shown))
    for (name, colour), of_modality, shift in zip(_COLOURS.items(), values.T, (-0.19, 0.19), strict=True):
        axes.barh(at + shift, np.nan_to_num(of_modality), height=0.34, color=colour, label=name)
    axes.plot(values.sum(axis=1), at, "D", color=INK, markersize=4, linestyle="", label="both", zorder=4)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    names = [
        f"{textwrap.fill(explanation.phenotypes[i], 46)}  {explanation.probabilities['both'][i]:.0%}"
        for i in shown
    ]
    axes.set_yticks(at, names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.get_yticklabels()[shown.index(c)].set_fontweight("bold")
    axes.set(xlabel="change of the logit")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=3)
    return settled(figure)


@styled()
def record_figure(explanation: "Explanation") -> Figure:
    """Draw hours by variables, the variable that moved the logit most on top, and each variable's sum.

    Raises:
        ValueError: If the explanation has no record.
    """
    found = explanation.record
    if found is None:
        raise ValueError("the explanation has no attributions of the record")
    order = np.argsort(-np.abs(found.variables), kind="stable")
    hours, values = found.hours[:, order].T, explanation.values[:, order].T
    n_hours = hours.shape[1]
    figure = Figure(
        figsize=(3.6 + max(0.22 * min(n_hours, _MOST_HOURS_WITH_VALUES), 3), 5.4), layout="constrained"
    )
    grid, bars = figure.subplots(1, 2, sharey=True, width_ratios=(6, 1))
    limit = _limit(hours)
    image = grid.imshow(
        hours,
        cmap=_SIGNED,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=(0, n_hours, len(order) - 0.5, -0.5),
    )
    if n_hours <= _MOST_HOURS_WITH_VALUES:
        for v, hour in zip(*np.nonzero(np.isfinite(values)), strict=True):
            dark = abs(hours[v, hour]) > 0.6 * limit
            grid.text(
                hour + 0.5,
                v,
                _short(values[v, hour]),
                fontsize=4.2,
                ha="center",
                va="center",
                color="white" if dark else INK,
            )
    grid.set_yticks(range(len(order)), [_with_unit(explanation, v) for v in order])
    grid.tick_params(axis="y", length=0, labelsize=8)
    grid.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    grid.set(xlabel="hours after ICU admission")
    grid.grid(visible=False)
    totals = found.variables[order]
    bars.barh(range(len(order)), totals, height=0.7, color=np.where(totals > 0, "#b2182b", "#2166ac"))
    bars.axvline(0, color=QUIET, linewidth=0.8)
    bars.tick_params(axis="y", length=0, labelleft=False)
    bars.xaxis.set_major_locator(MaxNLocator(3))
    bars.set(xlabel="all hours")
    bars.grid(axis="y", visible=False)
    figure.colorbar(image, ax=bars, label="change of the logit", shrink=0.6, aspect=30)
    figure.suptitle(f"{explanation.phenotype}: the record", x=0.01, ha="left", fontsize=10, fontweight="bold")
    return settled(figure)


@styled()
def radiograph_figure(explanation: "Explanation") -> Figure:
    """Draw the radiograph, and again under the map of the regions that moved the logit.

    Raises:
        ValueError: If the explanation has no map.
    """
    if explanation.image is None or explanation.cxr is None:
        raise ValueError("the explanation has no map of a radiograph")
    pixels, limit = explanation.image.pixels, _limit(explanation.image.pixels)
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for axes in panels:
        axes.imshow(explanation.cxr, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    opacity = _MOST_OPAQUE * np.clip(np.abs(pixels) / limit, 0, 1)
    image = panels[1].imshow(pixels, cmap=_SIGNED, vmin=-limit, vmax=limit, alpha=opacity)
    colours = ScalarMappable(image.norm, image.cmap)  # those of the image are as faint as its pixels
    bar = figure.colorbar(colours, ax=panels[1], shrink=0.8, ticks=[-limit, 0, limit])
    bar.set_ticklabels(["lowers", "0", "raises"])
    figure.suptitle(
        f"{explanation.phenotype}: the radiograph", x=0.01, ha="left", fontsize=10, fontweight="bold"
    )
    return settled(figure)


def explanation_tables(explanation: "Explanation") -> list[ScreenTable]:
    """Return tables for 100 columns: of all phenotypes, then of the variables behind the one explained."""
    tables = [_phenotypes_on_screen(explanation)]
    if explanation.record is not None:
        tables.append(_variables_on_screen(explanation, explanation.record))
    return tables


def explanation_page(explanation: "Explanation", figures: dict[str, tuple[str, Figure]]) -> str:
    """Return a page that holds everything and loads nothing."""
    c = explanation.phenotypes.index(explanation.phenotype)
    given = explanation.probabilities
    facts = [
        ("Stay", str(explanation.stay_id)),
        ("Model", explanation.model),
        ("Radiograph", "yes" if explanation.has_cxr else "no"),
        ("Phenotype explained", explanation.phenotype),
        ("Its probability", _percent(given["both"][c])),
    ]
    title = f"Why {explanation.model} predicts what it predicts for stay {explanation.stay_id}"
    return render_page(title, facts, explanation_sections(explanation, figures), "explanation.html")


def explanation_sections(explanation: "Explanation", figures: dict[str, tuple[str, Figure]]) -> list[Section]:
    """Return the sections of the page, which the demo's page shows as well."""
    sections = [
        Section(
            "modalities",
            "What each modality contributes",
            "Each phenotype is predicted four times: as the stay is, without its radiograph, with its record "
            "reduced to the mean, and without both. The Shapley values of the two modalities follow exactly.",
            [_phenotypes_in_page(explanation)],
            [figures["modalities"]],
        )
    ]
    if explanation.record is not None:
        sections.append(
            Section(
                "record",
                "The record",
                f"Hours and variables by {_NAMES[explanation.record.method]}, given the radiograph, if there "
                f"is one. {_sum_in_words(explanation.record.completeness)}",
                [_variables_in_page(explanation, explanation.record)],
                [figures["record"]],
            )
        )
    if explanation.image is not None:
        of = explanation.image.completeness
        says = "Grad-CAM says where, but not how much." if of is None else _sum_in_words(of)
        sections.append(
            Section(
                "radiograph",
                "The radiograph",
                f"Regions by {_NAMES[explanation.image.method]}, given the record. {says}",
                figures=[figures["radiograph"]],
            )
        )
    notes = [
        *explanation.notes,
        "Attributions say what moved the model, not what is wrong with the patient. docs/explanations.md "
        "says how often they point at what truly did.",
    ]
    sections.append(Section("notes", "Read with care", "\n\n".join(notes)))
    return sections


def _phenotypes_on_screen(explanation: "Explanation") -> ScreenTable:
    table = ScreenTable(
        title=f"Stay {explanation.stay_id}: probabilities, modality weights and Shapley values",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("phenotype", overflow="fold")  # it wraps where the terminal is narrower
    heads = ["prob.", "no CXR", "mean EHR"]
    heads += ["w EHR", "shared", "w CXR"] if explanation.modality_weights is not None else []
    for head in [*heads, "EHR", "CXR"]:
        table.add_column(head, justify="right", no_wrap=True)
    for c in _likeliest(explanation):
        cells = [_percent(explanation.probabilities[given][c]) for given in ("both", "ehr", "cxr")]
        if explanation.modality_weights is not None:
            cells += [f"{weight:.2f}" for weight in explanation.modality_weights[c]]
        cells += [_signed(value) for value in explanation.shapley[c]]
        name = explanation.phenotypes[c]
        shown = textwrap.shorten(name, _LONGEST_NAME, placeholder=" …")
        table.add_row(shown, *cells, style="bold" if name == explanation.phenotype else None)
    table.caption = (
        "no CXR: without the radiograph; mean EHR: with the record reduced to its mean; EHR, CXR: Shapley "
        "values on the logit"
    )
    return table


def _variables_on_screen(explanation: "Explanation", found: "RecordAttribution") -> ScreenTable:
    table = ScreenTable(
        title=f"What moved the EHR side of {explanation.phenotype} ({_NAMES[found.method]})",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("variable", overflow="fold")
    for head in ("logit", "lowest", "last", "highest", "observed", "strongest hours"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in _variable_rows(explanation, found)[:_MOST_VARIABLES]:
        table.add_row(*row)
    table.caption = _sum_in_words(found.completeness)
    return table


def _variable_rows(explanation: "Explanation", found: "RecordAttribution") -> list[list[str]]:
    """Return each variable's name, contribution, observed values and strongest hours, the strongest first."""
    rows = []
    for v in np.argsort(-np.abs(found.variables), kind="stable"):
        seen = explanation.values[np.isfinite(explanation.values[:, v]), v]
        numbers = [_short(one) for one in (seen.min(), seen[-1], seen.max())] if len(seen) else ["–"] * 3
        strongest = np.argsort(-np.abs(found.hours[:, v]), kind="stable")[:3]
        hours = ", ".join(str(hour) for hour in np.sort(strongest)) if found.hours[:, v].any() else "–"
        rows.append(
            [_with_unit(explanation, v), _signed(found.variables[v]), *numbers, f"{len(seen)} h", hours]
        )
    return rows


def _phenotypes_in_page(explanation: "Explanation") -> Table:
    weights, given = explanation.modality_weights, explanation.probabilities
    groups = [("", 1), ("probability", 4), ("Shapley value", 2)]
    columns = ["phenotype", "as it is", "no radiograph", "mean record", "neither", "EHR", "radiograph"]
    if weights is not None:
        groups.append(("modality weight", 3))
        columns += ["EHR", "shared", "CXR"]
    rows = []
    for c in _likeliest(explanation):
        cells = [Number(float(given[what][c])) for what in ("both", "ehr", "cxr", "neither")]
        cells += [Number(float(value)) for value in explanation.shapley[c]]
        if weights is not None:
            cells += [Number(float(weight), digits=2) for weight in weights[c]]
        rows.append(Row(explanation.phenotypes[c], cells))
    caption = "The likeliest first. Shapley values are changes of the logit, and add up to that of both."
    return Table("phenotypes", "All phenotypes", caption, columns, rows, groups)


def _variables_in_page(explanation: "Explanation", found: "RecordAttribution") -> Table:
    columns = ["variable", "logit", "lowest", "last", "highest", "observed", "strongest hours"]
    rows = [Row(row[0], row[1:]) for row in _variable_rows(explanation, found)]
    caption = f"What each variable contributed to the logit of {explanation.phenotype}, over all hours."
    return Table("variables", "Variables", caption, columns, rows)


def _likeliest(explanation: "Explanation") -> list[int]:
    """Return the numbers of the phenotypes, the likeliest first."""
    order: list[int] = np.argsort(-explanation.probabilities["both"], kind="stable").tolist()
    return order


def _sum_in_words(of: "Completeness") -> str:
    steps = f" after {of.steps} steps" if of.steps else ""
    return (
        f"They add up to {of.total:+.3f}{steps}; the logit differs by {of.difference:+.3f} from that of the "
        f"baseline, so the gap is {of.gap:+.3f} ({of.share:.1%})."
    ).replace("-", "−")


def _with_unit(explanation: "Explanation", v: int) -> str:
    variable = explanation.variables[v]
    name = variable.name.replace("_", " ")
    return f"{name} ({variable.unit})" if variable.unit and variable.kind == "continuous" else name


def _limit(values: NDArray[np.float64]) -> float:
    """Return a bound that few values exceed, above 0."""
    return float(max(np.quantile(np.abs(values), 0.995), 1e-9))


def _short(value: Any) -> str:
    """Return a value with three digits that count at most.

    >>> _short(7.3812), _short(121.4), _short(4.0)
    ('7.38', '121', '4')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(probability: Any) -> str:
    return f"{probability:.0%}" if np.isfinite(probability) else "–"


def _signed(value: Any) -> str:
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "–"
