import hashlib
from pathlib import Path

import ibis
import pytest

from drfuse.cohort.split import hash_split, read_split_file
from drfuse.errors import InputError, MissingInputError

SUBJECTS = list(range(90_000_000, 90_010_000))


def split_of(subjects: list[int], seed: int) -> dict[int, str]:
    table = ibis.memtable({"subject_id": subjects})
    rows = table.select("subject_id", split=hash_split(table.subject_id, seed)).to_pyarrow().to_pylist()
    return {row["subject_id"]: row["split"] for row in rows}


def by_hand(subject_id: int, seed: int) -> str:
    """Return the split by the documented rule, in integers of arbitrary length."""
    digest = int.from_bytes(hashlib.sha256(f"{seed}:{subject_id}".encode("ascii")).digest(), "big")
    tenth = digest * 10 // 2**256
    return "train" if tenth < 7 else "validation" if tenth < 8 else "test"


@pytest.mark.parametrize("seed", [0, 1, 20_240_229])
def test_the_split_is_the_sha256_of_seed_and_subject(seed: int) -> None:
    assert split_of(SUBJECTS, seed) == {subject: by_hand(subject, seed) for subject in SUBJECTS}


def test_the_parts_are_7_to_1_to_2() -> None:
    found = list(split_of(SUBJECTS, 0).values())
    shares = {name: found.count(name) / len(found) for name in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.015)


def test_a_subject_keeps_its_split_when_the_cohort_grows() -> None:
    few, many = split_of(SUBJECTS[5:5000:7], 0), split_of(SUBJECTS, 0)
    assert few == {subject: many[subject] for subject in few}


def test_another_seed_splits_otherwise() -> None:
    first, second = split_of(SUBJECTS, 0), split_of(SUBJECTS, 1)
    same = sum(first[subject] == second[subject] for subject in SUBJECTS) / len(SUBJECTS)
    assert same == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.03)


def test_a_blank_last_line_of_a_split_file_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("subject_id,split\n1,validation\n2,train\n\n")
    assert sorted(read_split_file(path).rows()) == [(1, "validation"), (2, "train")]


def test_a_split_file_may_use_the_usual_names(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text(
        "note,split,subject_id\na,train,1\nb,val,2\nc,Valid,3\nd,DEV,4\ne, validation ,5\nf,Test,6\n"
        "again,train,1\n"
    )
    assert dict(sorted(read_split_file(path).rows())) == {
        1: "train",
        2: "validation",
        3: "validation",
        4: "validation",
        5: "validation",
        6: "test",
    }


def test_synonyms_do_not_tear_a_subject(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("subject_id,split\n1,val\n1,validation\n")
    assert read_split_file(path).rows() == [(1, "validation")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("subject_id,split\n1,train\n1,test\n", "more than one split"),
        ("subject_id,split\n1,holdout\n", "1 splits of another name"),
        ("subject_id,split\n1,\n", "1 splits of another name"),
        ("subject_id,part\n1,train\n", "subject_id"),
        ("subject_id,split\nanna,train\n", "subject_id"),
        ("", "subject_id"),
    ],
)
def test_a_wrong_split_file_is_named_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"split\.csv") as caught:
        read_split_file(path)
    assert reason in str(caught.value)


def test_a_missing_split_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.csv"):
        read_split_file(tmp_path / "nowhere.csv")
