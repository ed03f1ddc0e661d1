"""FAT32's sector of advice to drivers: how many clusters are free, and where to look for one.

Microsoft FAT specification (fatgen103), "FAT32 FSInfo Sector Structure and Backup Boot Sector".
Only the first copy is kept up to date, as it asks.
"""

import struct

from balenaflash.extent import SECTOR_SIZE
from balenaflash.image.fat.layout import FIRST_CLUSTER, FatLayout
from balenaflash.image.fat.table import FREE, FatTable
from balenaflash.image.fat.window import Window

_SIGNATURES = ((0, b"RRaA"), (484, b"rrAa"), (508, b"\0\0\x55\xaa"))
_NUMBERS_AT = 488
_NUMBERS = struct.Struct("<LL")  # free clusters, and where to begin looking
_UNKNOWN = 0xFFFF_FFFF


def find_fault(window: Window, layout: FatLayout, table: FatTable) -> str | None:
    """What is wrong with the sector, if there is one; ``None`` for nothing."""
    if layout.fsinfo_offset is None:
        return None
    sector = window.read_at(layout.fsinfo_offset, SECTOR_SIZE)
    if not _is_signed(sector):
        return "the FSInfo sector has no signature"
    stored, real = _NUMBERS.unpack_from(sector, _NUMBERS_AT)[0], table.free_count()
    if stored in {_UNKNOWN, real}:
        return None
    return f"FSInfo counts {stored} free clusters, there are {real}"


def refresh(window: Window, layout: FatLayout, table: FatTable) -> None:
    """Bring the numbers up to date; a sector that drivers would ignore is left alone."""
    offset = layout.fsinfo_offset
    if offset is None or not _is_signed(window.read_at(offset, SECTOR_SIZE)):
        return
    free = table.free_count()
    first_free = table.entries.index(FREE, FIRST_CLUSTER) if free else _UNKNOWN
    window.write_at(offset + _NUMBERS_AT, _NUMBERS.pack(free, first_free))


def _is_signed(sector: bytes) -> bool:
    return all(sector[at : at + len(magic)] == magic for at, magic in _SIGNATURES)
