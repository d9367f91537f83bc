"""What the pages show, without a server."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drfuse.cohort.variables import load_variables
from drfuse.errors import InputError
from drfuse.explore.cohort_page import CohortPage
from drfuse.explore.one_stay import HEIGHT, WIDTH, _chart, _reference_ranges, charts, labels, radiograph
from drfuse.explore.opened import Opened, open_folder
from drfuse.explore.results import Results, _systems
from tests.builders import write_cohort


def test_shares_observed_are_of_the_stays_still_there(explored: Opened) -> None:
    cohort = explored.cohort
    page = CohortPage.of(cohort)
    there = cohort.n_hours > 2
    expected = np.isfinite(cohort.ehr[there, 2]).mean(axis=0)
    np.testing.assert_allclose([shares[2] for _, shares in page.observed], expected)
    prevalence = {bar.name: bar.share for bar in page.labels}
    assert prevalence[cohort.phenotypes[0]] == pytest.approx(cohort.labels[:, 0].mean())
    assert page.flow == [("all ICU stays", 12, 0)]


def test_charts_tell_what_was_observed_from_what_stands_in(explored: Opened) -> None:
    cohort, row = explored.cohort, int(explored.cohort.n_hours.argmax())
    n_hours = int(cohort.n_hours[row])
    for v, chart in enumerate(charts(cohort, row)):
        hours = np.flatnonzero(np.isfinite(cohort.ehr[row, :, v]))
        assert [hour for _, _, hour, _ in chart.points] == hours.tolist()
        assert chart.carried.count("M") == len(hours) + 1
        assert chart.carried.endswith(f"H{WIDTH * n_hours / cohort.ehr.shape[1]}")
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _, _ in chart.points)


def test_a_variable_with_one_value_has_an_axis_of_its_size() -> None:
    (oxygen,) = (one for one in load_variables() if one.name == "fraction_inspired_oxygen")
    chart = _chart(oxygen, np.full(4, np.nan, np.float32), 4)
    assert (chart.low, chart.high) == pytest.approx((0.1995, 0.2205))


def test_reference_ranges_are_of_known_variables() -> None:
    valid = {one.name: (one.valid_low, one.valid_high) for one in load_variables()}
    for name, (low, high, source) in _reference_ranges().items():
        ends = [one for one in (low, high) if one is not None]
        assert ends == sorted(ends)
        assert valid[name][0] <= ends[0] <= ends[-1] <= valid[name][1]
        assert source


def test_labels_come_the_most_probable_first(explored: Opened) -> None:
    run = explored.predicted("first")
    shown = labels(run, 2)
    p = [label.probabilities["both"] for label in shown]
    assert p == sorted(run.probabilities["both"][2].tolist(), reverse=True)
    c = run.labels.index(shown[0].name)
    assert shown[0].present == bool(run.truth[2, c])
    assert shown[0].weights == pytest.approx(run.weights[2, c].tolist())


def test_the_radiograph_is_that_of_the_stay(explored: Opened) -> None:
    assert radiograph(explored.cohort, 1) is None
    image = np.asarray(Image.open(io.BytesIO(radiograph(explored.cohort, 3) or b"")))
    assert (image == 3).all()


def test_what_cannot_be_opened_is_explained(explored: Opened, tmp_path: Path) -> None:
    run = next(iter(explored.runs.values())).folder
    other = write_cohort(tmp_path / "other", seed=5)
    for what, cohort, said in (
        (tmp_path, None, "is not a cohort, a finished run"),
        (run, None, "choose it as well: `drfuse explore"),
        (run, other, "is not the cohort that"),
        (other, explored.cohort.folder, "is a cohort itself"),
    ):
        with pytest.raises(InputError, match=said):
            open_folder(what, cohort)
    with pytest.raises(InputError, match="there is no run 'x'; choose one of first, second"):
        explored.predicted("x")


def test_a_run_with_modality_weights_is_the_default(explored: Opened, tmp_path: Path) -> None:
    run = next(iter(explored.runs.values()))
    for name in ("cxr", "drfuse", "ehr"):
        shutil.copytree(run.folder, tmp_path / "runs" / name)
    for name in ("cxr", "ehr"):
        replace(run.read_predictions(), modality_weights=None).write(
            tmp_path / "runs" / name / "predictions.parquet"
        )
        (tmp_path / "runs" / name / "sums.json").unlink(missing_ok=True)
    assert list(open_folder(tmp_path, explored.cohort.folder).runs) == ["drfuse", "cxr", "ehr"]


@pytest.fixture
def reproduction(explored: Opened, tmp_path: Path) -> Path:
    """Return the folder of a reproduction with one run and no table so far."""
    shutil.copytree(next(iter(explored.runs.values())).folder, tmp_path / "runs" / "second")
    (tmp_path / "tables").mkdir()
    (tmp_path / "runs.csv").write_text("system,train_on,folder\ndrfuse,full,second\n")
    return tmp_path


@pytest.mark.parametrize(
    "rows", [["late,matched,gone", "drfuse,full,second"], ["drfuse,full,second", "late,matched,gone"]]
)
def test_runs_that_are_not_there_are_left_out(explored: Opened, reproduction: Path, rows: list[str]) -> None:
    (reproduction / "runs.csv").write_text("\n".join(["system,train_on,folder", *rows]))
    found = _systems(reproduction, open_folder(reproduction, explored.cohort.folder))
    assert found == {"DrFuse": {"full": "second"}}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tables/t.csv", "row,column\na,b\n", "it has no column 'value'"),
        (
            "tables/t.csv",
            "row,column,value,low,high,paper,note\na,b,x\n",
            "could not convert string to float",
        ),
        ("tables/t.csv", "row,column,value,low,high,paper,note\na,b," + 5000 * "1", "Exceeds the limit"),
        ("runs.csv", "folder\nsecond\n", "it has no column 'system'"),
    ],
)
def test_a_damaged_table_is_one_sentence(
    explored: Opened, reproduction: Path, file: str, text: str, said: str
) -> None:
    (reproduction / file).write_text(text)
    results = Results(open_folder(reproduction, explored.cohort.folder))
    with pytest.raises(InputError, match=f"{file} is damaged: {said}.*; run `drfuse reproduce` again"):
        list(results.tables(""))


def test_a_number_leads_to_stays_of_its_own_system_or_nowhere(explored: Opened, reproduction: Path) -> None:
    label = explored.cohort.phenotypes[0]
    shutil.copytree(explored.runs["first"].folder, reproduction / "runs" / "first")
    runs = "system,title,train_on,folder\ndrfuse,DrFuse,full,second\nadditive-evidence,,full,first\n"
    (reproduction / "runs.csv").write_text(runs + "mine,My own,full,first\nlate,Late,full,gone\n")
    head = "row,column,value,low,high,spread,paper,paper_low,paper_high,note,mark\n"
    titles = ("DrFuse", "additive evidence", "My own", "Late")
    cells = "".join(f"{label},{title},0.5,,,,,,,,\n" for title in titles)
    (reproduction / "tables" / "table3.csv").write_text(head + cells)
    (table,) = Results(open_folder(reproduction, explored.cohort.folder)).tables("")
    (_, *numbers) = table.rows[0]
    led = [one.link.partition("&")[0] for one in numbers]
    assert led == ["/stays?run=second", "/stays?run=first", "/stays?run=first", ""]


def test_numbers_lead_to_their_stays(explored: Opened, reproduction: Path) -> None:
    label, tmp_path = explored.cohort.phenotypes[0], reproduction
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.svg").write_text("<svg/>")
    (tmp_path / "figures" / "link.svg").symlink_to(tmp_path / "figures" / "one.svg")
    (tmp_path / "report.html").write_text("report")
    (tmp_path / "secret.html").write_text("secret")
    head = "row,column,value,low,high,spread,paper,paper_low,paper_high,note,mark\n"
    cells = f"{label},DrFuse,0.5,0.4,0.6,,0.45,,,,\n{label},prevalence,12,,,,,,,,\nother,x,0.5,,,,,,,,\n"
    (tmp_path / "tables" / "table3.csv").write_text(head + cells)
    results = Results(open_folder(tmp_path, explored.cohort.folder))
    (table,) = results.tables("")
    (name, drfuse, prevalence, _), (_, _, _, other) = table.rows
    assert (name.text, drfuse.text, drfuse.below) == (label, "0.500", "(0.400, 0.600) paper 0.450")
    assert drfuse.link.startswith("/stays?run=second&split=test&label=")
    assert (prevalence.text, other.link) == ("12", "")
    assert results.figures() == ["one.svg"]
    assert results.file("one.svg") == tmp_path / "figures" / "one.svg"
    assert results.file("report.html") == tmp_path / "report.html"
    for refused in ("link.svg", "secret.html", "../report.html", "runs.csv"):
        assert results.file(refused) is None
