"""Targets are judged, numbers are rounded, and a report survives its file."""

from pathlib import Path

import pytest

from benchmarks.results import Report, Table, Target, markdown_table, number, target_rows


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("x", 1.5, at_most=1.5), True),
        (Target("x", 1.51, at_most=1.5), False),
        (Target("x", 29.9, at_least=30), False),
        (Target("x", 30, at_least=30), True),
        (Target("x", float("nan"), at_least=30), False),
        (Target("x", 5), None),
    ],
)
def test_a_target_is_met_up_to_its_bound(target: Target, met: bool | None) -> None:
    assert target.met is met


def test_a_row_says_what_is_wanted_and_whether_it_is_so() -> None:
    rows = target_rows([Target("memory", 4.5, "GiB", at_most=4), Target("speed", 12.34)])
    assert rows == [
        {"what": "memory", "target": "at most 4 GiB", "measured": "4.50 GiB", "met": "**no**"},
        {"what": "speed", "target": "–", "measured": "12.3 times", "met": "–"},
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.001234, "0.00123"),
        (9.996, "10.0"),
        (-1.5, "-1.50"),
        (123.4, "123"),
        (15531780, "15,531,780"),
        (7, "7"),
        (float("nan"), "not measured"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_table_has_its_numbers_to_the_right() -> None:
    table = markdown_table([{"way": "a", "s": 1.5, "n": None}, {"way": "b", "s": 20.0, "n": 3}])
    assert table.splitlines() == [
        "| way | s | n |",
        "|---|---:|---:|",
        "| a | 1.50 | – |",
        "| b | 20.0 | 3 |",
    ]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report(
        "Speed", "How.", [Target("x", 1.5, at_most=2)], [Table("All", [{"a": 1.0}], "Note.")], "f.svg"
    )
    report.write(tmp_path / "report.json")
    read = Report.read(tmp_path / "report.json")
    assert read == report
    for said in (
        "## Speed",
        "How.",
        "| x | at most 2 times | 1.50 times | yes |",
        "**All**",
        "Note.",
        "(f.svg)",
    ):
        assert said in read.markdown()
