"""Files of the boot partition: their paths and patterns, and to put, move, remove and list them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Protocol

from balenaflash.errors import EditError, ExistsError
from balenaflash.formats.fat.names import fold, split_path
from balenaflash.formats.fat.volume import FatEntry, FatVolume
from balenaflash.units import format_size

_WILDCARD = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


def volume_path(text: str) -> str:
    """``text`` as an absolute path without empty names; a missing leading slash is added.

    Raises:
        EditError: it contains ``..``, or is empty.
    """
    names = [name for name in text.split("/") if name not in {"", "."}]
    if not text or ".." in names:
        fact = "contains '..', which leads out of a directory" if text else "is not a path"
        raise EditError(
            f"{text!r}: {fact}",
            code="path-invalid",
            hint="Write it from the root of the boot partition, such as /EFI/BOOT/grub.cfg.",
        )
    return "/" + "/".join(names)


def parent_of(path: str) -> str:
    """The directory of ``path``, a result of `volume_path`; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """The last name of ``path``; empty for the root."""
    return path.rpartition("/")[2]


def join(directory: str, name: str) -> str:
    """The path of ``name`` in ``directory``, a result of `volume_path`."""
    return f"{directory.rstrip('/')}/{name}"


def is_pattern(volume: FatVolume, path: str) -> bool:
    """True if ``path`` has wildcards and is not the name of an existing file."""
    return _WILDCARD.search(path) is not None and volume.find(volume_path(path)) is None


def find_matches(volume: FatVolume, path: str) -> tuple[str, ...]:
    """The paths that match a pattern, sorted; else ``path`` itself, which need not exist.

    ``*``, ``?`` and ``[...]`` match within a name, also one with a leading dot. ``**`` in place of
    a name matches any number of directories, and at the end everything below. The matches are
    absolute and spelled as in the volume.

    Raises:
        EditError: nothing matches (``no-such-file``).
        ImageError: a directory is broken.
    """
    if not is_pattern(volume, path):
        return (volume_path(path),)
    pattern = split_path(fold(volume_path(path)))
    found = sorted(
        entry.path for entry in volume.walk() if _matches(split_path(fold(entry.path)), pattern)
    )
    if not found:
        raise EditError(
            f"{path}: matches nothing in the boot partition",
            code="no-such-file",
            hint="List its files: balenaflash boot ls -R IMAGE",
        )
    return tuple(found)


def uppermost(paths: Iterable[str]) -> tuple[str, ...]:
    """``paths`` in order, without duplicates and without those below another one.

    An edit of a directory includes its content, and a pattern such as ``/**`` matches both.
    """
    unique = {fold(path): path for path in paths}
    return tuple(
        path for key, path in unique.items() if not any(above in unique for above in _above(key))
    )


def _above(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[:length]) for length in range(1, len(names))]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the whole of ``pattern`` matches the whole of ``names``, both folded."""
    if not pattern:
        return not names
    first, *rest = pattern
    if first == _ANY_DEPTH:
        # At the end it matches the content of a directory, and not the directory itself.
        skipped = range(len(names) + 1) if rest else range(1, len(names) + 1)
        return any(_matches(names[skip:], rest) for skip in skipped)
    return bool(names) and fnmatchcase(names[0], first) and _matches(names[1:], rest)


class ChangeKind(StrEnum):
    """The effect of an edit on one file or directory."""

    CREATED = "created"
    REPLACED = "replaced"
    REMOVED = "removed"
    MOVED = "moved"
    UNCHANGED = "unchanged"
    """It was already as the edit wants it."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change of one file or directory of the boot partition."""

    path: str
    """Absolute in the partition."""

    kind: ChangeKind
    is_directory: bool
    size: int
    """Bytes of the file, as it is now or was before its removal; 0 for a directory."""

    warnings: tuple[str, ...] = ()
    """Sentences."""

    origin: str | None = None
    """The path before a move."""

    @property
    def touched(self) -> tuple[str, ...]:
        """The paths whose content or existence changed."""
        if self.kind is ChangeKind.UNCHANGED:
            return ()
        return (self.path,) if self.origin is None else (self.origin, self.path)

    def with_warnings(self, warnings: Iterable[str]) -> "FileChange":
        """The same change with additional warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))


class Edit(Protocol):
    """An edit of the boot partition as data, from the command line or a recipe."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Edit ``volume``, in memory, and return the changes.

        Raises:
            EditError: the edit is impossible; ``volume`` may contain part of it.
            ConfigError: the edit of a config.json is impossible; it is as it was.
        """

    def describe(self) -> str:
        """The edit in a few words, without secrets."""


@dataclass(frozen=True, slots=True)
class PutFile:
    """Create or replace one file; its directory must exist."""

    path: str
    content: bytes
    modified: datetime | None = None
    """Time of modification, local and without a zone as in FAT; ``None`` for the current time."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        return (put_file(volume, self.path, self.content, self.modified),)

    def describe(self) -> str:
        return f"put {format_size(len(self.content))} to {volume_path(self.path)}"


@dataclass(frozen=True, slots=True)
class RepairVolume:
    """Repair the filesystem as far as that is possible without a loss; no file changes."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        volume.repair()
        return ()

    def describe(self) -> str:
        return "repair the filesystem of the boot partition"


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Create a directory."""

    path: str
    parents: bool = False
    """Create missing directories above it too, and accept a directory that exists already."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        path = volume_path(self.path)
        if self.parents:
            return make_directories(volume, path)
        if volume.find(path) is not None:
            raise ExistsError(f"{path}: exists already")
        require_directory(volume, parent_of(path))
        return (_make_directory(volume, path),)

    def describe(self) -> str:
        return f"make directory {volume_path(self.path)}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove files, or directories with their content."""

    path: str
    """A path, or a pattern as in `find_matches`."""

    recursive: bool = False
    """Allow the removal of directories."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        paths = uppermost(find_matches(volume, self.path))
        return tuple(change for path in paths for change in self._remove(volume, path))

    def describe(self) -> str:
        return f"remove {volume_path(self.path)}"

    def _remove(self, volume: FatVolume, path: str) -> Iterator[FileChange]:
        entry = require_entry(volume, path)
        if entry.path == "/":
            raise EditError("/: the root directory cannot be removed", code="path-invalid")
        if entry.is_directory and not self.recursive:
            raise _is_a_directory(
                entry.path,
                hint=f"Remove it with its content: balenaflash boot rm -r IMAGE {entry.path}",
            )
        inside = volume.walk(entry.path) if entry.is_directory else ()
        # Only an empty directory can be removed: the deepest entries are removed first.
        for each in (*sorted(inside, key=lambda each: -each.path.count("/")), entry):
            yield _remove_one(volume, each)


@dataclass(frozen=True, slots=True)
class Move:
    """Rename or move files and directories; their content and times stay."""

    sources: tuple[str, ...]
    """Paths, or patterns as in `find_matches`."""

    target: str
    """The directory to move them into. For a single source also its new path: a file there is
    replaced by a file, an empty directory by a directory."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
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
        return f"move {', '.join(self.sources)} to {self.target}"


def _place_of(volume: FatVolume, source: str, target: str) -> str:
    """The new path of ``source``."""
    # A directory that is its own target is renamed to another spelling, such as EFI to efi.
    if not is_directory(volume, target) or fold(source) == fold(target):
        return target
    return join(require_entry(volume, target).path, require_entry(volume, source).name)


def _move(volume: FatVolume, source: str, target: str) -> Iterator[FileChange]:
    """Move one file, or one directory with its content."""
    if source == "/":
        raise EditError("/: the root directory cannot be moved", code="path-invalid")
    require_directory(volume, parent_of(target))
    moved = require_entry(volume, source)
    if moved.path == target:
        yield _change(moved, ChangeKind.UNCHANGED)
        return
    replaced = volume.find(target)
    if replaced is not None and fold(source) != fold(target):
        if replaced.is_directory and not moved.is_directory:
            raise _is_a_directory(replaced.path)
        if moved.is_directory and not replaced.is_directory:
            raise _not_a_directory(replaced.path)
        yield _remove_one(volume, replaced)
    below = list(volume.walk(source)) if moved.is_directory else []
    volume.rename(source, target)
    for entry in (moved, *below):
        path = require_entry(volume, target + entry.path.removeprefix(moved.path)).path
        yield replace(_change(entry, ChangeKind.MOVED), path=path, origin=entry.path)


def put_file(
    volume: FatVolume, path: str, content: bytes, modified: datetime | None = None
) -> FileChange:
    """Create or replace the file at ``path``, unless it contains ``content`` already.

    Raises:
        EditError: its directory does not exist, ``path`` is a directory, FAT cannot store its
            name, or there is no room. Nothing was changed.
    """
    path = volume_path(path)
    require_directory(volume, parent_of(path))
    before = volume.find(path)
    if before is not None:
        if before.is_directory:
            raise _is_a_directory(path)
        if before.size == len(content) and volume.read_file(before.path) == content:
            return _change(before, ChangeKind.UNCHANGED)
    require_room(volume, path, len(content), replaced=before.size if before else 0)
    volume.write_file(path, content, modified=modified)
    kind = ChangeKind.CREATED if before is None else ChangeKind.REPLACED
    return _change(require_entry(volume, path), kind)


def make_directories(volume: FatVolume, path: str) -> tuple[FileChange, ...]:
    """Create the directory at ``path`` and those above it, where they are missing.

    The result are the created directories, the topmost first.
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


def list_files(volume: FatVolume, path: str, *, recursive: bool = False) -> Iterator[FatEntry]:
    """The matches of a pattern, sorted; else the content of the directory at ``path``, or the file.

    ``recursive`` adds the content of directories; no entry is listed twice.

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


def list_directory(volume: FatVolume, path: str, *, recursive: bool = False) -> Iterator[FatEntry]:
    """The content of the directory at ``path``, sorted by path; for a file, the file itself."""
    entry = require_entry(volume, path)
    if not entry.is_directory:
        yield entry
        return
    entries = volume.walk(entry.path) if recursive else volume.entries(entry.path)
    yield from sorted(entries, key=lambda entry: entry.path.split("/"))


def read_files(volume: FatVolume, path: str) -> dict[str, bytes]:
    """Path and content of the file at ``path``, or of each match of a pattern.

    Raises:
        EditError: there is nothing, or it is a directory.
        ImageError: it cannot be read.
    """
    return {match: read_file(volume, match) for match in find_matches(volume, path)}


def read_file(volume: FatVolume, path: str) -> bytes:
    """The content of the file at ``path``; errors as `read_files`."""
    entry = require_entry(volume, path)
    if entry.is_directory:
        raise _is_a_directory(entry.path)
    return volume.read_file(entry.path)


def require_entry(volume: FatVolume, path: str) -> FatEntry:
    """The file or directory at ``path``.

    Raises:
        EditError: there is nothing.
    """
    path = volume_path(path)
    entry = volume.find(path)
    if entry is None:
        raise EditError(
            f"{path}: no such file or directory in the boot partition",
            code="no-such-file",
            hint="List its files: balenaflash boot ls -R IMAGE",
        )
    return entry


def require_directory(volume: FatVolume, path: str) -> None:
    """Refuse a ``path`` that is not a directory.

    Raises:
        EditError: there is nothing, or a file.
    """
    if is_directory(volume, path):
        return
    if volume.find(path) is None:
        raise EditError(
            f"{path}: no such directory in the boot partition",
            code="no-such-directory",
            hint=f"Create it first: balenaflash boot mkdir -p IMAGE {path}",
        )
    raise _not_a_directory(path)


def is_directory(volume: FatVolume, path: str) -> bool:
    """True if ``path`` is a directory of the volume, such as its root."""
    entry = volume.find(path)
    return entry is not None and entry.is_directory


def require_room(volume: FatVolume, name: str, size: int, *, replaced: int = 0) -> None:
    """Refuse a file of ``size`` bytes that does not fit after ``replaced`` bytes are freed.

    Raises:
        EditError: it does not fit; the message has both numbers.
    """
    free = volume.free_bytes + replaced
    if size > free:
        raise EditError(
            f"{name}: {size} bytes ({format_size(size)}) are needed, "
            f"{free} ({format_size(free)}) are free in the boot partition",
            code="no-space",
            hint="Remove something from it first: balenaflash boot rm IMAGE PATH",
        )


def _make_directory(volume: FatVolume, path: str) -> FileChange:
    volume.make_directory(path)
    return _change(require_entry(volume, path), ChangeKind.CREATED)


def _remove_one(volume: FatVolume, entry: FatEntry) -> FileChange:
    """Remove a file or an empty directory."""
    if entry.is_directory:
        volume.remove_directory(entry.path)
    else:
        volume.remove_file(entry.path)
    return _change(entry, ChangeKind.REMOVED)


def _change(entry: FatEntry, kind: ChangeKind) -> FileChange:
    return FileChange(entry.path, kind, entry.is_directory, entry.size)


def _is_a_directory(path: str, hint: str | None = None) -> EditError:
    return EditError(f"{path}: is a directory", code="is-a-directory", hint=hint)


def _not_a_directory(path: str) -> EditError:
    return EditError(f"{path}: is a file, not a directory", code="not-a-directory")
