"""Tables and figures in, one self-contained HTML page out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from drfuse.errors import InputError
from drfuse.escapes import printable
from drfuse.report.figures import figure_to_svg
from drfuse.report.tables import ARROWS, Number, Table, check_key

MOST_PORTRAIT_COLUMNS = 7  # of a printed table

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its HTML id, of letters, digits, `-` and `_`.
        title: A few words.
        text: Plain text; an empty line separates paragraphs.
        tables: Shown below the text.
        figures: Shown below the tables, as (caption, figure). The caption is also what a screen reader says.
    """

    key: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[str, Figure]] = ()

    def __post_init__(self) -> None:
        check_key(self.key)

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the text."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @property
    def is_wide(self) -> bool:
        """Whether one of its tables needs a landscape page in print."""
        return any(len(table.columns) > MOST_PORTRAIT_COLUMNS for table in self.tables)


def render_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    template: str = "report.html",
) -> str:
    """Return an HTML page that embeds its style and figures, loads nothing and runs no script.

    Args:
        title: The page's title.
        facts: Shown at the top, as (name, value).
        sections: The parts of the page, in order.
        template: The template; others extend `report.html`, and say how to read the tables.

    Raises:
        InputError: If two sections, or two tables of a section, have the same key.
    """
    _check_unique("sections", [section.key for section in sections])
    for section in sections:
        _check_unique(f"tables of section {section.key}", [table.key for table in section.tables])
    environment = Environment(
        loader=PackageLoader("drfuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["number"] = lambda cell: isinstance(cell, Number)
    environment.globals |= {"inline_svg": _inline_svg, "arrows": ARROWS}
    page = environment.get_template(template).render(title=title, facts=facts, sections=sections)
    return printable(page.rstrip()) + "\n"


def _check_unique(what: str, keys: Sequence[str]) -> None:
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise InputError(f"several {what} have the key {min(repeated)!r}; give each its own")


def _inline_svg(figure: Figure, prefix: str, labelled_by: str) -> Markup:
    """Return a figure as an SVG element, with a prefix that makes its ids unique in the page."""
    root = ElementTree.fromstring(figure_to_svg(figure))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (
                f"{{{_SVG}}}style",
                f"{{{_SVG}}}metadata",
            ):  # a style would apply to the whole page
                parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}.{value}")
            elif name == f"{{{_XLINK}}}href":
                element.set(name, re.sub("^#", f"#{prefix}.", value))
            else:
                element.set(name, value.replace("url(#", f"url(#{prefix}."))
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-labelledby", labelled_by)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
