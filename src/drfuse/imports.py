"""Classes that users choose by import path: models and optimizers."""

import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from typing import Any

from drfuse.errors import InputError, reason_of

_from_here: dict[str, str] = {}
"""The modules that came from what was then the current folder, and that folder; see `importable_here`."""


@dataclass(frozen=True)
class ClassOf:
    """Annotates a parameter that takes a class by its import path and imports it when it is needed.

    Attributes:
        package: Its modules define the classes that a user may choose by name alone.
        base: Name, in the package, of the class that all of them derive from.
        given: Types of the arguments that the function itself gives; the others are the user's.
    """

    package: str
    base: str
    given: tuple[type, ...]

    def names(self) -> list[str]:
        """Return the names of the package's public classes, sorted, without importing it.

        The classes of the module that defines the base are left out: they are not for use on their own.
        """
        found = find_spec(self.package)
        folders = (found and found.submodule_search_locations) or ()
        modules = [
            re.findall(r"^class (\w+)\((\w+)", file.read_text("utf-8"), re.MULTILINE)
            for folder in folders
            for file in Path(folder).glob("*.py")
        ]
        derived, names = {self.base}, set[str]()
        base_of = {name: base for classes in modules for name, base in classes}
        while new := {name for name, base in base_of.items() if base in derived} - derived:
            derived |= new
        for classes in modules:
            if self.base not in dict(classes):
                names |= {name for name, _ in classes if name in derived and not name.startswith("_")}
        return sorted(names)


class LazyClass:
    """Makes instances of a class that is not imported before it is needed.

    Args:
        load: Imports the class, and returns it or what makes its instances.
    """

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self.load = load

    def __call__(self, *arguments: Any) -> Any:
        """Return a new instance."""
        return self.load()(*arguments)


@contextmanager
def importable_here(paths: Iterable[str], folder: str | None = None) -> Iterator[None]:
    """While classes that the user named are imported, also look for modules in the current folder.

    The folder is not searched if their modules are installed, nor ever for the imports of drfuse itself: it
    may be a folder that came from someone else.

    Args:
        paths: Import paths of the classes.
        folder: The folder to search in place of the current one.
    """
    modules = [path.rpartition(".")[0] for path in paths]
    missing = [module for module in modules if module and not _is_installed(module.partition(".")[0])]
    if not missing:
        yield
        return
    folder = folder or str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        _from_here.update(dict.fromkeys((module for module in missing if module in sys.modules), folder))


def modules_from_here() -> dict[str, str]:
    """Return the modules that `importable_here` found, and their folders, for `import_here` elsewhere."""
    return {module: folder for module, folder in _from_here.items() if module in sys.modules}


def import_here(modules: Mapping[str, str]) -> None:
    """Import what another process found, from the same folders: it may have changed its own since."""
    for module, folder in modules.items():
        with importable_here([f"{module}."], folder):
            import_module(module)


def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def import_class(path: str, base: type) -> Any:
    """Return the class at an import path that the user named, such as `drfuse.models.DrFuse`.

    Raises:
        InputError: If it cannot be imported, or is not a subclass of `base`.
    """
    module, _, name = path.rpartition(".")
    try:
        with importable_here([path]):
            kind = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, or end the program
        raise InputError(f"{path} cannot be imported ({describe_error(error)})") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InputError(f"{path} is not a subclass of {base.__name__}")
    return kind


def imported_classes(base: type[Any]) -> dict[str, type]:
    """Return by import path the subclasses of a class that this program has imported so far."""
    found: dict[str, type] = {}
    for kind in base.__subclasses__():
        found |= {import_path(kind): kind} | imported_classes(kind)
    return found


def failed_to_import(error: BaseException) -> bool:
    """Return whether a module was not found, or raised the error while it was imported."""
    frames = extract_tb(error.__traceback__)
    return isinstance(error, ImportError) or any(one.name == "<module>" for one in frames)


def describe_error(error: BaseException) -> str:
    """Return what an error says, its class and, if a user's own file raised it, the line."""
    ours = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parent), "<")
    frames = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {reason_of(error)}"


def import_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
