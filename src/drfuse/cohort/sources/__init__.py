"""Raw records of a hospital in, five Ibis tables out: stays, events, diagnoses, admissions, radiographs.

A kind of source is one file with one class (see `Source`), which is found by looking at this package. What an
engine needs done in its own way is a method of that class; no other code asks which engine it is.
"""

import dataclasses
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ibis.backends.duckdb import Backend

from drfuse.cohort.sources.mimic_cxr import MimicCxr
from drfuse.cohort.sources.mimic_files import MimicFiles
from drfuse.cohort.sources.source import EventKind, Images, Source, SourceFile
from drfuse.errors import InputError

__all__ = ["EventKind", "Images", "Source", "SourceFile", "open_source", "source_kinds"]


def open_source(address: str | Path, store: Backend, images: Path | None = None) -> Source:
    """Open the records of a hospital; only the names and types of columns are read.

    Args:
        address: A folder, or the address of a database in one of the forms of `source_kinds`.
        store: The local DuckDB database.
        images: The folder of a MIMIC-CXR-JPG release.

    Raises:
        MissingInputError: If the records, a table, a column or a driver are missing.
        InputError: If the address is malformed, or what lies there cannot be opened.
    """
    source = _kind_of(address).open(str(address), store)
    try:
        return dataclasses.replace(
            source, images=None if images is None else MimicCxr.open(Path(images), store)
        )
    except BaseException:
        source.close()
        raise


def source_kinds() -> list[type[Source]]:
    """Return the classes of this package that open addresses with a scheme."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [one for one in dict.fromkeys(classes) if issubclass(one, Source) and one.schemes]


def _kind_of(address: str | Path) -> type[Source]:
    if not isinstance(address, str) or "://" not in address:
        return MimicFiles
    scheme, kinds = address.partition("://")[0].lower(), source_kinds()
    for kind in kinds:
        if scheme in kind.schemes:
            return kind
    *forms, last = [kind.form for kind in kinds]
    raise InputError(
        f"drfuse cannot open addresses that begin with {scheme}://; expected {', '.join(forms)} or {last}"
    )
