"""Tables, figures and page of an explanation, made by hand."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from drfuse.cohort.variables import load_variables
from drfuse.errors import InputError
from drfuse.inference import Explanation
from drfuse.inference.attributions import Completeness, ImageAttribution, RecordAttribution
from drfuse.inference.explanation import GIVEN
from drfuse.report.explanation import (
    CONTENTS,
    explanation_figures,
    explanation_page,
    explanation_tables,
    write_explanation,
)
from tests.builders import left_in
from tests.report.test_page import HOSTILE, Parsed

pytestmark = pytest.mark.slow  # a whole demo, or trained runs

VARIABLES = list(load_variables())
LONG = "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)"
NAMES = [HOSTILE, LONG, *(f"phenotype {c}" for c in range(13))]


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    generator = np.random.default_rng(0)
    hours = generator.normal(size=(6, len(VARIABLES)))
    hours[:, 3] += 9
    values = np.where(generator.random(hours.shape) < 0.5, np.nan, 36.6).astype(np.float32)
    values[:, 3], values[2, 3] = np.nan, 121.4
    logits: Any = {given: generator.normal(size=len(NAMES)).astype(np.float32) for given in GIVEN}
    logits["both"][:2] = 3, 2
    weights = generator.dirichlet(np.ones(3), len(NAMES)).astype(np.float32)
    return Explanation(
        model="DrFuse",
        stay_id=31000000009,
        phenotypes=NAMES,
        phenotype=LONG,
        has_cxr=True,
        logits=logits,
        probabilities={given: 1 / (1 + np.exp(-one.astype(float))) for given, one in logits.items()},
        modality_weights=weights,
        variables=VARIABLES,
        values=values,
        record=RecordAttribution("integrated-gradients", hours, hours.sum(0), Completeness(1.25, 1.5, 64)),
        cxr=generator.random((16, 16)).astype(np.float32),
        image=ImageAttribution("grad-cam", generator.normal(size=(16, 16)), None),
        notes=["Read this with care & <b>."],
    )


def printed(explanation: Explanation, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), markup=False)
    for table in explanation_tables(explanation):
        console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_a_terminal_without_cutting_a_number(explanation: Explanation, width: int) -> None:
    lines = printed(explanation, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert text.count("…") == 2  # two long names
    numbers = next(line for line in lines if line.startswith(" phenotype 0 ")).split()[2:]
    assert len(numbers) == 8
    assert sum(map(float, numbers[3:6])) == pytest.approx(1, abs=0.011)
    shapley = [f"{value:+.2f}".replace("-", "−") for value in explanation.shapley[2]]
    assert numbers[6:] == shapley
    assert "They add up to +1.250 after 64 steps" in text


def test_the_strongest_variable_comes_first_with_what_was_observed(explanation: Explanation) -> None:
    lines = [line.strip() for line in printed(explanation, 100)]
    start = next(at for at, line in enumerate(lines) if line.startswith("variable"))
    assert explanation.record is not None
    total = f"{explanation.record.variables[3]:+.2f}"
    name = VARIABLES[3].name.replace("_", " ")
    assert lines[start + 2].split()[:8] == [*name.split(), total, "121", "121", "121", "1"]


def test_every_figure_has_a_caption_and_both_formats(explanation: Explanation, tmp_path: Path) -> None:
    assert set(explanation_figures(explanation)) == {"modalities", "record", "radiograph"}
    out = tmp_path / "explained"
    write_explanation(explanation, out)
    assert left_in(out) == CONTENTS
    assert out.stat().st_mode & 0o777 == 0o700
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 500
    for path in out.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    stored = json.loads((out / "explanation.json").read_text("utf-8"))
    assert stored["phenotype"] == LONG
    with pytest.raises(InputError, match="exists; choose a different --out"):
        write_explanation(explanation, out)
    write_explanation(explanation, out, overwrite=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds more than"):
        write_explanation(explanation, out, overwrite=True)


def test_the_page_is_whole_and_safe(explanation: Explanation) -> None:
    page = Parsed(explanation_page(explanation, explanation_figures(explanation)))
    assert page.open == []
    assert not page.all("script")
    assert {one["id"] for one in page.all("section")} == {"modalities", "record", "radiograph", "notes"}
    assert len(page.all("svg")) == 3
    text = " ".join(page.text)
    assert HOSTILE in text
    assert "Read this with care & <b>." in text
    assert "what the paper published" not in text
    assert "raises the logit" in text
    for tag in ("img", "link", "image"):
        for one in page.all(tag):
            assert str(one.get("src") or one.get("href") or one.get("xlink:href")).startswith("data:")


def test_what_an_explanation_lacks_is_left_out(explanation: Explanation) -> None:
    bare = replace(explanation, record=None, cxr=None, image=None, modality_weights=None, has_cxr=False)
    figures = explanation_figures(bare)
    assert set(figures) == {"modalities"}
    page = Parsed(explanation_page(bare, figures))
    assert {one["id"] for one in page.all("section")} == {"modalities", "notes"}
    assert len(explanation_tables(bare)) == 1
    unknown: Any = {given: np.full(len(NAMES), np.nan, np.float32) for given in GIVEN}
    nothing = replace(
        bare,
        logits=unknown | {"both": bare.logits["both"]},
        probabilities=unknown | {"both": bare.probabilities["both"]},
    )
    assert "–" in "".join(printed(nothing, 100))
    explanation_page(nothing, explanation_figures(nothing))


def test_a_phenotype_that_is_unlikely_is_shown_all_the_same(explanation: Explanation) -> None:
    last = NAMES[int(explanation.logits["both"].argmin())]
    (axes,) = explanation_figures(replace(explanation, phenotype=last))["modalities"][1].axes
    names = [label for label in axes.get_yticklabels() if last in label.get_text()]
    assert [label.get_fontweight() for label in names] == ["bold"]


def test_red_is_what_raises_a_logit(explanation: Explanation) -> None:
    figure = explanation_figures(explanation)["record"][1]
    grid = figure.axes[0].images[0]
    low, high = grid.get_clim()
    assert low == -high
    red, _, blue, _ = grid.cmap(1.0)
    assert red > blue
    assert np.asarray(grid.get_array()).shape == (len(VARIABLES), 6)
