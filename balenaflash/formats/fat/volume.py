"""A FAT volume of an image: its files and directories, read, and edited in memory."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from balenaflash.errors import CodedText, EditError, ExistsError, ImageError
from balenaflash.formats.fat.directory import (
    ARCHIVE,
    DIRECTORY,
    DOT,
    DOT_DOT,
    MAX_DIRECTORIES,
    MAX_DIRECTORY,
    Directory,
    DirectoryEntry,
    Fields,
)
from balenaflash.formats.fat.fsck import Fault, Gravity
from balenaflash.formats.fat.layout import SLOT_SIZE, FatType, read_layout
from balenaflash.formats.fat.names import (
    CASE_BITS,
    MAX_PATH,
    check_name,
    decode_label,
    encode_time,
    short_name,
    split_path,
    time_of_edit,
)
from balenaflash.formats.fat.pyfatfs import Core
from balenaflash.formats.fat.window import Window
from balenaflash.source.base import Source
from balenaflash.source.container.decoder import DOWNLOAD_AGAIN
from balenaflash.source.layers import Patch
from balenaflash.source.undo_record import EditMark
from balenaflash.units import Extent

_MAX_FILE = 0xFFFF_FFFF  # bytes: the width of DIR_FileSize (fatgen103)


@dataclass(frozen=True, slots=True)
class FatEntry:
    """A file or a directory in a FAT volume."""

    path: str
    """Absolute path in the volume, such as ``/EFI/BOOT/grub.cfg``; names in the case stored."""

    is_directory: bool
    size: int
    """Bytes of content, 0 for a directory."""

    modified: datetime | None
    """Time of the last change of the content, in the local time of the system that made it."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


class FatVolume:
    """The FAT volume in one partition of an image; edits stay in memory until ``changes``.

    A path is absolute. Its names are found in any case, long or 8.3. Every method with a path
    raises ``ImageError`` (``fat-invalid``) if a directory or cluster chain is broken, and
    ``EditError`` if the path contains ``.`` or ``..`` (``path-invalid``), nothing is there
    (``no-such-file``), or something of another kind is (``is-a-directory``, ``not-a-directory``).

    An edit also raises ``EditError`` if a name is invalid on FAT (``name-invalid``) or there is no
    room (``no-space``, ``directory-full``), and ``ExistsError`` if a new path exists already. An
    edit that raises has changed nothing.

    On a volume whose structure is broken, every edit raises ``EditError`` (``volume-unsound``):
    it could overwrite another file. Faults that can be repaired without a loss are repaired
    before the first edit; if ``may_repair`` is false, it is refused (``volume-needs-repair``).
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._directories: dict[int, Directory] = {}
        self._known: frozenset[str] | None = None
        """Messages of the faults that an edit cannot make worse; ``None`` before the check."""

        self.partition_name: str | None = None
        """Name of its partition in the table; ``None`` where the table has no names."""

        self.may_repair = True
        self.repairs: tuple[Fault, ...] = ()
        """The faults that were repaired before the first edit."""

        self.fixed_time: datetime | None = None
        """The time of everything that is made or changed, so that the same edits always make the
        same bytes; ``None`` for the real times."""

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """The volume in the bytes ``extent`` of ``source``, which must stay open.

        Only the boot sector and the first file allocation table are read now.

        Raises:
            ImageError: there is no valid FAT volume (``fat-invalid``), or the image ends
                before the partition does (``image-truncated``).
        """
        if source.size is not None and extent.end > source.size:
            raise ImageError(
                f"{source.name}: ends at byte {source.size}, inside the partition",
                code="image-truncated",
                hint=DOWNLOAD_AGAIN,
            )
        window = Window(source, extent)
        return cls(Core(window, read_layout(window)))

    @property
    def fat_bits(self) -> int:
        """Bits of an entry in the file allocation table: 12, 16 or 32."""
        return self._core.layout.fat_type

    @property
    def label(self) -> str | None:
        """The volume label in the root directory."""
        stored = self._directory(0, "/").label()
        return None if stored is None else decode_label(stored)

    @property
    def cluster_size(self) -> int:
        """Size of a cluster in bytes."""
        return self._core.layout.cluster_size

    @property
    def total_bytes(self) -> int:
        """Size of all clusters, without tables and a fixed root directory."""
        return self._core.layout.cluster_count * self.cluster_size

    @property
    def free_bytes(self) -> int:
        """Size of all free clusters."""
        return self._core.table.free_count() * self.cluster_size

    def find(self, path: str) -> FatEntry | None:
        """The file or directory at ``path``, if there is one."""
        found, directory = "", self._directory(0, "/")
        names = split_path(path)
        for position, name in enumerate(names, start=1):
            entry = directory.find(name)
            if entry is None:
                return None
            found += f"/{entry.name}"
            if position == len(names):
                return _describe(found, entry.fields)
            if not entry.fields.is_directory:
                return None
            directory = self._directory(entry.fields.cluster, found)
        return FatEntry("/", is_directory=True, size=0, modified=None)

    def entries(self, path: str = "/") -> tuple[FatEntry, ...]:
        """Files and directories in the directory at ``path``, in the order stored."""
        return tuple(_describe(*child) for child in self._children(*self._open_directory(path)))

    def walk(self, path: str = "/") -> Iterator[FatEntry]:
        """All entries below the directory at ``path``, each directory before its content."""
        directory, stored_path = self._open_directory(path)
        seen, left = {directory.first}, MAX_DIRECTORIES
        waiting = self._children(directory, stored_path)[::-1]
        while waiting:
            child_path, fields = waiting.pop()
            yield _describe(child_path, fields)
            if not fields.is_directory:
                continue
            first = fields.cluster
            if first in seen or len(child_path) > MAX_PATH:
                raise self._broken(f"{child_path[:60]} is a directory inside itself, or too deep")
            if first == 0:
                raise self._broken(f"{child_path} is a directory without a cluster")
            seen.add(first)
            below = self._directory(first, child_path)
            left -= len(below.data)
            if left < 0:
                raise self._broken(f"the directories have more than {MAX_DIRECTORIES} bytes")
            waiting += self._children(below, child_path)[::-1]

    def read_file(self, path: str) -> bytes:
        """The content of the file at ``path``."""
        _, entry = self._require(path)
        _refuse_directory(entry, path)
        size = entry.fields.size
        if size == 0:
            return b""
        owner = f"{self._core.name}: {path}"
        extents = self._core.extents(entry.fields.cluster, owner, size)
        if sum(extent.size for extent in extents) < size:
            raise self._broken(f"{path} has fewer clusters than its {size} bytes need")
        return self._core.read(extents)[:size]

    def extents(self, path: str) -> tuple[Extent, ...]:
        """The clusters of the file or directory at ``path``, in the order of its content.

        Offsets count from the start of the volume. The last cluster is included whole, also
        after the end of the file. An empty file has no extents.
        """
        if not split_path(path):
            return tuple(self._directory_extents(0, "/"))
        _, entry = self._require(path)
        if entry.fields.cluster == 0:
            return ()
        return tuple(self._core.extents(entry.fields.cluster, f"{self._core.name}: {path}"))

    def write_file(self, path: str, data: bytes, *, modified: datetime | None = None) -> None:
        """Create the file at ``path``, or replace its content.

        An existing file keeps its name as stored, its attributes and its time of creation.
        ``modified`` is local time; the default is ``SOURCE_DATE_EPOCH``, else now.
        """
        with self._edit():
            if len(data) > _MAX_FILE:
                raise EditError(
                    f"{path}: has {len(data)} bytes, but a file on FAT has at most {_MAX_FILE}",
                    code="file-too-large",
                )
            parent, name = self._locate(path)
            entry = parent.find(name)
            fields = _new_fields(ARCHIVE, self.fixed_time or modified)
            if entry is None:
                check_name(name)
                self._add(parent, name, self._store(fields, data, path), path)
                return
            _refuse_directory(entry, path)
            fields = replace(
                entry.fields,
                attributes=entry.fields.attributes | ARCHIVE,
                accessed_date=fields.accessed_date,
                modified_time=fields.modified_time,
                modified_date=fields.modified_date,
            )
            self._change(parent, entry, self._store(fields, data, path), path)

    def remove_file(self, path: str) -> None:
        """Remove the file at ``path``, read-only or not."""
        with self._edit():
            parent, entry = self._require(path)
            _refuse_directory(entry, path)
            self._remove(parent, entry, path)

    def make_directory(self, path: str) -> None:
        """Create an empty directory; its parent must exist."""
        with self._edit():
            parent, name = self._locate(path)
            if parent.find(name) is not None:
                raise ExistsError(f"{path}: already exists")
            check_name(name)
            fields = _new_fields(DIRECTORY, self.fixed_time)
            fields = replace(fields, cluster=self._core.resize(0, 1, path))
            dots = (
                replace(fields, short_name=DOT),
                replace(fields, short_name=DOT_DOT, cluster=parent.first),
            )
            content = b"".join(self._core.encode(dot, None) for dot in dots)
            self._core.write(self._core.extents(fields.cluster, path), content)
            self._add(parent, name, fields, path)

    def remove_directory(self, path: str) -> None:
        """Remove a directory; ``EditError`` (``directory-not-empty``) if it is not empty."""
        with self._edit():
            parent, entry = self._require(path)
            directory, _ = self._open_directory(path)
            if directory.entries():
                raise EditError(f"{path}: the directory is not empty", code="directory-not-empty")
            self._remove(parent, entry, path)
            del self._directories[directory.first]

    def rename(self, old: str, new: str) -> None:
        """Rename or move a file or directory; its content and times stay.

        ``new`` is the whole new path, never a directory to move into, and never inside ``old``.
        """
        with self._edit():
            source, entry = self._require(old)
            target, new_name = self._locate(new)
            there = target.find(new_name)
            if there is not None and (target is not source or there != entry):
                raise ExistsError(f"{new}: already exists")
            check_name(new_name)
            if entry.fields.is_directory:
                self._require_room_below(entry, old, new)
                self._link_to_parent(entry, target, old)
            # The old entry is removed first: its slots may be the only free ones.
            source.remove(entry)
            self._save(source, old)
            self._add(target, new_name, entry.fields, new)

    def faults(self) -> tuple[Fault, ...]:
        """Faults in the present structure of the volume; those that forbid an edit come first."""
        return self._core.check().faults

    def problems(self) -> tuple[str, ...]:
        """``faults`` in words."""
        return tuple(CodedText(fault.message, code=fault.code) for fault in self.faults())

    def repair(self) -> None:
        """Repair the faults that can be repaired without a loss, as the first edit would."""
        if self._known is not None:
            return
        check = self._core.check()
        for fault in check.select(Gravity.UNSOUND):
            raise self._refusal(fault, "is damaged and is not edited", "volume-unsound", "")
        found = check.select(Gravity.REPAIRABLE)
        if found and not self.may_repair:
            raise self._refusal(found[0], "needs a repair", "volume-needs-repair", "--repair ")
        if found:
            self._directories.clear()
            with self._core.transaction():
                check.mend()
            self.repairs = found
        self._known = frozenset(fault.message for fault in check.select(Gravity.HARMLESS))

    def changes(self) -> tuple[Patch, ...]:
        """The sectors of the image that the edits have changed, in order; empty without an edit.

        Offsets count from the start of the image.

        Raises:
            EditError: the structure would not be sound after it (``volume-unsound``).
        """
        self._core.flush()
        runs = tuple(self._core.window.changed_runs())
        if runs:
            self._require_no_new_faults()
        start = self._core.window.extent.start
        return tuple(Patch(start + offset, data) for offset, data in runs)

    @property
    def edit_mark(self) -> EditMark:
        """The byte of the image that marks a running edit, before and after the changes so far."""
        window, offset = self._core.window, self._core.layout.state_offset
        before = window.read_original(offset, 1)[0]
        after = window.read_at(offset, 1)[0]
        return EditMark(window.extent.start + offset, before, after)

    def _locate(self, path: str) -> tuple[Directory, str]:
        """The parent directory of ``path``, which may not exist itself, and its last name."""
        *parents, name = split_path(path) or ("",)
        if not name:
            raise EditError("/: is the root directory", code="is-a-directory")
        return self._open_directory("/".join(parents))[0], name

    def _require(self, path: str) -> tuple[Directory, DirectoryEntry]:
        """The parent directory of ``path``, and its entry there."""
        parent, name = self._locate(path)
        return parent, _find(parent, name, path)

    def _open_directory(self, path: str) -> tuple[Directory, str]:
        """The directory at ``path``, and its path as stored, empty for the root."""
        directory, stored_path = self._directory(0, "/"), ""
        for name in split_path(path):
            entry = _find(directory, name, path)
            stored_path += f"/{entry.name}"
            if not entry.fields.is_directory:
                raise EditError(
                    f"{stored_path}: is a file, not a directory", code="not-a-directory"
                )
            directory = self._directory(entry.fields.cluster, stored_path)
        return directory, stored_path

    def _directory(self, first: int, path: str) -> Directory:
        """The directory whose chain begins at ``first``, 0 for the root; read once."""
        known = self._directories.get(first)
        if known is not None:
            return known
        extents = self._directory_extents(first, path)
        if sum(extent.size for extent in extents) > MAX_DIRECTORY:
            raise self._broken(f"{path} is a directory of more than {MAX_DIRECTORY} bytes")
        wide = self._core.layout.fat_type is FatType.FAT32
        directory = Directory(first, self._core.read(extents), wide=wide)
        self._directories[first] = directory
        return directory

    def _directory_extents(self, first: int, path: str) -> list[Extent]:
        layout = self._core.layout
        if first == 0 and layout.root is not None:
            return [layout.root]
        owner = f"{self._core.name}: directory {path}"
        return self._core.extents(first or layout.root_cluster, owner)

    def _broken(self, fault: str) -> ImageError:
        return ImageError(f"{self._core.name}: {fault}", code="fat-invalid")

    @staticmethod
    def _children(directory: Directory, path: str) -> list[tuple[str, Fields]]:
        return [(f"{path}/{entry.name}", entry.fields) for entry in directory.entries()]

    def _refusal(self, fault: Fault, state: str, code: str, option: str) -> EditError:
        name = shlex.quote(self._core.window.name)
        return EditError(
            f"{self._core.name}: the volume {state}: {fault.message}",
            code=code,
            hint=f"To list all faults{' and repair them' if option else ''}: "
            f"balenaflash boot check {option}{name}",
        )

    def _require_no_new_faults(self) -> None:
        """Raise ``EditError`` if the edits have broken something; the last line of defence."""
        known = self._known or frozenset()
        for fault in self.faults():
            if fault.message not in known:
                raise EditError(
                    f"{self._core.name}: the edit would break the volume: {fault.message}",
                    code="volume-unsound",
                    hint="Nothing was written. This is a bug in balenaflash; please report it.",
                )

    @contextmanager
    def _edit(self) -> Iterator[None]:
        """Repair the volume, then undo every change of the block if it raises."""
        self.repair()
        try:
            with self._core.transaction():
                yield
        except BaseException:
            self._directories.clear()
            raise

    def _store(self, fields: Fields, data: bytes, path: str) -> Fields:
        """Make ``data`` the content of a file; its fields with the new cluster and size."""
        first = self._core.resize(fields.cluster, len(data), path)
        if first:
            self._core.write(self._core.extents(first, path), data)
        return replace(fields, cluster=first, size=len(data))

    def _add(self, parent: Directory, name: str, fields: Fields, path: str) -> None:
        """Add an entry with a valid name to ``parent``, which grows if it is full."""
        short = short_name(name, parent)
        case_bits = fields.case_bits & ~CASE_BITS | short.case_bits
        fields = replace(fields, short_name=short.stored, case_bits=case_bits)
        raw = self._core.encode(fields, name if short.needs_long_name else None)
        while (index := parent.room_for(len(raw) // SLOT_SIZE)) is None:
            self._grow(parent, path)
        parent.insert(index, raw)
        self._save(parent, path)

    def _change(self, parent: Directory, entry: DirectoryEntry, fields: Fields, path: str) -> None:
        parent.replace(entry, self._core.encode(fields, None))
        self._save(parent, path)

    def _remove(self, parent: Directory, entry: DirectoryEntry, path: str) -> None:
        parent.remove(entry)
        self._save(parent, path)
        self._core.resize(entry.fields.cluster, 0, path)

    def _grow(self, directory: Directory, path: str) -> None:
        """Make a directory one cluster larger."""
        layout = self._core.layout
        size = len(directory.data) + layout.cluster_size
        if directory.first == 0 and layout.root is not None:
            raise EditError(
                f"{path}: the root directory is full: it has {layout.root.size // SLOT_SIZE} slots",
                code="directory-full",
                hint="A long name needs several slots. A directory below the root can grow.",
            )
        if size > MAX_DIRECTORY:
            raise EditError(
                f"{path}: the directory is full: a FAT directory has up to {MAX_DIRECTORY} bytes",
                code="directory-full",
            )
        self._core.resize(directory.first or layout.root_cluster, size, path)
        directory.grow(size)

    def _save(self, directory: Directory, path: str) -> None:
        extents = self._directory_extents(directory.first, path)
        self._core.write(extents, bytes(directory.data))

    def _require_room_below(self, entry: DirectoryEntry, old: str, new: str) -> None:
        """Refuse to move a directory into itself, or so deep that paths become too long."""
        *parents, _ = split_path(new)
        for depth in range(1, len(parents) + 1):
            directory, _ = self._open_directory("/".join(parents[:depth]))
            if directory.first == entry.fields.cluster:
                raise EditError(f"{new}: lies inside {old}", code="path-invalid")
        longest = max((len(below.path) for below in self.walk(old)), default=len(old))
        if longest - len(old) + len(new) > MAX_PATH:
            raise EditError(
                f"{new}: paths below it would have more than {MAX_PATH} characters",
                code="path-invalid",
            )

    def _link_to_parent(self, entry: DirectoryEntry, parent: Directory, path: str) -> None:
        """Point ``..`` of a directory to ``parent``."""
        directory = self._directory(entry.fields.cluster, path)
        link = directory.parent_link()
        if link.fields.cluster != parent.first:
            self._change(directory, link, replace(link.fields, cluster=parent.first), path)


def _describe(path: str, fields: Fields) -> FatEntry:
    size = 0 if fields.is_directory else fields.size
    return FatEntry(path, fields.is_directory, size, fields.modified)


def _find(directory: Directory, name: str, path: str) -> DirectoryEntry:
    entry = directory.find(name)
    if entry is None:
        raise EditError(f"{path}: no such file in the boot partition", code="no-such-file")
    return entry


def _new_fields(attributes: int, modified: datetime | None) -> Fields:
    """Fields of a nameless, empty entry that is made at ``modified``, else now."""
    date, time = encode_time(modified if modified is not None else time_of_edit())
    return Fields(
        b"",
        attributes,
        created_time=time,
        created_date=date,
        accessed_date=date,
        modified_time=time,
        modified_date=date,
    )


def _refuse_directory(entry: DirectoryEntry, path: str) -> None:
    if entry.fields.is_directory:
        raise EditError(f"{path}: is a directory, not a file", code="is-a-directory")
