"""Figure 3: a map of DrFuse's representations, with numbers on what a map cannot show."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from drfuse.report.figures import representations_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.representations import (
    FIGURE3,
    FOLDS,
    Representation,
    cosine,
    divergences,
    probe_origin,
    represent,
)
from drfuse.reproduce.results import Results

_PERPLEXITY = 30.0


def tsne(h: Mapping[str, Representation], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return a joint t-SNE of several representations of n stays: (n, D) in, (n, 2) out."""
    stacked = np.concatenate(list(h.values()))
    reducer = TSNE(init="pca", perplexity=min(_PERPLEXITY, (len(stacked) - 1) / 3), random_state=seed)
    placed = reducer.fit_transform(stacked)
    return dict(zip(h, np.split(placed, len(h)), strict=True))


def _measure(results: Results) -> Findings:
    rows = results.task.rows("test", "matched")
    subjects = results.cohort.stays["subject_id"].to_numpy()[rows]
    of_seeds = [
        represent(spec.folder, results.cohort, rows)
        for cell, spec in results.cells.items()
        if (cell.system, cell.train_on) == ("drfuse", "matched")
    ]
    measured = [_representation_numbers(h, subjects) for h in of_seeds]
    table_rows = []
    for name in measured[0]:
        values = [one[name] for one in measured]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table_rows.append(Row(name, [Number(float(np.mean(values)), spread=spread, digits=4)]))
    seeds = f"mean and ± standard deviation over {len(measured)} seeds" if len(measured) > 1 else "one seed"
    table = Table(
        key="figure3-numbers",
        title="What Figure 3 cannot show",
        caption=f"The {len(rows):,} matched test stays, DrFuse trained on matched, "
        f"{seeds}. Probes are cross-validated over {FOLDS} folds of whole subjects.",
        columns=["of the representations", "value"],
        rows=table_rows,
    )
    figure = representations_figure(tsne({title: of_seeds[0][name] for name, title in FIGURE3.items()}))
    caption = "Figure 3: t-SNE of DrFuse's representations of the matched test set, first seed"
    return Findings([table], [(caption, figure)])


def _representation_numbers(h: Mapping[str, Representation], subjects: NDArray[Any]) -> dict[str, float]:
    own, another = divergences(h["ehr_shared"], h["cxr_shared"])
    return {
        "a linear probe tells EHR from CXR by the shared ones (0.5: cannot)": probe_origin(
            h["ehr_shared"], h["cxr_shared"], subjects
        ),
        "a linear probe tells EHR from CXR by the distinct ones": probe_origin(
            h["ehr_distinct"], h["cxr_distinct"], subjects
        ),
        "divergence of a stay's two shared ones, share of the largest": own,
        "divergence of two different stays' shared ones": another,
        "cosine of EHR shared and EHR distinct (0: orthogonal)": cosine(h["ehr_shared"], h["ehr_distinct"]),
        "cosine of CXR shared and CXR distinct": cosine(h["cxr_shared"], h["cxr_distinct"]),
    }


EXPERIMENT = Experiment(
    title="Representations",
    look_for="The shared representations should lie together, the distinct ones apart from all others.",
    place=50,
    measure=_measure,
    trained_on=["matched"],
    takes_part=lambda system: system.name == "drfuse",
)
