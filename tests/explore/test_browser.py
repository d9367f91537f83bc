"""The pages in a real browser, as people use them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drfuse.explore.opened import Opened

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def address(explored: Opened) -> Iterator[Any]:
    """Return what reads the address that a running server announced next."""
    folder = explored.cohort.folder.parent
    command = [sys.executable, "-u", "-m", "drfuse", "explore", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "40"}
    ) as server:
        yield lambda: re.search(r"http:\S+", server.stdout.readline())[0]
        server.send_signal(signal.SIGINT)
        assert server.stdout.read().strip() == "stopped"
    assert server.returncode == 0


@pytest.fixture(scope="module")
def context(address: Any) -> Iterator[Any]:
    """Return a browser that has opened the announced address; what it complains of fails the test."""
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        first = address()
        context = browser.new_context(base_url=first.split("/?")[0], viewport={"width": 1200, "height": 800})
        page = context.new_page()
        page.goto(first)
        page.wait_for_selector("h1")
        page.close()
        yield context
        browser.close()


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    said: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    elsewhere = re.compile(r"(?!http://127\.0\.0\.1:)")
    opened.on("request", lambda request: elsewhere.match(request.url) and said.append(request.url))
    yield opened
    assert said == []
    opened.close()


def ids(page: Any) -> list[str]:
    return page.locator("#grid .rows a").all_inner_texts()


def test_the_wrong_token_is_refused(context: Any, address: Any) -> None:
    stranger = context.browser.new_context()
    base = address().split("/?")[0]
    page = stranger.new_page()
    for path in ("/", "/?token=wrong", "/stays/1000", "/stays.json", "/stays/1000/radiograph.png"):
        assert page.goto(base + path).status == 403
    page.goto("about:blank")
    state = page.evaluate(
        "url => new Promise(over => { const s = new WebSocket(url);"
        " s.onerror = () => over('refused'); s.onopen = () => over('open'); })",
        base.replace("http", "ws") + "/",
    )
    assert state == "refused"
    stranger.close()


def test_filters_are_in_the_address_and_the_table_follows(page: Any) -> None:
    page.goto("/stays")
    page.wait_for_selector("#grid .rows a")
    assert page.inner_text("#total") == "12 stays"
    page.select_option("[name=split]", "test")
    playwright.expect(page.locator("#total")).to_have_text("3 stays")
    page.click("text=most wrong")
    page.wait_for_url("**/stays?split=test&sort=error&down=yes")
    shown = ids(page)
    page.reload()
    page.wait_for_selector("#grid .rows a")
    assert ids(page) == shown
    with page.expect_download() as download:
        page.click("#export")
    lines = Path(download.value.path()).read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == shown


def test_the_table_and_the_stays_are_walked_by_keys(page: Any) -> None:
    page.goto("/stays?sort=n_hours")
    page.wait_for_selector("#grid .rows a")
    order = ids(page)
    page.focus("#grid")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(f"**/stays/{order[1]}?sort=n_hours")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/stays/{order[2]}?sort=n_hours")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/stays/{order[1]}?sort=n_hours")
    page.keyboard.press("t")
    page.wait_for_url("**/stays?sort=n_hours")


def test_without_the_radiograph_at_once(page: Any, explored: Opened) -> None:
    page.goto("/stays/1000")
    run, row = explored.predicted("first"), explored.cohort.row_of(1000)
    for given, key in (("both", None), ("ehr", "w"), ("both", "w")):
        if key:
            page.keyboard.press(key)
        p = run.probabilities[given][row]
        shown = page.locator(".ranking .p").all_inner_texts()
        assert shown == [f"{100 * one:.0f}" for one in sorted(p.tolist(), reverse=True)]
    page.goto("/stays/1010")
    assert page.is_disabled("[name=given][value=ehr]")


def test_the_radiograph_follows_mouse_and_keys(page: Any) -> None:
    page.goto("/stays/1000")
    window = page.locator("#window")
    playwright.expect(window).to_have_text("level 128, width 256, 100 %")
    box = page.locator("#viewer").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 50, y + 20)
    page.mouse.up()
    assert window.inner_text() == "level 138, width 206, 100 %"
    page.mouse.wheel(0, -400)
    playwright.expect(window).to_have_text("level 138, width 206, 200 %")
    page.focus("#viewer")
    for key in ("ArrowRight", "ArrowUp", "+"):
        page.keyboard.press(key)
    assert window.inner_text() == "level 134, width 214, 250 %"
    page.mouse.dblclick(x, y)
    assert window.inner_text() == "level 128, width 256, 100 %"


def test_two_fingers_zoom_the_radiograph(page: Any) -> None:
    page.goto("/stays/1000")
    window = page.locator("#window")
    playwright.expect(window).to_have_text("level 128, width 256, 100 %")
    box = page.locator("#viewer").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser = page.context.new_cdp_session(page)
    browser.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})

    def touch(kind: str, *distances: float) -> None:
        points = [{"x": x + of, "y": y, "id": finger} for finger, of in enumerate(distances)]
        browser.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", -40)
    touch("touchStart", -40, 40)
    touch("touchMove", -80, 80)
    touch("touchEnd")
    playwright.expect(window).to_have_text("level 128, width 256, 200 %")


def test_attributions_on_demand(page: Any) -> None:
    page.goto("/stays/1000")
    page.keyboard.press("e")
    page.wait_for_selector("#found >> text=Shapley values", timeout=120_000)
    assert page.locator(".moved-by").first.inner_text()
    assert page.locator(".moved-hours rect").count() > 0
    assert page.evaluate("document.getElementById('heat').width") == 12


@pytest.mark.parametrize("width", [1440, 820, 390])
@pytest.mark.parametrize("path", ["/", "/stays", "/stays/1000", "/results"])
def test_no_page_is_wider_than_the_screen(page: Any, width: int, path: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
