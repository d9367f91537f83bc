"""Where the radiographs of a simulated hospital show a factor, which no file of it says."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drfuse.errors import InputError, MissingInputError
from drfuse.simulate.block import Block, n_blocks
from drfuse.simulate.build import SETTINGS
from drfuse.simulate.disease import Disease
from drfuse.simulate.entangled import KINDS
from drfuse.simulate.radiographs import draw_signs


def drawn_signs(hospital: Path, signs: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return where each radiograph shows the signs of S factors, boolean (S, size, size) by `dicom_id`.

    The stays are drawn again as the hospital's options say, which takes about as long as `simulate`. See
    `draw_signs` for what counts.

    Args:
        hospital: A folder that this version of `drfuse simulate` wrote.
        signs: Factors that images show.

    Raises:
        MissingInputError: If the folder is not a simulated hospital.
        InputError: If images do not show one of the factors.
    """
    settings = Path(hospital) / SETTINGS
    if not settings.is_file():
        raise MissingInputError(f"{hospital} has no {SETTINGS}; choose a folder that `drfuse simulate` wrote")
    options = json.loads(settings.read_text(encoding="utf-8"))["options"]
    disease = KINDS[options.pop("kind", Disease.kind)].load()
    shown = [name for name, seen in zip(disease.factors, disease.seen["cxr"], strict=True) if seen]
    if unknown := [sign for sign in signs if sign not in shown]:
        raise InputError(f"images do not show {unknown[0]!r}; expected some of {', '.join(shown)}")
    found: dict[str, NDArray[np.bool_]] = {}
    for number in range(n_blocks(options["stays"])):
        block = Block.draw(disease, number, **options)
        regions = draw_signs(disease.factors, *block.radiographs(), signs)
        found |= dict(zip(block.imaging.metadata["dicom_id"].to_list(), regions, strict=True))
    return found
