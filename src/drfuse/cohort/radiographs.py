"""The last readable radiograph in each stay's window: found, and stored in `cxr.npy`."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import ibis
import ibis.expr.types as ir
import polars as pl
from rich.progress import Progress

from drfuse.cohort.images import Stored, store_images
from drfuse.cohort.reuse import STAMP_SCHEMA, Earlier, stamp_all
from drfuse.cohort.sources import Source
from drfuse.cohort.store import count, fetch
from drfuse.errors import InputError

logger = logging.getLogger(__name__)

_IDS = ("stay_id", "subject_id", "study_id", "dicom_id")


def find_radiographs(source: Source, stays: ir.Table, views: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """Return the ids of each stay's radiographs (see `select_radiographs`), and how many have no time."""
    if source.radiographs is None:
        return pl.DataFrame(schema={**dict.fromkeys(_IDS, pl.Int64), "dicom_id": pl.String}), 0
    studied = source.store.create_table("studied", source.radiographs)
    found = pl.from_arrow(fetch(source.store, select_radiographs(studied, stays, views)))
    return cast(pl.DataFrame, found), count(source.store, studied.filter(studied.studied_at.isnull()))


def select_radiographs(studied: ir.Table, stays: ir.Table, views: Sequence[str]) -> ir.Table:
    """Return `stay_id`, `subject_id`, `study_id`, `dicom_id` of the radiographs in each stay's window.

    They are ordered by stay, the latest of each stay first. `studied` is `Images.table`; `stays` has
    `stay_id`, `subject_id`, `intime` and `window_end`; only the view positions in `views` count.
    """
    studied = studied.filter(studied.view_position.strip().upper().isin(views))
    studied = studied.join(stays.select("stay_id", "subject_id", "intime", "window_end"), "subject_id")
    studied = studied.filter(studied.studied_at.between(studied.intime, studied.window_end))
    latest_first = [ibis.desc("studied_at"), ibis.desc("study_id"), ibis.desc("dicom_id")]
    return studied.order_by("stay_id", *latest_first).select(*_IDS)


def store_radiographs(
    found: pl.DataFrame,
    source: Source,
    image_size: int,
    earlier: Earlier | None,
    out: Path,
    threads: int | None,
    progress: Progress,
) -> pl.DataFrame:
    """Write `cxr.npy`: uint8 (images, size, size), grey, in the order of the stays.

    Of the images that `find_radiographs` found for a stay, the first readable one is stored. Images that an
    `earlier` cohort has in this size are copied. Without `threads`, all cores decode.

    Returns:
        The images that were tried, as in `Earlier.images`: each stay's stored one, and those that were tried
        before it and cannot be read.

    Raises:
        InputError: If there are images and none can be read.
    """
    images = source.images
    stamps, paths = pl.DataFrame(schema=STAMP_SCHEMA), list[Path]()
    if images is not None:
        paths = [images.path(*ids) for ids in found.select("subject_id", "study_id", "dicom_id").iter_rows()]
        stamps = stamp_all(paths, images.root, threads)
    rows = pl.Series("earlier", [None] * len(paths), pl.Int32) if earlier is None else earlier.rows_of(stamps)
    stored = None if earlier is None else earlier.folder / "cxr.npy"
    files = iter(
        path if row is None or stored is None else Stored(stored, row)
        for path, row in zip(paths, rows, strict=True)
    )
    stays = found.group_by("stay_id", maintain_order=True).len("n")
    candidates = (list(islice(files, n)) for n in stays["n"])
    chosen = store_images(candidates, image_size, out, threads)
    last = pl.Series(progress.track(chosen, total=stays.height, description="decoding"), dtype=pl.Int64)
    if images is not None and paths and last.null_count() == len(last):
        raise InputError(
            f"none of the {len(paths)} radiographs under {images.root} can be read, the first expected at "
            f"{paths[0].relative_to(images.root)}; leave --mimic-cxr out to go on without them"
        )
    stays = stays.with_columns(last=last, cxr_row=last.is_not_null().cast(pl.Int32).cum_sum() - 1)
    ranked = pl.concat([found, stamps, rows.to_frame("earlier")], how="horizontal").with_columns(
        rank=pl.int_range(pl.len()).over("stay_id")
    )
    tried = ranked.join(stays, "stay_id", maintain_order="left").filter(
        pl.col("rank") <= pl.col("last").fill_null(pl.col("n"))
    )
    if n_copied := tried.height - tried["earlier"].null_count():
        logger.info("copied %d of %d radiographs from the earlier cohort", n_copied, tried.height)
    is_stored = pl.col("rank") == pl.col("last").fill_null(-1)
    return tried.select(*found.columns, *stamps.columns, cxr_row=pl.when(is_stored).then("cxr_row"))
