"""Move the backup of a GPT to the end of a disk larger than the image was made for."""

import struct
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.extent import SECTOR_SIZE, Extent
from balenaflash.image.patch import Patch
from balenaflash.image.source import Source
from balenaflash.image.table.gpt import PRIMARY_LBA, Header, read_copy, seal_header
from balenaflash.image.table.mbr import PROTECTIVE, read_entries
from balenaflash.image.table.model import PartitionTable

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
