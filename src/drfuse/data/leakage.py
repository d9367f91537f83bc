"""What must not happen between the splits of a cohort: a patient, an admission or an image on two sides."""

import logging
from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

from drfuse.data.cohort import Cohort
from drfuse.errors import InputError

logger = logging.getLogger(__name__)


def check_leakage(cohort: Cohort) -> None:
    """Check that no stay occurs twice, and that no subject or admission is in two splits.

    Radiographs with the same pixels in two splits are a warning: hospitals do file an image twice.

    Raises:
        InputError: If a stay occurs twice, or a subject or an admission is in two splits.
    """
    holders = {"subject_id": "subjects", "hadm_id": "admissions"}
    names = [name for name in holders if name in cohort.column_names]
    stays = cohort.columns("stay_id", "split", "cxr_row", *names)
    where = cohort.folder / "stays.parquet"
    if repeated := len(stays) - stays["stay_id"].n_unique():
        raise InputError(
            f"{where} has {repeated} rows of stays that it already has; run `drfuse prepare` again"
        )
    for name in names:
        n_splits = stays.group_by(name).agg(pl.col("split").n_unique())["split"]
        if leaking := (n_splits > 1).sum():
            raise InputError(
                f"{where} has {leaking} {holders[name]} in more than one split, so that a model would be "
                "tested on patients whom it was trained on; run `drfuse prepare` again"
            )
    if n_images := count_shared_images(cohort, stays):
        logger.warning(
            "%d radiographs of %s have the same pixels as one in another split; results on them are too good",
            n_images,
            cohort.folder,
        )


def count_shared_images(cohort: Cohort, stays: pl.DataFrame) -> int:
    """Return how many radiographs have the same pixels as one in another split.

    `stays` has the columns `split` and `cxr_row`.
    """
    if len(cohort.cxr) == 0:
        return 0
    hashes = pl.DataFrame({"cxr_row": np.arange(len(cohort.cxr)), "hash": hash_images(cohort.cxr)})
    images = stays.drop_nulls("cxr_row").select("split", pl.col("cxr_row").cast(pl.Int64))
    shared = images.join(hashes, "cxr_row").filter(pl.col("split").n_unique().over("hash") > 1)
    cohort.release()
    return shared.height


def hash_images(images: NDArray[np.uint8]) -> list[bytes]:
    """Return a hash of the pixels of each image (M, H, W)."""
    return [blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images]
