"""The page is one file that is well formed, complete, and safe to open."""

import re
from html.parser import HTMLParser

import pytest

from drfuse.errors import InputError
from drfuse.evaluation import Estimate, MissingPoint
from drfuse.report import Number, Row, Table
from drfuse.report.figures import intervals_figure, missing_curve_figure
from drfuse.report.page import Section, render_page

HOSTILE = "<script>alert(1)</script> \"&' | ; %"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Parsed(HTMLParser):
    """Collects tags, attributes and text, and insists that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def table(key: str, columns: int = 2) -> Table:
    cells: list[Number | str] = [
        Number(0.45, 0.426, 0.498, 0.004, 0.47, 0.42, 0.512, note="p = 0.012", mark="better"),
        Number(float("nan"), mark="best"),
        *[HOSTILE] * (columns - 2),
    ]
    return Table(
        key,
        f"Table {key}",
        HOSTILE,
        ["Model", *[f"column {n}" for n in range(columns)]],
        [Row(HOSTILE, cells), Row("second", cells, rule_above=True)],
        [("", 1), ("tested on", columns)],
    )


def page() -> str:
    figure = intervals_figure({HOSTILE: {"full": Number(0.42, 0.4, 0.44)}, "DrFuse": {"full": Number(0.45)}})
    points = [MissingPoint(share, 0, 0.0, Estimate(0.4, 0.3, 0.5)) for share in (0, 1)]
    curves = {"a": points, "DrFuse": points}
    return render_page(
        HOSTILE,
        [("Stays", "59,344"), (HOSTILE, HOSTILE)],
        [
            Section(
                "overall",
                "Overall",
                f"First.\n\nSecond {HOSTILE}",
                [table("t1"), table("t2")],
                [("One.", figure)],
            ),
            Section(
                "other",
                HOSTILE,
                "",
                [table("t1", 8)],
                [("Two.", figure), ("Three.", missing_curve_figure(curves))],
            ),
        ],
    )


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    return Parsed(page())


def test_tags_are_closed_and_ids_are_unique(parsed: Parsed) -> None:
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) > 20
    assert len(set(ids)) == len(ids)


def test_every_reference_within_the_page_has_its_target(parsed: Parsed) -> None:
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    wanted: set[str] = set()
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in ("href", "xlink:href") and value and value.startswith("#"):
                wanted.add(value[1:])
            if name in ("aria-labelledby", "aria-describedby") and value:
                wanted.add(value)
            wanted |= set(re.findall(r"url\(#([^)]*)\)", value or ""))
    assert {"overall", "other", "content"} <= wanted
    assert any("figure1." in target for target in wanted)  # what a figure refers to within itself
    assert wanted <= ids


def test_all_tables_and_figures_are_there(parsed: Parsed) -> None:
    assert len(parsed.all("table")) == 3
    pictures = parsed.all("svg")
    assert len(pictures) == 3
    assert all(picture["role"] == "img" and picture["aria-labelledby"] for picture in pictures)
    assert len(parsed.all("figcaption")) == 3
    text = "".join(parsed.text)
    for expected in (
        "59,344",
        "First.",
        "± 0.004",
        "(0.426, 0.498)",
        "paper 0.470",
        "p = 0.012",
        "–",
        "Three.",
    ):
        assert expected in text


def test_heads_say_what_they_are_heads_of(parsed: Parsed) -> None:
    scopes = [attributes.get("scope") for attributes in parsed.all("th")]
    assert {scope: scopes.count(scope) for scope in set(scopes)} == {
        "colgroup": 3,
        "col": 3 + 3 + 9,
        "row": 6,
    }
    arrows = [
        attributes["aria-label"] for attributes in parsed.all("span") if attributes.get("class") == "arrow"
    ]
    assert arrows == ["better"] * 6


def test_landmarks_language_and_title(parsed: Parsed) -> None:
    assert parsed.all("html") == [{"lang": "en"}]
    assert [len(parsed.all(tag)) for tag in ("title", "h1", "header", "nav", "main", "section")] == [
        1,
        1,
        1,
        1,
        1,
        2,
    ]


def test_nothing_is_loaded_and_nothing_runs(parsed: Parsed) -> None:
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;"))
    text = page()
    assert "@import" not in text
    assert set(re.findall(r"url\(\W?\w*:", text)) == set()
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_hostile_text_is_shown_as_it_is(parsed: Parsed) -> None:
    shown = "\n".join(parsed.text)
    title, fact, fact_value, paragraph, section_title, contents = 2, 1, 1, 1, 1, 1
    rows, captions, cells, in_figures = 3, 3, 12, 2
    assert shown.count(HOSTILE) == (
        title
        + fact
        + fact_value
        + paragraph
        + section_title
        + contents
        + rows
        + captions
        + cells
        + in_figures
    )


def test_a_style_of_a_figure_does_not_reach_the_page(parsed: Parsed) -> None:
    assert len(parsed.all("style")) == 1


def test_a_wide_table_is_printed_in_landscape(parsed: Parsed) -> None:
    wide = [attributes for attributes in parsed.all("div") if attributes.get("class") == "wide"]
    assert len(wide) == 1
    assert Section("a", "", "", [table("t", 6)]).is_wide is False
    assert Section("a", "", "", [table("t", 7)]).is_wide is True


def test_the_same_input_is_the_same_page() -> None:
    assert page() == page()


def test_repeated_keys_are_refused() -> None:
    with pytest.raises(InputError, match="several sections have the key 'a'"):
        render_page("", [], [Section("a", "", ""), Section("a", "", "")])
    with pytest.raises(InputError, match="several tables of section a have the key 't'"):
        render_page("", [], [Section("a", "", "", [table("t"), table("t")])])
    with pytest.raises(InputError, match="letters, digits"):
        Section("a b", "", "")
