"""Damage of gzip files, which DuckDB does not always notice."""

import gzip
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from isal import igzip, isal_zlib

from drfuse.errors import InputError

_BLOCK_BYTES = 1 << 20
_DAMAGE = (gzip.BadGzipFile, isal_zlib.error, EOFError)


@contextmanager
def checking_gzip(files: Sequence[Path]) -> Iterator[None]:
    """Check the checksums of gzip files in a thread beside the queries within.

    DuckDB itself reads over damaged bytes without an error.

    Raises:
        InputError: If a file is damaged.
    """
    paths = [path for path in files if path.suffix == ".gz"]
    given_up = Event()
    with ThreadPoolExecutor(1) as pool:
        damages = [pool.submit(gzip_damage, path, given_up) for path in paths]
        try:
            yield
        except BaseException:
            given_up.set()
            raise
        for path, damage in zip(paths, damages, strict=True):
            if damage.result():
                raise InputError(f"{path} is damaged ({damage.result()}); fetch it again")


def gzip_damage(path: Path, given_up: Event | None = None) -> str | None:
    """Return what is wrong with a gzip file, or None; reading stops early when `given_up` is set."""
    try:
        with igzip.open(path) as file:
            # blocks are small, so that other threads run in between
            while not (given_up and given_up.is_set()) and file.read(_BLOCK_BYTES):
                pass
    except _DAMAGE as error:
        return str(error)
    return None


def is_padded(path: Path) -> bool:
    """Return whether zero bytes follow the gzip stream; gzip itself ignores them."""
    member = None
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            while block:
                if member is None and block[0] == 0:  # where the next member would begin
                    return True
                member = member or isal_zlib.decompressobj(wbits=31)
                try:
                    member.decompress(block)
                except isal_zlib.error:
                    return False
                block = member.unused_data
                member = None if member.eof else member
    return False


def count_lines(path: Path) -> int:
    """Return the number of lines of a text file, which may be compressed.

    Raises:
        InputError: If it is a damaged gzip file.
    """
    try:
        with igzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(partial(file.read, _BLOCK_BYTES), b""))
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error
