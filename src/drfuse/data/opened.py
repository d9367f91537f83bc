"""Whether the files of a cohort are still those that were opened."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenedFiles:
    """Files as they were when they were opened.

    Attributes:
        folder: Where they are.
        identities: The device, inode, size and time of the last change (ns) of each file, by its name.
    """

    folder: Path
    identities: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, folder: Path, names: Collection[str]) -> "OpenedFiles":
        """Return files of a folder as they are now."""
        return cls(folder, {name: _identity(folder / name) for name in names})

    def first_changed(self) -> str | None:
        """Return the name of a file that was replaced, changed or deleted since; None if there is none."""
        for name, identity in self.identities.items():
            if _identity(self.folder / name) != identity:
                return name
        return None


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
