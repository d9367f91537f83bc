"""Samples are counted as the task uses them."""

from drfuse.reproduce.experiments.table1 import table1
from tests.reproduce.samples import make_results, published


def test_table_1_counts_the_stays_of_each_split() -> None:
    table = table1(make_results(["drfuse"], seeds=1))
    assert [row.header for row in table.rows] == ["full dataset", "matched subset"]
    counted = [[cell.shown.value for cell in row.cells] for row in table.rows]
    # every fourth stay has no radiograph, from the second on: 8 of the first 30, 1 of 6, 10 of the last 40
    assert counted == [["30", "6", "40"], ["22", "5", "30"]]
    assert [one.paper for one in table.numbers] == [42628, 4802, 11914, 7637, 857, 2136]


def test_table_1_counts_only_stays_that_take_part() -> None:
    table = table1(make_results(["drfuse"], seeds=1, task="mortality"))
    # every third stay leaves before the window ends: 10, 2 and 14 of the splits; 6, 0 and 7 of the others
    # have no radiograph
    assert [one.value for one in table.numbers] == [20, 4, 26, 14, 4, 19]
    assert published(table.numbers) == [None] * 18
