"""Move the backup of a GPT to the end of a disk larger than the image was made for."""

import struct
import zlib
from collections.abc import Callable, Iterator

from balenaflash.extent import SECTOR_SIZE
from balenaflash.image.patch import Patch
from balenaflash.image.table.gpt import PRIMARY_LBA, Header
from balenaflash.image.table.mbr import PROTECTIVE, read_entries

_CRC_OFFSET, _OWN_LBA_OFFSET, _LAST_USABLE_OFFSET, _ARRAY_LBA_OFFSET = 16, 24, 48, 72
"""Of fields in a header, UEFI 2.10, table 5.5. The LBA of the other copy follows the own one."""

_ENTRIES_OFFSET, _ENTRY_SIZE, _COUNT_OFFSET = 446, 16, 12  # of a boot record, UEFI 2.10, table 5.1
_MAX_COUNT = 0xFFFFFFFF  # sectors; also of a larger disk, UEFI 2.10, table 5.4

Read = Callable[[int, int], bytes]
"""Gives as many bytes from an offset of the image as asked for."""


def move_backup(read: Read, *, sector_size: int, disk_size: int) -> tuple[Patch, ...] | None:
    """What to write, in this order, so that the GPT of an image uses a whole disk.

    First the new backup at the end of the disk of ``disk_size`` bytes, which may not be smaller
    than the image, then the primary header, the protective record last: each state in between
    has a sound copy. The backup of before stays in the middle, where nothing refers to it, as
    sgdisk and parted leave it. Empty if the backup lies at the end already; ``None`` if the
    primary header is not sound.
    """
    header = Header.parse(read(PRIMARY_LBA * sector_size, sector_size))
    if header is None or not header.crc_valid or header.own_lba != PRIMARY_LBA:
        return None
    last = disk_size // sector_size - 1
    if header.alternate_lba == last:
        return ()
    sectors = -(-header.array_size // sector_size)
    array = read(header.array_lba * sector_size, sectors * sector_size)
    backup = _change(header, own=last, other=PRIMARY_LBA, array=last - sectors)
    primary = _change(header, own=PRIMARY_LBA, other=last, array=header.array_lba)
    for sector in (backup, primary):
        struct.pack_into("<Q", sector, _LAST_USABLE_OFFSET, last - sectors - 1)
    return (
        Patch((last - sectors) * sector_size, array),
        Patch(last * sector_size, _sealed(backup, header)),
        Patch(PRIMARY_LBA * sector_size, _sealed(primary, header)),
        *_stretch_protection(read(0, sector_size), last),
    )


def _change(header: Header, *, own: int, other: int, array: int) -> bytearray:
    sector = bytearray(header.sector)
    struct.pack_into("<QQ", sector, _OWN_LBA_OFFSET, own, other)
    struct.pack_into("<Q", sector, _ARRAY_LBA_OFFSET, array)
    return sector


def _sealed(sector: bytearray, header: Header) -> bytes:
    """The sector with the checksum of its header."""
    struct.pack_into("<I", sector, _CRC_OFFSET, 0)
    struct.pack_into("<I", sector, _CRC_OFFSET, zlib.crc32(sector[: header.size]))
    return bytes(sector)


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
