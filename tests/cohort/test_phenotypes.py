from pathlib import Path

import ibis
import ibis.expr.types as ir
import polars as pl
import pytest

from drfuse.cohort.phenotypes import count_matches, label_admissions, match_diagnoses, read_phenotypes
from drfuse.errors import InputError, MissingInputError

CSV = """\
phenotype,icd_version,icd_code
Shock,9,78550
Shock,10,R57.0
Heart failure,9,4280
Heart failure,10,I509
Clash,9,E849
"""
YAML = """\
Typhoid:
  use_in_benchmark: true
  codes: [0031, 0021, "0020"]
Shock:
  use_in_benchmark: true
  id: 249
  codes:
  - 78550
  - R57.0
  - e849
Left out:
  use_in_benchmark: false
  codes: ["4280"]
"""


def phenotypes(text: str, name: str, folder: Path) -> pl.DataFrame:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_phenotypes(path)


DIAGNOSES = {"hadm_id": "int64", "icd_code": "string", "icd_version": "int64"}


def table(*diagnoses: tuple[int, str | None, int | None]) -> ir.Table:
    return ibis.memtable([dict(zip(DIAGNOSES, row, strict=True)) for row in diagnoses], schema=DIAGNOSES)


def known(codes: pl.DataFrame, *diagnoses: tuple[int, str | None, int | None]) -> dict[int, set[str]]:
    """Return the phenotypes of each admission whose labels are known."""
    matched = match_diagnoses(table(*diagnoses), codes)
    names = codes["phenotype"].unique(maintain_order=True)
    return {
        row["hadm_id"]: {name for c, name in enumerate(names) if row[f"label_{c}"]}
        for row in label_admissions(matched, codes).to_pyarrow().to_pylist()
    }


def labels(codes: pl.DataFrame, *diagnoses: tuple[int, str | None, int | None]) -> dict[int, set[str]]:
    """Return the phenotypes of each admission that has any."""
    return {admission: names for admission, names in known(codes, *diagnoses).items() if names}


def counts(codes: pl.DataFrame, *diagnoses: tuple[int, str | None, int | None]) -> dict[str, int]:
    """Return how many diagnoses of each kind there are."""
    rows = count_matches(match_diagnoses(table(*diagnoses), codes)).to_pyarrow().to_pylist()
    return {row["match"]: row["n_diagnoses"] for row in rows}


def test_the_paper_has_25_phenotypes() -> None:
    codes = read_phenotypes(None)
    assert codes["phenotype"].n_unique() == 25
    assert set(codes["icd_version"].unique()) == {9, 10}
    assert codes["icd_code"].null_count() == 0


def test_the_shipped_codes_are_the_published_ones(shared: Path) -> None:
    names = ("phenotype_codes.csv", "phenotype_codes_since_2019.csv")
    published = pl.concat([read_phenotypes(shared / "reference" / name) for name in names])
    assert len(published) == 2734 + 88
    assert read_phenotypes(None).drop("with_longer").equals(published.drop("with_longer"))


@pytest.mark.slow
def test_codes_since_2019_and_later_ones_have_the_phenotype_of_their_start() -> None:
    expected = {
        "I48.11": "Cardiac dysrhythmias",
        "I48.20": "Cardiac dysrhythmias",
        "I47.20": "Cardiac dysrhythmias",
        "N18.30": "Chronic kidney disease",
        "E87.20": "Fluid and electrolyte disorders",
        "J12.82": "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)",
        # made up, as codes newer than the lists may be
        "E87.299": "Fluid and electrolyte disorders",
        "I10.1": "Essential hypertension",
        "N17.91X": "Acute and unspecified renal failure",
    }
    spelled = [*expected, *(f" {code.replace('.', '').lower()} " for code in expected)]
    rows = [(number, code, 10) for number, code in enumerate(spelled)]
    found = labels(read_phenotypes(), *rows)
    assert found == {number: {name} for number, name in enumerate([*expected.values()] * 2)}
    other_versions = [(row[0], row[1], version) for row in rows for version in (9, None)]
    assert labels(read_phenotypes(), *other_versions) == {}


def test_a_code_that_continues_no_listed_code_of_its_version_has_no_phenotype() -> None:
    rows = [
        (1, "I5A", 10),  # no listed code is its start
        (2, "E8", 10),  # it is the start of listed codes
        (3, "Z998", 10),
        (4, "58491", 9),  # ICD-9 is finished: 584.9 was never split
        (5, "I101", 9),
        (6, "5849", 10),
        (7, "N17911XA", 10),  # longer than a code can be
    ]
    assert labels(read_phenotypes(), *rows) == {}


def test_doubtful_codes_have_no_phenotype(shared: Path) -> None:
    doubtful = pl.read_csv(shared / "reference" / "phenotype_codes_doubtful.csv")["icd_code"]
    assert len(doubtful) == 19
    rows = [(1, code, 10) for code in doubtful]
    assert labels(read_phenotypes(), *rows) == {}
    assert counts(read_phenotypes(), *rows) == {"unlisted": 19}


def test_of_several_listed_starts_the_longest_counts() -> None:
    codes = pl.DataFrame(
        {
            "phenotype": ["A", "B", "C"],
            "icd_version": [10, 10, 9],
            "icd_code": ["I48", "I481", "I4811"],
            "with_longer": [True, True, False],
        }
    )
    assert labels(codes, (1, "I4811", 10), (2, "I482", 10), (3, "I48", 10), (4, "I4811", 9)) == {
        1: {"B"},
        2: {"A"},
        3: {"A"},
        4: {"C"},
    }


def test_every_diagnosis_is_counted_by_how_the_lists_know_it() -> None:
    rows = [
        *((1, "I10", 10), (1, "I10", 10), (2, "4019", 9), (2, "I4811", 10)),
        *((1, "I101", 10), (2, "N1791", 10)),
        *((1, "Z998", 10), (2, "V1000", 9), (2, "E8490", 9)),
        *((1, "I10", None), (1, "I10", 11), (1, "4019", 10), (1, "I10", 9), (1, "123456", 9), (1, "X", 10)),
        *((1, None, 10), (1, " ", 9)),  # no diagnoses
    ]
    assert counts(read_phenotypes(), *rows) == {
        "listed": 4,
        "start listed": 2,
        "unlisted": 3,
        "not ICD": 6,
    }


def test_labels_are_known_where_a_list_can_know_a_diagnosis() -> None:
    found = known(
        read_phenotypes(),
        *((1, "Z998", 10), (2, "I10", None), (3, None, 10), (4, "", 9), (5, "I10", 11)),
        *((6, "I10", 11), (6, "Z998", 10)),
    )
    assert found == {1: set(), 6: set()}


def test_in_a_file_of_ones_own_any_code_is_known(tmp_path: Path) -> None:
    codes = phenotypes(YAML, "codes.yaml", tmp_path)
    assert known(codes, (1, "a local code", None), (2, "R570", 11)) == {1: set(), 2: {"Shock"}}


def test_all_diagnoses_of_an_admission_count(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    found = labels(codes, (1, "Z000", 10), (1, "I509", 10), (1, "4280", 9), (1, "78550", 9), (2, "Z000", 10))
    assert found == {1: {"Heart failure", "Shock"}}


@pytest.mark.parametrize("code", ["R570", "R57.0", " R570 ", "r570", "r57.0\t"])
def test_codes_match_whatever_their_spelling(code: str, tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    assert labels(codes, (1, code.rstrip("\t"), 10)) == {1: {"Shock"}}


def test_in_a_file_of_ones_own_a_longer_code_is_another_code(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    assert labels(codes, (1, "R5701", 10), (2, "R57", 10), (3, "428", 9)) == {}


def test_labels_depend_on_the_listed_codes_and_on_whether_there_are_others(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    rows = [
        (1, " r57.0", 10),
        (1, "R570", 10),
        (1, "Z000", 10),
        (1, "Z001", 10),
        (2, "I509", 9),
        (3, "E849", None),
        (4, None, 9),
    ]
    found = match_diagnoses(table(*rows), codes).to_pyarrow().to_pylist()
    assert {tuple(row.values()) for row in found} == {
        (1, 10, "R570", "listed", 2),
        (1, 10, None, "unlisted", 2),
        (2, 9, None, "not ICD", 1),
        (3, None, None, "not ICD", 1),
    }
    assert known(codes, *rows) == {1: {"Shock"}}


def test_in_a_csv_the_version_counts(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    assert labels(codes, (1, "E849", 9), (2, "E849", 10)) == {1: {"Clash"}}


def test_in_a_yaml_file_codes_are_of_both_versions(tmp_path: Path) -> None:
    codes = phenotypes(YAML, "codes.yaml", tmp_path)
    assert labels(codes, (1, "E849", 9), (2, "E849", 10)) == {1: {"Shock"}, 2: {"Shock"}}


def test_yaml_codes_that_look_octal_keep_their_digits(tmp_path: Path) -> None:
    codes = phenotypes(YAML, "codes.yml", tmp_path)
    assert codes.filter(phenotype="Typhoid")["icd_code"].to_list() == ["0031", "0021", "0020"]


def test_yaml_groups_out_of_the_benchmark_are_left_out(tmp_path: Path) -> None:
    codes = phenotypes(YAML, "codes.yaml", tmp_path)
    assert codes["phenotype"].unique(maintain_order=True).to_list() == ["Typhoid", "Shock"]


def test_csv_codes_keep_their_leading_zeros_and_file_order(tmp_path: Path) -> None:
    codes = phenotypes(
        "icd_code,icd_version,phenotype\n0031,9,B\n0021,9,A\n0031,9,B\n", "codes.csv", tmp_path
    )
    assert codes.rows() == [("B", 9, "0031", False), ("A", 9, "0021", False)]


def test_blank_lines_of_a_csv_are_no_codes(tmp_path: Path) -> None:
    codes = phenotypes(CSV + "\n,,\n\n", "codes.csv", tmp_path)
    assert codes.equals(phenotypes(CSV, "whole.csv", tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("codes.csv", "phenotype,icd_code\nShock,78550\n"),
        ("codes.csv", "phenotype,icd_version,icd_code\nShock,nine,78550\n"),
        ("codes.csv", "phenotype,icd_version,icd_code\n"),
        ("codes.csv", ""),
        ("codes.yaml", "- Shock\n- Heart failure\n"),
        ("codes.yaml", "Shock: [78550]\n"),
        ("codes.yaml", "Shock: {use_in_benchmark: true}\n"),
        ("codes.yaml", "Shock: {use_in_benchmark: true, codes: \n"),
        ("codes.yaml", "Shock: {use_in_benchmark: false, codes: ['78550']}\n"),
        ("codes.yaml", ""),
    ],
)
def test_a_file_that_defines_no_phenotypes_is_named(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name):
        phenotypes(text, name, tmp_path)


@pytest.mark.parametrize("name", ["codes.csv", "codes.yaml"])
def test_a_binary_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe" * 50)
    with pytest.raises(InputError, match=name):
        read_phenotypes(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nothing here\.csv"):
        read_phenotypes(tmp_path / "nothing here.csv")
