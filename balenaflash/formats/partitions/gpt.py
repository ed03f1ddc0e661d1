"""GUID partition tables: read from the first sound copy; their backup moved to the end of a disk.

A GPT has two copies, each a header and an array of entries (UEFI 2.10, section 5.3).
"""

import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.mbr import find_protective, is_hybrid, stretch_protection
from balenaflash.formats.partitions.model import (
    Partition,
    PartitionKind,
    PartitionTable,
    TableKind,
    TableReading,
    TableSectors,
    invalid_table,
    refuse_truncated,
)
from balenaflash.source.base import Source
from balenaflash.source.layers import Patch
from balenaflash.units import KIB, MIB, SECTOR_SIZE, Extent, format_size

SIGNATURE = b"EFI PART"
PRIMARY_LBA = 1
ENTRY_SIZE = 128  # bytes; the only size that Linux reads, is_gpt_valid() of block/partitions/efi.c
_SECTOR_SIZES = (SECTOR_SIZE, 4 * KIB)
_HEAD = struct.Struct("<8sIIII")  # signature, revision, size, checksum, 0; UEFI 2.10, table 5.5
_FIELDS = struct.Struct("<QQQQ16sQIII")  # the other fields, in the order of `_Header`
_CHECKSUM = slice(16, 20)  # counted as zero in the checksum itself
_REVISION = 0x00010000
_ENTRY = struct.Struct("<16s16sQQQ72s")  # UEFI 2.10, table 5.6
_ENTRY_SIZES = range(ENTRY_SIZE, 4 * KIB + 1, 8)  # libparted and sfdisk read these
_LEAST_ENTRIES = 128  # UEFI 2.10, section 5.3.1: 16 KiB
_MAX_SIZE = 1 << 62  # bytes, above any disk; Linux counts them in 63 bits
_MAX_ARRAY = MIB  # far above the 16 KiB in use, far below the size that a hostile header can name


@dataclass(frozen=True, slots=True)
class _Header:
    """A header: its sector as read, and its fields."""

    sector: bytes
    size: int
    """Bytes of the sector that belong to the header; the checksum covers these."""

    own_lba: int
    alternate_lba: int
    first_usable: int
    last_usable: int
    disk_guid: bytes
    array_lba: int
    entry_count: int
    entry_size: int
    array_crc: int

    @classmethod
    def parse(cls, sector: bytes) -> Self | None:
        """The header in a sector; ``None`` unless its signature, size and checksum are right."""
        signature, _revision, size, checksum, _reserved = _HEAD.unpack_from(sector)
        if signature != SIGNATURE or not _HEAD.size + _FIELDS.size <= size <= len(sector):
            return None
        if checksum != _checksum(sector[:size]):
            return None
        return cls(sector, size, *_FIELDS.unpack_from(sector, _HEAD.size))

    def encode(self) -> bytes:
        """The sector with the present fields and their checksum."""
        sector = bytearray(self.sector)
        _FIELDS.pack_into(
            sector,
            _HEAD.size,
            self.own_lba,
            self.alternate_lba,
            self.first_usable,
            self.last_usable,
            self.disk_guid,
            self.array_lba,
            self.entry_count,
            self.entry_size,
            self.array_crc,
        )
        sector[_CHECKSUM] = _checksum(sector[: self.size]).to_bytes(4, "little")
        return bytes(sector)

    @property
    def array_size(self) -> int:
        """Bytes of all entries."""
        return self.entry_count * self.entry_size

    def array(self, sector_size: int) -> range:
        """The sectors of the entries."""
        return range(self.array_lba, self.array_lba - (-self.array_size // sector_size))


def _checksum(header: bytes | bytearray) -> int:
    covered = bytearray(header)
    covered[_CHECKSUM] = bytes(4)
    return zlib.crc32(covered)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A sound copy of the table: the checksums of its header and of its entries are right."""

    header: _Header
    entries: bytes
    sectors: tuple[TableSectors, TableSectors]
    """The sector of the header, then those of the entries."""


def read_gpt(source: Source, mbr: bytes) -> TableReading:
    """The GPT after the protective record ``mbr``, from its first sound copy.

    One damaged copy is a warning. Sectors have 512 or 4096 bytes, by the place of a sound header.

    Raises:
        ImageError: no copy is sound, the image is truncated, or a partition lies outside the disk.
    """
    for sector_size in _SECTOR_SIZES:
        reading = _Reader(source, sector_size).read()
        if reading is not None:
            break
    else:
        raise _no_sound_copy(source)
    warnings = (*reading.table.warnings, *_warn_of_record(mbr))
    return TableReading(
        replace(reading.table, warnings=warnings),
        tuple(sorted((TableSectors(0, mbr), *reading.sectors))),
        reading.made_up,
    )


def _no_sound_copy(source: Source) -> ImageError:
    if source.seekable:
        fact = "a protective MBR announces a GPT, but neither of its copies is intact"
        return invalid_table(source, fact)
    return invalid_table(
        source,
        "its primary GPT is damaged, and the backup is out of reach at the end of the stream",
        hint="Save or decompress it to a file: there the backup is used if it is intact.",
    )


def _warn_of_record(mbr: bytes) -> Iterator[str]:
    """Warnings about the protective record, by the rules of Linux."""
    first = find_protective(mbr)
    if first != PRIMARY_LBA:
        yield (
            "Linux does not read this GPT: "
            f"the protective entry of the MBR starts at sector {first}, not at sector 1."
        )
    if is_hybrid(mbr):
        yield "The MBR is a hybrid: it lists other partitions beside the GPT."


class _Reader:
    """The copies of a GPT on a disk with one size of sectors."""

    def __init__(self, source: Source, sector_size: int) -> None:
        self._source = source
        self._sector_size = sector_size
        self._count = (_MAX_SIZE if source.size is None else source.size) // sector_size

    def read(self) -> TableReading | None:
        """The table for this size of sectors; ``None`` if no copy is sound."""
        header = self._read_header(PRIMARY_LBA)
        primary = self._complete(header)
        if not self._source.seekable:
            return self._read_without_backup(header, primary)
        backup = self._find_backup(header, primary)
        if backup is None and header is not None:
            refuse_truncated(self._source, (header.alternate_lba + 1) * self._sector_size)
        if primary is None:
            return None if backup is None else self._read_backup(header, backup)
        if backup is None:
            return self._reading(primary, None, ["The backup GPT is damaged."])
        return self._reading(primary, backup, self._compare(primary, backup))

    def read_copy(self, lba: int) -> _Copy | None:
        """The copy with its header at ``lba``; ``None`` if it is damaged or missing."""
        return self._complete(self._read_header(lba))

    def _read_without_backup(
        self, header: _Header | None, primary: _Copy | None
    ) -> TableReading | None:
        """The table of a stream, whose end is out of reach."""
        if header is None:
            return None
        refuse_truncated(self._source, (header.alternate_lba + 1) * self._sector_size)
        if max(header.alternate_lba, header.last_usable) >= self._count:
            size = f"{header.alternate_lba + 1} sectors"
            raise invalid_table(self._source, f"its GPT is for a disk of {size}, more than any has")
        if primary is None:
            raise _no_sound_copy(self._source)
        return self._reading(primary, None, [])

    def _find_backup(self, header: _Header | None, primary: _Copy | None) -> _Copy | None:
        """The backup in the place that the sound header of a primary copy names, or at the end.

        The end is read only where that is needed. A copy there counts only if it is of the same
        disk: otherwise it is left of another table.
        """
        last = self._count - 1
        if header is not None and header.alternate_lba <= last:
            backup = self._read_backup_copy(header.alternate_lba)
            if backup is not None or primary is not None:
                return backup
        backup = self._read_backup_copy(last)
        is_of_disk = backup is None or header is None or backup.header.disk_guid == header.disk_guid
        return backup if is_of_disk else None

    def _read_backup_copy(self, lba: int) -> _Copy | None:
        """The copy at ``lba``, which must point back to the primary (UEFI 2.10, table 5.5)."""
        backup = self.read_copy(lba) if lba > PRIMARY_LBA else None
        return backup if backup and backup.header.alternate_lba == PRIMARY_LBA else None

    def _read_backup(self, header: _Header | None, backup: _Copy) -> TableReading:
        part = "entries" if header is not None and self._array_extent(header) else "header"
        damage = (
            f"The primary GPT is damaged (its {part}): the backup at sector "
            f"{backup.header.own_lba} is used instead. Linux uses a backup only at the end of "
            "the disk, and only if it was started with the option gpt."
        )
        return self._reading(backup, None, [damage, *self._warn_of_place(backup)])

    def _compare(self, primary: _Copy, backup: _Copy) -> list[str]:
        warnings = []
        if primary.entries != backup.entries:
            warnings.append("The two copies of the GPT differ; the primary is used.")
        named = primary.header.alternate_lba
        if named != backup.header.own_lba:
            warnings.append(
                f"The primary GPT names sector {named} for its backup, which is past the end; "
                "the backup at the end is intact."
            )
        return [*warnings, *self._warn_of_place(backup)]

    def _warn_of_place(self, backup: _Copy) -> Iterator[str]:
        after = (self._count - backup.header.own_lba - 1) * self._sector_size
        if after:
            where = f"The backup GPT lies {format_size(after)} before the end"
            yield f"{where}: the image has grown, or is on a larger disk."

    def _read_header(self, lba: int) -> _Header | None:
        """The header at ``lba`` if its checksum and place are right, whatever its entries are."""
        if not PRIMARY_LBA <= lba < self._count:
            return None
        header = _Header.parse(self._source.read(lba * self._sector_size, self._sector_size))
        return header if header is not None and header.own_lba == lba else None

    def _complete(self, header: _Header | None) -> _Copy | None:
        """The copy with that header; ``None`` if the checksum of its entries is wrong."""
        extent = None if header is None else self._array_extent(header)
        if header is None or extent is None:
            return None
        data = self._source.read(extent.start, extent.size)
        entries = data[: header.array_size]
        if zlib.crc32(entries) != header.array_crc:
            return None
        own = TableSectors(header.own_lba * self._sector_size, header.sector)
        return _Copy(header, entries, (own, TableSectors(extent.start, data)))

    def _array_extent(self, header: _Header) -> Extent | None:
        """The whole sectors of the entries; ``None`` if Linux would not read them for the header.

        The size of an entry is an exception: Linux reads entries of 128 bytes only.
        """
        if header.entry_size not in _ENTRY_SIZES or not 0 < header.array_size <= _MAX_ARRAY:
            return None
        if not header.first_usable <= header.last_usable < self._count:
            return None
        array = header.array(self._sector_size)
        if array.start <= PRIMARY_LBA or array.stop > self._count or header.own_lba in array:
            return None
        return self._extent(array.start, array.stop - 1)

    def _extent(self, first: int, last: int) -> Extent:
        return Extent.from_lba(first, last, sector_size=self._sector_size)

    def _reading(self, used: _Copy, backup: _Copy | None, warnings: list[str]) -> TableReading:
        # The disk by the word of the table, but no more than the image has.
        last = max(used.header.own_lba, used.header.alternate_lba, used.header.last_usable)
        disk_size = min(last + 1, self._count) * self._sector_size
        partitions = tuple(self._partitions(used, disk_size))
        table = PartitionTable(
            TableKind.GPT,
            self._sector_size,
            _guid(used.header.disk_guid),
            partitions,
            (*warnings, *self._warn_of_entries(used.header, partitions)),
            disk_size=disk_size,
        )
        is_usual = (
            backup is not None
            and used.header.alternate_lba == backup.header.own_lba
            and self._is_usual(used.header)
            and self._is_usual(backup.header)
        )
        sectors = used.sectors if backup is None else (*used.sectors, *backup.sectors)
        return TableReading(table, sectors, () if is_usual else self._made_up(used, disk_size))

    def _is_usual(self, header: _Header) -> bool:
        """True if the range for partitions lies between the copies, as UEFI requires."""
        array = header.array(self._sector_size)
        farther = max(header.own_lba, header.alternate_lba)
        is_between = header.first_usable > PRIMARY_LBA and header.last_usable < farther
        return is_between and not (
            array.stop > header.first_usable and array.start <= header.last_usable
        )

    def _made_up(self, used: _Copy, disk_size: int) -> tuple[TableSectors, ...]:
        """Two copies with the entries of ``used``, the second one after the disk.

        libparted 3.5 crashes on odd ranges, and reads a backup only in the place that the primary
        names, or at the end.
        """
        size = used.header.entry_size
        entries = b"".join(
            used.entries[start : start + ENTRY_SIZE] for start in range(0, len(used.entries), size)
        )
        count = max(used.header.entry_count, _LEAST_ENTRIES)
        sectors = -(-count * ENTRY_SIZE // self._sector_size)
        array = entries.ljust(sectors * self._sector_size, b"\0")
        end = max(disk_size // self._sector_size, self._count if self._source.size else 0)
        head = _HEAD.pack(SIGNATURE, _REVISION, _HEAD.size + _FIELDS.size, 0, 0)
        primary = _Header(
            head.ljust(self._sector_size, b"\0"),
            _HEAD.size + _FIELDS.size,
            own_lba=PRIMARY_LBA,
            alternate_lba=end + sectors,
            first_usable=PRIMARY_LBA + sectors + 1,
            last_usable=end - 1,
            disk_guid=used.header.disk_guid,
            array_lba=PRIMARY_LBA + 1,
            entry_count=count,
            entry_size=ENTRY_SIZE,
            array_crc=zlib.crc32(array[: count * ENTRY_SIZE]),
        )
        backup = replace(primary, own_lba=end + sectors, alternate_lba=PRIMARY_LBA, array_lba=end)
        return tuple(
            TableSectors(lba * self._sector_size, data)
            for header in (primary, backup)
            for lba, data in ((header.own_lba, header.encode()), (header.array_lba, array))
        )

    def _partitions(self, copy: _Copy, disk_size: int) -> Iterator[Partition]:
        disk = Extent(0, disk_size if self._source.size is None else self._source.size)
        for index in range(copy.header.entry_count):
            fields = _ENTRY.unpack_from(copy.entries, index * copy.header.entry_size)
            type_guid, own_guid, first, last, _attributes, name = fields
            if not any(type_guid):
                continue
            extent = self._extent(first, last)
            if extent.size <= 0:
                raise invalid_table(self._source, f"partition {index + 1} ends before it starts")
            refuse_truncated(self._source, extent.end)
            if not disk.encloses(extent):
                fact = f"partition {index + 1} ends after the disk that the GPT is for"
                raise invalid_table(self._source, fact)
            yield Partition(
                number=index + 1,
                extent=extent,
                kind=PartitionKind.PRIMARY,
                type_id=_guid(type_guid),
                # 36 UTF-16 units, up to the first NUL; invalid ones become U+FFFD.
                name=name.decode("utf-16-le", errors="replace").partition("\0")[0],
                uuid=_guid(own_guid),
            )

    def _warn_of_entries(self, header: _Header, partitions: Iterable[Partition]) -> Iterator[str]:
        if header.entry_size != ENTRY_SIZE:
            yield (
                f"Linux does not read this GPT: its entries have {header.entry_size} bytes, "
                f"not {ENTRY_SIZE}."
            )
        usable = self._extent(header.first_usable, header.last_usable)
        for partition in partitions:
            if not usable.encloses(partition.extent):
                yield (
                    f"Partition {partition.number} lies outside the range that the GPT has for "
                    "partitions: Linux reads it, blkid and partx do not."
                )


def _guid(data: bytes) -> str:
    """Mixed-endian text, in capitals (UEFI 2.10, appendix A)."""
    return str(uuid.UUID(bytes_le=data)).upper()


def move_backup(source: Source, table: PartitionTable, disk_size: int) -> tuple[Patch, ...]:
    """The writes, in this order, that make the GPT of an image use a whole disk.

    The new backup at the end of the disk of ``disk_size`` bytes comes first, which may not be
    smaller than the image. Then comes the primary header, and the protective record last: so each
    state in between has a sound copy. The old backup stays in the middle, where nothing refers to
    it, as sgdisk and parted leave it. Empty if a sound backup is already at the end.

    Raises:
        ImageError: the primary copy is damaged (``gpt-damaged``); a damaged copy is never copied,
            and its place may contain a boot loader. Or a partition overlaps the place of the new
            backup (``gpt-no-room``).
    """
    reader = _Reader(source, table.sector_size)
    copy = reader.read_copy(PRIMARY_LBA)
    if copy is None:
        raise ImageError(
            f"{source.name}: its primary GPT is damaged, so its backup is not moved",
            code="gpt-damaged",
            hint="Repair the image first, with gdisk; or write it without --fix-gpt.",
        )
    header, array = copy.header, copy.sectors[1].data
    last = disk_size // table.sector_size - 1
    # The end of a stream is unknown before all of it is read.
    if header.alternate_lba == last and (not source.seekable or reader.read_copy(last)):
        return ()
    first = last - len(array) // table.sector_size
    place = Extent.from_lba(first, last, sector_size=table.sector_size)
    for partition in table.partitions:
        if partition.extent.overlaps(place):
            raise ImageError(
                f"{source.name}: partition {partition.number} overlaps the new place of the "
                "backup GPT, so the backup is not moved",
                code="gpt-no-room",
                hint="Use a larger disk, or write the image without --fix-gpt.",
            )
    primary = replace(header, alternate_lba=last, last_usable=first - 1)
    backup = replace(primary, own_lba=last, alternate_lba=PRIMARY_LBA, array_lba=first)
    record = source.read(0, table.sector_size)
    stretched = stretch_protection(record, last)
    return (
        Patch(first * table.sector_size, array),
        Patch(last * table.sector_size, backup.encode()),
        Patch(PRIMARY_LBA * table.sector_size, primary.encode()),
        *([Patch(0, stretched)] if stretched != record else []),
    )
