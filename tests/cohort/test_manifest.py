import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from drfuse.cohort.manifest import FORMAT_VERSION, FlowStep, Manifest
from drfuse.cohort.variables import load_variables
from drfuse.errors import InputError, MissingInputError
from drfuse.sums import sha256

MANIFEST = Manifest(
    drfuse="0.0.1",
    sources={"mimic_iv": {"release": "2.2", "folder": "mimic-iv", "files": {"icu/icustays.csv": 1}}},
    options={"preset": "extended", "seed": 0},
    flow=[FlowStep("all ICU stays", 3), FlowStep("age at least 18 years", 2)],
    variables=list(load_variables()),
    phenotypes=["Shock", "Café-au-lait"],
    splits={"train": {"stays": 2, "with_cxr": 1}},
    warnings={"rejected_rows": {}, "unreadable_images": []},
    files={"ehr.npy": "00"},
)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


def test_any_tool_can_read_it(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert fields["flow"][1] == {"criterion": "age at least 18 years", "stays": 2}
    assert fields["format_version"] == FORMAT_VERSION == 2
    assert fields["variables"][0]["name"] == "capillary_refill_rate"
    assert fields["phenotypes"][1] == "Café-au-lait"


def test_a_folder_without_manifest_is_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=f"{tmp_path.name} is not a cohort"):
        Manifest.read(tmp_path)
    with pytest.raises(MissingInputError, match="nowhere is not a cohort"):
        Manifest.read(tmp_path / "nowhere")


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_is_refused(version: int, tmp_path: Path) -> None:
    dataclasses.replace(MANIFEST, format_version=version).write(tmp_path)
    with pytest.raises(InputError) as caught:
        Manifest.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'} has format version {version}, this drfuse reads 2; "
        "make the cohort again with `drfuse prepare --overwrite`"
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"format_version": 2}',
        b'{"format_version": 2, "flow": [{"step": 1}]}',
        b'{"format_version": 2, "flow": 3}',
        b"{}",
    ],
)
def test_a_damaged_manifest_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


def test_a_manifest_with_unknown_fields_is_damaged(tmp_path: Path) -> None:
    fields = dataclasses.asdict(MANIFEST) | {"colour": "red"}
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


def test_the_sum_is_that_of_the_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
