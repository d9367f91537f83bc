"""The last readable radiograph in each stay's window: found, and stored in `cxr.npy`."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import polars as pl
from rich.progress import Progress

from drfuse.cohort.images import Stored, store_images
from drfuse.cohort.reuse import FILES_PER_BLOCK, STAMP_SCHEMA, Earlier, stamp_all
from drfuse.cohort.sources import Images, Source
from drfuse.cohort.store import Store, count, create_from_blocks, fetch, read_batches
from drfuse.errors import InputError

logger = logging.getLogger(__name__)

_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
_IDS = ("subject_id", "study_id", "dicom_id")
_FOUND = {"stay_id": pl.Int64, "rank": pl.Int64, **dict.fromkeys(_IDS, pl.Int64), "dicom_id": pl.String}
_TRIED = {"stay_id": pl.Int64, "rank": pl.Int64, "dicom_id": pl.String, **STAMP_SCHEMA, "cxr_row": pl.Int32}


def find_radiographs(source: Source, stays: ir.Table, views: Sequence[str]) -> tuple[ir.Table, int]:
    """Return the radiographs of the stays (see `select_radiographs`), and how many have no time.

    Raises:
        InputError: If an image's id is not a plain name, so that its path could lead anywhere.
    """
    store = source.store
    if source.images is None:
        return ibis.memtable(pl.DataFrame(schema=_FOUND)), 0
    studied = store.create_table("studied", source.images.table)
    plain = studied.dicom_id.re_search(_PLAIN_NAME).fill_null(False)
    if n_others := count(store, studied.filter(~plain)):
        raise InputError(
            f"{n_others} images of {source.images.root} have a dicom_id that is not a plain name of letters, "
            "digits, dots, hyphens and underscores; correct or remove them"
        )
    found = store.create_table("found", select_radiographs(studied, stays, views))
    return found, count(store, studied.filter(studied.studied_at.isnull()))


def select_radiographs(studied: ir.Table, stays: ir.Table, views: Sequence[str]) -> ir.Table:
    """Return the radiographs in each stay's window: `stay_id`, `rank`, `subject_id`, `study_id`, `dicom_id`.

    They are ordered by stay and rank; the latest of a stay has rank 0. `studied` is `Images.table`; `stays`
    has `stay_id`, `subject_id`, `intime` and `window_end`; only the view positions in `views` count.
    """
    studied = studied.filter(studied.view_position.strip().upper().isin(views))
    studied = studied.join(stays.select("stay_id", "subject_id", "intime", "window_end"), "subject_id")
    studied = studied.filter(studied.studied_at.between(studied.intime, studied.window_end))
    latest_first = [ibis.desc("studied_at"), ibis.desc("study_id"), ibis.desc("dicom_id")]
    studied = studied.mutate(rank=ibis.row_number().over(group_by="stay_id", order_by=latest_first))
    return studied.select(*_FOUND).order_by("stay_id", "rank")


def store_radiographs(
    found: ir.Table,
    source: Source,
    image_size: int,
    earlier: Earlier | None,
    out: Path,
    threads: int | None,
    progress: Progress,
) -> ir.Table:
    """Write `cxr.npy`: uint8 (images, size, size), grey, in the order of the stays.

    Of the images that `find_radiographs` found for a stay, the first readable one is stored. Images that an
    `earlier` cohort has in this size are copied. Without `threads`, all cores decode.

    Returns:
        The images that were tried, as a table of the store: each stay's stored one, and those that were tried
        before it and cannot be read. Its columns: `stay_id`, `rank`, `dicom_id`, the fields of `Stamp`, and
        `cxr_row`, null if the image was not stored.

    Raises:
        InputError: If there are images and none can be read.
    """
    store, images = source.store, source.images
    if images is None:
        list(store_images([], image_size, out))
        return ibis.memtable(pl.DataFrame(schema=_TRIED))
    stamped = create_from_blocks(store, "stamped", _stamp_blocks(found, images, store, threads))
    if earlier is None:
        candidates = stamped.mutate(earlier_row=ibis.null("int32"))
    else:
        candidates = stamped.left_join(earlier.rows_by_stamp(store), list(STAMP_SCHEMA))
    stays = fetch(store, stamped.group_by("stay_id").agg().order_by("stay_id"))
    stored = store_images(
        _files_of_stays(candidates, images, earlier, store), image_size, out, threads, images.root
    )
    ranks = (
        -1 if rank is None else rank
        for rank in progress.track(stored, total=len(stays), description="decoding")
    )
    stays = pl.DataFrame(stays).with_columns(stored_rank=np.fromiter(ranks, np.int64))
    is_stored = pl.col("stored_rank") >= 0
    if len(stays) and not stays.select(is_stored.any()).item():
        raise InputError(
            f"none of the {count(store, stamped)} radiographs under {images.root} can be read; expected "
            f"{images.form}; links out of that folder are not followed; leave --mimic-cxr out to go on "
            "without radiographs"
        )
    stays = stays.with_columns(row=is_stored.cast(pl.Int32).cum_sum() - 1)
    tried = candidates.join(ibis.memtable(stays), "stay_id")
    tried = tried.filter((tried.stored_rank < 0) | (tried["rank"] <= tried.stored_rank))
    row = (tried["rank"] == tried.stored_rank).ifelse(tried.row, ibis.null("int32"))
    tried = store.create_table("tried", tried.mutate(cxr_row=row).select(*_TRIED, "earlier_row"))
    if n_copied := count(store, tried.filter(tried.earlier_row.notnull())):
        logger.info("copied %d of %d radiographs from the earlier cohort", n_copied, count(store, tried))
    return tried


def find_unreadable(images: ir.Table, store: Store) -> list[str]:
    """Return the `dicom_id` of the images of `store_radiographs` that cannot be read, in order."""
    unreadable = images.filter(images.cxr_row.isnull()).order_by("stay_id", "rank").select("dicom_id")
    return list(dict.fromkeys(fetch(store, unreadable)["dicom_id"].to_pylist()))


def _stamp_blocks(
    found: ir.Table, images: Images, store: Store, threads: int | None
) -> Iterator[pl.DataFrame]:
    """Yield the radiographs with the stamps of their files; first an empty block, which gives the types."""
    yield pl.DataFrame(schema=_FOUND | STAMP_SCHEMA)
    rows = store.con.cursor().table(found.get_name())  # a cursor, as blocks are stored between two reads
    for batch in rows.to_arrow_reader(FILES_PER_BLOCK):
        block = pl.DataFrame(batch)
        paths = [images.path(*ids) for ids in block.select(_IDS).iter_rows()]
        yield pl.concat([block, stamp_all(paths, images.root, threads)], how="horizontal")


def _files_of_stays(
    candidates: ir.Table, images: Images, earlier: Earlier | None, store: Store
) -> Iterator[list[Path | Stored]]:
    """Yield the radiographs of each stay as files, or as rows of the earlier cohort."""
    stored = None if earlier is None else earlier.folder / "cxr.npy"
    ordered = candidates.order_by("stay_id", "rank").select("stay_id", "file", "earlier_row")
    batches = read_batches(store, ordered, FILES_PER_BLOCK)
    rows = chain.from_iterable(pl.DataFrame(batch).iter_rows() for batch in batches)
    for _, of_stay in groupby(rows, itemgetter(0)):
        yield [
            images.root / file if row is None or stored is None else Stored(stored, row)
            for _, file, row in of_stay
        ]
