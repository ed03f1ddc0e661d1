"""One directory of a FAT volume: its slots, and the entries they make.

A slot has 32 bytes. An entry is one slot with the 8.3 name and the numbers, preceded by the slots
of its long name if it has one. Slots are never moved: an edit leaves all other slots as they are.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from balenaflash.formats.fat.layout import SLOT_SIZE
from balenaflash.formats.fat.names import (
    checksum,
    decode_short,
    decode_time,
    fold,
    is_safe,
    join_long,
)
from balenaflash.units import MIB

MAX_DIRECTORY = 65_536 * SLOT_SIZE
"""Bytes of one directory (fatgen103; linux/fat/fat.h, FAT_MAX_DIR_SIZE)."""

MAX_DIRECTORIES = 32 * MIB
"""Bytes of all directories of a volume: a bound on what is read of a hostile one."""

VOLUME_LABEL = 0x08
DIRECTORY = 0x10
ARCHIVE = 0x20

DOT = b".          "
DOT_DOT = b"..         "

_FREE = 0xE5
_END = 0x00  # this slot and all after it are free
_LONG_NAME = 0x0F  # attributes of a slot of a long name
_ATTRIBUTES = 0x3F
_LAST_PART = 0x40  # set in the number of the first slot of a long name, which contains its end

_SLOT = struct.Struct("<11sBBBHHHHHHHL")
_USED = bytes(0 if byte in {_FREE, _END} else 1 for byte in range(256))


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of the slot with the 8.3 name, in its order (fatgen103)."""

    short_name: bytes
    attributes: int
    case_bits: int = 0
    created_tenths: int = 0
    created_time: int = 0
    created_date: int = 0
    accessed_date: int = 0
    modified_time: int = 0
    modified_date: int = 0
    cluster: int = 0
    """First cluster, 0 for none."""

    size: int = 0
    """Bytes of content; 0 for a directory."""

    @property
    def is_directory(self) -> bool:
        """True for a directory; a label may have the same bit."""
        return self.attributes & (DIRECTORY | VOLUME_LABEL) == DIRECTORY

    @property
    def is_label(self) -> bool:
        """True for the label of the volume."""
        return bool(self.attributes & VOLUME_LABEL)

    @property
    def is_named(self) -> bool:
        """True for a file or directory that has a name of its own, unlike ``.`` and ``..``."""
        return not self.is_label and self.short_name not in {DOT, DOT_DOT}

    @property
    def modified(self) -> datetime | None:
        """Time of the last change; ``None`` if the stored one is invalid."""
        return decode_time(self.modified_date, self.modified_time)


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """An entry and its place in the directory."""

    index: int
    """Number of its first slot in the directory."""

    count: int
    """Number of its slots."""

    fields: Fields
    long_name: str | None

    @property
    def name(self) -> str:
        """The long name if there is one that is safe to show, else the 8.3 name."""
        if self.long_name is not None and is_safe(self.long_name):
            return self.long_name
        return decode_short(self.fields.short_name, self.fields.case_bits)

    @property
    def short_name(self) -> str:
        """The 8.3 name, in capitals."""
        return decode_short(self.fields.short_name, 0)


@dataclass(frozen=True, slots=True)
class Scan:
    """The content of a directory."""

    entries: tuple[DirectoryEntry, ...]
    orphans: int
    """Slots of long names that belong to no entry."""

    stray: int
    """Slots in use after the end mark."""


def scan(data: bytes | bytearray, *, wide: bool) -> Scan:
    """Read a directory; ``wide`` for FAT32, whose cluster numbers have an upper half."""
    entries: list[DirectoryEntry] = []
    parts: list[bytes] = []
    orphans = stray = 0
    for index, slot in enumerate(_slots(data)):
        if slot[0] == _END:
            stray = sum(bytes(data[index * SLOT_SIZE :: SLOT_SIZE]).translate(_USED))
            break
        if _is_long_name(slot):
            if slot[0] & _LAST_PART:
                orphans += len(parts)
                parts = []
            parts.append(slot)
            continue
        long_name = None if slot[0] == _FREE else _join_parts(parts, slot[:11])
        if long_name is None:
            orphans += len(parts)
            parts = []
        if slot[0] != _FREE:
            first, count = index - len(parts), len(parts) + 1
            entries.append(DirectoryEntry(first, count, _parse(slot, wide=wide), long_name))
            parts = []
    return Scan(tuple(entries), orphans + len(parts), stray)


def find_label(data: bytes | bytearray) -> bytes | None:
    """The eleven bytes of the volume label in a root directory, by the rules of blkid.

    Its slot is not that of a directory and has no cluster (libblkid, vfat.c, ``search_fat_label``).
    """
    for slot in _slots(data):
        if slot[0] == _END:
            break
        is_label = slot[11] & (VOLUME_LABEL | DIRECTORY) == VOLUME_LABEL
        has_cluster = any(slot[20:22]) or any(slot[26:28])
        if slot[0] != _FREE and is_label and not has_cluster and not _is_long_name(slot):
            return slot[:11]
    return None


class Directory:
    """A directory in memory, with its entries by name."""

    def __init__(self, first: int, data: bytes, *, wide: bool) -> None:
        self.first = first
        """First cluster; 0 for the root of any FAT."""

        self.data = bytearray(data)
        self._wide = wide
        self._entries: dict[int, DirectoryEntry] = {}
        self._by_name: dict[str, DirectoryEntry] = {}
        self._by_short_name: dict[str, DirectoryEntry] = {}
        for entry in scan(data, wide=wide).entries:
            self._enter(entry)

    def entries(self) -> list[DirectoryEntry]:
        """Files and directories in order of their slots, without ``.``, ``..`` and labels."""
        ordered = (self._entries[index] for index in sorted(self._entries))
        return [entry for entry in ordered if entry.fields.is_named]

    def label(self) -> bytes | None:
        """The eleven bytes of the volume label, of a root directory."""
        return find_label(self.data)

    def find(self, name: str) -> DirectoryEntry | None:
        """The entry with that name in any case, long or 8.3."""
        folded = fold(name)
        return self._by_name.get(folded) or self._by_short_name.get(folded)

    def __contains__(self, folded: object) -> bool:
        """True if a long or 8.3 name folds to ``folded``."""
        return folded in self._by_name or folded in self._by_short_name

    def room_for(self, count: int) -> int | None:
        """Number of the first of ``count`` free slots in a row; ``None`` if there are none."""
        marks = bytes(self.data[::SLOT_SIZE])
        in_use = marks.partition(b"\0")[0].translate(_USED).ljust(len(marks), b"\0")
        index = in_use.find(bytes(count))
        while index > 0 and _is_long_name(self.data[(index - 1) * SLOT_SIZE : index * SLOT_SIZE]):
            # After an orphan of a long name, a new 8.3 name could be taken for the one it lost.
            index = in_use.find(bytes(count), index + 1)
        return None if index < 0 else index

    def grow(self, size: int) -> None:
        """Append free slots, up to ``size`` bytes."""
        self.data.extend(bytes(size - len(self.data)))

    def insert(self, index: int, raw: bytes) -> None:
        """Insert the slots of an entry at the index that ``room_for`` found."""
        start = index * SLOT_SIZE
        self.data[start : start + len(raw)] = raw
        for entry in scan(raw, wide=self._wide).entries:
            self._enter(DirectoryEntry(index, entry.count, entry.fields, entry.long_name))

    def parent_link(self) -> DirectoryEntry:
        """The entry ``..`` of a sound directory other than the root."""
        return self._entries[1]

    def replace(self, entry: DirectoryEntry, slot: bytes) -> None:
        """Replace the last slot of an entry by ``slot``; its name must be the same."""
        start = entry.index * SLOT_SIZE
        end = start + entry.count * SLOT_SIZE
        self._forget(entry)
        self.insert(entry.index, bytes(self.data[start : end - SLOT_SIZE]) + slot)

    def remove(self, entry: DirectoryEntry) -> None:
        """Mark the slots of an entry free."""
        self._forget(entry)
        for index in range(entry.index, entry.index + entry.count):
            self.data[index * SLOT_SIZE] = _FREE

    def _enter(self, entry: DirectoryEntry) -> None:
        self._entries[entry.index] = entry
        if entry.fields.is_named:
            # If two entries have one name, readers use the first.
            self._by_name.setdefault(fold(entry.name), entry)
            self._by_short_name.setdefault(fold(entry.short_name), entry)

    def _forget(self, entry: DirectoryEntry) -> None:
        del self._entries[entry.index]
        if entry.fields.is_named:
            del self._by_name[fold(entry.name)]
            del self._by_short_name[fold(entry.short_name)]


def _slots(data: bytes | bytearray) -> Iterator[bytes]:
    whole = bytes(data)
    return (whole[start : start + SLOT_SIZE] for start in range(0, len(whole), SLOT_SIZE))


def _is_long_name(slot: bytes | bytearray) -> bool:
    return slot[0] != _FREE and slot[11] & _ATTRIBUTES == _LONG_NAME


def _join_parts(parts: Sequence[bytes], stored: bytes) -> str | None:
    """The long name of the 8.3 name ``stored``; ``None`` unless every part fits."""
    if not parts:
        return None
    expected = [len(parts) | _LAST_PART, *range(len(parts) - 1, 0, -1)]
    total = checksum(stored)
    if [part[0] for part in parts] != expected or any(part[13] != total for part in parts):
        return None
    return join_long([part[1:11] + part[14:26] + part[28:32] for part in reversed(parts)])


def _parse(slot: bytes, *, wide: bool) -> Fields:
    *fields, high, time, date, low, size = _SLOT.unpack(slot)
    # OS/2 kept other things where FAT32 has the upper half (linux/fat/fat.h, fat_get_start).
    fields += [time, date, high << 16 | low if wide else low, size]
    return Fields(*fields)
