"""Whether the files of a cohort or a run are what was written: each is read once, then known by its stamp."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from drfuse.files import private, write_whole

_SETTLED_NS = 2_000_000_000
"""A file that changed later than that before it was read might change again within one tick of its clock."""

Stamps = dict[str, list[int]]
"""The size of each file, and the times of the last change of its content and of its entry, in nanoseconds."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_file(folder: Path, sums: Mapping[str, str]) -> str | None:
    """Return the name of a file whose SHA-256 is not the given one; None if there is none.

    The stamps of whole files are kept in the user's cache, so that only files with another stamp are read
    again. They are not kept in the folder: it may be on a disk that cannot be written to, or be shared with
    others, whose word on it would have to be trusted.

    Args:
        folder: The folder.
        sums: SHA-256 of its files by name.

    Raises:
        OSError: If a file is missing or cannot be read.
    """
    started, kept = time.time_ns(), _kept(folder)
    stamps, known = {name: _stamp(folder / name) for name in sums}, _read(kept)
    for name, sum_ in sums.items():
        if known.get(f"{name} {sum_}") != stamps[name] and sha256(folder / name) != sum_:
            return name
    if kept is not None:
        of_others = {key: stamp for key, stamp in known.items() if key.rpartition(" ")[0] not in sums}
        settled = of_others | {
            f"{name} {sums[name]}": stamp
            for name, stamp in stamps.items()
            if max(stamp[1:]) < started - _SETTLED_NS
        }
        if settled != known:
            with suppress(OSError), private():
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_whole(kept, json.dumps(settled))
    return None


def _kept(folder: Path) -> Path | None:
    """Return the file that keeps the stamps of a folder; None if this user has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache / "drfuse" / "whole" / f"{name}.json"


def _read(kept: Path | None) -> Stamps:
    """Return the stamps that were kept; none if the file is missing or damaged."""
    with suppress(OSError, ValueError):
        found = json.loads("{}" if kept is None else kept.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
