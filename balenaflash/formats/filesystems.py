"""Which filesystem a partition holds, recognised by its first few KiB.

Each is known by the magic number at its place, as libblkid knows it; only a label of fixed place
is read. The layouts are those of the on-disk headers of the kernel, unless another source is named.
"""

import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from balenaflash.formats.fat.directory import find_label
from balenaflash.formats.fat.layout import ID_SIGNATURES
from balenaflash.formats.fat.names import decode_label
from balenaflash.source.base import Source
from balenaflash.units import KIB, Extent


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem, or what else a signature names, as ``blkid`` calls it."""

    type: str
    """``vfat``, ``ext4``, ``swap``, ``squashfs``, ``crypto_LUKS``, ..."""

    label: str | None
    uuid: str | None
    """In blkid's form: ``ABCD-1234`` for FAT, lower-case hexadecimal otherwise."""


def probe(source: Source, extent: Extent) -> Filesystem | None:
    """The filesystem in ``extent`` of the image; ``None`` if no known one starts there.

    A signature is believed only with plausible fields around it. Whether the filesystem is
    sound, or as large as the partition, is not looked at.

    Raises:
        ImageError: the image cannot be read.
    """
    area = Area(source, extent)
    found = (recognize(area) for recognize in _RECOGNIZERS)
    return next((filesystem for filesystem in found if filesystem is not None), None)


class Area:
    """The bytes of a partition, or of a whole disk; zeros behind its end."""

    def __init__(self, source: Source, extent: Extent) -> None:
        self._source = source
        self._start = extent.start
        end = extent.end if source.size is None else min(extent.end, source.size)
        self.size = max(0, end - extent.start)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; always ``length`` of them."""
        available = max(0, min(length, self.size - offset))
        data = self._source.read(self._start + offset, available) if available else b""
        return data.ljust(length, b"\0")


_BPB = struct.Struct("<HBHBHHBHHHII")  # BIOS parameter block at offset 11 of the boot sector
_BPB_OFFSET = 11
_SECTOR_SIZES = frozenset({512, 1024, 2048, 4096})
_JUMP_NEAR, _JUMP_SHORT, _NO_OPERATION = 0xE9, 0xEB, 0x90  # x86, at offset 0 and 2
_MEDIA = frozenset({0xF0, *range(0xF8, 0x100)})
_MAX_ROOT_SIZE = 64 * KIB  # bytes of a root directory searched for the volume label
_DIRECTORY_ENTRY = 32
_FIRST_CLUSTER = 2  # numbers 0 and 1 are taken by the FAT's own marks
_CLUSTER_MASK = 0x0FFFFFFF  # the upper four bits of a FAT32 entry are reserved


@dataclass(frozen=True, slots=True)
class _FatLayout:
    """The fields of a boot sector that lead to the volume label; sizes in bytes."""

    sector: bytes
    sector_size: int
    cluster_size: int
    fat_offset: int
    fat_size: int
    fat_count: int
    root_entries: int
    root_cluster: int

    @property
    def is_fat32(self) -> bool:
        return self.root_entries == 0

    @property
    def behind_fats(self) -> int:
        """Where the root directory starts, or on FAT32 the first cluster."""
        return self.fat_offset + self.fat_count * self.fat_size


def _fat(area: Area) -> Filesystem | None:
    layout = _fat_layout(area.read(0, 512))
    if layout is None:
        return None
    fields = 66 if layout.is_fat32 else 38  # offset of the signature of what follows
    identifier = None
    if layout.is_fat32 or layout.sector[fields] in ID_SIGNATURES:
        serial = int.from_bytes(layout.sector[fields + 1 : fields + 5], "little")
        identifier = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}" if serial else None
    # Only the root directory's label is found by label; the boot sector's copy may be of another
    # time. (udev's links are by blkid.)
    label = find_label(_root_directory(area, layout))
    return Filesystem("vfat", None if label is None else decode_label(label), identifier)


def _fat_layout(sector: bytes) -> _FatLayout | None:
    """The layout, if the boot sector is one beyond doubt (Microsoft's FAT specification 1.03)."""
    jumps = sector[0] == _JUMP_NEAR or (sector[0] == _JUMP_SHORT and sector[2] == _NO_OPERATION)
    if not jumps or sector[510:512] != b"\x55\xaa":
        return None
    fields = _BPB.unpack_from(sector, _BPB_OFFSET)
    sector_size, per_cluster, reserved, fats, root_entries, small_total, media = fields[:7]
    fat_sectors, total = fields[7], small_total or fields[11]
    fat32 = fat_sectors == 0
    if fat32:
        (fat_sectors,) = struct.unpack_from("<I", sector, 36)
    overhead = reserved + fats * fat_sectors + -(-root_entries * 32 // max(1, sector_size))
    plausible = (
        sector_size in _SECTOR_SIZES
        and per_cluster.bit_count() == 1
        and reserved > 0
        and fats in {1, 2}
        and media in _MEDIA
        and (root_entries == 0) == fat32
        and fat_sectors > 0
        and overhead < total
    )
    if not plausible:
        return None
    return _FatLayout(
        sector,
        sector_size=sector_size,
        cluster_size=per_cluster * sector_size,
        fat_offset=reserved * sector_size,
        fat_size=fat_sectors * sector_size,
        fat_count=fats,
        root_entries=root_entries,
        root_cluster=struct.unpack_from("<I", sector, 44)[0],
    )


def _root_directory(area: Area, layout: _FatLayout) -> bytes:
    """The root directory, or as much of it as is searched."""
    if not layout.is_fat32:
        size = layout.root_entries * _DIRECTORY_ENTRY
        return area.read(layout.behind_fats, min(size, _MAX_ROOT_SIZE))
    directory, cluster = b"", layout.root_cluster
    while _FIRST_CLUSTER <= cluster < layout.fat_size // 4 and len(directory) < _MAX_ROOT_SIZE:
        start = layout.behind_fats + (cluster - _FIRST_CLUSTER) * layout.cluster_size
        directory += area.read(start, layout.cluster_size)
        (entry,) = struct.unpack("<I", area.read(layout.fat_offset + cluster * 4, 4))
        cluster = entry & _CLUSTER_MASK
    return directory


_EXT_SUPERBLOCK = 1024
_EXT_MAGIC = 0xEF53
_EXT_MAX_LOG_BLOCK_SIZE = 6  # 1 KiB << 6 = 64 KiB
_EXT_HAS_JOURNAL = 0x4  # compatible feature
_EXT3_INCOMPATIBLE = 0x2 | 0x4 | 0x10  # filetype, recover, meta_bg
_EXT3_READ_ONLY = 0x1 | 0x2 | 0x4  # sparse_super, large_file, btree_dir
_EXT_JOURNAL_DEVICE = 0x8  # incompatible feature


def _ext(area: Area) -> Filesystem | None:
    """ext2, ext3 or ext4: the oldest whose features suffice (kernel, ext4.h and blkid)."""
    block = area.read(_EXT_SUPERBLOCK, KIB)
    magic, compatible, incompatible, read_only = (
        *struct.unpack_from("<H", block, 56),
        *struct.unpack_from("<III", block, 92),
    )
    (log_block_size,) = struct.unpack_from("<I", block, 24)
    if (
        magic != _EXT_MAGIC
        or log_block_size > _EXT_MAX_LOG_BLOCK_SIZE
        or incompatible & _EXT_JOURNAL_DEVICE
    ):
        return None
    if incompatible & ~_EXT3_INCOMPATIBLE or read_only & ~_EXT3_READ_ONLY:
        version = "ext4"
    else:
        version = "ext3" if compatible & _EXT_HAS_JOURNAL else "ext2"
    return Filesystem(version, _text(block[120:136]), _uuid(block[104:120]))


def _swap(area: Area) -> Filesystem | None:
    for page_size in (4 * KIB, 16 * KIB, 64 * KIB):
        if area.read(page_size - 10, 10) == b"SWAPSPACE2":
            header = area.read(KIB, 44)
            return Filesystem("swap", _text(header[28:44]), _uuid(header[12:28]))
    return None


def _squashfs(area: Area) -> Filesystem | None:
    block = area.read(0, 32)
    known = block[:4] == b"hsqs" and block[28:30] == b"\4\0"  # magic; major version, little-endian
    return Filesystem("squashfs", None, None) if known else None


def _luks(area: Area) -> Filesystem | None:
    """What a signed image's encrypted partitions look like (LUKS1 and LUKS2 headers)."""
    block = area.read(0, 256)
    start = block[:8]  # magic and big-endian version
    if start not in {b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2"}:
        return None
    label = _text(block[24:72]) if start.endswith(b"\2") else None
    return Filesystem("crypto_LUKS", label, _text(block[168:208]))


def _text(data: bytes) -> str | None:
    return data.partition(b"\0")[0].decode("utf-8", errors="replace") or None


def _uuid(data: bytes) -> str | None:
    return str(uuid.UUID(bytes=data)) if any(data) else None


_RECOGNIZERS: tuple[Callable[[Area], Filesystem | None], ...] = (
    _luks,
    _squashfs,
    _swap,
    _ext,
    _fat,
)
"""FAT comes last: a formatted partition may still hold the boot sector of a former FAT."""


_SECTOR = 512


@dataclass(frozen=True, slots=True)
class _Magic:
    """Bytes at a fixed place, and where a label is."""

    type: str
    offset: int
    bytes: bytes
    label_offset: int = 0
    label_size: int = 0
    """Bytes; 0 where the label has no fixed place."""
    encoding: str = "utf-8"


_MAGICS = (
    _Magic("BitLocker", 3, b"-FVE-FS-"),
    _Magic("ntfs", 3, b"NTFS    "),
    _Magic("exfat", 3, b"EXFAT   "),
    _Magic("xfs", 0, b"XFSB", 108, 12),
    _Magic("apfs", 32, b"NXSB"),
    _Magic("erofs", KIB, b"\xe2\xe1\xf5\xe0", KIB + 64, 16),
    _Magic("f2fs", KIB, b"\x10\x20\xf5\xf2", KIB + 124, 1024, "utf-16-le"),
    _Magic("hfsplus", KIB, b"H+\0\4"),
    _Magic("hfsplus", KIB, b"HX\0\5"),
    _Magic("nilfs2", KIB + 6, b"\x34\x34", KIB + 152, 80),
    _Magic(
        "bcache", 4 * KIB + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), 4 * KIB + 72, 32
    ),
    _Magic("bcachefs", 4 * KIB + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    _Magic("iso9660", 32 * KIB, b"\1CD001", 32 * KIB + 40, 32),
    _Magic("jfs", 32 * KIB, b"JFS1", 32 * KIB + 152, 16),
    _Magic("udf", 32 * KIB, b"\0BEA01"),
    _Magic("btrfs", 64 * KIB + 64, b"_BHRfS_M", 64 * KIB + 299, 256),
    *(
        _Magic("reiserfs", 64 * KIB + 52, magic, 64 * KIB + 100, 16)
        for magic in (b"ReIsErFs", b"ReIsEr2Fs", b"ReIsEr3Fs")
    ),
)

_LVM_SECTORS = range(4)  # a label lies in one of them, lib/label of LVM2
_RAID_MAGIC = b"\xfc\x4e\x2b\xa9"  # linux/raid/md_p.h, little-endian
_RAID_OLD_RESERVED = 64 * KIB  # of version 0.90 at the end, aligned to itself
_ZFS_RING, _ZFS_RING_SIZE = 128 * KIB, 128 * KIB  # uberblocks of the first label, sys/vdev_impl.h
_ZFS_MAGIC = 0x00BAB10C


def probe_foreign(source: Source, extent: Extent) -> Filesystem | None:
    """What starts in ``extent``, in libblkid's word for it; ``None`` if nothing known does.

    Magic numbers alone are believed: ask this of what balenaOS has nothing of. Bytes all over
    ``extent`` are read, so not of a stream.

    Raises:
        ImageError: it cannot be read.
    """
    area = Area(source, extent)
    for magic in _MAGICS:
        if area.read(magic.offset, len(magic.bytes)) == magic.bytes:
            return Filesystem(magic.type, _read_label(area, magic), None)
    if _is_lvm(area):
        return Filesystem("LVM2_member", None, None)
    if any(area.read(offset, 4) == _RAID_MAGIC for offset in _raid_places(area.size)):
        return Filesystem("linux_raid_member", None, None)
    return Filesystem("zfs_member", None, None) if _is_zfs(area) else None


def _read_label(area: Area, magic: _Magic) -> str | None:
    text = area.read(magic.label_offset, magic.label_size).decode(magic.encoding, "replace")
    return text.partition("\0")[0].strip() or None


def _is_lvm(area: Area) -> bool:
    labels = (area.read(sector * _SECTOR, 32) for sector in _LVM_SECTORS)
    return any(label[:8] == b"LABELONE" and label[24:] == b"LVM2 001" for label in labels)


def _raid_places(size: int) -> Iterator[int]:
    """Offsets of the superblock, by version: 1.1, 1.2, 1.0 and 0.90, md(4)."""
    yield from (0, 4 * KIB)
    if size >= 2 * _RAID_OLD_RESERVED:
        yield (size // _SECTOR - 16 & ~7) * _SECTOR
        yield size // _RAID_OLD_RESERVED * _RAID_OLD_RESERVED - _RAID_OLD_RESERVED


def _is_zfs(area: Area) -> bool:
    if area.size < _ZFS_RING + _ZFS_RING_SIZE:
        return False
    ring = area.read(_ZFS_RING, _ZFS_RING_SIZE)
    magics = {ring[offset : offset + 8] for offset in range(0, _ZFS_RING_SIZE, KIB)}
    return not magics.isdisjoint({struct.pack("<Q", _ZFS_MAGIC), struct.pack(">Q", _ZFS_MAGIC)})
