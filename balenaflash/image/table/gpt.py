"""GUID partition tables: two copies of a header and an array, and what of them is sound."""

import struct
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import Self

from balenaflash.extent import KIB, MIB, SECTOR_SIZE, Extent, format_size
from balenaflash.image.source import Source
from balenaflash.image.table.mbr import MbrEntry
from balenaflash.image.table.model import (
    Partition,
    PartitionKind,
    PartitionTable,
    TableKind,
    TableReading,
    TableSectors,
    invalid_table,
    refuse_truncated,
)

SIGNATURE = b"EFI PART"
PRIMARY_LBA = 1
_SECTOR_SIZES = (SECTOR_SIZE, 4 * KIB)
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # UEFI 2.10, table 5.5
_SIZE_OFFSET, _OWN_LBA_OFFSET, _ARRAY_LBA_OFFSET = 12, 24, 72  # of fields in it
_HEADER_CRC = slice(16, 20)  # taken as zero when the checksum is computed
_ENTRY = struct.Struct("<16s16sQQQ72s")  # UEFI 2.10, table 5.6
_ENTRY_SIZES = frozenset({128, 256, 512, 1024, 2048, 4096})  # 128 times a power of two
_MAX_SIZE = 1 << 63  # bytes
_MAX_ARRAY = MIB  # far above the 16 KiB in use, far below what a hostile header can ask for


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header that are needed, and the bytes it was read from."""

    sector: bytes
    size: int
    """Bytes of the sector that belong to it; the checksum covers these."""

    crc_valid: bool
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
        """The header in a sector; ``None`` without its signature or with an absurd size."""
        signature, _revision, size, crc, _reserved, *rest = _HEADER.unpack_from(sector)
        if signature != SIGNATURE or not _HEADER.size <= size <= len(sector):
            return None
        covered = bytearray(sector[:size])
        covered[_HEADER_CRC] = bytes(4)
        return cls(sector, size, zlib.crc32(covered) == crc, *rest)

    @property
    def array_size(self) -> int:
        """Bytes of all entries."""
        return self.entry_count * self.entry_size


@dataclass(frozen=True, slots=True)
class _Copy:
    """One sound copy of the table."""

    header: Header
    entries: bytes
    sectors: tuple[TableSectors, ...]


def read_gpt(source: Source, mbr: bytes, mbr_entries: tuple[MbrEntry, ...]) -> TableReading:
    """The GPT behind the protective record ``mbr``, from its first sound copy.

    One damaged copy is a warning. Sectors may be of 512 or 4096 bytes; what decides is
    where a sound header lies.

    Raises:
        ImageError: no copy is sound, the image is cut off, or partitions lie
            outside the range that the header gives them.
    """
    for sector_size in _SECTOR_SIZES:
        reading = _Reader(source, sector_size).read()
        if reading is not None:
            break
    else:
        raise invalid_table(
            source, "a protective MBR announces a GPT, and neither of its copies is intact"
        )
    sectors = (TableSectors(0, mbr), *reading.sectors)
    if len(mbr_entries) > 1:
        hybrid = "The MBR is a hybrid: it lists other partitions beside the GPT."
        warnings = (*reading.table.warnings, hybrid)
        reading = replace(reading, table=replace(reading.table, warnings=warnings))
    return replace(reading, sectors=tuple(sorted(sectors)))


class _Reader:
    def __init__(self, source: Source, sector_size: int) -> None:
        self._source = source
        self._sector_size = sector_size
        # No disk has more: GPT counts sectors in 64 bits, Linux bytes in 63.
        self._count = (_MAX_SIZE if source.size is None else source.size) // sector_size

    def read(self) -> TableReading | None:
        """The table for this size of sectors; ``None`` if no copy is sound."""
        primary = self._read_copy(PRIMARY_LBA)
        if not self._source.seekable:
            return None if primary is None else self._read_without_backup(primary)
        if primary is None:
            backup = self._read_copy(self._count - 1)
            damage = "The primary GPT is damaged; the backup at the end of the image is used."
            return None if backup is None else self._reading(backup, (backup,), [damage])
        alternate = primary.header.alternate_lba
        backup = self._read_copy(alternate) if alternate > PRIMARY_LBA else None
        if backup is None:
            return self._reading(primary, (primary,), ["The backup GPT is damaged."])
        return self._reading(primary, (primary, backup), self._compare(primary, backup))

    def _read_without_backup(self, primary: _Copy) -> TableReading:
        """The table of a stream, whose end is out of reach; libparted is shown a made-up backup."""
        return self._reading(primary, (primary, self._made_up_backup(primary)), [])

    def _made_up_backup(self, primary: _Copy) -> _Copy:
        """The backup that UEFI wants beside ``primary`` (UEFI 2.10, section 5.3.2)."""
        header = primary.header
        array = primary.sectors[1].data
        own_lba = header.alternate_lba
        array_lba = own_lba - len(array) // self._sector_size
        if array_lba <= header.last_usable:
            raise invalid_table(self._source, "the GPT leaves no room for its backup")
        sector = bytearray(header.sector)
        struct.pack_into("<QQ", sector, _OWN_LBA_OFFSET, own_lba, header.own_lba)
        struct.pack_into("<Q", sector, _ARRAY_LBA_OFFSET, array_lba)
        (size,) = struct.unpack_from("<I", sector, _SIZE_OFFSET)
        sector[_HEADER_CRC] = bytes(4)
        struct.pack_into("<I", sector, _HEADER_CRC.start, zlib.crc32(sector[:size]))
        runs = (
            TableSectors(own_lba * self._sector_size, bytes(sector)),
            TableSectors(array_lba * self._sector_size, array),
        )
        return _Copy(header, primary.entries, runs)

    def _compare(self, primary: _Copy, backup: _Copy) -> list[str]:
        warnings = []
        if primary.entries != backup.entries:
            warnings.append("The two copies of the GPT differ; the primary is used.")
        behind = (self._count - backup.header.own_lba - 1) * self._sector_size
        if behind >= self._sector_size:
            warnings.append(
                f"The backup GPT lies {format_size(behind)} before the end: "
                "the image has grown, or lies on a larger disk."
            )
        return warnings

    def _read_copy(self, lba: int) -> _Copy | None:
        """The copy whose header is at ``lba``; ``None`` if it is damaged or not there."""
        if not PRIMARY_LBA <= lba < self._count:
            return None
        sector = self._source.read(lba * self._sector_size, self._sector_size)
        header = Header.parse(sector)
        if header is None or not header.crc_valid or header.own_lba != lba:
            return None
        refuse_truncated(self._source, (header.alternate_lba + 1) * self._sector_size)
        extent = self._array_extent(header)
        if extent is None:
            return None
        data = self._source.read(extent.start, extent.size)
        entries = data[: header.array_size]
        if zlib.crc32(entries) != header.array_crc:
            return None
        runs = (TableSectors(lba * self._sector_size, sector), TableSectors(extent.start, data))
        return _Copy(header, entries, runs)

    def _array_extent(self, header: Header) -> Extent | None:
        """The whole sectors of the array; ``None`` where no array can be.

        A backup's header must point back to the primary (UEFI 2.10, table 5.5).
        """
        if header.entry_size not in _ENTRY_SIZES or not 0 < header.array_size <= _MAX_ARRAY:
            return None
        if PRIMARY_LBA not in {header.own_lba, header.alternate_lba}:
            return None
        # A usable range past the end crashes libparted 3.5; UEFI excludes the rest.
        farther = max(header.own_lba, header.alternate_lba)
        if not PRIMARY_LBA < header.first_usable <= header.last_usable < farther:
            return None
        last = header.array_lba + -(-header.array_size // self._sector_size) - 1
        array = range(header.array_lba, last + 1)
        if header.array_lba <= PRIMARY_LBA or last >= self._count or header.own_lba in array:
            return None
        if last >= header.first_usable and header.array_lba <= header.last_usable:
            return None
        return Extent.from_lba(header.array_lba, last, sector_size=self._sector_size)

    def _reading(self, used: _Copy, copies: tuple[_Copy, ...], warnings: list[str]) -> TableReading:
        partitions = tuple(self._partitions(used))
        refuse_truncated(self._source, max((each.extent.end for each in partitions), default=0))
        table = PartitionTable(
            TableKind.GPT,
            self._sector_size,
            _guid(used.header.disk_guid),
            partitions,
            tuple(warnings),
            disk_size=self._disk_size(used.header),
        )
        return TableReading(table, tuple(run for copy in copies for run in copy.sectors))

    def _disk_size(self, header: Header) -> int:
        return (max(header.own_lba, header.alternate_lba) + 1) * self._sector_size

    def _partitions(self, copy: _Copy) -> list[Partition]:
        header = copy.header
        usable = Extent.from_lba(
            header.first_usable, header.last_usable, sector_size=self._sector_size
        )
        partitions = []
        for index in range(header.entry_count):
            fields = _ENTRY.unpack_from(copy.entries, index * header.entry_size)
            type_guid, own_guid, first, last, _attributes, name = fields
            if not any(type_guid):
                continue
            extent = Extent.from_lba(first, last, sector_size=self._sector_size)
            if extent.size <= 0:
                raise invalid_table(self._source, f"partition {index + 1} ends before it starts")
            if not usable.encloses(extent):
                refuse_truncated(self._source, extent.end)
                fact = f"partition {index + 1} lies outside the range that the GPT gives partitions"
                raise invalid_table(self._source, fact)
            partitions.append(
                Partition(
                    number=index + 1,
                    extent=extent,
                    kind=PartitionKind.PRIMARY,
                    type_id=_guid(type_guid),
                    name=_name(name),
                    uuid=_guid(own_guid),
                )
            )
        return partitions


def _guid(data: bytes) -> str:
    """Mixed-endian text, in capitals (UEFI 2.10, appendix A)."""
    return str(uuid.UUID(bytes_le=data)).upper()


def _name(data: bytes) -> str:
    """Up to 36 UTF-16 units, to the first NUL; what is no character becomes U+FFFD."""
    text = data.decode("utf-16-le", errors="replace")
    return text.partition("\0")[0]
