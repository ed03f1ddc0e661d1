"""Files and directories of a FAT volume: found, read and changed."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from balenaflash.errors import CodedText, EditError, ExistsError, ImageError
from balenaflash.formats.fat.check import Check, Fault, Gravity
from balenaflash.formats.fat.directory import (
    ARCHIVE,
    DIRECTORY,
    DOT,
    DOT_DOT,
    MAX_DIRECTORIES,
    MAX_DIRECTORY,
    Directory,
    Fields,
    Record,
)
from balenaflash.formats.fat.layout import SLOT_SIZE, FatLayout, FatType
from balenaflash.formats.fat.names import (
    MAX_PATH,
    check_name,
    decode_label,
    encode_time,
    short_name,
    split_path,
    time_of_edit,
)
from balenaflash.units import Extent


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


_MAX_FILE = 0xFFFF_FFFF  # bytes: the width of DIR_FileSize (fatgen103)
_CASE_BITS = 0x18  # of DIR_NTRes; the other bits are not ours


class FatEditor(FatTree):
    """Editing: an operation that raises has changed nothing.

    On a volume whose structure was broken before, every operation raises ``EditError`` with the
    code ``volume-unsound``: what it writes could land in another file. What can be repaired
    without a loss is repaired before the first operation, or with ``may_repair`` unset refused
    with the code ``volume-needs-repair``.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._known: frozenset[str] | None = None
        """Messages of the faults that an edit cannot make worse; ``None`` before the check."""

        self.may_repair = True
        self.repairs: tuple[Fault, ...] = ()
        """What was wrong before the first operation, and was repaired."""

        self.fixed_time: datetime | None = None
        """Given to all that is made or changed, so that the same edits make the same bytes at any
        time; ``None`` for each thing's own time."""

    def write_file(self, path: str, data: bytes, *, modified: datetime | None = None) -> None:
        """Create the file at ``path``, or replace its content.

        An existing file keeps its name as stored, its attributes and its time of creation.
        ``modified`` is local time; without it, ``SOURCE_DATE_EPOCH`` or now is taken.

        Raises:
            EditError: the parent is missing, ``path`` is a directory, the name cannot be
                held, or there is no room.
        """
        with self._edit():
            if len(data) > _MAX_FILE:
                raise EditError(
                    f"{path}: {len(data)} bytes; a FAT volume holds files of up to {_MAX_FILE}",
                    code="file-too-large",
                )
            parent, name = self._locate(path)
            record = parent.find(name)
            fields = _new_fields(ARCHIVE, self.fixed_time or modified)
            if record is None:
                check_name(name)
                self._add(parent, name, self._store(fields, data, path), path)
                return
            _refuse_directory(record, path)
            fields = replace(
                record.fields,
                attributes=record.fields.attributes | ARCHIVE,
                accessed_date=fields.accessed_date,
                modified_time=fields.modified_time,
                modified_date=fields.modified_date,
            )
            self._change(parent, record, self._store(fields, data, path), path)

    def remove_file(self, path: str) -> None:
        """Remove the file at ``path``, read-only or not.

        Raises:
            EditError: there is nothing, or a directory.
        """
        with self._edit():
            parent, name = self._locate(path)
            record = self._require(parent, name, path)
            _refuse_directory(record, path)
            self._remove(parent, record, path)

    def make_directory(self, path: str) -> None:
        """Create an empty directory; its parent must be there.

        Raises:
            EditError: ``path`` exists, the parent is missing, the name cannot be held, or
                there is no room.
        """
        with self._edit():
            parent, name = self._locate(path)
            if parent.find(name) is not None:
                raise ExistsError(f"{path}: is there already")
            check_name(name)
            fields = _new_fields(DIRECTORY, self.fixed_time)
            fields = replace(fields, cluster=self._storage.resize(0, 1, path))
            dots = (
                replace(fields, short_name=DOT),
                replace(fields, short_name=DOT_DOT, cluster=parent.first),
            )
            content = b"".join(self._storage.encode(dot, None) for dot in dots)
            self._storage.write(self._storage.extents(fields.cluster, path), content)
            self._add(parent, name, fields, path)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory.

        Raises:
            EditError: there is nothing, a file, or a directory that is not empty.
        """
        with self._edit():
            parent, name = self._locate(path)
            record = self._require(parent, name, path)
            directory, _ = self._open_directory(path)
            if directory.records():
                raise EditError(f"{path}: the directory is not empty", code="directory-not-empty")
            self._remove(parent, record, path)
            del self._directories[directory.first]

    def rename(self, old: str, new: str) -> None:
        """Give a file or directory another name or place; its content and times stay.

        ``new`` is the whole new path, never a directory to move into.

        Raises:
            EditError: ``old`` is missing, ``new`` exists or lies inside ``old``, its parent
                is missing, its name cannot be held, or there is no room for it.
        """
        with self._edit():
            source, old_name = self._locate(old)
            record = self._require(source, old_name, old)
            target, new_name = self._locate(new)
            there = target.find(new_name)
            if there is not None and (target is not source or there != record):
                raise ExistsError(f"{new}: is there already")
            check_name(new_name)
            if record.fields.is_directory:
                self._require_room_below(record, old, new)
                self._link_to_parent(record, target, old)
            # First out, then in: a full directory has room for a name that is no longer.
            source.remove(record)
            self._save(source, old)
            self._add(target, new_name, record.fields, new)

    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with the structure of the volume as it is now; empty for a sound one.

        What forbids an edit comes first.
        """
        return self._storage.check().faults

    def problems(self) -> tuple[str, ...]:
        """``faults`` in words."""
        return tuple(CodedText(fault.message, code=fault.code) for fault in self.faults())

    def repair(self) -> None:
        """Repair what can be repaired without a loss, as the first operation would.

        Raises:
            EditError: the volume is unsound, or must not be repaired.
        """
        if self._known is not None:
            return
        check = self._storage.check()
        for fault in check.select(Gravity.UNSOUND):
            raise self._refusal(fault, "is damaged and is not edited", "volume-unsound", "")
        found = check.select(Gravity.REPAIRABLE)
        if found and not self.may_repair:
            raise self._refusal(found[0], "needs a repair", "volume-needs-repair", "--repair ")
        if found:
            self._directories.clear()
            with self._storage.transaction():
                check.mend()
            self.repairs = found
        self._known = frozenset(fault.message for fault in check.select(Gravity.HARMLESS))

    def _refusal(self, fault: Fault, state: str, code: str, option: str) -> EditError:
        name = shlex.quote(self._storage.image_name)
        return EditError(
            f"{self._storage.name}: the volume {state}: {fault.message}",
            code=code,
            hint=f"For all that is wrong{', and its repair' if option else ''}: "
            f"balenaflash boot check {option}{name}",
        )

    def _require_no_new_faults(self) -> None:
        """Raise ``EditError`` if the edits have broken something; the last line of defence."""
        known = self._known or frozenset()
        new = [fault for fault in self.faults() if fault.message not in known]
        if new:
            raise EditError(
                f"{self._storage.name}: the edit would leave the volume broken: {new[0].message}",
                code="volume-unsound",
                hint="Nothing was written. This is a fault of the editor; please report it.",
            )

    @contextmanager
    def _edit(self) -> Iterator[None]:
        """Let the block change the volume or, if it raises, have changed nothing."""
        self.repair()
        done = False
        try:
            with self._storage.transaction():
                yield
            done = True
        finally:
            if not done:
                self._directories.clear()

    def _store(self, fields: Fields, data: bytes, path: str) -> Fields:
        """Make ``data`` the content of a file; its fields with the new cluster and size."""
        first = self._storage.resize(fields.cluster, len(data), path)
        if first:
            self._storage.write(self._storage.extents(first, path), data)
        return replace(fields, cluster=first, size=len(data))

    def _add(self, parent: Directory, name: str, fields: Fields, path: str) -> None:
        """Enter what ``fields`` describe under a valid name, in a larger directory if need be."""
        short = short_name(name, parent)
        case_bits = fields.case_bits & ~_CASE_BITS | short.case_bits
        fields = replace(fields, short_name=short.stored, case_bits=case_bits)
        raw = self._storage.encode(fields, name if short.needs_long_name else None)
        while (index := parent.room_for(len(raw) // SLOT_SIZE)) is None:
            self._grow(parent, path)
        parent.insert(index, raw)
        self._save(parent, path)

    def _change(self, parent: Directory, record: Record, fields: Fields, path: str) -> None:
        parent.replace(record, self._storage.encode(fields, None))
        self._save(parent, path)

    def _remove(self, parent: Directory, record: Record, path: str) -> None:
        parent.remove(record)
        self._save(parent, path)
        self._storage.resize(record.fields.cluster, 0, path)

    def _grow(self, directory: Directory, path: str) -> None:
        """Make a directory one cluster larger."""
        layout = self._storage.layout
        size = len(directory.data) + layout.cluster_size
        if directory.first == 0 and layout.root is not None:
            raise EditError(
                f"{path}: the root directory is full: it has {layout.root.size // SLOT_SIZE} slots",
                code="directory-full",
                hint="Long names take several slots each; a directory below it can grow.",
            )
        if size > MAX_DIRECTORY:
            raise EditError(
                f"{path}: the directory is full: a FAT directory has up to {MAX_DIRECTORY} bytes",
                code="directory-full",
            )
        self._storage.resize(directory.first or layout.root_cluster, size, path)
        directory.grow(size)

    def _save(self, directory: Directory, path: str) -> None:
        extents = self._directory_extents(directory.first, path)
        self._storage.write(extents, bytes(directory.data))

    def _require_room_below(self, record: Record, old: str, new: str) -> None:
        """Refuse to move a directory into itself, or so deep that paths become too long."""
        *parents, _ = split_path(new)
        for depth in range(1, len(parents) + 1):
            directory, _ = self._open_directory("/".join(parents[:depth]))
            if directory.first == record.fields.cluster:
                raise EditError(f"{new}: lies inside {old}", code="path-invalid")
        longest = max((len(entry.path) for entry in self.walk(old)), default=len(old))
        if longest - len(old) + len(new) > MAX_PATH:
            raise EditError(
                f"{new}: paths below it would have more than {MAX_PATH} characters",
                code="path-invalid",
            )

    def _link_to_parent(self, record: Record, parent: Directory, path: str) -> None:
        """Let ``..`` of a directory name ``parent``."""
        directory = self._directory(record.fields.cluster, path)
        link = directory.parent_link()
        if link.fields.cluster != parent.first:
            self._change(directory, link, replace(link.fields, cluster=parent.first), path)


def _new_fields(attributes: int, modified: datetime | None) -> Fields:
    """Fields of an entry made now, or at ``modified``, that has neither a name nor content yet."""
    date, time = encode_time(modified if modified is not None else time_of_edit())
    return Fields(
        short_name=b"",
        attributes=attributes,
        case_bits=0,
        created_tenths=0,
        created_time=time,
        created_date=date,
        accessed_date=date,
        modified_time=time,
        modified_date=date,
        cluster=0,
        size=0,
    )


def _refuse_directory(record: Record, path: str) -> None:
    if record.fields.is_directory:
        raise EditError(f"{path}: is a directory, not a file", code="is-a-directory")
