"""Files and directories of the boot partition: put, make, move, remove, list and read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from balenaflash.edits.paths import (
    find_matches,
    is_pattern,
    join,
    parent_of,
    uppermost,
    volume_path,
)
from balenaflash.errors import EditError, ExistsError
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.pyfatfs import FatEntry, FatVolume
from balenaflash.units import format_size


class Action(StrEnum):
    """What an edit does to one file or directory."""

    CREATED = "created"
    REPLACED = "replaced"
    REMOVED = "removed"
    MOVED = "moved"
    UNCHANGED = "unchanged"
    """It was already as it was to be."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """What an edit did to one file or directory of the boot partition."""

    path: str
    """Absolute in the partition."""

    action: Action
    is_directory: bool
    size: int
    """Bytes of the file, as it is now or was before its removal; 0 for a directory."""

    warnings: tuple[str, ...] = ()
    """What the user should know of it, a sentence each."""

    origin: str | None = None
    """Where it was before it was moved."""

    @property
    def touched(self) -> tuple[str, ...]:
        """Paths of which something is otherwise than before."""
        if self.action is Action.UNCHANGED:
            return ()
        return (self.path,) if self.origin is None else (self.origin, self.path)

    def with_warnings(self, warnings: Iterable[str]) -> "FileChange":
        """The same change, with something more to know of it."""
        return replace(self, warnings=(*self.warnings, *warnings))


@dataclass(frozen=True, slots=True)
class PutFile:
    """Create or replace one file."""

    path: str
    """Of the file; its directory must exist."""

    content: bytes
    modified: datetime | None = None
    """Time to give it, local and without a zone, as FAT has it; ``None`` for that of the edit."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        return (put_file(volume, self.path, self.content, self.modified),)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"put {format_size(len(self.content))} to {volume_path(self.path)}"


@dataclass(frozen=True, slots=True)
class RepairVolume:
    """Repair what is wrong with the volume and can be repaired without a loss."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Repair ``volume``; no file changes."""
        volume.repair()
        return ()

    def describe(self) -> str:
        """What it does, in a few words."""
        return "repair the filesystem of the boot partition"


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Create a directory."""

    path: str
    parents: bool = False
    """Also those above it; and one that exists already is no error."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        path = volume_path(self.path)
        if self.parents:
            return make_directories(volume, path)
        if volume.find(path) is not None:
            raise ExistsError(f"{path}: exists already")
        require_directory(volume, parent_of(path))
        return (_make_directory(volume, path),)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"make directory {volume_path(self.path)}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove files, or directories with all they hold."""

    path: str
    """Of one of them, or a pattern as in ``patterns``."""

    recursive: bool = False
    """Whether a directory may be removed."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        paths = uppermost(find_matches(volume, self.path))
        return tuple(change for path in paths for change in self._remove(volume, path))

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"remove {volume_path(self.path)}"

    def _remove(self, volume: FatVolume, path: str) -> Iterator[FileChange]:
        entry = require_entry(volume, path)
        if entry.path == "/":
            raise EditError("/: the root directory cannot be removed", code="path-invalid")
        if entry.is_directory and not self.recursive:
            raise EditError(
                f"{entry.path}: is a directory",
                code="is-a-directory",
                hint="Remove it and all it holds with -r.",
            )
        inside = volume.walk(entry.path) if entry.is_directory else ()
        # A directory can be removed once it is empty: what lies deepest goes first.
        for each in (*sorted(inside, key=lambda each: -each.path.count("/")), entry):
            if each.is_directory:
                volume.remove_directory(each.path)
            else:
                volume.remove_file(each.path)
            yield _change(each, Action.REMOVED)


def put_file(
    volume: FatVolume, path: str, content: bytes, modified: datetime | None = None
) -> FileChange:
    """Create or replace the file at ``path``; one that holds ``content`` is left alone.

    Raises:
        EditError: its directory does not exist, a directory is in its place, FAT cannot hold its
            name, or there is no room. Nothing was changed.
    """
    path = volume_path(path)
    require_directory(volume, parent_of(path))
    before = volume.find(path)
    if before is not None and before.is_directory:
        raise EditError(f"{path}: is a directory", code="is-a-directory")
    if before is not None and _holds(volume, before, content):
        return _change(before, Action.UNCHANGED)
    require_room(volume, path, len(content), replaced=before.size if before else 0)
    volume.write_file(path, content, modified=modified)
    action = Action.CREATED if before is None else Action.REPLACED
    return _change(require_entry(volume, path), action)


def make_directories(volume: FatVolume, path: str) -> tuple[FileChange, ...]:
    """Create the directory at ``path`` and those above it, as far as they do not exist.

    Returns what was created, the topmost first.
    """
    changes: list[FileChange] = []
    made = "/"
    for name in filter(None, volume_path(path).split("/")):
        made = join(made, name)
        if volume.find(made) is None:
            changes.append(_make_directory(volume, made))
        else:
            require_directory(volume, made)
    return tuple(changes)


def list_directory(volume: FatVolume, path: str, *, recursive: bool = False) -> Iterator[FatEntry]:
    """What the directory at ``path`` holds, sorted by path; for a file, itself."""
    entry = require_entry(volume, path)
    if not entry.is_directory:
        yield entry
        return
    entries = volume.walk(entry.path) if recursive else volume.entries(entry.path)
    yield from sorted(entries, key=lambda entry: entry.path.split("/"))


def read_file(volume: FatVolume, path: str) -> bytes:
    """The content of the file at ``path``.

    Raises:
        EditError: there is none, or it is a directory.
        ImageError: it cannot be read.
    """
    entry = require_entry(volume, path)
    if entry.is_directory:
        raise EditError(f"{entry.path}: is a directory", code="is-a-directory")
    return volume.read_file(entry.path)


def require_entry(volume: FatVolume, path: str) -> FatEntry:
    """The file or directory at ``path``.

    Raises:
        EditError: there is none.
    """
    path = volume_path(path)
    entry = volume.find(path)
    if entry is None:
        raise EditError(
            f"{path}: no such file or directory in the boot partition",
            code="no-such-file",
            hint="List what there is: balenaflash boot ls -R IMAGE",
        )
    return entry


def require_directory(volume: FatVolume, path: str) -> None:
    """Return if ``path`` is a directory.

    Raises:
        EditError: there is nothing, or a file.
    """
    if is_directory(volume, path):
        return
    if volume.find(path) is None:
        raise EditError(
            f"{path}: no such directory in the boot partition",
            code="no-such-directory",
            hint=f"Make it first: balenaflash boot mkdir -p IMAGE {path}",
        )
    raise EditError(f"{path}: is a file, not a directory", code="not-a-directory")


def is_directory(volume: FatVolume, path: str) -> bool:
    """Whether ``path`` is a directory of the volume, such as its root."""
    entry = volume.find(path)
    return entry is not None and entry.is_directory


def require_room(volume: FatVolume, name: str, size: int, *, replaced: int = 0) -> None:
    """Return if a file of ``size`` bytes fits once ``replaced`` bytes have been freed.

    Raises:
        EditError: it does not; the message has both numbers.
    """
    free = volume.free_bytes + replaced
    if size > free:
        raise EditError(
            f"{name}: {size} bytes ({format_size(size)}) are needed, "
            f"{free} ({format_size(free)}) are free in the boot partition",
            code="no-space",
            hint="Remove something from it first: balenaflash boot rm IMAGE PATH",
        )


def _holds(volume: FatVolume, entry: FatEntry, content: bytes) -> bool:
    return entry.size == len(content) and volume.read_file(entry.path) == content


def _make_directory(volume: FatVolume, path: str) -> FileChange:
    volume.make_directory(path)
    return _change(require_entry(volume, path), Action.CREATED)


def _change(entry: FatEntry, action: Action) -> FileChange:
    return FileChange(entry.path, action, entry.is_directory, entry.size)


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


def list_files(volume: FatVolume, path: str, *, recursive: bool = False) -> Iterator[FatEntry]:
    """What a pattern matches, sorted; else what the directory at ``path`` holds, or the file.

    ``recursive`` adds what lies below; then nothing is told twice.

    Raises:
        EditError: there is nothing.
        ImageError: a directory is broken.
    """
    if not is_pattern(volume, path):
        yield from list_directory(volume, path, recursive=recursive)
        return
    matches = find_matches(volume, path)
    for match in uppermost(matches) if recursive else matches:
        entry = require_entry(volume, match)
        yield entry
        if recursive and entry.is_directory:
            yield from list_directory(volume, match, recursive=True)


def read_files(volume: FatVolume, path: str) -> dict[str, bytes]:
    """Path and content of the file at ``path``, or of each that a pattern matches.

    Raises:
        EditError: there is none, or it is a directory.
        ImageError: it cannot be read.
    """
    return {match: read_file(volume, match) for match in find_matches(volume, path)}
