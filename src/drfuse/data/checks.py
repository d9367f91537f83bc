"""Whether the files of a cohort are what `prepare` wrote: each is read once, and then known by its stamp."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from drfuse.cohort.manifest import Manifest, sha256
from drfuse.files import write_whole

_SETTLED_NS = 2_000_000_000
"""A file that changed later than that before it was read might change again within one tick of its clock."""

Stamps = dict[str, list[int]]
"""The size of each file, and the times of the last change of its content and of its entry, in nanoseconds."""


def changed_file(folder: Path, manifest: Manifest) -> str | None:
    """Return the name of a file that is not what the manifest says; None if there is none.

    The stamps of whole files are kept in the user's cache, so that only files with another stamp are read
    again. They are not kept beside the cohort: it may be on a disk that cannot be written to, or be shared
    with others, whose word on it would have to be trusted.
    """
    started, kept = time.time_ns(), _kept(folder)
    stamps, known = {name: _stamp(folder / name) for name in manifest.files}, _read(kept)
    for name, sum_ in manifest.files.items():
        if known.get(f"{name} {sum_}") != stamps[name] and sha256(folder / name) != sum_:
            return name
    if kept is not None:
        settled = {
            f"{name} {manifest.files[name]}": stamp
            for name, stamp in stamps.items()
            if max(stamp[1:]) < started - _SETTLED_NS
        }
        if settled != known:
            with suppress(OSError):
                kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(kept, json.dumps(settled))
    return None


def _kept(folder: Path) -> Path | None:
    """Return the file that keeps the stamps of a cohort; None if this user has no home."""
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
