"""The boot sector of a FAT volume, and the layout it describes, with every field doubted.

Facts are from Microsoft's FAT specification 1.03 (fatgen103) unless another source is named.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.formats.fat.window import Window
from balenaflash.units import MIB, SECTOR_SIZE, Extent, format_size

SLOT_SIZE = 32  # bytes of a directory slot (fatgen103, "FAT Directory Structure")

FIRST_CLUSTER = 2
"""Number of the first cluster: the first two entries of the table are marks."""

SECTOR_SIZES = frozenset({512, 1024, 2048, 4096})
BOOT_SIGNATURE = b"\x55\xaa"
"""Bytes 510 and 511 of the boot sector."""

NOT_UNMOUNTED = 0x01
"""Bit of the boot sector's state byte (linux/msdos_fs.h, ``FAT_STATE_DIRTY``)."""


class FatType(IntEnum):
    """Bits of an entry in the file allocation table."""

    FAT12 = 12
    FAT16 = 16
    FAT32 = 32


_MAX_CLUSTERS = {FatType.FAT12: 4084, FatType.FAT16: 65_524, FatType.FAT32: 0x0FFF_FFF5}
"""Most clusters of each type (fatgen103, "FAT Type Determination"; linux/msdos_fs.h)."""

_MAX_TABLE = 64 * MIB
"""Bound on memory and time: enough for 512 GiB in clusters of 32 KiB."""

_MAX_TABLES = 4
_COMMON = struct.Struct("<11xHBHBHHBH8xL")  # BPB from byte 0, the same in every FAT
_FAT32 = struct.Struct("<LHHLHH")  # BPB of FAT32, from byte 36
_STATE_AT, _STATE_AT_FAT32 = 37, 65
_ID = struct.Struct("<xBL")  # from the state byte: signature and volume id
_ID_SIGNATURES = (0x28, 0x29)  # bytes before a volume id; other FAT12 and FAT16 have code there
_NOT_MIRRORED = 0x80  # bit of BPB_ExtFlags: one table is in use, the others are not kept equal
_ACTIVE_TABLE = 0x0F  # bits of BPB_ExtFlags: which one, from 0
_NO_SECTOR = (0, 0xFFFF)  # numbers that mean: no such sector


@dataclass(frozen=True, slots=True)
class BootSector:
    """The fields of a boot sector, none of them checked; places and sizes in sectors."""

    sector_size: int
    """Size of a sector in bytes."""

    cluster_size: int
    reserved: int
    table_count: int
    root_entries: int
    total: int
    media: int
    table_size: int
    is_fat32: bool
    """As Linux and mkfs.vfat decide it: by the number of clusters alone, a FAT32 volume of 40 MiB
    in larger clusters would be taken for FAT16."""

    volume_id: int
    """The serial number; 0 for none. FAT32 always has one (libblkid, vfat.c, ``probe_vfat``)."""

    flags: int
    """BPB_ExtFlags of FAT32; without meaning in FAT12 and FAT16, as the next four fields."""

    version: int
    root_cluster: int
    fsinfo: int
    backup: int

    @classmethod
    def parse(cls, sector: bytes) -> Self:
        """The fields of ``sector``, the first 512 bytes of a volume."""
        size, cluster, reserved, tables, entries, total16, media, table16, total32 = (
            _COMMON.unpack_from(sector)
        )
        table32, *fat32 = _FAT32.unpack_from(sector, 36)
        is_fat32 = table16 == 0
        signature, volume_id = _ID.unpack_from(sector, _STATE_AT_FAT32 if is_fat32 else _STATE_AT)
        return cls(
            size,
            cluster,
            reserved,
            tables,
            entries,
            total16 or total32,
            media,
            table16 or table32,
            is_fat32,
            volume_id if is_fat32 or signature in _ID_SIGNATURES else 0,
            *fat32,
        )

    @property
    def root(self) -> int:
        """Start of the root directory of FAT12 and FAT16; of cluster 2 in FAT32."""
        return self.reserved + self.table_count * self.table_size

    @property
    def data(self) -> int:
        """Start of cluster 2; the size of a sector must not be 0."""
        return self.root - (-self.root_entries * SLOT_SIZE // self.sector_size)

    @property
    def clusters(self) -> int:
        """Number of clusters; the sizes of a sector and a cluster must not be 0."""
        return (self.total - self.data) // self.cluster_size

    @property
    def fat_type(self) -> FatType:
        """FAT type; the sizes of a sector and a cluster must not be 0."""
        if self.is_fat32:
            return FatType.FAT32
        return FatType.FAT12 if self.clusters <= _MAX_CLUSTERS[FatType.FAT12] else FatType.FAT16


@dataclass(frozen=True, slots=True)
class FatLayout:
    """The places in a volume, in bytes from its start; all of them lie inside it."""

    fat_type: FatType
    cluster_size: int
    cluster_count: int
    """Number of clusters; they are numbered 2 to ``cluster_count + 1``."""

    tables: tuple[Extent, ...]
    """Each copy of the file allocation table, whole sectors."""

    active_table: Extent
    """The copy in use: the first, unless FAT32 names another one."""

    root: Extent | None
    """The root directory of FAT12 and FAT16."""

    root_cluster: int
    """First cluster of FAT32's root directory, 0 in FAT12 and FAT16."""

    data_offset: int
    """Start of cluster 2."""

    fsinfo_offset: int | None
    """FAT32's sector with the number of free clusters, if there is one."""

    backup_offset: int | None
    """FAT32's second boot sector, if there is one."""

    state_offset: int
    """The state byte of the boot sector, which has the bit ``NOT_UNMOUNTED``."""

    @property
    def end_cluster(self) -> int:
        """One past the highest cluster number."""
        return FIRST_CLUSTER + self.cluster_count

    def cluster_offset(self, cluster: int) -> int:
        """Offset of ``cluster``, which must exist."""
        return self.data_offset + (cluster - FIRST_CLUSTER) * self.cluster_size


def read_layout(window: Window) -> FatLayout:
    """The layout of the FAT volume in ``window``.

    Raises:
        ImageError: it is not a FAT volume, or its boot sector contradicts itself or the
            partition's size.
    """
    for fault in _faults(window):
        raise ImageError(
            f"{window.name}: no valid FAT volume at byte {window.extent.start}: {fault}",
            code="fat-invalid",
        )
    boot = BootSector.parse(window.read_at(0, SECTOR_SIZE))
    size, is_fat32 = boot.sector_size, boot.is_fat32
    tables = tuple(
        Extent(start * size, (start + boot.table_size) * size)
        for start in range(boot.reserved, boot.root, boot.table_size)
    )
    root = Extent(boot.root * size, boot.root * size + boot.root_entries * SLOT_SIZE)
    fsinfo, backup = (
        number * size if is_fat32 and number not in _NO_SECTOR else None
        for number in (boot.fsinfo, boot.backup)
    )
    is_single = is_fat32 and boot.flags & _NOT_MIRRORED
    return FatLayout(
        fat_type=boot.fat_type,
        cluster_size=boot.cluster_size * size,
        cluster_count=boot.clusters,
        tables=tables,
        active_table=tables[boot.flags & _ACTIVE_TABLE if is_single else 0],
        root=root if root.size else None,
        root_cluster=boot.root_cluster if is_fat32 else 0,
        data_offset=boot.data * size,
        fsinfo_offset=fsinfo,
        backup_offset=backup,
        state_offset=_STATE_AT_FAT32 if is_fat32 else _STATE_AT,
    )


def _faults(window: Window) -> Iterator[str]:
    """Faults of the boot sector; each field is checked before another relies on it."""
    if window.size < SECTOR_SIZE:
        yield f"a partition of {window.size} bytes"
    sector = window.read_at(0, SECTOR_SIZE)
    if sector[510:512] != BOOT_SIGNATURE:
        yield "bytes 510 and 511 are not 55 AA"
    boot = BootSector.parse(sector)
    yield from _faults_of_fields(boot)
    yield from _faults_of_sizes(boot, window.size)
    if boot.is_fat32:
        yield from _faults_of_fat32(boot)


def _faults_of_fields(boot: BootSector) -> Iterator[str]:
    if boot.sector_size not in SECTOR_SIZES:
        yield f"sectors of {boot.sector_size} bytes"
    if boot.cluster_size.bit_count() != 1:
        yield f"clusters of {boot.cluster_size} sectors"
    if boot.reserved == 0:
        yield "no reserved sectors"
    if not 1 <= boot.table_count <= _MAX_TABLES:
        yield f"{boot.table_count} file allocation tables"
    if boot.root_entries * SLOT_SIZE % boot.sector_size:
        yield f"{boot.root_entries} root directory entries, not whole sectors"
    if boot.is_fat32 != (boot.root_entries == 0):
        yield f"{boot.root_entries} root directory entries, against its FAT type"


def _faults_of_sizes(boot: BootSector, available: int) -> Iterator[str]:
    """Contradictions between fields, and with the size of the partition."""
    if boot.total * boot.sector_size > available:
        size = format_size(boot.total * boot.sector_size)
        yield f"{size} in a partition of {format_size(available)}"
    if boot.clusters < 1:
        yield f"{boot.total} sectors, none left for data"
    if boot.clusters > _MAX_CLUSTERS[boot.fat_type]:
        yield f"{boot.clusters} clusters, too many for FAT{boot.fat_type}"
    table_size = boot.table_size * boot.sector_size
    entries = table_size * 8 // boot.fat_type
    if entries < FIRST_CLUSTER + boot.clusters:
        yield f"{boot.clusters} clusters, but {entries} entries in the file allocation table"
    if table_size > _MAX_TABLE:
        yield f"a file allocation table of {format_size(table_size)}"


def _faults_of_fat32(boot: BootSector) -> Iterator[str]:
    active = boot.flags & _ACTIVE_TABLE
    if boot.flags & _NOT_MIRRORED and active >= boot.table_count:
        yield f"table {active} in use, of {boot.table_count}"
    if boot.version:
        yield f"FAT32 version {boot.version >> 8}.{boot.version & 0xFF}, which is not supported"
    if not FIRST_CLUSTER <= boot.root_cluster < FIRST_CLUSTER + boot.clusters:
        yield f"a root directory in cluster {boot.root_cluster}, which does not exist"
    for name, number in (("FSInfo", boot.fsinfo), ("the backup boot sector", boot.backup)):
        if number not in _NO_SECTOR and number >= boot.reserved:
            yield f"{name} in sector {number}, outside the reserved ones"
