"""How fast are radiographs decoded, does adding some cost no more, and does a long list fit in memory?

`python -m benchmarks.radiographs` makes its JPEGs itself, since real ones may not be passed on: the large
shapes of a chest, ribs and grain, with about as many bytes as an image of MIMIC-CXR-JPG has (1.5 MB).
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.progress import Progress

from benchmarks.command import command
from benchmarks.extraction import run_prepare
from benchmarks.fresh import Run, fresh
from benchmarks.results import Report, Table, Target
from drfuse.cohort.images import decode, store_images
from drfuse.cohort.radiographs import find_radiographs, store_radiographs
from drfuse.cohort.reuse import INPUTS, write_inputs
from drfuse.cohort.sources import Images, Source
from drfuse.cohort.store import Store, open_store, spill_folder
from drfuse.simulate import simulate

_QUALITY, _GRAIN = 92, 3.5  # of the JPEGs; grey levels
_EVERY = 11  # one radiograph of so many is new: a tenth of those that were there
_HOW = """\
{n} made JPEGs of {width} x {height} pixels, {megabytes:.2f} MB each on average, are brought to {size} x
{size}. *Every pixel*: Pillow decodes the whole image and resizes it, on one core. *Draft*: `drfuse` has
JPEG decode at a fraction of the size and resizes that, on one core; the result differs from the first by
{difference:.2f} grey levels on average. *Stored*: the same on all cores, written to `cxr.npy`. They take
turns {repeats} times, each in a process of its own; medians count, without imports. *Adding*: a simulated
hospital of {stays} stays whose radiographs are such JPEGs is prepared without a part of them, then again
with all (`--overwrite`), so that a tenth more is new, then from nothing. *Listing*: the code of `prepare`
that finds, stamps, tries and lists the radiographs of made-up stays, {per_stay} of each, of which it stores
one; the files are hard links to images of 8 x 8 pixels. The store may take {limit}, and the largest resident
set counts, each size in a process of its own."""
_PER_STAY = 4
_LINKS = 20_000  # to one file; file systems have a limit
_STORE_LIMIT = "32MiB"
AT_MOST_BYTES = 500


def radiographs(
    images: int = 24,
    size: int = 256,
    repeats: int = 3,
    stays: int = 400,
    width: int = 2500,
    height: int = 3056,
    listed: Sequence[int] = (20_000, 200_000),
    save: Path | None = None,
) -> Report:
    """Compare ways to decode radiographs, time a cohort to which some are added, and measure a long list.

    Args:
        images: How many images are made and decoded.
        size: Side of the stored images, in pixels.
        repeats: Runs of each way.
        stays: ICU stays of the simulated hospital; six of ten have a radiograph.
        width: Width of the made images, in pixels.
        height: Their height.
        listed: Lengths of the lists whose memory is compared, rising.
        save: JSON file to write the report to.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_radiographs(Path(scratch, "made"), images, width, height)
        megabytes = float(np.mean([path.stat().st_size for path in paths])) / 1e6
        pairs = [(decode(path, size), decode_every_pixel(path, size)) for path in paths[:4]]
        difference = float(np.mean([np.abs(np.subtract(*pair, dtype=float)).mean() for pair in pairs]))
        runs: dict[str, list[Run]] = {
            "every pixel, one core": [],
            "draft, one core": [],
            "stored, all cores": [],
        }
        for _ in range(repeats):
            for some, way in zip(runs.values(), ("every_pixel", "draft", "store"), strict=True):
                threads = None if way == "store" else 1
                some.append(fresh(f"benchmarks.radiographs:_{way}", paths, size, scratch, threads=threads))
        added = add_radiographs(Path(scratch), paths, stays, size)
    lists = [_listing(n, fresh("benchmarks.radiographs:list_radiographs", n)) for n in listed]
    few, many = lists[0]["peak memory, GiB"], lists[-1]["peak memory, GiB"]
    rows = [_row(way, images, some, runs["every pixel, one core"]) for way, some in runs.items()]
    speed = {row["way"]: row["images a second"] for row in rows}
    targets = [
        Target(
            "images a second of draft over every pixel, one core",
            speed["draft, one core"] / speed["every pixel, one core"],
        ),
        Target(
            f"images a second of {os.cpu_count()} cores over one, draft",
            speed["stored, all cores"] / speed["draft, one core"],
        ),
        Target("time to prepare with a tenth of the radiographs new, over all new", added[1]["over all new"]),
        Target(
            f"memory of a radiograph in the list, from {listed[0]:,} to {listed[-1]:,}",
            (many - few) * 2**30 / (listed[-1] - listed[0]),
            "bytes",
            at_most=AT_MOST_BYTES,
        ),
    ]
    how = _HOW.format(
        n=images,
        width=width,
        height=height,
        megabytes=megabytes,
        size=size,
        difference=difference,
        repeats=repeats,
        stays=stays,
        per_stay=_PER_STAY,
        limit=_STORE_LIMIT,
    )
    tables = [
        Table("Decoding, medians", rows),
        Table("Adding radiographs", added),
        Table("Listing radiographs", lists),
    ]
    report = Report("Radiographs", how, targets, tables)
    if save is not None:
        report.write(save)
    return report


def write_radiographs(folder: Path, images: int, width: int, height: int, seed: int = 0) -> list[Path]:
    """Write grey JPEGs that look like a chest to a decoder: smooth shapes, edges and grain."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, height // 4), np.linspace(-1, 1, width // 4), indexing="ij")
    paths = []
    for number in range(images):
        tilt, ribs = generator.normal(0, 0.05), generator.uniform(9, 12)
        chest = 30 + 180 * np.exp(-((x / 0.9) ** 4) - (y / 1.4) ** 4)
        for side in (-0.42, 0.42):
            lung = np.exp(-(((x - side - tilt * y) / 0.3) ** 4) - ((y + 0.1) / 0.7) ** 4)
            chest -= lung * (95 + 14 * np.sign(np.sin(ribs * np.pi * (y + 0.4 * np.abs(x - side)))))
        shapes = Image.fromarray(np.clip(chest, 0, 255).astype(np.uint8)).resize((width, height))
        grain = _GRAIN * generator.standard_normal((height, width), np.float32)
        pixels = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=_QUALITY)
    return paths


def decode_every_pixel(path: Path, size: int) -> NDArray[np.uint8]:
    """Decode as `drfuse.cohort.images.decode` does, but the image in full."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("L"), (size, size), method=Image.Resampling.BICUBIC))


def add_radiographs(folder: Path, paths: Sequence[Path], stays: int, size: int) -> list[dict[str, Any]]:
    """Prepare a hospital without a part of its radiographs, then with all, then with all from nothing.

    Args:
        folder: An empty place to work in.
        paths: JPEGs that take the place of the hospital's own, again and again.
        stays: ICU stays of the hospital.
        size: Side of the stored images, in pixels.

    Returns:
        A row for each of the three: how long it took, and its share of the last.
    """
    hospital = folder / "hospital"
    simulate(hospital, stays, cxr_rate=0.6, image_size=32)
    cxr = hospital / "mimic-cxr"
    for image, path in zip(sorted(cxr.rglob("*.jpg")), cycle(paths), strict=False):
        image.unlink()
        image.hardlink_to(path)
    (file,) = cxr.glob("*-metadata.csv.gz")
    metadata = pl.read_csv(file, infer_schema=False)
    new = pl.int_range(pl.len()) % _EVERY == 0
    options = ["--mimic-cxr", str(cxr), "--image-size", str(size), "--overwrite"]
    steps = (
        ("without a part", ~new, "cohort"),
        ("with a tenth more", True, "cohort"),
        ("all new", True, "other"),
    )
    file.unlink()
    runs = []
    for _, kept, out in steps:
        table = metadata.filter(kept)
        table.write_csv(file.with_suffix(""))
        runs.append((table.height, run_prepare(hospital / "mimic-iv", folder / out, *options)))
    return [
        {
            "prepare": what,
            "images in the table": n,
            "seconds": run.seconds,
            "over all new": run.seconds / runs[-1][1].seconds,
        }
        for (what, _, _), (n, run) in zip(steps, runs, strict=True)
    ]


def list_radiographs(n: int) -> int:
    """Find, stamp, try and list `n` radiographs as `prepare` does; return how many are listed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(None, _STORE_LIMIT) as store,
        spill_folder(store, Path(folder, "cohort"), None),
    ):
        store.raw_sql(
            f"""
            CREATE TABLE radiographs AS
            SELECT 10_000_000 + i // {_PER_STAY} AS subject_id, 50_000_000 + i AS study_id,
                   sha1('radiograph' || i) AS dicom_id, 'AP' AS view_position,
                   TIMESTAMP '2150-01-01' + to_hours(i % {_PER_STAY}) AS studied_at
            FROM range({n}) t(i)
            """
        )
        store.raw_sql(
            f"""
            CREATE TABLE stays AS
            SELECT 10_000_000 + i AS subject_id, 30_000_000 + i AS stay_id, TIMESTAMP '2150-01-01' AS intime,
                   TIMESTAMP '2150-01-03' AS window_end
            FROM range({n // _PER_STAY}) t(i)
            """
        )
        images = _Links("links", "1", Path(folder), (), store.table("radiographs"))
        images.make(store)
        source = cast(Source, SimpleNamespace(store=store, images=images, radiographs=images.table))
        found, _ = find_radiographs(source, store.table("stays"), ["AP"])
        with Progress(disable=True) as progress:
            tried = store_radiographs(found, source, 8, None, Path(folder, "cxr.npy"), None, progress)
        write_inputs(Path(folder, INPUTS), {}, tried, store)
        return int(pq.read_metadata(Path(folder, INPUTS)).num_rows)


@dataclass(frozen=True)
class _Links(Images):
    """Hard links to a few small images, with paths as long as those of MIMIC-CXR-JPG."""

    def path(self, subject_id: int, study_id: int, dicom_id: str) -> Path:
        """Return where an image is."""
        return self.root / f"files/p{subject_id % 100:02}/p{subject_id}-s{study_id}-{dicom_id}.png"

    def may_hold(self, missing: str) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def make(self, store: Store) -> None:
        """Make the links of all images in the table."""
        for folder in range(100):
            (self.root / f"files/p{folder:02}").mkdir(parents=True)
        table = store.con.table(self.table.get_name()).select("subject_id, study_id, dicom_id")
        for number, batch in enumerate(table.to_arrow_reader(_LINKS)):
            image = self.root / f"{number}.png"
            Image.new("L", (8, 8), number % 256).save(image)
            for ids in pl.DataFrame(batch).iter_rows():
                self.path(*ids).hardlink_to(image)


def _listing(n: int, run: Run) -> dict[str, float]:
    return {
        "radiographs": n,
        "of them tried": run.result,
        "seconds": run.seconds,
        "peak memory, GiB": run.peak_gib,
    }


def _every_pixel(paths: Sequence[Path], size: int, _: str) -> None:
    for path in paths:
        decode_every_pixel(path, size)


def _draft(paths: Sequence[Path], size: int, _: str) -> None:
    for path in paths:
        decode(path, size)


def _store(paths: Sequence[Path], size: int, folder: str) -> None:
    for _ in store_images(([path] for path in paths), size, Path(folder, "cxr.npy")):
        pass


def _row(way: str, images: int, runs: Sequence[Run], of: Sequence[Run]) -> dict[str, Any]:
    seconds = median(run.seconds for run in runs)
    return {
        "way": way,
        "images a second": images / seconds,
        "milliseconds an image": 1000 * seconds / images,
        "processor, milliseconds": 1000 * median(run.cpu_seconds for run in runs) / images,
        "over every pixel": median(run.seconds for run in of) / seconds,
        "peak memory, GiB": max(run.peak_gib for run in runs),
    }


if __name__ == "__main__":
    command(radiographs)
