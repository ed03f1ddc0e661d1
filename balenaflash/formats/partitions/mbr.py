"""Master boot records: primary partitions, and the chain of extended boot records."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

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
from balenaflash.units import SECTOR_SIZE, Extent

PROTECTIVE = 0xEE  # type of the entry that protects a GPT, UEFI 2.10, table 5.4
_PROTECTED = 1  # where such an entry starts: the sector of the primary header
_EXTENDED = frozenset({0x05, 0x0F, 0x85})  # CHS, LBA and Linux, as in the kernel's msdos.c
_BOOT_INDICATORS = frozenset({0x00, 0x80})
_ENTRIES_OFFSET = 446
_ENTRY = struct.Struct("<B3xB3xII")  # boot indicator, type, first sector, number of sectors
_MAX_COUNT = 0xFFFFFFFF  # sectors; also for a larger disk, UEFI 2.10, table 5.4
_DISK_ID_OFFSET = 440
_SIGNATURE = b"\x55\xaa"
_FIRST_LOGICAL = 5
_MAX_LOGICAL = 251  # Linux numbers partitions up to 255, DISK_MAX_PARTS in linux/blkdev.h
_MAX_SHOWN = 60  # libparted reads up to 64 partitions on msdos (dos.c)
_FAT_PARAMETERS = slice(11, 36)  # of the boot sector of any FAT, Microsoft's fatgen103


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """A used entry of a boot record."""

    slot: int
    """Index in the record, 0 to 3."""

    type_id: int
    first: int
    """First sector, from a base that depends on the record."""

    count: int
    """Number of sectors, never 0."""

    @property
    def place(self) -> slice:
        """Bytes of the entry in the record."""
        start = _ENTRIES_OFFSET + self.slot * _ENTRY.size
        return slice(start, start + _ENTRY.size)

    @property
    def is_extended(self) -> bool:
        """True if it leads to extended boot records."""
        return self.type_id in _EXTENDED

    def extent(self, base: int = 0) -> Extent:
        """Bytes of the partition; ``base`` is the sector that ``first`` counts from."""
        first = base + self.first
        return Extent.from_lba(first, first + self.count - 1)


def read_entries(sector: bytes) -> tuple[MbrEntry, ...] | None:
    """The used entries of a boot record; ``None`` if the sector is not a boot record.

    Boot indicators other than 0 and 0x80 show that it is the boot sector of a filesystem, as in
    the kernel's ``block/partitions/msdos.c``.
    """
    if sector[SECTOR_SIZE - 2 : SECTOR_SIZE] != _SIGNATURE:
        return None
    entries = []
    for slot, (indicator, type_id, first, count) in enumerate(_raw_entries(sector)):
        if indicator not in _BOOT_INDICATORS:
            return None
        if type_id and count:
            entries.append(MbrEntry(slot, type_id, first, count))
    return tuple(entries)


def canonical_record(sector: bytes) -> bytes:
    """A boot record with its used entries only, without their cylinders, heads and sectors.

    A sector of zeros becomes a record without entries. The parameters of a FAT are removed: with
    them, libparted would take the whole image for a FAT. Linux ignores them in a record with
    valid boot indicators.
    """
    record = bytearray(sector)
    record[_FAT_PARAMETERS] = bytes(_FAT_PARAMETERS.stop - _FAT_PARAMETERS.start)
    record[_ENTRIES_OFFSET:] = bytes(4 * _ENTRY.size) + _SIGNATURE
    for entry in read_entries(sector) or ():
        indicator = sector[entry.place.start]
        record[entry.place] = _ENTRY.pack(indicator, entry.type_id, entry.first, entry.count)
    return bytes(record)


def find_protective(sector: bytes) -> int | None:
    """The first sector of the entry that protects a GPT; ``None`` if there is none.

    For Linux, the type and the first sector of an entry decide, not its size and not the other
    entries (``pmbr_part_valid`` of ``block/partitions/efi.c``). For libparted, an entry that
    starts elsewhere also announces a GPT.
    """
    if sector[SECTOR_SIZE - 2 : SECTOR_SIZE] != _SIGNATURE:
        return None
    starts = [first for _, type_id, first, _ in _raw_entries(sector) if type_id == PROTECTIVE]
    if _PROTECTED in starts:
        return _PROTECTED
    return starts[0] if starts and read_entries(sector) is not None else None


def is_hybrid(sector: bytes) -> bool:
    """True if a protective record also lists other partitions, by the rule of Linux."""
    return any(type_id not in {0, PROTECTIVE} for _, type_id, _, _ in _raw_entries(sector))


def plain_protection(sector: bytes) -> bytes:
    """A protective record with only the type, start and size of each entry."""
    record = bytearray(SECTOR_SIZE)
    for slot, (_, *rest) in enumerate(_raw_entries(sector)):
        _ENTRY.pack_into(record, _ENTRIES_OFFSET + slot * _ENTRY.size, 0, *rest)
    record[-len(_SIGNATURE) :] = _SIGNATURE
    return bytes(record)


def stretch_protection(sector: bytes, last: int) -> bytes:
    """A protective record, with its entry up to the sector ``last``; a hybrid one unchanged."""
    entries = read_entries(sector[:SECTOR_SIZE]) or ()
    if len(entries) != 1 or entries[0].type_id != PROTECTIVE or entries[0].first != _PROTECTED:
        return sector
    record = bytearray(sector)
    # The number of sectors is the last field of an entry; all others stay as they are.
    struct.pack_into("<I", record, entries[0].place.stop - 4, min(last, _MAX_COUNT))
    return bytes(record)


def _raw_entries(sector: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Boot indicator, type, first sector and number of sectors of the four entries."""
    return _ENTRY.iter_unpack(sector[_ENTRIES_OFFSET : _ENTRIES_OFFSET + 4 * _ENTRY.size])


EMPTY_RECORD = canonical_record(bytes(SECTOR_SIZE))
"""A boot record without entries."""


def read_mbr(source: Source, sector: bytes, entries: tuple[MbrEntry, ...]) -> TableReading:
    """The msdos table with the first record ``sector``, which has ``entries``.

    The records of logical partitions are spread over the whole disk. Those of a stream are not
    read, and the table is not complete then.

    Sectors have 512 bytes: the record does not store their size, and no balenaOS image differs.

    Raises:
        ImageError: a partition ends after the image, or the chain of extended boot records
            leaves its partition, loops, or is not a chain.
    """
    refuse_truncated(source, max((entry.extent().end for entry in entries), default=0))
    partitions = [
        _partition(
            entry.slot + 1,
            entry,
            entry.extent(),
            PartitionKind.EXTENDED if entry.is_extended else PartitionKind.PRIMARY,
        )
        for entry in entries
    ]
    warnings = [
        f"Entry {slot + 1} of the boot record has no type: Linux shows it as a partition, parted "
        "does not, and it is omitted here."
        for slot, (_, type_id, _, count) in enumerate(_raw_entries(sector))
        if count and not type_id
    ]
    sectors = [TableSectors(0, sector)]
    shown: tuple[TableSectors, ...] = ()
    extended = [each for each in partitions if each.kind is PartitionKind.EXTENDED]
    if len(extended) > 1:
        raise invalid_table(source, "has more than one extended partition")
    if extended and source.seekable:
        chain = Chain(source, extended[0].extent)
        while chain.next is not None:
            chain.step()
        if len(chain.partitions) > _MAX_SHOWN:
            warnings.append(
                f"The table has {len(chain.partitions)} logical partitions: parted reads no more "
                f"than {_MAX_SHOWN}."
            )
        partitions += chain.partitions
        sectors += sorted(chain.records)
        warnings += chain.warnings
        shown = chain.cut_for_libparted()
    (disk_id,) = struct.unpack_from("<I", sector, _DISK_ID_OFFSET)
    table = PartitionTable(
        TableKind.MSDOS,
        SECTOR_SIZE,
        f"0x{disk_id:08x}",
        tuple(partitions),
        tuple(warnings),
        is_complete=not extended or source.seekable,
    )
    return TableReading(table, tuple(sectors), (sectors[0], *shown) if shown else ())


def _partition(number: int, entry: MbrEntry, extent: Extent, kind: PartitionKind) -> Partition:
    return Partition(number, extent, kind, f"0x{entry.type_id:02x}", name=None, uuid=None)


class Chain:
    """The extended boot records of one extended partition, each with one logical partition."""

    def __init__(self, source: Source, extended: Extent) -> None:
        self._source = source
        self._extended = extended
        self._seen = set[int]()
        self.next: int | None = extended.start
        """Offset in bytes of the record that ``step`` reads next; ``None`` after the last."""

        self.partitions: list[Partition] = []
        self.records: list[TableSectors] = []
        self.warnings: list[str] = []

    def step(self) -> None:
        """Read the next record, and add its partition.

        Raises:
            ImageError: the record is damaged, describes an invalid partition, or was read before.
        """
        offset = self.next
        if offset is None:
            return
        if offset in self._seen:
            raise self._invalid(offset, "is reached a second time")
        if len(self._seen) >= _MAX_LOGICAL:
            fact = f"is number {len(self._seen) + 1} of its chain, but Linux shows at most"
            raise self._invalid(offset, f"{fact} {_MAX_LOGICAL} logical partitions")
        self._seen.add(offset)
        self.next = self._read(offset)

    def cut_for_libparted(self) -> tuple[TableSectors, ...]:
        """The records up to the last one that libparted can read; empty if it can read all."""
        if len(self.partitions) <= _MAX_SHOWN:
            return ()
        shown, count = list[TableSectors](), 0
        for record in self.records:
            entries = read_entries(record.data) or ()
            count += sum(not entry.is_extended for entry in entries)
            if count == _MAX_SHOWN:
                last = bytearray(record.data)
                for entry in entries:
                    if entry.is_extended:
                        last[entry.place] = bytes(_ENTRY.size)
                return (*shown, TableSectors(record.offset, bytes(last)))
            shown.append(record)
        return tuple(shown)

    def _read(self, offset: int) -> int | None:
        """Read the record at ``offset``, and return the offset of the next one."""
        if not self._extended.encloses(Extent(offset, offset + SECTOR_SIZE)):
            raise self._invalid(offset, "lies outside the extended partition")
        sector = self._source.read(offset, SECTOR_SIZE)
        self.records.append(TableSectors(offset, sector))
        entries = read_entries(sector)
        if entries is None:
            self._accept_zeros(offset, sector)
            return None
        links = [entry for entry in entries if entry.is_extended]
        logical = [entry for entry in entries if not entry.is_extended]
        if len(links) > 1 or len(logical) > 1:
            raise self._invalid(offset, "contains more than one partition and one link")
        for entry in logical:
            self._add(offset, entry)
        # Links count from the start of the extended partition, partitions from their own record.
        return self._extended.start + links[0].first * SECTOR_SIZE if links else None

    def _accept_zeros(self, offset: int, sector: bytes) -> None:
        """End the chain at a record of zeros, as Linux does at any sector without its mark."""
        if any(sector):
            raise self._invalid(offset, "is damaged")
        if offset == self._extended.start:
            self.warnings.append("The extended partition contains no logical partitions.")
        else:
            self.warnings.append(
                f"The last extended boot record, at byte {offset}, contains only zeros: "
                "Linux reads the partitions before it, parted reads none."
            )

    def _add(self, offset: int, entry: MbrEntry) -> None:
        extent = entry.extent(offset // SECTOR_SIZE)
        if not self._extended.encloses(extent):
            raise self._invalid(offset, "describes a partition outside the extended partition")
        number = _FIRST_LOGICAL + len(self.partitions)
        self.partitions.append(_partition(number, entry, extent, PartitionKind.LOGICAL))

    def _invalid(self, offset: int, fact: str) -> Exception:
        return invalid_table(self._source, f"the extended boot record at byte {offset} {fact}")
