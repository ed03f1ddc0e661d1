"""Files and directories of a FAT volume, found and read."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from balenaflash.errors import EditError, ImageError
from balenaflash.extent import Extent
from balenaflash.image.fat.check import Check
from balenaflash.image.fat.directory import (
    MAX_DIRECTORIES,
    MAX_DIRECTORY,
    Directory,
    Fields,
    Record,
)
from balenaflash.image.fat.layout import FatLayout, FatType
from balenaflash.image.fat.names import MAX_PATH, decode_label, split_path


@dataclass(frozen=True, slots=True)
class FatEntry:
    """A file or a directory in a FAT volume."""

    path: str
    """Absolute in the volume, such as ``/EFI/BOOT/grub.cfg``; names in the case stored."""

    is_directory: bool
    size: int
    """Bytes of content, 0 for a directory."""

    modified: datetime | None
    """When the content last changed, in the local time of whoever changed it."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


class Storage(Protocol):
    """What lies beneath the tree: clusters. It keeps pyfatfs out of this module."""

    @property
    def name(self) -> str:
        """What to call the volume in messages."""

    @property
    def image_name(self) -> str:
        """What to call the image it is in."""

    @property
    def layout(self) -> FatLayout:
        """Where things lie in the volume."""

    def extents(self, first: int, owner: str, size: int | None = None) -> list[Extent]:
        """Where the chain from cluster ``first`` lies, in order; errors as ``FatTable.follow``.

        With ``size`` it is followed only as far as so many bytes need, as Linux reads a file.
        """

    def read(self, extents: Sequence[Extent]) -> bytes:
        """The content of ``extents``, one after the other."""

    def write(self, extents: Sequence[Extent], data: bytes) -> None:
        """Fill ``extents`` with ``data``, and with zeros behind it."""

    def resize(self, first: int, size: int, owner: str) -> int:
        """Give a chain room for ``size`` bytes; its first cluster, which is 0 for none.

        ``first`` is 0 for a chain that is yet to be. Errors as ``FatTable.resize``.
        """

    def encode(self, fields: Fields, long_name: str | None) -> bytes:
        """The slots of an entry."""

    def check(self) -> Check:
        """What is wrong with the volume as it is now; errors as ``Check``."""

    def transaction(self) -> AbstractContextManager[None]:
        """Undo every change of the block if the block is left by an exception."""


class FatTree:
    """Reading: errors are ``ImageError`` where the volume is broken, else ``EditError``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._directories: dict[int, Directory] = {}

    @property
    def label(self) -> str | None:
        """The volume's label, that of the root directory."""
        stored = self._directory(0, "/").label()
        return None if stored is None else decode_label(stored)

    def find(self, path: str) -> FatEntry | None:
        """The file or directory at ``path``, each name in any case, long or 8.3.

        Raises:
            EditError: the path holds ``.`` or ``..``.
            ImageError: a directory on the way is broken.
        """
        found, directory = "", self._directory(0, "/")
        names = split_path(path)
        for position, name in enumerate(names, start=1):
            record = directory.find(name)
            if record is None:
                return None
            found += f"/{record.name}"
            if position == len(names):
                return _entry(found, record.fields)
            if not record.fields.is_directory:
                return None
            directory = self._directory(record.fields.cluster, found)
        return FatEntry("/", is_directory=True, size=0, modified=None)

    def entries(self, path: str = "/") -> tuple[FatEntry, ...]:
        """What the directory at ``path`` holds, in the order it is stored.

        Raises:
            EditError: there is nothing (``no-such-file``), or a file (``not-a-directory``).
            ImageError: a directory is broken.
        """
        directory, stored_path = self._open_directory(path)
        return tuple(
            _entry(f"{stored_path}/{record.name}", record.fields) for record in directory.records()
        )

    def walk(self, path: str = "/") -> Iterator[FatEntry]:
        """All that lies below ``path``, a directory before what it holds; errors as ``entries``."""
        directory, stored_path = self._open_directory(path)
        seen = {directory.first}
        left = MAX_DIRECTORIES
        waiting = [iter(self._children(directory, stored_path))]
        while waiting:
            child = next(waiting[-1], None)
            if child is None:
                waiting.pop()
                continue
            child_path, fields = child
            yield _entry(child_path, fields)
            if fields.is_directory:
                below = self._descend(fields.cluster, child_path, seen)
                left -= len(below.data)
                if left < 0:
                    raise self._broken(f"directories of more than {MAX_DIRECTORIES} bytes")
                waiting.append(iter(self._children(below, child_path)))

    def read_file(self, path: str) -> bytes:
        """The content of the file at ``path``.

        Raises:
            EditError: there is nothing (``no-such-file``), or a directory (``is-a-directory``).
            ImageError: a directory or the file's cluster chain is broken.
        """
        parent, name = self._locate(path)
        record = self._require(parent, name, path)
        if record.fields.is_directory:
            raise EditError(f"{path}: is a directory, not a file", code="is-a-directory")
        size = record.fields.size
        if size == 0:
            return b""
        owner = f"{self._storage.name}: {path}"
        extents = self._storage.extents(record.fields.cluster, owner, size)
        if sum(extent.size for extent in extents) < size:
            raise self._broken(f"{path} has fewer clusters than its {size} bytes need")
        return self._storage.read(extents)[:size]

    def extents(self, path: str) -> tuple[Extent, ...]:
        """Where the clusters of the file or directory at ``path`` lie, in the order of its content.

        In bytes from the start of the volume; what is behind the end of a file in its last
        cluster is included. An empty file has none.

        Raises:
            EditError: there is nothing (``no-such-file``).
            ImageError: a directory or the cluster chain is broken.
        """
        if not split_path(path):
            return tuple(self._directory_extents(0, "/"))
        record = self._require(*self._locate(path), path)
        if record.fields.cluster == 0:
            return ()
        owner = f"{self._storage.name}: {path}"
        return tuple(self._storage.extents(record.fields.cluster, owner))

    def _locate(self, path: str) -> tuple[Directory, str]:
        """The directory that holds or would hold ``path``, and the last name of ``path``."""
        *parents, name = split_path(path) or ("",)
        if not name:
            raise EditError("/: is the root directory itself", code="is-a-directory")
        return self._open_directory("/".join(parents))[0], name

    def _open_directory(self, path: str) -> tuple[Directory, str]:
        """The directory at ``path``, and its path as stored, empty for the root."""
        directory, stored_path = self._directory(0, "/"), ""
        for name in split_path(path):
            record = self._require(directory, name, path)
            if not record.fields.is_directory:
                raise EditError(
                    f"{stored_path}/{record.name}: is a file, not a directory",
                    code="not-a-directory",
                )
            stored_path += f"/{record.name}"
            directory = self._directory(record.fields.cluster, stored_path)
        return directory, stored_path

    def _require(self, directory: Directory, name: str, path: str) -> Record:
        record = directory.find(name)
        if record is None:
            raise EditError(f"{path}: no such file in the boot partition", code="no-such-file")
        return record

    def _directory(self, first: int, path: str) -> Directory:
        """The directory whose chain begins at ``first``, 0 for the root; read once."""
        known = self._directories.get(first)
        if known is not None:
            return known
        extents = self._directory_extents(first, path)
        if sum(extent.size for extent in extents) > MAX_DIRECTORY:
            raise self._broken(f"{path} is a directory of more than {MAX_DIRECTORY} bytes")
        wide = self._storage.layout.fat_type is FatType.FAT32
        directory = Directory(first, self._storage.read(extents), wide=wide)
        self._directories[first] = directory
        return directory

    def _directory_extents(self, first: int, path: str) -> list[Extent]:
        layout = self._storage.layout
        if first == 0 and layout.root is not None:
            return [layout.root]
        return self._storage.extents(
            first or layout.root_cluster, f"{self._storage.name}: directory {path}"
        )

    def _descend(self, first: int, path: str, seen: set[int]) -> Directory:
        if first in seen or len(path) > MAX_PATH:
            raise self._broken(f"{path[:60]} is a directory inside itself, or too deep")
        seen.add(first)
        if first == 0:
            raise self._broken(f"{path} is a directory without a cluster")
        return self._directory(first, path)

    def _broken(self, fault: str) -> ImageError:
        return ImageError(f"{self._storage.name}: {fault}", code="fat-invalid")

    @staticmethod
    def _children(directory: Directory, path: str) -> list[tuple[str, Fields]]:
        return [(f"{path}/{record.name}", record.fields) for record in directory.records()]


def _entry(path: str, fields: Fields) -> FatEntry:
    size = 0 if fields.is_directory else fields.size
    return FatEntry(path, fields.is_directory, size, fields.modified)
