"""The demo as a page: models beside perfect ones, their probabilities, and one patient. Loads matplotlib."""

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from drfuse.files import write_whole
from drfuse.report.explanation import explanation_figures, explanation_sections
from drfuse.report.figures import (
    INK,
    REPRESENTATIONS,
    intervals_figure,
    reliability_figure,
    settled,
    styled,
)
from drfuse.report.page import Section, render_page
from drfuse.report.tables import Number, Row, Table

if TYPE_CHECKING:
    from drfuse.demo import Contestant, Demo, Patient

_WEIGHTS = {
    "ehr_distinct": ("record alone", REPRESENTATIONS["EHR distinct"][0]),
    "shared": ("what both show", "#8b959e"),
    "cxr_distinct": ("radiograph alone", REPRESENTATIONS["CXR distinct"][0]),
}


def write_demo_page(demo: "Demo", path: Path) -> None:
    """Write what the demo found as one page that loads nothing."""
    measured = demo.contestants[0].measured["full"]
    facts = [
        ("Test stays", f"{measured.n_stays:,}"),
        ("With radiograph", f"{measured.n_with_cxr:,}"),
        ("Phenotypes", str(len(measured.n_positive))),
        ("Patient shown", str(demo.patient.stay_id)),
    ]
    sections = [
        _comparison(demo.contestants),
        _probabilities(demo.contestants),
        _weights(demo.patient),
        *explanation_sections(demo.explanation, explanation_figures(demo.explanation)),
        _further(demo.folder),
    ]
    write_whole(
        path, render_page("A simulated hospital, and what models read from it", facts, sections, "demo.html")
    )


def _comparison(contestants: "list[Contestant]") -> Section:
    sets = list(dict.fromkeys(on for one in contestants for on in one.measured))
    rows, drawn = [], {}
    for one in contestants:
        cells: list[Number | str] = []
        for on in sets:
            if on in one.measured:
                cells += [Number.of(one.measured[on].prauc_macro), Number.of(one.ceiling[on].prauc_macro)]
            else:
                cells += ["–", "–"]
        rows.append(Row(one.name, cells))
        for name, found in ((one.name, one.measured), (f"perfect reader of {one.reads}", one.ceiling)):
            drawn[name] = {f"{on} test set": Number.of(of.prauc_macro) for on, of in found.items()}
    table = Table(
        "comparison",
        "Macro PRAUC",
        "The mean over the phenotypes. A perfect reader knows how the hospital was simulated, and sees what "
        "the model sees: no model is better, but by chance. Full: all test stays; matched: those with a "
        "radiograph.",
        ["model", *("model" if i % 2 == 0 else "perfect reader" for i in range(2 * len(sets)))],
        rows,
        [("", 1), *((f"{on} test set", 2) for on in sets)],
    )
    figure = intervals_figure(drawn)
    return Section(
        "comparison",
        "How well the models predict",
        "The truth of a simulated hospital is known, so that each model has a best possible one beside it. "
        "What is left between the two is what more patients or a better model could gain.",
        [table],
        [("Macro PRAUC of each model, and of the perfect reader of the same modalities.", figure)],
    )


def _probabilities(contestants: "list[Contestant]") -> Section:
    raw = {one.name: one.measured["matched"].calibration.reliability for one in contestants}
    mapped = {
        one.name: found.reliability
        for one in contestants
        if (found := one.measured["matched"].recalibrated) is not None
    }
    figure = reliability_figure(raw, mapped)
    return Section(
        "probabilities",
        "How far to trust the probabilities",
        "Of the predictions near 30 %, about 30 % should come true. Recalibration learns from the validation "
        "stays how to correct them.",
        figures=[("How often phenotypes occur at each predicted probability, matched test set.", figure)],
    )


def _weights(patient: "Patient") -> Section:
    rows = []
    for row in patient.likeliest.iter_rows(named=True):
        weights = [Number(row[name], digits=2) for name in _WEIGHTS]
        cells = [
            Number(row["probability"], digits=2),
            "yes" if row["present"] else "no",
            *weights,
            _better(row["cxr_advantage"]),
        ]
        rows.append(Row(row["phenotype"], cells))
    table = Table(
        "weights",
        "Likeliest phenotypes",
        "Modality weights are DrFuse's attention. The last column is the truth of the simulation.",
        ["phenotype", "probability", "has it", *(name for name, _ in _WEIGHTS.values()), "truly says more"],
        rows,
    )
    caption = "DrFuse's modality weights; the diamond marks the modality that truly says more."
    return Section(
        "weights",
        f"One patient: stay {patient.stay_id}",
        "The first test stay with a radiograph. Weights follow phenotypes, but hardly patients: see "
        "docs/claims.md before you read them as reasons.",
        [table],
        [(caption, weights_figure(patient.likeliest))],
    )


@styled()
def weights_figure(likeliest: pl.DataFrame) -> Figure:
    """Draw the modality weights of one stay as stacked bars, a row for each phenotype.

    Args:
        likeliest: Rows of `phenotype`, `ehr_distinct`, `shared`, `cxr_distinct` and `cxr_advantage`, as of
            `drfuse.demo.Patient`.
    """
    figure = Figure(figsize=(8.2, 1.1 + 0.42 * len(likeliest)), layout="constrained")
    axes = figure.add_subplot()
    at, left = np.arange(len(likeliest)), np.zeros(len(likeliest))
    for name, (label, colour) in _WEIGHTS.items():
        width = likeliest[name].to_numpy()
        axes.barh(at, width, left=left, height=0.55, color=colour, label=label)
        left = left + width
    better = np.where(likeliest["cxr_advantage"].to_numpy() > 0, 1.03, -0.03)
    axes.plot(better, at, "D", color=INK, markersize=5, linestyle="", clip_on=False)
    axes.set_yticks(at, [textwrap.fill(name, 46) for name in likeliest["phenotype"]])
    axes.tick_params(axis="y", length=0, labelsize=8, pad=20)
    axes.set(xlim=(0, 1), ylim=(len(likeliest) - 0.4, -0.6), xlabel="modality weight")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    diamond = Line2D([], [], color=INK, marker="D", markersize=5, linestyle="", label="truly says more")
    figure.legend(handles=[*handles, diamond], loc="outside upper right", ncols=4)
    return settled(figure)


def _better(cxr_advantage: float) -> str:
    return "radiograph" if cxr_advantage > 0 else "record"


def _further(folder: Path) -> Section:
    return Section(
        "further",
        "Look further",
        f"Every stay, its record, radiograph and predictions: drfuse explore {shlex.quote(str(folder))}\n\n"
        "It needs the extra: pip install '.[explore]', in drfuse's checkout",
    )
