"""GUID partition tables: two headers and arrays, which are sound, and moving the backup."""

import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.mbr import PROTECTIVE, find_protective, is_hybrid, read_entries
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
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # UEFI 2.10, table 5.5
_SIZE_OFFSET = 12  # of the header's size in it
_HEADER_CRC = slice(16, 20)  # taken as zero when the checksum is computed
_REVISION = 0x00010000
_ENTRY = struct.Struct("<16s16sQQQ72s")  # UEFI 2.10, table 5.6
_ENTRY_SIZES = range(ENTRY_SIZE, 4 * KIB + 1, 8)  # libparted and sfdisk read these
_LEAST_ENTRIES = 128  # UEFI 2.10, section 5.3.1: 16 KiB
_MAX_SIZE = 1 << 62  # bytes, above any disk; Linux counts them in 63 bits
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
class Copy:
    """One sound copy of the table: the checksums of its header and of its entries are right."""

    header: Header
    entries: bytes
    sectors: tuple[TableSectors, TableSectors]
    """The header's, then those of the entries."""


def read_copy(source: Source, lba: int, *, sector_size: int) -> Copy | None:
    """The copy whose header is at ``lba``; ``None`` if it is damaged, or there is none."""
    return _Reader(source, sector_size).read_copy(lba)


def read_gpt(source: Source, mbr: bytes) -> TableReading:
    """The GPT behind the protective record ``mbr``, from its first sound copy.

    One damaged copy is a warning. Sectors may be of 512 or 4096 bytes; what decides is
    where a sound header lies.

    Raises:
        ImageError: no copy is sound, the image is cut off, or a partition lies outside the disk.
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
        fact = "a protective MBR announces a GPT, and neither of its copies is intact"
        return invalid_table(source, fact)
    return invalid_table(
        source,
        "its primary GPT is damaged, and the backup is out of reach at the end of the stream",
        hint="Save or decompress it to a file: there the backup is used if it is intact.",
    )


def _warn_of_record(mbr: bytes) -> Iterator[str]:
    """What is odd about the protective record, by the rules of Linux."""
    first = find_protective(mbr)
    if first != PRIMARY_LBA:
        yield (
            "Linux does not read this GPT: "
            f"the protective entry of the MBR starts at sector {first}, not at sector 1."
        )
    if is_hybrid(mbr):
        yield "The MBR is a hybrid: it lists other partitions beside the GPT."


class _Reader:
    def __init__(self, source: Source, sector_size: int) -> None:
        self._source = source
        self._sector_size = sector_size
        self._count = (_MAX_SIZE if source.size is None else source.size) // sector_size

    def read(self) -> TableReading | None:
        """The table for this size of sectors; ``None`` if no copy is sound."""
        header = self._read_header(PRIMARY_LBA)
        primary = None if header is None else self._complete(header)
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

    def read_copy(self, lba: int) -> Copy | None:
        header = self._read_header(lba)
        return None if header is None else self._complete(header)

    def _read_without_backup(
        self, header: Header | None, primary: Copy | None
    ) -> TableReading | None:
        """The table of a stream, whose end is out of reach."""
        if header is None:
            return None
        refuse_truncated(self._source, (header.alternate_lba + 1) * self._sector_size)
        if max(header.alternate_lba, header.last_usable) >= self._count:
            fact = (
                f"its GPT is that of a disk of {header.alternate_lba + 1} sectors: none is so large"
            )
            raise invalid_table(self._source, fact)
        if primary is None:
            raise _no_sound_copy(self._source)
        return self._reading(primary, None, [])

    def _find_backup(self, header: Header | None, primary: Copy | None) -> Copy | None:
        """The backup where the sound header of a primary copy says that it is, or at the end.

        At the end only where it is needed, and only one of the same disk: what else lies there
        is left of another table.
        """
        last = self._count - 1
        if header is not None and header.alternate_lba <= last:
            backup = self._read_backup_copy(header.alternate_lba)
            if backup is not None or primary is not None:
                return backup
        backup = self._read_backup_copy(last)
        is_of_disk = backup is None or header is None or backup.header.disk_guid == header.disk_guid
        return backup if is_of_disk else None

    def _read_backup_copy(self, lba: int) -> Copy | None:
        """The copy at ``lba``, which must point back to the primary (UEFI 2.10, table 5.5)."""
        backup = self.read_copy(lba) if lba > PRIMARY_LBA else None
        return backup if backup and backup.header.alternate_lba == PRIMARY_LBA else None

    def _read_backup(self, header: Header | None, backup: Copy) -> TableReading:
        part = "entries" if header is not None and self._array_extent(header) else "header"
        damage = (
            f"The primary GPT is damaged (its {part}): the backup at sector "
            f"{backup.header.own_lba} is used here. Linux, started with the option gpt, uses one "
            "at the end of the disk, otherwise none."
        )
        return self._reading(backup, None, [damage, *self._warn_of_place(backup)])

    def _compare(self, primary: Copy, backup: Copy) -> list[str]:
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

    def _warn_of_place(self, backup: Copy) -> list[str]:
        behind = (self._count - backup.header.own_lba - 1) * self._sector_size
        if behind < self._sector_size:
            return []
        where = f"The backup GPT lies {format_size(behind)} before the end"
        return [f"{where}: the image has grown, or lies on a larger disk."]

    def _read_header(self, lba: int) -> Header | None:
        """The header at ``lba`` that its own checksum and place prove, whatever its entries are."""
        if not PRIMARY_LBA <= lba < self._count:
            return None
        header = Header.parse(self._source.read(lba * self._sector_size, self._sector_size))
        return None if header is None or not header.crc_valid or header.own_lba != lba else header

    def _complete(self, header: Header) -> Copy | None:
        """The copy with that header; ``None`` if its entries are not those of its checksum."""
        extent = self._array_extent(header)
        if extent is None:
            return None
        data = self._source.read(extent.start, extent.size)
        entries = data[: header.array_size]
        if zlib.crc32(entries) != header.array_crc:
            return None
        own = TableSectors(header.own_lba * self._sector_size, header.sector)
        return Copy(header, entries, (own, TableSectors(extent.start, data)))

    def _array_extent(self, header: Header) -> Extent | None:
        """The whole sectors of the entries; ``None`` if Linux would not read them for the header.

        The size of an entry is an exception: Linux reads those of 128 bytes only.
        """
        if header.entry_size not in _ENTRY_SIZES or not 0 < header.array_size <= _MAX_ARRAY:
            return None
        if not header.first_usable <= header.last_usable < self._count:
            return None
        array = _array_of(header, self._sector_size)
        if array.start <= PRIMARY_LBA or array.stop > self._count or header.own_lba in array:
            return None
        return Extent.from_lba(array.start, array.stop - 1, sector_size=self._sector_size)

    def _reading(self, used: Copy, backup: Copy | None, warnings: list[str]) -> TableReading:
        disk_size = self._disk_size(used.header)
        partitions = tuple(self._partitions(used, disk_size))
        table = PartitionTable(
            TableKind.GPT,
            self._sector_size,
            _guid(used.header.disk_guid),
            partitions,
            (*warnings, *self._warn_of_entries(used.header, partitions)),
            disk_size=disk_size,
        )
        if backup is None:
            return TableReading(table, used.sectors, self._made_up(used, disk_size))
        sectors = (*used.sectors, *backup.sectors)
        is_usual = (
            used.header.alternate_lba == backup.header.own_lba
            and self._is_usual(used.header)
            and self._is_usual(backup.header)
        )
        return TableReading(table, sectors, () if is_usual else self._made_up(used, disk_size))

    def _disk_size(self, header: Header) -> int:
        """Bytes of the disk that the table is for; no more than the image has."""
        last = max(header.own_lba, header.alternate_lba, header.last_usable)
        return min(last + 1, self._count) * self._sector_size

    def _is_usual(self, header: Header) -> bool:
        """Whether the range for partitions lies between the copies, as UEFI wants it."""
        array = _array_of(header, self._sector_size)
        farther = max(header.own_lba, header.alternate_lba)
        is_between = header.first_usable > PRIMARY_LBA and header.last_usable < farther
        return is_between and not (
            array.stop > header.first_usable and array.start <= header.last_usable
        )

    def _made_up(self, used: Copy, disk_size: int) -> tuple[TableSectors, ...]:
        """Two copies with the entries of ``used``, the second one behind the disk.

        libparted 3.5 crashes on odd ranges, and reads a backup only where the primary or the end
        has it.
        """
        size = used.header.entry_size
        entries = b"".join(
            used.entries[start : start + ENTRY_SIZE] for start in range(0, len(used.entries), size)
        )
        count = max(used.header.entry_count, _LEAST_ENTRIES)
        sectors = -(-count * ENTRY_SIZE // self._sector_size)
        array = entries.ljust(sectors * self._sector_size, b"\0")
        end = max(disk_size // self._sector_size, self._count if self._source.size else 0)
        usable = (PRIMARY_LBA + sectors + 1, end - 1)
        runs = list[TableSectors]()
        last = end + sectors
        for own, other, array_lba in (
            (PRIMARY_LBA, last, PRIMARY_LBA + 1),
            (last, PRIMARY_LBA, end),
        ):
            fields = (own, other, *usable, used.header.disk_guid, array_lba, count, ENTRY_SIZE)
            header = seal_header(
                _HEADER.pack(
                    SIGNATURE,
                    _REVISION,
                    _HEADER.size,
                    0,
                    0,
                    *fields,
                    zlib.crc32(array[: count * ENTRY_SIZE]),
                ).ljust(self._sector_size, b"\0")
            )
            runs.append(TableSectors(own * self._sector_size, header))
            runs.append(TableSectors(array_lba * self._sector_size, array))
        return tuple(runs)

    def _partitions(self, copy: Copy, disk_size: int) -> Iterator[Partition]:
        disk = Extent(0, disk_size if self._source.size is None else self._source.size)
        for index in range(copy.header.entry_count):
            fields = _ENTRY.unpack_from(copy.entries, index * copy.header.entry_size)
            type_guid, own_guid, first, last, _attributes, name = fields
            if not any(type_guid):
                continue
            extent = Extent.from_lba(first, last, sector_size=self._sector_size)
            if extent.size <= 0:
                raise invalid_table(self._source, f"partition {index + 1} ends before it starts")
            refuse_truncated(self._source, extent.end)
            if not disk.encloses(extent):
                fact = f"partition {index + 1} reaches past the end of the disk that the GPT is for"
                raise invalid_table(self._source, fact)
            yield Partition(
                number=index + 1,
                extent=extent,
                kind=PartitionKind.PRIMARY,
                type_id=_guid(type_guid),
                name=_name(name),
                uuid=_guid(own_guid),
            )

    def _warn_of_entries(self, header: Header, partitions: Iterable[Partition]) -> Iterator[str]:
        if header.entry_size != ENTRY_SIZE:
            yield (
                f"Linux does not read this GPT: its entries have {header.entry_size} bytes, "
                f"not {ENTRY_SIZE}."
            )
        usable = Extent.from_lba(
            header.first_usable, header.last_usable, sector_size=self._sector_size
        )
        for partition in partitions:
            if not usable.encloses(partition.extent):
                yield (
                    f"Partition {partition.number} lies outside the range that the GPT gives "
                    "partitions: Linux reads it, blkid and partx do not."
                )


def _array_of(header: Header, sector_size: int) -> range:
    """The sectors of a header's entries."""
    return range(header.array_lba, header.array_lba - (-header.array_size // sector_size))


def seal_header(sector: bytes | bytearray) -> bytes:
    """The sector of a header, with the checksum that is right for it."""
    sealed = bytearray(sector)
    (size,) = struct.unpack_from("<I", sealed, _SIZE_OFFSET)
    sealed[_HEADER_CRC] = bytes(4)
    struct.pack_into("<I", sealed, _HEADER_CRC.start, zlib.crc32(sealed[:size]))
    return bytes(sealed)


def _guid(data: bytes) -> str:
    """Mixed-endian text, in capitals (UEFI 2.10, appendix A)."""
    return str(uuid.UUID(bytes_le=data)).upper()


def _name(data: bytes) -> str:
    """Up to 36 UTF-16 units, to the first NUL; what is no character becomes U+FFFD."""
    text = data.decode("utf-16-le", errors="replace")
    return text.partition("\0")[0]


_OWN_LBA_OFFSET, _LAST_USABLE_OFFSET, _ARRAY_LBA_OFFSET = 24, 48, 72
"""Of fields in a header, UEFI 2.10, table 5.5. The LBA of the other copy follows the own one."""

_ENTRIES_OFFSET, _ENTRY_SIZE, _COUNT_OFFSET = 446, 16, 12  # of a boot record, UEFI 2.10, table 5.1
_MAX_COUNT = 0xFFFFFFFF  # sectors; also of a larger disk, UEFI 2.10, table 5.4


def move_backup(source: Source, table: PartitionTable, disk_size: int) -> tuple[Patch, ...]:
    """What to write, in this order, so that the GPT of an image uses a whole disk.

    First the new backup at the end of the disk of ``disk_size`` bytes, which may not be smaller
    than the image, then the primary header, the protective record last: each state in between
    has a sound copy. The backup of before stays in the middle, where nothing refers to it, as
    sgdisk and parted leave it. Empty if a sound backup lies at the end already.

    Raises:
        ImageError: the primary copy is damaged (``gpt-damaged``): a damaged one is never copied,
            and what lies in its place may be a boot loader. Or a partition lies where the backup
            would go (``gpt-no-room``).
    """
    sector_size = table.sector_size
    copy = read_copy(source, PRIMARY_LBA, sector_size=sector_size)
    if copy is None:
        raise ImageError(
            f"{source.name}: its primary GPT is damaged, so its backup is not moved",
            code="gpt-damaged",
            hint="Repair the image first, with gdisk; or write it without --fix-gpt.",
        )
    header, array = copy.header, copy.sectors[1].data
    last = disk_size // sector_size - 1
    # Whether there is a backup at the end of a stream is not known before all of it has passed.
    if header.alternate_lba == last and (
        not source.seekable or read_copy(source, last, sector_size=sector_size)
    ):
        return ()
    first = last - len(array) // sector_size
    _require_room(source, table, Extent.from_lba(first, last, sector_size=sector_size))
    backup = _change(header, own=last, other=PRIMARY_LBA, array=first)
    primary = _change(header, own=PRIMARY_LBA, other=last, array=header.array_lba)
    for sector in (backup, primary):
        struct.pack_into("<Q", sector, _LAST_USABLE_OFFSET, first - 1)
    return (
        Patch(first * sector_size, array),
        Patch(last * sector_size, seal_header(backup)),
        Patch(PRIMARY_LBA * sector_size, seal_header(primary)),
        *_stretch_protection(source.read(0, sector_size), last),
    )


def _require_room(source: Source, table: PartitionTable, place: Extent) -> None:
    for partition in table.partitions:
        if partition.extent.overlaps(place):
            raise ImageError(
                f"{source.name}: partition {partition.number} lies where the backup of its GPT "
                "would go, so the backup is not moved",
                code="gpt-no-room",
                hint="Use a larger disk, or write the image without --fix-gpt.",
            )


def _change(header: Header, *, own: int, other: int, array: int) -> bytearray:
    sector = bytearray(header.sector)
    struct.pack_into("<QQ", sector, _OWN_LBA_OFFSET, own, other)
    struct.pack_into("<Q", sector, _ARRAY_LBA_OFFSET, array)
    return sector


def _stretch_protection(sector: bytes, last: int) -> Iterator[Patch]:
    """The protective record, its entry up to the sector ``last``; nothing of a hybrid one."""
    entries = read_entries(sector[:SECTOR_SIZE]) or ()
    if len(entries) != 1 or entries[0].type_id != PROTECTIVE or entries[0].first != 1:
        return
    record = bytearray(sector)
    place = _ENTRIES_OFFSET + entries[0].slot * _ENTRY_SIZE + _COUNT_OFFSET
    struct.pack_into("<I", record, place, min(last, _MAX_COUNT))
    if record != sector:
        yield Patch(0, bytes(record))
