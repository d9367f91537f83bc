from urllib.parse import parse_qsl

import numpy as np
import pytest

from drfuse.errors import InputError
from drfuse.explore.opened import Opened
from drfuse.explore.stays import Stays, View


@pytest.fixture
def stays(explored: Opened) -> Stays:
    return Stays(explored)


def test_a_view_is_its_address() -> None:
    given = {"run": "second", "split": "test", "cxr": "yes", "least": "0.25", "sort": "error", "down": "yes"}
    view = View.of(given | {"other": "x", "label": ""})
    assert view.query() == "run=second&split=test&cxr=yes&least=0.25&sort=error&down=yes"
    assert view.query(sort="stay_id", down="", least=None) == "run=second&split=test&cxr=yes"
    assert View().query() == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"split": "all"}, "split is 'all'"),
        ({"sort": "hadm_id"}, "sort is 'hadm_id'"),
        ({"least": "much"}, "least is 'much'; expected a number"),
        ({"down": "1"}, "down is '1'"),
    ],
)
def test_an_address_that_says_nothing_is_explained(given: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        View.of(given)


def test_filters(stays: Stays, explored: Opened) -> None:
    cohort, first = explored.cohort, explored.predicted("first")
    p, label = first.probabilities["both"], first.labels[1]
    everyone = np.arange(len(cohort))
    expected = {
        View(): everyone,
        View(split="test"): cohort.rows("test"),
        View(cxr="no"): np.flatnonzero(~cohort.has_cxr),
        View(label=label, present="yes"): np.flatnonzero(cohort.labels[:, 1] == 1),
        View(present="no"): np.flatnonzero(cohort.labels[everyone, p.argmax(axis=1)] == 0),
        View(label=label, least=0.5): np.flatnonzero(p[:, 1] >= 0.5),
        View(most=0.9): np.flatnonzero(p.max(axis=1) <= 0.9),
        View(find="1030"): everyone[3:4],
        View(find=" 903"): everyone[3:4],
        View(find="12; drop"): everyone[:0],
    }
    for view, rows in expected.items():
        assert stays.rows(view).tolist() == rows.tolist(), view


def test_orders(stays: Stays, explored: Opened) -> None:
    run = explored.predicted("second")
    p, without = run.probabilities["both"], run.probabilities["ehr"]
    sizes = {
        View("second", sort="probability", down="yes"): p.max(axis=1),
        View("second", sort="difference", down="yes"): np.abs(p - without).max(axis=1),
        View("second", sort="error", down="yes"): np.abs(run.truth - p).max(axis=1),
        View("second", sort="present", down="yes"): run.truth[np.arange(len(p)), p.argmax(axis=1)],
        View("second", sort="error", down="yes", label=run.labels[2]): np.abs(run.truth - p)[:, 2],
    }
    for view, size in sizes.items():
        assert stays.rows(view).tolist() == np.argsort(-size, kind="stable").tolist(), view
        shown = np.abs(stays.table(view)[view.sort].cast(float).to_numpy())
        np.testing.assert_allclose(shown, np.sort(size)[::-1], rtol=1e-6)


def test_a_table_is_read_in_parts(stays: Stays) -> None:
    view = View(sort="n_hours")
    whole = stays.table(view)
    assert whole.height == 12
    assert whole[3:5].equals(stays.table(view, 3, 2))
    assert stays.table(view, 12, 5).height == 0


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-5", "1_0", "1.5", "٠", "0x1", "-0.1"])
def test_a_probability_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        View.of({"least": text})


def test_the_smallest_probability_survives_its_address() -> None:
    view = View(least=1e-05, most=1.0)
    assert View.of(dict(parse_qsl(view.query()))) == view


def test_neighbours_follow_the_view(stays: Stays) -> None:
    assert stays.around(View(split="test"), 9) == (None, 1100, 0, 3)
    assert stays.around(View(split="test"), 11) == (1100, None, 2, 3)
    assert stays.around(View(split="test"), 0) == (None, None, None, 3)


def test_without_a_run_there_are_labels_alone(explored: Opened) -> None:
    stays = Stays(Opened(explored.cohort, {}))
    assert not {"probability", "error", "label"} & stays.columns.keys()
    name = explored.cohort.phenotypes[0]
    table = stays.table(View(label=name, sort="present", down="yes"))
    assert table["present"].to_list() == sorted(table["present"], reverse=True)
    assert stays.table(View(present="yes"))["present"].null_count() == 12
