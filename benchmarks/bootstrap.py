"""How much faster are our bootstrap resamples of PRAUC than a loop of scikit-learn, and are they the same?

`python benchmarks/bootstrap.py` measures both one after the other, in one process, on random predictions of
as many stays and phenotypes as MIMIC-IV's test split has. Ours is run five times and the median counts; the
loop is run on a few of the resamples, and its time is scaled.
"""

import tracemalloc
from statistics import median
from time import perf_counter

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks.command import command
from drfuse.evaluation import bootstrap_prauc, resample


def bootstrap(
    stays: int = 11914,
    labels: int = 25,
    resamples: int = 1000,
    loop_resamples: int = 20,
    stays_a_subject: float = 1.3,
    decimals: int = 3,
    seed: int = 0,
) -> str:
    """Compare the bootstrap of PRAUC with a loop of scikit-learn over the same resamples.

    Args:
        stays: Rows.
        labels: Columns.
        resamples: Resamples of subjects.
        loop_resamples: On how many of them the loop is run; its time is scaled to all.
        stays_a_subject: Stays of a subject on average; subjects are drawn as a whole.
        decimals: Decimals of the scores, so that some are equal.
        seed: Seed of the data and the resamples.
    """
    generator = np.random.default_rng(seed)
    prevalence = generator.uniform(0.05, 0.45, labels)
    y = (generator.random((stays, labels)) < prevalence).astype(np.uint8)
    scores = np.round(generator.normal(size=(stays, labels)) + y, decimals).astype(np.float32)
    subjects = generator.integers(0, max(1, round(stays / stays_a_subject)), stays)

    start = perf_counter()
    bootstrap_prauc(y[:2], scores[:2], 1, seed, subjects[:2])
    compiling = perf_counter() - start
    times = []
    for _ in range(5):
        start = perf_counter()
        ours = bootstrap_prauc(y, scores, resamples, seed, subjects)
        times.append(perf_counter() - start)
    seconds = median(times)

    looped = min(loop_resamples, resamples)
    drawn = np.concatenate(list(resample(subjects, resamples, seed)))[:looped]
    start = perf_counter()
    theirs = np.array([_average_precision(y, scores, counts) for counts in drawn])
    loop_seconds = (perf_counter() - start) * resamples / looped

    tracemalloc.start()
    bootstrap_prauc(y, scores, resamples, seed, subjects)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    rows = {
        f"drfuse, {resamples} resamples, median of {len(times)} runs": f"{seconds:.2f} s",
        f"scikit-learn, {looped} resamples scaled to {resamples}": f"{loop_seconds:.1f} s",
        "ratio": f"{loop_seconds / seconds:.0f}",
        "threads of drfuse, NUMBA_NUM_THREADS; of scikit-learn": f"{get_num_threads()}; 1",
        f"largest difference on {looped} resamples": f"{np.nanmax(np.abs(ours[:looped] - theirs)):.1e}",
        "peak memory of drfuse beside the input": f"{peak:.0f} MiB",
        "importing and compiling, or reading what was compiled": f"{compiling:.2f} s",
    }
    table = [
        f"| {stays} stays, {labels} labels | |",
        "|---|---|",
        *(f"| {k} | {v} |" for k, v in rows.items()),
    ]
    return "\n".join(table)


def _average_precision(
    labels: NDArray[np.uint8], scores: NDArray[np.float32], counts: NDArray[np.int64]
) -> list[float]:
    """Return the PRAUC of each label (C,) on the rows that were drawn; NaN without a positive."""
    rows = np.repeat(np.arange(len(labels)), counts)
    return [
        average_precision_score(labels[rows, c], scores[rows, c]) if labels[rows, c].any() else np.nan
        for c in range(labels.shape[1])
    ]


if __name__ == "__main__":
    command(bootstrap)
