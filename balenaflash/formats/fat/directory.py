"""One directory of a FAT volume: its slots, and the entries they make.

A slot is 32 bytes. An entry is one slot with the 8.3 name and the numbers, after the slots of
its long name if it has one. Slots are never moved: what an edit does not touch stays, byte for
byte, where it was.
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
"""Bytes of all directories of a volume: a bound on what a hostile one can make us read."""

VOLUME_LABEL = 0x08
DIRECTORY = 0x10
ARCHIVE = 0x20

DOT = b".          "
DOT_DOT = b"..         "

_FREE = 0xE5
_END = 0x00  # this slot and all after it are free
_LONG_NAME = 0x0F  # attributes of a slot of a long name
_ATTRIBUTES = 0x3F
_LAST_PART = 0x40  # set in the number of the first slot of a long name, which holds its end

_SLOT = struct.Struct("<11sBBBHHHHHHHL")
_USED = bytes(0 if byte in {_FREE, _END} else 1 for byte in range(256))


@dataclass(frozen=True, slots=True)
class Fields:
    """What the slot with the 8.3 name holds, field by field (fatgen103)."""

    short_name: bytes
    attributes: int
    case_bits: int
    created_tenths: int
    created_time: int
    created_date: int
    accessed_date: int
    modified_time: int
    modified_date: int
    cluster: int
    """First cluster, 0 for none."""

    size: int
    """In bytes; 0 for a directory."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory and no label."""
        return self.attributes & (DIRECTORY | VOLUME_LABEL) == DIRECTORY

    @property
    def is_label(self) -> bool:
        """Whether it is the volume's label."""
        return bool(self.attributes & VOLUME_LABEL)

    @property
    def modified(self) -> datetime | None:
        """Time of the last change, if it is a time."""
        return decode_time(self.modified_date, self.modified_time)


@dataclass(frozen=True, slots=True)
class Record:
    """An entry and where it is."""

    index: int
    """Number of its first slot in the directory."""

    count: int
    """How many slots it takes."""

    fields: Fields
    long_name: str | None

    @property
    def name(self) -> str:
        """The long name if there is a usable one, else the 8.3 name."""
        if self.long_name is not None and is_safe(self.long_name):
            return self.long_name
        return decode_short(self.fields.short_name, self.fields.case_bits)

    @property
    def short_name(self) -> str:
        """The 8.3 name, in capitals."""
        return decode_short(self.fields.short_name, 0)


@dataclass(frozen=True, slots=True)
class Scan:
    """All that a directory holds."""

    records: tuple[Record, ...]
    orphans: int
    """Slots of long names that belong to no entry."""

    stray: int
    """Slots in use after the end mark."""


def scan(data: bytes | bytearray, *, wide: bool) -> Scan:
    """Read a directory; ``wide`` for FAT32, whose cluster numbers have an upper half."""
    records: list[Record] = []
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
            count = len(parts) + 1
            records.append(Record(index + 1 - count, count, _parse(slot, wide=wide), long_name))
            parts = []
    return Scan(tuple(records), orphans + len(parts), stray)


def find_label(data: bytes | bytearray) -> bytes | None:
    """The eleven bytes of the volume label in a root directory, by the rules of blkid.

    It is a slot that is no directory and has no cluster (libblkid, vfat.c, ``search_fat_label``).
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
        self._records: dict[int, Record] = {}
        self._by_name: dict[str, Record] = {}
        self._by_short_name: dict[str, Record] = {}
        for record in scan(data, wide=wide).records:
            self._enter(record)

    def records(self) -> list[Record]:
        """Files and directories in order of their slots, without ``.``, ``..`` and labels."""
        ordered = (self._records[index] for index in sorted(self._records))
        return [record for record in ordered if _is_named(record)]

    def label(self) -> bytes | None:
        """The eleven bytes of the volume label, of a root directory."""
        return find_label(self.data)

    def find(self, name: str) -> Record | None:
        """The entry of that name in any case, long or 8.3."""
        folded = fold(name)
        return self._by_name.get(folded) or self._by_short_name.get(folded)

    def __contains__(self, folded: object) -> bool:
        """Whether a long or 8.3 name folds to ``folded``."""
        return folded in self._by_name or folded in self._by_short_name

    def room_for(self, count: int) -> int | None:
        """Number of the first of ``count`` free slots in a row; ``None`` if there are none."""
        marks = bytes(self.data[::SLOT_SIZE])
        in_use = marks.partition(b"\0")[0].translate(_USED).ljust(len(marks), b"\0")
        index = in_use.find(bytes(count))
        while index > 0 and self._is_orphan(index - 1):
            # Right behind it, a new 8.3 name could be taken for the one it has lost.
            index = in_use.find(bytes(count), index + 1)
        return None if index < 0 else index

    def grow(self, size: int) -> None:
        """Append free slots until it has ``size`` bytes."""
        self.data.extend(bytes(size - len(self.data)))

    def insert(self, index: int, raw: bytes) -> None:
        """Put the slots of an entry where ``room_for`` found room."""
        start = index * SLOT_SIZE
        self.data[start : start + len(raw)] = raw
        for record in scan(raw, wide=self._wide).records:
            self._enter(Record(index, record.count, record.fields, record.long_name))

    def parent_link(self) -> Record:
        """The entry ``..`` of a sound directory that is not the root."""
        return self._records[1]

    def replace(self, record: Record, slot: bytes) -> None:
        """Put ``slot`` in the place of an entry's last one; its name must be the same."""
        start = record.index * SLOT_SIZE
        end = start + record.count * SLOT_SIZE
        self._forget(record)
        self.insert(record.index, bytes(self.data[start : end - SLOT_SIZE]) + slot)

    def remove(self, record: Record) -> None:
        """Mark the slots of an entry free."""
        self._forget(record)
        for index in range(record.index, record.index + record.count):
            self.data[index * SLOT_SIZE] = _FREE

    def _enter(self, record: Record) -> None:
        self._records[record.index] = record
        if _is_named(record):
            # Of two entries with one name, readers take the first.
            self._by_name.setdefault(fold(record.name), record)
            self._by_short_name.setdefault(fold(record.short_name), record)

    def _forget(self, record: Record) -> None:
        del self._records[record.index]
        if _is_named(record):
            del self._by_name[fold(record.name)]
            del self._by_short_name[fold(record.short_name)]

    def _is_orphan(self, index: int) -> bool:
        """Whether the slot before a free one holds part of a long name."""
        return _is_long_name(bytes(self.data[index * SLOT_SIZE : (index + 1) * SLOT_SIZE]))


def _slots(data: bytes | bytearray) -> Iterator[bytes]:
    whole = bytes(data)
    return (whole[start : start + SLOT_SIZE] for start in range(0, len(whole), SLOT_SIZE))


def _is_long_name(slot: bytes) -> bool:
    return slot[0] != _FREE and slot[11] & _ATTRIBUTES == _LONG_NAME


def _is_named(record: Record) -> bool:
    return not record.fields.is_label and record.fields.short_name not in {DOT, DOT_DOT}


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
    name, attributes, case_bits, tenths, ctime, cdate, adate, high, mtime, mdate, low, size = (
        _SLOT.unpack(slot)
    )
    # OS/2 kept other things where FAT32 has the upper half (linux/fat/fat.h, fat_get_start).
    cluster = high << 16 | low if wide else low
    return Fields(
        short_name=name,
        attributes=attributes,
        case_bits=case_bits,
        created_tenths=tenths,
        created_time=ctime,
        created_date=cdate,
        accessed_date=adate,
        modified_time=mtime,
        modified_date=mdate,
        cluster=cluster,
        size=size,
    )
