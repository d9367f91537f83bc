import shutil
from pathlib import Path

import pytest

from drfuse.cohort.sources.mimic_cxr import MimicCxr
from drfuse.cohort.store import Store
from tests.mimic import Hospital, image_path


def open_release(folder: Path) -> MimicCxr:
    return MimicCxr.open(folder, Store().connect())


def write_metadata(folder: Path) -> None:
    """Write a release that lists an image and holds none."""
    hospital = Hospital()
    hospital.radiograph(hospital.add_stay())
    hospital.write_radiographs(folder)
    shutil.rmtree(folder / "files")


def test_images_lie_where_the_release_keeps_them(tmp_path: Path) -> None:
    write_metadata(tmp_path)
    (tmp_path / "files").mkdir()
    path = open_release(tmp_path).path(90_000_001, 93_000_001, "abc")
    assert path == tmp_path / "files/p90/p90000001/s93000001/abc.jpg"
    assert image_path(90_000_001, 93_000_001, "abc") == Path("files/p90/p90000001/s93000001/abc.jpg")


@pytest.mark.parametrize("folder", [".", "resized"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png"])
def test_resized_images_lie_in_one_flat_folder(folder: str, suffix: str, tmp_path: Path) -> None:
    write_metadata(tmp_path)
    image = tmp_path / folder / f"abc{suffix}"
    image.parent.mkdir(exist_ok=True)
    image.touch()
    images = open_release(tmp_path)
    assert images.path(90_000_001, 93_000_001, "abc").samefile(image)
    assert not images.path(90_000_002, 93_000_002, "def").exists()
