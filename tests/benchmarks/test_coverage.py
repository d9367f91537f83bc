"""Populations of known truth, and how often intervals hold it, counted on numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import Population, Tally, _true_error, _true_shares, coverage
from drfuse.evaluation import Estimate

TEST_ROWS = ["test stays", "spread of weights", "1 seed each", "2 seeds each", "3 seeds each", "pairs"]


def test_stays_of_clustered_subjects_resemble_each_other() -> None:
    clustered = Population.draw(40_000, clustered=True)
    same = clustered.subjects[1:] == clustered.subjects[:-1]
    one, other = clustered.factors[1:][same], clustered.factors[:-1][same]
    assert np.mean(one * other) == pytest.approx(0.6, abs=0.03)  # of a variance of 1
    assert np.mean(clustered.factors**2) == pytest.approx(1, abs=0.03)
    alone = Population.draw(1000, clustered=False)
    assert alone.subjects.tolist() == list(range(1000))


def test_labels_follow_their_probabilities() -> None:
    people = Population.draw(40_000, clustered=False)
    assert people.labels.mean(0) == pytest.approx(people.probability.mean(0), abs=0.01)
    likely = people.probability > 0.5
    assert people.labels[likely].mean() == pytest.approx(people.probability[likely].mean(), abs=0.01)


def test_another_seed_gives_other_stays() -> None:
    first, again, other = (Population.draw(50, clustered=True, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.factors, other.factors)


def test_a_test_set_holds_whole_subjects_and_about_the_stays_asked_for() -> None:
    people = Population.draw(5000, clustered=True)
    of_subject = np.bincount(people.subjects)
    sets = list(people.test_sets(300, 5))
    for rows in sets:
        assert len(set(rows.tolist())) == len(rows)
        assert 300 <= len(rows) < 306  # the last subject has 6 stays at most
        drawn = np.bincount(people.subjects[rows], minlength=len(of_subject))
        assert set((drawn / of_subject).tolist()) == {0.0, 1.0}
    assert not np.array_equal(sets[0], sets[1])
    for rows, again in zip(sets, people.test_sets(300, 5), strict=True):
        assert np.array_equal(rows, again)


def test_a_test_set_of_single_stays_has_the_size_asked_for() -> None:
    people = Population.draw(1000, clustered=False)
    assert [len(rows) for rows in people.test_sets(300, 3)] == [300] * 3


def test_an_interval_that_holds_the_truth_is_a_hit() -> None:
    tally = Tally()
    for truth in (0.2, 0.3, 0.5):  # an end belongs to it
        tally.add("a", Estimate(0.25, 0.2, 0.3), truth)
    tally.add("b", Estimate(0.25, 0.2, 0.3), 0.1)
    assert tally.hits == {"a": [1.0, 1.0, 0.0], "b": [0.0]}


def test_what_is_not_given_does_not_count() -> None:
    tally = Tally()
    tally.add("a", Estimate(0.25, math.nan, math.nan), 0.2)
    tally.add("a", Estimate(0.25, 0.2, 0.3), math.nan)
    assert tally.hits == {}


def test_the_true_calibration_error_and_shares_by_hand() -> None:
    given = np.array([[0.15, 0.95], [0.15, 0.95], [0.85, 1.0]])
    truly = np.array([[0.10, 0.90], [0.10, 0.80], [0.95, 0.90]])
    # first label: bin 1 is off by 0.05 twice, bin 8 by -0.1 once; second: bin 9 by 0.05, 0.15 and 0.1
    squares = 0.1**2 / 2 + 0.1**2 + 0.3**2 / 3
    assert _true_error(given, truly) == pytest.approx(math.sqrt(squares / 6))
    assert _true_error(truly, truly) == 0
    with np.errstate(invalid="ignore"):  # bins without a prediction
        shares = _true_shares(given, truly)
    assert np.flatnonzero(~np.isnan(shares)).tolist() == [1, 8, 9]
    assert shares[[1, 8, 9]] == pytest.approx([0.1, 0.95, (0.9 + 0.8 + 0.9) / 3])


def _table(block: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return [rows[0], *rows[2:]]


@pytest.mark.slow
def test_the_tables_have_a_row_for_every_interval_and_every_test(tmp_path: Path) -> None:
    text = coverage(
        tmp_path / "coverage.md", sets=2, largest_sets=0, population=5000, resamples=20, trainings=6
    )
    assert (tmp_path / "coverage.md").read_text(encoding="utf-8") == text + "\n"
    title, intervals, _, tests = text.split("\n\n")
    assert title == "**Intervals**: 2 test sets (0 of 11,914 stays), 20 resamples each"
    header, *rows = _table(intervals)
    assert header[1:] == ["300", "820", "820, clustered", "2,136, clustered"]
    named = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    assert {
        *("macro PRAUC", "macro AUROC", "PRAUC of one label", "AUROC of one label"),
        *("difference of two models", "missing radiographs, all taken", "group of a fifth: TPR gap"),
        *("calibration error, calibrated", "Brier score", "reliability curve, a point"),
    } <= named.keys()
    assert all(0 <= share <= 1 for name, row in named.items() if "bias" not in name for share in row)
    assert set(named["macro PRAUC"]) <= {0.0, 0.5, 1.0}  # of two test sets
    assert all(share > 0.5 for share in named["PRAUC of one label"])
    header, *rows = _table(tests)
    assert header == TEST_ROWS
    assert [row[:2] for row in rows] == [
        ["820", "0.100"],
        ["2,136", "0.100"],
        ["820", "0.300"],
        ["2,136", "0.300"],
    ]
    assert {row[-1] for row in rows} == {"2"}  # a pair of three seeds each on every test set
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[2:5])


def test_the_macro_prauc_can_be_measured_alone() -> None:
    text = coverage(sets=2, largest_sets=0, population=5000, resamples=20, macro_alone=True)
    _, *rows = _table(text.split("\n\n")[1])
    assert len(text.split("\n\n")) == 2
    assert [row[0] for row in rows] == [
        "bias of macro PRAUC",
        "macro PRAUC, bootstrap percentiles",
        "macro PRAUC",
        "bias left in macro PRAUC",
    ]
