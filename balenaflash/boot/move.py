"""Move and rename files and directories of the boot partition, as ``mv`` would."""

from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.boot.files import (
    Action,
    FileChange,
    is_directory,
    require_directory,
    require_entry,
)
from balenaflash.boot.paths import join, parent_of, volume_path
from balenaflash.boot.patterns import find_matches, is_pattern, uppermost
from balenaflash.errors import EditError
from balenaflash.image.fat.names import fold
from balenaflash.image.fat.volume import FatEntry, FatVolume


@dataclass(frozen=True, slots=True)
class Move:
    """Give files and directories another name or place; their content and times stay."""

    sources: tuple[str, ...]
    """Paths, or patterns as in ``patterns``."""

    target: str
    """The directory to move them into; for a single source also its new path."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; a file in the place of another takes it over.

        Raises:
            EditError: there is no such source or directory; or a directory is, or is to be, in
                the place of something else.
        """
        matches = (path for source in self.sources for path in find_matches(volume, source))
        sources = uppermost(require_entry(volume, path).path for path in matches)
        target = volume_path(self.target)
        several = len(self.sources) > 1 or any(is_pattern(volume, each) for each in self.sources)
        if several or self.target.endswith("/"):
            require_directory(volume, target)
        changes: list[FileChange] = []
        for source in sources:
            changes += _move(volume, source, _place_of(volume, source, target))
        return tuple(changes)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"move {', '.join(self.sources)} to {self.target}"


def _place_of(volume: FatVolume, source: str, target: str) -> str:
    """The path that ``source`` is to have."""
    # A directory named as its own target is to be written another way, as in EFI to efi.
    if not is_directory(volume, target) or fold(source) == fold(target):
        return target
    directory = require_entry(volume, target).path
    return join(directory, require_entry(volume, source).name)


def _move(volume: FatVolume, source: str, target: str) -> Iterator[FileChange]:
    """Move one thing, and tell what became of it and of all it holds."""
    if source == "/":
        raise EditError("/: the root directory cannot be moved", code="path-invalid")
    require_directory(volume, parent_of(target))
    moved = require_entry(volume, source)
    if moved.path == target:
        yield FileChange(target, Action.UNCHANGED, moved.is_directory, moved.size)
        return
    if fold(source) != fold(target):
        yield from _make_way(volume, moved, target)
    below = list(volume.walk(source)) if moved.is_directory else []
    volume.rename(source, target)
    for entry in (moved, *below):
        path = require_entry(volume, target + entry.path.removeprefix(moved.path)).path
        yield FileChange(path, Action.MOVED, entry.is_directory, entry.size, origin=entry.path)


def _make_way(volume: FatVolume, moved: FatEntry, target: str) -> Iterator[FileChange]:
    """Remove what ``moved`` is to replace: a file by a file, or an empty directory by another."""
    there = volume.find(target)
    if there is None:
        return
    if there.is_directory and not moved.is_directory:
        raise EditError(f"{there.path}: is a directory", code="is-a-directory")
    if moved.is_directory and not there.is_directory:
        raise EditError(f"{there.path}: is a file, not a directory", code="not-a-directory")
    if there.is_directory:
        volume.remove_directory(there.path)
    else:
        volume.remove_file(there.path)
    yield FileChange(there.path, Action.REMOVED, there.is_directory, there.size)
