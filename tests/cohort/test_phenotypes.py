from pathlib import Path

import ibis
import polars as pl
import pytest

from drfuse.cohort.phenotypes import label_admissions, read_phenotypes, select_diagnoses
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


def labels(codes: pl.DataFrame, *diagnoses: tuple[int, str, int]) -> dict[int, set[str]]:
    """Return the phenotypes of each admission that has any."""
    rows = [{"hadm_id": hadm, "icd_code": code, "icd_version": version} for hadm, code, version in diagnoses]
    table = label_admissions(ibis.memtable(rows), codes).to_pyarrow().to_pylist()
    names = codes["phenotype"].unique(maintain_order=True)
    return {row["hadm_id"]: {name for c, name in enumerate(names) if row[f"label_{c}"]} for row in table}


def test_the_paper_has_25_phenotypes() -> None:
    codes = read_phenotypes(None)
    assert codes["phenotype"].n_unique() == 25
    assert set(codes["icd_version"].unique()) == {9, 10}
    assert codes["icd_code"].null_count() == 0


def test_the_shipped_codes_are_the_published_ones(shared: Path) -> None:
    names = ("phenotype_codes.csv", "phenotype_codes_since_2019.csv")
    published = pl.concat([read_phenotypes(shared / "reference" / name) for name in names])
    assert read_phenotypes(None).equals(published)


@pytest.mark.parametrize(
    ("code", "version", "phenotype"),
    [
        ("I48.11", 10, "Cardiac dysrhythmias"),
        ("I4820", 10, "Cardiac dysrhythmias"),
        ("I47.20", 10, "Cardiac dysrhythmias"),
        ("N18.30", 10, "Chronic kidney disease"),
        ("E8720", 10, "Fluid and electrolyte disorders"),
        ("J12.82", 10, "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)"),
        ("J12829", 10, "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)"),
        ("N18.309", 10, "Chronic kidney disease"),  # a part of a listed code, as every October brings some
        ("U07.1", 10, None),
        ("I4820", 9, None),
    ],
)
def test_codes_since_2019_have_their_phenotype(code: str, version: int, phenotype: str | None) -> None:
    found = labels(read_phenotypes(None), (1, code, version))
    assert found == ({} if phenotype is None else {1: {phenotype}})


def test_all_diagnoses_of_an_admission_count(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    found = labels(codes, (1, "Z000", 10), (1, "I509", 10), (1, "4280", 9), (1, "78550", 9), (2, "Z000", 10))
    assert found == {1: {"Heart failure", "Shock"}}


@pytest.mark.parametrize("code", ["R570", "R57.0", " R570 ", "r570", "r57.0\t"])
def test_codes_match_whatever_their_spelling(code: str, tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    assert labels(codes, (1, code.rstrip("\t"), 10)) == {1: {"Shock"}}


def test_a_longer_code_is_a_part_of_a_listed_one_in_icd_10_only(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    found = labels(codes, (1, "R5701", 10), (2, "R57", 10), (3, "428", 9), (4, "42801", 9), (5, "R5701", 9))
    assert found == {1: {"Shock"}}


def test_labels_depend_on_the_listed_diagnoses_alone(tmp_path: Path) -> None:
    codes = phenotypes(CSV, "codes.csv", tmp_path)
    rows = [
        (1, " r57.0", 10),
        (1, "R570", 10),
        (1, "Z000", 10),
        (2, "I509", 9),
        (3, "E849", None),
        (4, None, 9),
    ]
    schema = {"hadm_id": "int64", "icd_code": "string", "icd_version": "int64"}
    diagnoses = ibis.memtable([dict(zip(schema, row, strict=True)) for row in rows], schema=schema)
    listed = select_diagnoses(diagnoses, codes)
    assert {tuple(row[name] for name in schema) for row in listed.to_pyarrow().to_pylist()} == {
        (1, "R570", 10),
        (2, "I509", 9),
        (3, "E849", None),
    }
    assert len(listed.to_pyarrow()) == 3
    of_all, of_listed = (label_admissions(table, codes).to_pyarrow() for table in (diagnoses, listed))
    assert of_all.to_pylist() == of_listed.to_pylist()
    assert [row["hadm_id"] for row in of_all.to_pylist()] == [1]


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
    assert codes.rows() == [("B", 9, "0031"), ("A", 9, "0021")]


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
