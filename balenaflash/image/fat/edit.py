"""Files and directories of a FAT volume, changed."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from balenaflash.errors import CodedText, EditError, ExistsError
from balenaflash.image.fat.check import Fault, Gravity
from balenaflash.image.fat.directory import (
    ARCHIVE,
    DIRECTORY,
    DOT,
    DOT_DOT,
    MAX_DIRECTORY,
    Directory,
    Fields,
    Record,
)
from balenaflash.image.fat.layout import SLOT_SIZE
from balenaflash.image.fat.names import MAX_PATH, check_name, short_name, split_path
from balenaflash.image.fat.time import encode_time, time_of_edit
from balenaflash.image.fat.tree import FatTree, Storage

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
