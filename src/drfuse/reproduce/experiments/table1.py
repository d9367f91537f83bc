"""Table 1: how many stays each split has."""

from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce import paper
from drfuse.reproduce.differences import differences
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results
from drfuse.subsets import Split, Subset

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_DATASETS: dict[Subset, str] = {"full": "full dataset", "matched": "matched subset"}


def table1(results: Results) -> Table:
    """Return the number of stays in each split of both datasets."""

    def count(subset: Subset, split: Split) -> Number:
        published = paper.samples(subset, split) if results.is_of_the_paper else None
        return Number(float(len(results.task.rows(split, subset))), digits=0, paper=published)

    return Table(
        key="table1",
        title="Table 1: samples of the two datasets",
        caption="ICU stays in each split; a subject is in one split only. Stays of the matched subset have "
        "both modalities.",
        beside_paper=differences(results.cohort),
        columns=["dataset", "training", "validation", "test"],
        rows=[Row(title, [count(subset, split) for split in _SPLITS]) for subset, title in _DATASETS.items()],
    )


EXPERIMENT = Experiment(
    title="Samples",
    look_for="Who is in the two datasets.",
    place=10,
    measure=lambda results: Findings([table1(results)]),
    headline=True,
)
