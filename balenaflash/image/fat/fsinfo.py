"""FAT32's sector of advice to drivers: how many clusters are free, and where to look for one.

Microsoft FAT specification (fatgen103), "FAT32 FSInfo Sector Structure and Backup Boot Sector".
Only the first copy is kept up to date, as it asks.
"""

import struct

from balenaflash.extent import SECTOR_SIZE
from balenaflash.image.fat.layout import FatLayout
from balenaflash.image.fat.table import FatTable
from balenaflash.image.fat.window import Window

_SIGNATURES = ((0, b"RRaA"), (484, b"rrAa"), (508, b"\0\0\x55\xaa"))
_NUMBERS_AT = 488
_NUMBERS = struct.Struct("<LL")  # free clusters, and where to begin looking
_UNKNOWN = 0xFFFF_FFFF


def is_signed(window: Window, layout: FatLayout) -> bool:
    """Whether the sector is one that drivers believe; true of a volume that has none."""
    return layout.fsinfo_offset is None or _is_signed(
        window.read_at(layout.fsinfo_offset, SECTOR_SIZE)
    )


def stored_count(window: Window, layout: FatLayout) -> int | None:
    """How many clusters the sector says are free; ``None`` if it says nothing."""
    if layout.fsinfo_offset is None:
        return None
    sector = window.read_at(layout.fsinfo_offset, SECTOR_SIZE)
    stored: int = _NUMBERS.unpack_from(sector, _NUMBERS_AT)[0]
    return None if stored == _UNKNOWN else stored


def refresh(window: Window, layout: FatLayout, table: FatTable) -> None:
    """Bring the numbers up to date; a sector that drivers would ignore is left alone."""
    offset = layout.fsinfo_offset
    if offset is None or not _is_signed(window.read_at(offset, SECTOR_SIZE)):
        return
    free = table.free_count()
    first_free = next(table.free_runs()).first if free else _UNKNOWN
    window.write_at(offset + _NUMBERS_AT, _NUMBERS.pack(free, first_free))


def _is_signed(sector: bytes) -> bool:
    return all(sector[at : at + len(magic)] == magic for at, magic in _SIGNATURES)
