"""How a cohort differs from the paper's, for the captions of tables that show the paper's numbers."""

from typing import Any

from drfuse.data import Cohort
from drfuse.reproduce import paper

# the options of `drfuse prepare` that match section 4.1 and the published extraction
_WINDOW_HOURS, _PRESET, _VIEW = 48, "benchmark", ["AP"]


def differences(cohort: Cohort) -> str:
    """Return the differences as two sentences, read from the cohort's manifest."""
    options = cohort.manifest.options
    n_stays, n_with_cxr = paper.stays()
    parts = [
        _source(cohort.manifest.sources),
        f"{len(cohort):,} stays, {int(cohort.stays['has_cxr'].sum()):,} with a radiograph "
        f"(the paper: {n_stays:,} and {n_with_cxr:,})",
        _labels(cohort),
    ]
    if (hours := options.get("window_hours", _WINDOW_HOURS)) != _WINDOW_HOURS:
        parts.append(f"a window of {hours} hours (the paper: {_WINDOW_HOURS})")
    if (preset := options.get("preset", _PRESET)) != _PRESET:
        parts.append(f"variables of the preset {preset} (published code: {_PRESET})")
    if (view := options.get("view", _VIEW)) != _VIEW:
        parts.append(f"radiographs of the views {', '.join(view)} (the paper: {', '.join(_VIEW)})")
    split = options.get("split_file")
    parts.append(f"the split of {split}" if split else "a random split of its own")
    return f"The paper's numbers come from another cohort. This one: {'; '.join(filter(None, parts))}."


def _source(sources: dict[str, Any]) -> str:
    if any(source.get("simulated") for source in sources.values()):
        return "simulated records and radiographs"
    return " and ".join(f"{one.get('folder')}, release {one.get('release')}" for one in sources.values())


def _labels(cohort: Cohort) -> str:
    """Return how the labels are defined and, unless all 25 are the paper's, how many are."""
    file = cohort.manifest.options.get("phenotypes")
    defined = (
        f"labels by {file}"
        if file
        else "labels by all codes of each HCUP CCS category (published code: a shorter list)"
    )
    names = paper.phenotypes()
    shared = len(set(names) & set(cohort.phenotypes))
    if shared == len(names) == len(cohort.phenotypes):
        return defined
    return f"{defined}, {len(cohort.phenotypes)} labels, {shared} of them among the paper's {len(names)}"
