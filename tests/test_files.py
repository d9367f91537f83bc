"""A folder appears whole or not at all, and never in the place of something else."""

from pathlib import Path

import pytest

from drfuse.errors import InputError
from drfuse.files import atomic_folder, write_whole

CONTENTS = {"data", "marker.json"}


def make(out: Path, overwrite: bool = False, text: str = "new") -> None:
    with atomic_folder(out, "thing", "marker.json", CONTENTS, overwrite) as folder:
        (folder / "data").write_text(text)
        assert not out.exists() or (out / "data").read_text() != text
        (folder / "marker.json").write_text("{}")


def test_it_appears_when_all_is_written(tmp_path: Path) -> None:
    make(tmp_path / "deep" / "out")
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == CONTENTS
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {".out.lock", "out"}


def test_it_takes_the_place_of_its_kind_when_told(tmp_path: Path) -> None:
    make(tmp_path / "out", text="old")
    with pytest.raises(InputError, match="replace it with --overwrite"):
        make(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "data").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock", "out"}


@pytest.mark.parametrize(
    ("names", "said"),
    [(["data"], "is not a thing: it has no marker.json"), (["marker.json", "x"], "more than")],
)
def test_what_is_not_of_its_kind_is_never_replaced(tmp_path: Path, names: list[str], said: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("precious")
    with pytest.raises(InputError, match=said):
        make(out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert all((out / name).read_text() == "precious" for name in names)


def test_a_failure_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", text="old")
    whole = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda path, text: whole(path, text) if path.name == "data" else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):  # when the data are written and the marker is not
        make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "data").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock", "out"}


def test_two_commands_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        atomic_folder(tmp_path / "out", "thing", "marker.json", CONTENTS, False),
        pytest.raises(InputError, match="another command is writing"),
    ):
        make(tmp_path / "out")


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "old")
    write_whole(tmp_path / "text", "new")
    assert (tmp_path / "text").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writing = atomic_folder(out, "thing", "marker.json", CONTENTS, False)
    writing.__enter__()
    out.mkdir()
    (out / "marker.json").write_text("of somebody else")
    with pytest.raises(InputError, match="replace it with --overwrite"):
        writing.__exit__(None, None, None)
    assert (out / "marker.json").read_text() == "of somebody else"
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock", "out"}


def test_the_working_directory_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="choose a folder inside it"):
        make(Path())


def test_what_a_killed_command_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789abcdef.partial"
    left.mkdir()
    (left / "half").touch()
    (tmp_path / ".out.lock").touch()
    make(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == CONTENTS
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock", "out"}
