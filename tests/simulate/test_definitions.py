from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest

from drfuse.cohort.phenotypes import read_phenotypes
from drfuse.simulate.definitions import read_definitions

PAGE = Path(__file__).parents[2] / "docs/simulator.md"
TABLES = sorted(
    Path(file.name).stem
    for file in (files("drfuse.simulate") / "definitions").iterdir()
    if file.name.endswith(".csv")
)


def rows_below(header: str) -> list[str]:
    """Return the rows of the table of the page that has this header."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(header) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_full_and_says_nothing_twice(name: str) -> None:
    table = read_definitions(name)
    assert table.height > 0
    assert table.is_unique().all()


def test_codes_stay_text() -> None:
    codes = read_definitions("background_codes")["icd_code"]
    assert codes.dtype == pl.String
    assert {"311", "2859", "V1582"} <= set(codes)


def test_every_table_is_described_beside_it() -> None:
    readme = (files("drfuse.simulate") / "definitions/README.md").read_text(encoding="utf-8")
    described = {
        line.split("`")[1].removesuffix(".csv") for line in readme.splitlines() if line.startswith("| `")
    }
    assert described == set(TABLES)


def test_the_phenotypes_are_the_cohorts_in_their_order() -> None:
    names = read_phenotypes()["phenotype"].unique(maintain_order=True)
    assert read_definitions("prevalence")["phenotype"].to_list() == names.to_list()


def test_weights_are_of_known_phenotypes_and_factors() -> None:
    weights = read_definitions("log_odds")
    assert set(weights["phenotype"]) == set(read_definitions("prevalence")["phenotype"])
    assert set(weights["factor"]) == set(read_definitions("factors")["factor"])
    assert weights.select("phenotype", "factor").is_unique().all()


def test_the_record_shows_what_factors_say_that_it_shows() -> None:
    factors, effects = read_definitions("factors"), read_definitions("effects")
    in_the_record = factors.filter(pl.col("shown_by").is_in(["both", "ehr"]))
    assert set(effects["factor"]) == set(in_the_record["factor"]) - {"rhythm"}
    assert set(effects["variable"]) <= set(read_definitions("courses")["variable"])
    assert effects.select("variable", "factor").is_unique().all()
    assert in_the_record["in_the_record"].null_count() == 0
    in_the_image = factors.filter(pl.col("shown_by").is_in(["both", "cxr"]))
    assert in_the_image["in_the_image"].null_count() == 0
    for column, other in (("in_the_record", "cxr"), ("in_the_image", "ehr")):
        assert factors.filter(shown_by=other)[column].null_count() == (factors["shown_by"] == other).sum()


def test_items_name_what_there_is() -> None:
    items = read_definitions("items")
    assert items["itemid"].is_unique().all()
    (specimen_type,) = items.filter(itemid=52033).iter_rows(named=True)  # says of others where they are from
    assert (specimen_type["variable"], specimen_type["round"]) == (None, None)
    items = items.filter(pl.col("itemid") != 52033)
    assert set(items["variable"].drop_nulls()) == {
        *read_definitions("courses")["variable"],
        "mean_blood_pressure",
    }
    assert set(items["round"]) == set(read_definitions("rounds")["round"])
    kits = read_definitions("kits")
    assert set(items["kit"].drop_nulls()) == {*kits["kit"], *kits["otherwise"].drop_nulls()}
    assert set(items["conversion"].drop_nulls()) == {"fahrenheit", "pounds", "inches"}
    texts = items.filter(param_type="Text")["itemid"]
    assert set(texts) == set(read_definitions("texts")["itemid"])


@pytest.mark.parametrize("item", [220739, 223900, 223901])
def test_the_deeper_the_coma_the_lower_the_score(item: int) -> None:
    texts = read_definitions("texts").filter(itemid=item)
    assert texts["from"][0] is None
    assert texts["from"].drop_nulls().is_sorted()
    assert texts["score"].to_list() == list(range(texts.height, 0, -1))


def test_the_page_tells_every_factor() -> None:
    shown_by = {"both": "both", "ehr": "EHR", "cxr": "image"}
    assert rows_below("| factor | shown by | in the record | in the image |") == [
        f"| {factor} | {shown_by[by]} | {record or ''} | {image or ''} |"
        for factor, by, record, image in read_definitions("factors")
        .select("factor", "shown_by", "in_the_record", "in_the_image")
        .iter_rows()
    ]


def test_the_page_tells_every_phenotype_with_its_weights() -> None:
    weights = read_definitions("log_odds").partition_by("phenotype", as_dict=True)
    expected = []
    for phenotype, prevalence in read_definitions("prevalence").iter_rows():
        terms = ", ".join(f"{factor} {weight:g}" for _, factor, weight in weights[(phenotype,)].iter_rows())
        expected.append(f"| {phenotype} | {prevalence:.2f} | {terms} |")
    assert rows_below("| phenotype | prevalence | weights |") == expected


def test_the_page_tells_every_course() -> None:
    effects = read_definitions("effects").partition_by("variable", as_dict=True)
    expected = []
    for course in read_definitions("courses").iter_rows(named=True):
        variable, terms = course["variable"], []
        for _, factor, level, trend in effects[(variable,)].iter_rows() if (variable,) in effects else ():
            assert (level == 0) != (trend == 0)
            terms.append(f"{factor} {level:+g}" if level else f"{factor} {trend:+g} in 48 h")
        name = f"{variable} (log)" if course["scale"] == "log" else variable
        numbers = " | ".join(f"{course[key]:g}" for key in ("mean", "between_sd", "within_sd", "circadian"))
        expected.append(f"| {name} | {numbers} | {', '.join(terms)} |")
    header = "| variable | mean | between stays | from hour to hour | circadian | readings |"
    assert rows_below(header) == expected


def test_the_page_tells_the_acute_factors() -> None:
    acute = read_definitions("factors").filter(acute=1)["factor"]
    assert f"acute factors ({', '.join(acute)})" in " ".join(PAGE.read_text(encoding="utf-8").split())
