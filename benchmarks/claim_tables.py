"""Tables and figures of what `benchmarks/claims.py` measured."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.truths import GROUPS, PARTS, SHARES, Measured
from drfuse.evaluation import holm
from drfuse.evaluation.estimate import Spread
from drfuse.report.figures import ACCENT, HUES, INK, MARKERS, settled, styled, write_figure

Hospitals = Sequence[Mapping[str, Measured]]
"""By system and reader, what was measured on each hospital of a kind."""

OURS = "additive-evidence"
TEST_SETS = {"matched": "matched", "gone": "matched, radiographs removed", "full": "full"}
_PREDICTED_FROM = ("both", "EHR alone", "radiograph alone")
_CORRELATIONS = ("pooled", "between", "within phenotypes", "within stays")
_NO_FUSION = ("logistic-ehr", "logistic-cxr", "logistic-late", "transformer", "resnet50", "late-fusion")
"""What reads one modality, or averages two predictions."""
_HIGHLIGHTED = (OURS, "drfuse", "late-fusion", "logistic-late", "transformer")
_GREY = "#b4bcc6"


def report(measured: Mapping[str, Hospitals], titles: Mapping[str, str], ablations: Mapping[str, str]) -> str:
    """Return all tables as Markdown, those of each kind of hospital under a heading.

    Args:
        measured: By kind of hospital.
        titles: The systems' names in tables.
        ablations: Those of the ablations, which the first hospital of each kind may have.
    """
    lines: list[str] = []
    for kind, hospitals in measured.items():
        lines += [f"## {kind.capitalize()} hospitals", ""]
        systems = {name: titles[name] for name in hospitals[0] if name in titles}
        changed = {name: ablations[name] for name in hospitals[0] if name in ablations}
        perfect = {name: name for name in hospitals[0] if name not in (systems | changed)}
        lines += prauc_table(hospitals, systems | perfect)
        lines += fusion_table(hospitals, systems)
        if OURS in systems:
            lines += [line for one in TEST_SETS for line in gain_table(hospitals, OURS, systems, one)]
        lines += part_table(hospitals, systems, "missing", [f"{100 * share:.0f} %" for share in SHARES])
        if any(hospitals[0][name].numbers.get("products") for name in systems):
            columns = ["a product of both modalities", "no product"]
            lines += part_table(hospitals, systems | perfect, "products", columns)
        lines += weights_table(hospitals, systems)
        lines += part_table(hospitals, systems, "calibration", list(_PREDICTED_FROM))
        lines += part_table(hospitals, systems, "aligned", ["own", "others", "origin"])
        lines += factor_tables(hospitals, systems, perfect)
        if changed:
            lines += ablation_table(hospitals[0], {OURS: titles[OURS], **changed})
    return "\n".join(lines)


_TITLES = {
    "products": "macro PRAUC (matched) of the phenotypes whose log-odds have",
    "missing": "macro PRAUC (matched) with this share of radiographs removed",
    "calibration": "calibration error (matched) of the prediction from",
    "aligned": "shared representations: correlation of a stay's own pair, of two stays', accuracy of a probe",
}


def prauc_table(hospitals: Hospitals, names: Mapping[str, str]) -> list[str]:
    """Return the macro PRAUC of each system on each test set: the mean over hospitals, and each of them."""
    lines = _head("macro PRAUC: mean (hospitals)", TEST_SETS.values())
    for name, title in names.items():
        cells = []
        for test_set in TEST_SETS:
            values = [hospital[name].numbers["prauc"].get(test_set) for hospital in hospitals]
            if None in values:
                cells.append("")
                continue
            each = "; ".join(f"{value:.3f}" for value in values)
            cells.append(f"{np.mean([value for value in values if value is not None]):.3f} ({each})")
        lines.append(_row(title, cells))
    return [*lines, ""]


def gain(hospitals: Hospitals, ours: str, theirs: str, test_set: str) -> Spread | None:
    """Return by how much a system is better; None if one of them does not predict all stays.

    Paired by hospital and resample. Each hospital has a training of its own, so the spread counts stays,
    hospitals and trainings.
    """
    pairs = [
        (hospital[ours].praucs.get(test_set), hospital[theirs].praucs.get(test_set)) for hospital in hospitals
    ]
    differences, drawn = [], []
    for own, other in pairs:
        if own is None or other is None:
            return None
        differences.append(own.values[0] - other.values[0])
        drawn.append(own.resampled[:, 0] - other.resampled[:, 0])
    return Spread.of(differences, np.column_stack(drawn))


def gain_table(hospitals: Hospitals, ours: str, names: Mapping[str, str], test_set: str) -> list[str]:
    """Return by how much a system is better than each other one; the p-values are also corrected by Holm."""
    spreads = {
        name: spread
        for name in names
        if name != ours and (spread := gain(hospitals, ours, name, test_set)) is not None
    }
    corrected = dict(zip(spreads, holm([spread.p for spread in spreads.values()]), strict=True))
    title = f"{names[ours]} less, {TEST_SETS[test_set]}"
    lines = _head(title, ["difference", "95 % interval", "p", "corrected within this table"])
    for name, spread in spreads.items():
        found = spread.estimate(bounded=False)
        interval = f"({found.low:+.3f}, {found.high:+.3f})"
        cells = [f"{found.value:+.3f}", interval, f"{spread.p:.3f}", f"{corrected[name]:.3f}"]
        lines.append(_row(names[name], cells))
    return [*lines, ""]


def fusion_table(hospitals: Hospitals, names: Mapping[str, str]) -> list[str]:
    """Return by how much each fusion is better than what does not fuse, on the matched test set.

    The p-values are corrected by Holm within a column.
    """
    fusions = [name for name in names if name not in _NO_FUSION]
    columns: dict[str, dict[str, str]] = {}
    for other in (name for name in _NO_FUSION if name in names):
        spreads = {
            name: spread
            for name in fusions
            if (spread := gain(hospitals, name, other, "matched")) is not None
        }
        corrected = holm([spread.p for spread in spreads.values()])
        columns[other] = {
            name: f"{found.value:+.3f} ({found.low:+.3f}, {found.high:+.3f}), p {p:.3f}"
            for (name, spread), p in zip(spreads.items(), corrected, strict=True)
            for found in [spread.estimate(bounded=False)]
        }
    lines = _head("matched, less (p corrected within a column)", [names[other] for other in columns])
    for name in fusions:
        lines.append(_row(names[name], [of_column.get(name, "") for of_column in columns.values()]))
    return [*lines, ""]


def part_table(
    hospitals: Hospitals, names: Mapping[str, str], part: str, columns: Sequence[str]
) -> list[str]:
    """Return one part of the numbers, a row a system that has it: means over the hospitals."""
    lines = _head(_TITLES[part], columns)
    for name, title in names.items():
        if not hospitals[0][name].numbers.get(part):
            continue
        means = [_mean(hospitals, name, part, column) for column in columns]
        lines.append(_row(title, ["" if np.isnan(mean) else f"{mean:.3f}" for mean in means]))
    return [*lines, ""]


def weights_table(hospitals: Hospitals, names: Mapping[str, str]) -> list[str]:
    """Return how weights rank with the true advantage, a row for each system and kind of weights."""
    lines = _head("Spearman correlation with the radiograph's true advantage", _CORRELATIONS)

    def add(title: str, name: str, said: str) -> None:
        means = [_mean(hospitals, name, "weights", f"{said} {key}") for key in _CORRELATIONS]
        if not np.isnan(means).all():
            lines.append(_row(title, map(_shown, means)))

    for name, title in names.items():
        add(f"{title}, by its predictions", name, "advantage")
        add(f"{title}, its own weights", name, "own")
    add("perfect readers", next(iter(names)), "knowable")
    return [*lines, ""]


def factor_tables(hospitals: Hospitals, names: Mapping[str, str], readers: Mapping[str, str]) -> list[str]:
    """Return the R2 of a linear probe for the factors from each representation, a table a system.

    The first table has what perfect readers can know of them.
    """
    lines = _head("mean R2 of the best guess by a", [f"{group} factors" for group in GROUPS])
    for reader, title in readers.items():
        means = [_mean(hospitals, reader, "factors", f"shown -> {group}") for group in GROUPS]
        lines.append(_row(title, [f"{mean:.2f}" for mean in means]))
    lines.append("")
    for name, title in names.items():
        if not hospitals[0][name].numbers.get("factors"):
            continue
        lines += _head(f"{title}: mean R2 of a probe from", [f"{group} factors" for group in GROUPS])
        for part in PARTS:
            means = [_mean(hospitals, name, "factors", f"{part} -> {group}") for group in GROUPS]
            lines.append(_row(f"`{part}`", [f"{mean:.2f}" for mean in means]))
        lines.append("")
    return lines


def ablation_table(hospital: Mapping[str, Measured], names: Mapping[str, str]) -> list[str]:
    """Return what one changed part does, on the first hospital."""
    shown = {
        "PRAUC matched": ("prauc", "matched"),
        "removed": ("prauc", "gone"),
        "full": ("prauc", "full"),
        "advantage within phenotypes": ("weights", "advantage within phenotypes"),
        "own weights within phenotypes": ("weights", "own within phenotypes"),
        "pairs' correlation": ("aligned", "own"),
        "modality told": ("aligned", "origin"),
        "shared factors from `shared`": ("factors", "shared -> shared"),
        "shared factors from `ehr_distinct`": ("factors", "ehr_distinct -> shared"),
        "EHR-only from `ehr_shared`": ("factors", "ehr_shared -> EHR-only"),
        "shared factors from `cxr_distinct`": ("factors", "cxr_distinct -> shared"),
        "CXR-only from `cxr_shared`": ("factors", "cxr_shared -> CXR-only"),
    }
    lines = _head("first hospital", shown)
    for name, title in names.items():
        numbers = hospital[name].numbers
        values = [numbers.get(part, {}).get(key, np.nan) for part, key in shown.values()]
        lines.append(_row(title, [_shown(value) for value in values]))
    return [*lines, ""]


def figures(measured: Mapping[str, Hospitals], titles: Mapping[str, str], out: Path) -> None:
    """Write `claims-missing`, what predictions lose, and `claims-weights`, how weights follow the truth."""
    write_figure(missing_figure(measured, titles), out, "claims-missing")
    write_figure(weights_figure(measured, titles), out, "claims-weights")


@styled()
def missing_figure(measured: Mapping[str, Hospitals], titles: Mapping[str, str]) -> Figure:
    """Draw macro PRAUC by the share of radiographs that are removed, a panel for each kind of hospital."""
    figure, panels = _panels(measured, height=3.4, sharey=True)
    for axes, hospitals in zip(panels, measured.values(), strict=True):
        for name in hospitals[0]:
            if name not in titles or not hospitals[0][name].numbers["missing"]:
                continue
            values = [_mean(hospitals, name, "missing", f"{100 * share:.0f} %") for share in SHARES]
            if name in _HIGHLIGHTED:
                k = _HIGHLIGHTED.index(name)
                colour = ACCENT if name == OURS else HUES[k - 1]
                axes.plot(SHARES, values, color=colour, marker=MARKERS[k], label=titles[name], zorder=3)
            else:
                axes.plot(SHARES, values, color=_GREY, linewidth=0.8, zorder=1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel("share of radiographs removed")
    panels[0].set_ylabel("macro PRAUC, matched test set")
    panels[-1].plot([], [], color=_GREY, linewidth=0.8, label="other systems")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return settled(figure)


@styled()
def weights_figure(measured: Mapping[str, Hospitals], titles: Mapping[str, str]) -> Figure:
    """Draw how well weights rank patients within a phenotype, a row a system and a point a hospital."""
    rows = {
        (name, said): f"{titles[name]}{' (its own weights)' if said == 'own' else ''}"
        for hospitals in measured.values()
        for name in hospitals[0]
        if name in titles
        for said in ("advantage", "own")
        if f"{said} within phenotypes" in hospitals[0][name].numbers["weights"]
    }
    figure, panels = _panels(measured, height=0.6 + 0.27 * len(rows), sharey=True)
    for axes, hospitals in zip(panels, measured.values(), strict=True):
        for place, (name, said) in enumerate(rows):
            key = f"{said} within phenotypes"
            values = [one[name].numbers["weights"].get(key, np.nan) for one in hospitals]
            colour = ACCENT if name == OURS else INK if name == "drfuse" else HUES[0]
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.7)
        most = _mean(hospitals, next(iter(titles)), "weights", "knowable within phenotypes")
        axes.axvline(most, color=INK, linewidth=0.8, linestyle="--")
        axes.axvline(0, color=_GREY, linewidth=0.8)
        axes.set_xlabel("Spearman correlation within phenotypes")
        axes.set_yticks(range(len(rows)), list(rows.values()))
    panels[0].invert_yaxis()
    panels[0].plot([], [], color=INK, linewidth=0.8, linestyle="--", label="by the perfect readers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center")
    return settled(figure)


def _panels(names: Iterable[str], height: float, sharey: bool) -> tuple[Figure, list[Axes]]:
    names = list(names)
    figure = Figure(figsize=(1.2 + 3.6 * len(names), height), layout="constrained")
    panels = list(figure.subplots(1, len(names), sharey=sharey, squeeze=False)[0])
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(f"{name} hospitals")
    return figure, panels


def _mean(hospitals: Hospitals, name: str, part: str, key: str) -> float:
    return float(np.mean([hospital[name].numbers[part].get(key, np.nan) for hospital in hospitals]))


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _head(title: str, columns: Iterable[str]) -> list[str]:
    columns = list(columns)
    return [_row(title, columns), "|---" * (len(columns) + 1) + "|"]


def _row(title: str, cells: Iterable[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"
