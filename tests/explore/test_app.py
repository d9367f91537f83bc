import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from drfuse.explore.guard import Guard
from drfuse.explore.opened import Opened, open_folder
from drfuse.inference import Predictor
from drfuse.run import Run

pytest.importorskip("starlette")
pytestmark = pytest.mark.extras

PAGES = ["/", "/stays", "/stays/1000", "/stays/1010?run=second", "/results", "/stays.json?start=0&count=3"]
PAGES += ["/stays.csv", "/stays/1000/radiograph.png", "/static/style.css"]


@pytest.fixture
def served(explored: Opened) -> Iterator[Any]:
    """Return a client, and the tokens that were announced."""
    from starlette.testclient import TestClient

    from drfuse.explore.app import make_app

    tokens: list[str] = []
    with TestClient(Guard(make_app(explored), tokens.append, 80), "http://127.0.0.1:80") as opened:
        yield opened, tokens


@pytest.fixture
def client(served: Any) -> Any:
    """Return a client that opened the announced address."""
    client, (token,) = served
    client.get(f"/?token={token}")
    return client


@pytest.mark.parametrize("address", PAGES)
def test_pages_need_the_token_and_load_nothing_from_elsewhere(served: Any, address: str) -> None:
    client, (token,) = served
    assert client.get(address).status_code == 403
    client.get(f"/?token={token}")
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers
    assert not re.search(r"(src|href|url)[=(]\W*(https?:|//)", answer.text)


def test_what_does_not_exist_is_explained(client: Any) -> None:
    for address, status, said in (
        ("/stays/7", 400, "has no stay 7"),
        ("/stays?run=%3Cscript%3E", 400, "there is no run &#39;&lt;script&gt;&#39;"),
        ("/stays.json?label=x", 400, "label is 'x'"),
        ("/stays?label=x", 400, "label is &#39;x&#39;"),
        ("/stays.json?start=" + 5000 * "1", 400, "expected a whole number"),
        ("/stays/" + 5000 * "1", 400, "expected a whole number"),
        ("/stays/" + 18 * "9", 400, "has no stay"),
        ("/stays/1010/radiograph.png", 404, ""),
        ("/results/..%2Fcohort%2Fstays.parquet", 404, ""),
        ("/static/..%2Fguard.py", 404, ""),
    ):
        answer = client.get(address)
        assert (answer.status_code, said in answer.text) == (status, True), address


def test_rows_and_csv(client: Any) -> None:
    found = client.get("/stays.json?split=test&start=1&count=9").json()
    assert found["total"] == 3
    assert [row[0] for row in found["rows"]] == [1100, 1110]
    lines = client.get("/stays.csv?split=test").text.splitlines()
    assert lines[0].startswith("stay_id,label,present,probability,difference,error")
    assert len(lines) == 4


def test_a_damaged_run_is_explained_and_the_others_are_shown(explored: Opened, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from drfuse.explore.app import make_app

    shutil.copytree(explored.cohort.folder.parent, tmp_path, dirs_exist_ok=True)
    damaged = Run(tmp_path / "runs" / "second")
    for file, path, said in (
        (damaged.metrics_table, "/results", "metrics.csv is damaged: it has no column"),
        (damaged.recalibration, "/stays", "recalibration.json is damaged"),
        (damaged.predictions, "/stays/1000", "holds no predictions"),
    ):
        client = TestClient(make_app(open_folder(tmp_path)))
        file.write_text("a,b\n1,2\n")
        answer = client.get(f"{path}?run=second")
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
        assert '<a href="/stays?run=first">' in answer.text
        assert client.get(f"{path}?run=first").status_code == 200


@pytest.fixture
def changing(explored: Opened, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """Return a client, and the folder of what is served, which a test may change."""
    from starlette.testclient import TestClient

    from drfuse.explore.app import make_app

    folder = shutil.copytree(explored.cohort.folder.parent, tmp_path / "served")
    with TestClient(make_app(open_folder(folder)), "http://127.0.0.1:80") as client:
        yield client, folder


@pytest.mark.parametrize(
    "address", ["/", "/stays", "/stays/1000", "/stays.json", "/stays/1000/radiograph.png"]
)
@pytest.mark.parametrize("back", [False, True])
def test_nothing_is_shown_of_a_cohort_that_was_replaced(
    changing: tuple[Any, Path], address: str, back: bool
) -> None:
    client, folder = changing
    shutil.move(folder / "cohort", folder / "moved")
    if back:
        shutil.copytree(folder / "moved", folder / "cohort")
    answer = client.get(address)
    assert (answer.status_code, "was replaced while it was shown" in answer.text) == (400, True), answer.text


def test_nothing_is_shown_of_a_run_that_was_replaced(changing: tuple[Any, Path]) -> None:
    client, folder = changing
    assert client.get("/stays?run=first").status_code == 200
    shutil.copy(folder / "runs" / "second" / "predictions.parquet", folder / "runs" / "first")
    answer = client.post("/stays/1000/explanation?run=first")
    assert (answer.status_code, "first was replaced" in answer.text) == (400, True)


def test_what_failed_is_tried_again(changing: tuple[Any, Path]) -> None:
    client, folder = changing
    config = folder / "runs" / "first" / "config.json"
    client.get("/stays?run=first")
    shutil.move(config, folder / "config.json")
    assert explain(client, "first")["problem"]
    shutil.move(folder / "config.json", config)
    assert not explain(client, "first")["problem"]


def explain(client: Any, run: str) -> Any:
    shares = []
    while True:
        state = client.post(f"/stays/1000/explanation?run={run}&label=").json()
        shares.append(state["share"])
        if shares[-1] == 1:
            assert shares == sorted(shares) or state["evaluated"] > 76  # steps were doubled
            return state
        sleep(0.05)


def test_nothing_is_computed_for_an_unknown_label(client: Any) -> None:
    for _ in range(3):
        answer = client.post("/stays/1000/explanation?run=first&label=x")
        assert (answer.status_code, "label is 'x'" in answer.json()["problem"]) == (400, True)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("explanations")]


def test_attributions_are_those_of_the_stay(client: Any, explored: Opened) -> None:
    state = explain(client, "first")
    cohort = explored.cohort
    found = Predictor.open(explored.runs["first"].folder).explain(cohort, 1000).as_json()
    assert state["problem"] == ""
    assert state["result"]["record"] == found["record"]
    assert state["result"]["image"] == found["image"]
    assert explain(client, "first") == state


def test_a_run_whose_model_cannot_be_loaded_has_no_attributions(client: Any) -> None:
    state = explain(client, "second")
    assert state["result"] is None
    assert "is not one of drfuse's" in state["problem"]
