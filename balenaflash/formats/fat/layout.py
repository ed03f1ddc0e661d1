"""Where things lie in a FAT volume, read from its boot sector with every field doubted."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from balenaflash.errors import ImageError
from balenaflash.formats.fat.window import Window
from balenaflash.units import MIB, SECTOR_SIZE, Extent, format_size

SLOT_SIZE = 32  # bytes of a directory slot (fatgen103, "FAT Directory Structure")

FIRST_CLUSTER = 2
"""Number of the first cluster: the first two entries of the table are marks."""


class FatType(IntEnum):
    """Bits of an entry in the file allocation table."""

    FAT12 = 12
    FAT16 = 16
    FAT32 = 32


_MAX_CLUSTERS = {FatType.FAT12: 4084, FatType.FAT16: 65_524, FatType.FAT32: 0x0FFF_FFF5}
"""Most clusters of each type (fatgen103, "FAT Type Determination"; linux/msdos_fs.h)."""

_MAX_TABLE = 64 * MIB
"""Bound on memory and time: enough for 512 GiB in clusters of 32 KiB."""

_COMMON = struct.Struct("<11xHBHBHHBH8xL")  # BPB from byte 0, the same in every FAT
_FAT32 = struct.Struct("<LHHLHH")  # BPB of FAT32, from byte 36
_EXTENDED = struct.Struct("<2xBL")  # signature and volume id; before them the state
_EXTENDED_AT = {FatType.FAT12: 36, FatType.FAT16: 36, FatType.FAT32: 64}
ID_SIGNATURES = (0x28, 0x29)
"""Bytes before a volume id; after any other FAT12 and FAT16 have code there.

FAT32 has its id in any case, by blkid (libblkid, vfat.c, ``probe_vfat``).
"""

_MAX_TABLES = 4
NOT_UNMOUNTED = 0x01
"""Bit of the boot sector's state byte (linux/msdos_fs.h, ``FAT_STATE_DIRTY``)."""

_NOT_MIRRORED = 0x80  # bit of BPB_ExtFlags: one table is in use, the others are not kept equal
_ACTIVE_TABLE = 0x0F  # bits of BPB_ExtFlags: which one, from 0 (fatgen103)
_NO_SECTOR = (0, 0xFFFF)  # either means that there is no such sector


@dataclass(frozen=True, slots=True)
class FatLayout:
    """The places in a volume, in bytes from its start; all of them lie inside it."""

    fat_type: FatType
    cluster_size: int
    cluster_count: int
    """Clusters that exist; their numbers are 2 to ``cluster_count + 1``."""

    tables: tuple[Extent, ...]
    """Each copy of the file allocation table, whole sectors."""

    active_table: Extent
    """The copy that counts: the first, but where FAT32 names another one."""

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

    media: int
    volume_id: int
    state_offset: int
    """The state byte of the boot sector, which has the bit ``NOT_UNMOUNTED``."""

    @property
    def end_cluster(self) -> int:
        """One past the highest cluster number."""
        return FIRST_CLUSTER + self.cluster_count

    def cluster_offset(self, cluster: int) -> int:
        """Where ``cluster`` begins; it must exist."""
        return self.data_offset + (cluster - FIRST_CLUSTER) * self.cluster_size


def read_layout(window: Window) -> FatLayout:
    """The layout of the FAT volume in ``window``.

    Raises:
        ImageError: it is not a FAT volume, or its boot sector contradicts itself or the
            partition's size.
    """
    try:
        return _read_layout(window)
    except _InvalidError as error:
        raise ImageError(
            f"{window.name}: no valid FAT volume at byte {window.extent.start}: {error}",
            code="fat-invalid",
        ) from None


class _InvalidError(ValueError):
    """What is wrong; never leaves this module."""


@dataclass(frozen=True, slots=True)
class _Sectors:
    """The fields of the BPB that count, as they are stored but for the choice of widths."""

    size: int
    per_cluster: int
    reserved: int
    table_count: int
    root_entries: int
    total: int
    media: int
    per_table: int
    is_fat32: bool

    @property
    def fat_type(self) -> FatType:
        if self.is_fat32:
            return FatType.FAT32
        return FatType.FAT12 if self.clusters <= _MAX_CLUSTERS[FatType.FAT12] else FatType.FAT16

    @property
    def root_sectors(self) -> int:
        return -(-self.root_entries * SLOT_SIZE // self.size)

    @property
    def first_data(self) -> int:
        return self.reserved + self.table_count * self.per_table + self.root_sectors

    @property
    def clusters(self) -> int:
        return (self.total - self.first_data) // self.per_cluster


def _read_layout(window: Window) -> FatLayout:
    if window.size < SECTOR_SIZE:
        raise _InvalidError(f"a partition of {window.size} bytes")
    boot = window.read_at(0, SECTOR_SIZE)
    sectors = _parse_sectors(boot)
    _refuse(_faults_of_fields(boot, sectors))
    _refuse(_faults_of_sizes(sectors, window.size))
    root_cluster, fsinfo, backup, active = 0, None, None, 0
    if sectors.fat_type is FatType.FAT32:
        root_cluster, fsinfo, backup, active = _parse_fat32(boot, sectors)
    signature, volume_id = _EXTENDED.unpack_from(boot, _EXTENDED_AT[sectors.fat_type])
    first_table = sectors.reserved * sectors.size
    table_size = sectors.per_table * sectors.size
    root_start = first_table + sectors.table_count * table_size
    root = Extent(root_start, root_start + sectors.root_entries * SLOT_SIZE)
    tables = tuple(
        Extent(start, start + table_size) for start in range(first_table, root_start, table_size)
    )
    return FatLayout(
        fat_type=sectors.fat_type,
        cluster_size=sectors.per_cluster * sectors.size,
        cluster_count=sectors.clusters,
        tables=tables,
        active_table=tables[active],
        root=root if root.size else None,
        root_cluster=root_cluster,
        data_offset=sectors.first_data * sectors.size,
        fsinfo_offset=fsinfo,
        backup_offset=backup,
        media=sectors.media,
        volume_id=volume_id if signature in ID_SIGNATURES or sectors.is_fat32 else 0,
        state_offset=_EXTENDED_AT[sectors.fat_type] + 1,
    )


def _parse_sectors(boot: bytes) -> _Sectors:
    size, per_cluster, reserved, table_count, root_entries, total16, media, per_table16, total32 = (
        _COMMON.unpack_from(boot)
    )
    per_table32: int = _FAT32.unpack_from(boot, 36)[0]
    return _Sectors(
        size=size,
        per_cluster=per_cluster,
        reserved=reserved,
        table_count=table_count,
        root_entries=root_entries,
        total=total16 or total32,
        media=media,
        per_table=per_table16 or per_table32,
        # As Linux and mkfs.vfat tell it; by the count of clusters alone, a FAT32 volume of
        # 40 MiB in larger clusters would be taken for FAT16.
        is_fat32=per_table16 == 0,
    )


def _faults_of_fields(boot: bytes, sectors: _Sectors) -> Iterator[str]:
    """What is wrong with each field, which is checked before another relies on it."""
    if boot[510:512] != b"\x55\xaa":
        yield "bytes 510 and 511 are not 55 AA"
    if sectors.size not in {512, 1024, 2048, 4096}:
        yield f"sectors of {sectors.size} bytes"
    if sectors.per_cluster not in {1, 2, 4, 8, 16, 32, 64, 128}:
        yield f"clusters of {sectors.per_cluster} sectors"
    if sectors.reserved == 0:
        yield "no reserved sectors"
    if not 1 <= sectors.table_count <= _MAX_TABLES:
        yield f"{sectors.table_count} file allocation tables"
    if sectors.root_entries * SLOT_SIZE % sectors.size:
        yield f"{sectors.root_entries} root directory entries, not whole sectors"
    if sectors.is_fat32 != (sectors.root_entries == 0):
        yield f"{sectors.root_entries} root directory entries, against its FAT type"


def _faults_of_sizes(sectors: _Sectors, available: int) -> Iterator[str]:
    """What contradicts each other, or the size of the partition."""
    if sectors.total * sectors.size > available:
        size = format_size(sectors.total * sectors.size)
        yield f"{size} in a partition of {format_size(available)}"
    if sectors.clusters < 1:
        yield f"{sectors.total} sectors, none left for data"
    if sectors.clusters > _MAX_CLUSTERS[sectors.fat_type]:
        yield f"{sectors.clusters} clusters, too many for FAT{sectors.fat_type}"
    table_size = sectors.per_table * sectors.size
    entries = table_size * 8 // sectors.fat_type
    if entries < FIRST_CLUSTER + sectors.clusters:
        yield f"{sectors.clusters} clusters, but {entries} entries in the file allocation table"
    if table_size > _MAX_TABLE:
        yield f"a file allocation table of {format_size(table_size)}"


def _parse_fat32(boot: bytes, sectors: _Sectors) -> tuple[int, int | None, int | None, int]:
    """Root cluster, offsets of the FSInfo and of the backup boot sector, number of the table."""
    _, flags, version, root_cluster, fsinfo, backup = _FAT32.unpack_from(boot, 36)
    _refuse(_faults_of_fat32(flags, version, root_cluster, sectors))
    offsets = []
    for name, number in (("FSInfo", fsinfo), ("the backup boot sector", backup)):
        if number not in _NO_SECTOR and number >= sectors.reserved:
            raise _InvalidError(f"{name} in sector {number}, outside the reserved ones")
        offsets.append(None if number in _NO_SECTOR else number * sectors.size)
    active = flags & _ACTIVE_TABLE if flags & _NOT_MIRRORED else 0
    return root_cluster, offsets[0], offsets[1], active


def _faults_of_fat32(
    flags: int, version: int, root_cluster: int, sectors: _Sectors
) -> Iterator[str]:
    if flags & _NOT_MIRRORED and flags & _ACTIVE_TABLE >= sectors.table_count:
        yield f"table {flags & _ACTIVE_TABLE} in use, of {sectors.table_count}"
    if version:
        yield f"FAT32 version {version >> 8}.{version & 0xFF}, which is not supported"
    if not FIRST_CLUSTER <= root_cluster < FIRST_CLUSTER + sectors.clusters:
        yield f"a root directory in cluster {root_cluster}, which does not exist"


def _refuse(faults: Iterator[str]) -> None:
    for fault in faults:
        raise _InvalidError(fault)
