"""Raw records of a hospital in, five Ibis tables out: stays, events, diagnoses, admissions, radiographs.

Each kind of source is one file with one class (see `Source`), found by listing this package. Whatever differs
between engines is a method of that class; no other code asks which engine it is.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from drfuse.cohort.sources.mimic_cxr import MimicCxr
from drfuse.cohort.sources.mimic_files import MimicFiles
from drfuse.cohort.sources.source import EventKind, Images, Source, SourceFile
from drfuse.cohort.store import Store
from drfuse.errors import InputError

__all__ = ["EventKind", "Images", "Source", "SourceFile", "open_source", "source_kinds"]


def open_source(address: str | Path, store: Store, images: Path | None = None) -> Source:
    """Return a hospital's records, opened; only column names and types are read yet.

    The address is a folder, or a database's in the `form` of one of `source_kinds`; `images` is the folder of
    a MIMIC-CXR-JPG release.

    Raises:
        MissingInputError: If the records, a table, a column or a driver is missing.
        InputError: If the address is malformed, or the records cannot be opened.
    """
    source = _kind_of(address).open(str(address), store)
    try:
        return source if images is None else replace(source, images=MimicCxr.open(Path(images), store))
    except BaseException:
        source.close()
        raise


def source_kinds() -> list[type[Source]]:
    """Return the classes of this package that open addresses such as `scheme://...`."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return [kind for kind in dict.fromkeys(classes) if issubclass(kind, Source) and kind.schemes]


def _kind_of(address: str | Path) -> type[Source]:
    if not isinstance(address, str) or "://" not in address:
        return MimicFiles
    scheme, kinds = address.partition("://")[0].lower(), source_kinds()
    for kind in kinds:
        if scheme in kind.schemes:
            return kind
    *forms, last = [kind.form for kind in kinds]
    raise InputError(
        f"cannot open addresses that begin with {scheme}://; expected {', '.join(forms)} or {last}"
    )
