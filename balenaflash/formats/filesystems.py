"""The filesystem in a partition, recognised by its magic number as libblkid does.

Labels are read only where they have a fixed place. The offsets are those of the kernel's on-disk
headers, unless another source is named.
"""

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.formats.fat.directory import find_label
from balenaflash.formats.fat.layout import (
    BOOT_SIGNATURE,
    FIRST_CLUSTER,
    SECTOR_SIZES,
    SLOT_SIZE,
    BootSector,
)
from balenaflash.formats.fat.names import decode_label
from balenaflash.source.base import Source
from balenaflash.units import KIB, SECTOR_SIZE, Extent


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem, or another recognised content, as ``blkid`` calls it."""

    type: str
    """``vfat``, ``ext4``, ``swap``, ``squashfs``, ``crypto_LUKS``, ..."""

    label: str | None
    uuid: str | None
    """UUID in blkid's form: ``ABCD-1234`` for FAT, lower-case hexadecimal otherwise."""


def recognise_filesystem(source: Source, extent: Extent) -> Filesystem | None:
    """The filesystem in ``extent`` of the image, of a kind that balenaOS images have.

    A signature is accepted only with plausible fields around it. The filesystem may be unsound,
    or of another size than the partition.

    Raises:
        ImageError: the image cannot be read.
    """
    area = Area(source, extent)
    # FAT comes last: a formatted partition may still contain the boot sector of a former FAT.
    for recognise in (_luks, _squashfs, _swap, _ext, _fat):
        filesystem = recognise(area)
        if filesystem is not None:
            return filesystem
    return None


class Area:
    """The bytes of a partition, or of a whole disk; zeros after its end."""

    def __init__(self, source: Source, extent: Extent) -> None:
        self._source = source
        self._start = extent.start
        end = extent.end if source.size is None else min(extent.end, source.size)
        self.size = max(0, end - extent.start)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on."""
        available = max(0, min(length, self.size - offset))
        data = self._source.read(self._start + offset, available) if available else b""
        return data.ljust(length, b"\0")


_JUMP_NEAR, _JUMP_SHORT, _NO_OPERATION = 0xE9, 0xEB, 0x90  # x86, at offset 0 and 2
_MEDIA = frozenset({0xF0, *range(0xF8, 0x100)})
_MAX_ROOT_SIZE = 64 * KIB  # bytes of a root directory that are searched for the volume label
_CLUSTER_MASK = 0x0FFFFFFF  # the upper four bits of a FAT32 entry are reserved


def _fat(area: Area) -> Filesystem | None:
    """FAT, if the boot sector is one beyond doubt (Microsoft's FAT specification 1.03)."""
    sector = area.read(0, 512)
    jumps = sector[0] == _JUMP_NEAR or (sector[0] == _JUMP_SHORT and sector[2] == _NO_OPERATION)
    if not jumps or sector[510:512] != BOOT_SIGNATURE:
        return None
    boot = BootSector.parse(sector)
    plausible = (
        boot.sector_size in SECTOR_SIZES
        and boot.cluster_size.bit_count() == 1
        and boot.reserved > 0
        and boot.table_count in {1, 2}
        and boot.media in _MEDIA
        and boot.is_fat32 == (boot.root_entries == 0)
        and boot.table_size > 0
        and boot.data < boot.total
    )
    if not plausible:
        return None
    serial = boot.volume_id
    # The label in the boot sector may be an old one; udev's links by label use the root
    # directory's, as blkid reports it.
    label = find_label(_root_directory(area, boot))
    return Filesystem(
        "vfat",
        None if label is None else decode_label(label),
        f"{serial >> 16:04X}-{serial & 0xFFFF:04X}" if serial else None,
    )


def _root_directory(area: Area, boot: BootSector) -> bytes:
    """The root directory, at most as much of it as is searched."""
    root = boot.root * boot.sector_size
    if not boot.is_fat32:
        return area.read(root, min(boot.root_entries * SLOT_SIZE, _MAX_ROOT_SIZE))
    cluster_size, table_size = (
        sectors * boot.sector_size for sectors in (boot.cluster_size, boot.table_size)
    )
    directory, cluster = b"", boot.root_cluster
    while FIRST_CLUSTER <= cluster < table_size // 4 and len(directory) < _MAX_ROOT_SIZE:
        directory += area.read(root + (cluster - FIRST_CLUSTER) * cluster_size, cluster_size)
        (entry,) = struct.unpack("<I", area.read(boot.reserved * boot.sector_size + cluster * 4, 4))
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
    """An encrypted partition of a signed image (LUKS1 and LUKS2 headers)."""
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


@dataclass(frozen=True, slots=True)
class _Magic:
    """Bytes at a fixed place, and the place of the label."""

    type: str
    offset: int
    bytes: bytes
    label_offset: int = 0
    label_size: int = 0
    """Size of the label in bytes; 0 if it has no fixed place."""

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


def recognise_foreign(source: Source, extent: Extent) -> Filesystem | None:
    """The filesystem in ``extent``, of a kind that balenaOS images do not have.

    The magic number alone decides, so call ``recognise_filesystem`` first. Bytes all over
    ``extent`` are read, so ``source`` must not be a stream.

    Raises:
        ImageError: ``source`` cannot be read.
    """
    area = Area(source, extent)
    for magic in _MAGICS:
        if area.read(magic.offset, len(magic.bytes)) == magic.bytes:
            label = area.read(magic.label_offset, magic.label_size)
            text = label.decode(magic.encoding, "replace").partition("\0")[0].strip()
            return Filesystem(magic.type, text or None, None)
    if _is_lvm(area):
        return Filesystem("LVM2_member", None, None)
    if any(area.read(offset, 4) == _RAID_MAGIC for offset in _raid_places(area.size)):
        return Filesystem("linux_raid_member", None, None)
    return Filesystem("zfs_member", None, None) if _is_zfs(area) else None


def _is_lvm(area: Area) -> bool:
    labels = (area.read(sector * SECTOR_SIZE, 32) for sector in _LVM_SECTORS)
    return any(label[:8] == b"LABELONE" and label[24:] == b"LVM2 001" for label in labels)


def _raid_places(size: int) -> Iterator[int]:
    """Offsets of the superblock, by version: 1.1, 1.2, 1.0 and 0.90, md(4)."""
    yield from (0, 4 * KIB)
    if size >= 2 * _RAID_OLD_RESERVED:
        yield (size // SECTOR_SIZE - 16 & ~7) * SECTOR_SIZE
        yield size // _RAID_OLD_RESERVED * _RAID_OLD_RESERVED - _RAID_OLD_RESERVED


def _is_zfs(area: Area) -> bool:
    if area.size < _ZFS_RING + _ZFS_RING_SIZE:
        return False
    ring = area.read(_ZFS_RING, _ZFS_RING_SIZE)
    magics = {ring[offset : offset + 8] for offset in range(0, _ZFS_RING_SIZE, KIB)}
    return not magics.isdisjoint({struct.pack("<Q", _ZFS_MAGIC), struct.pack(">Q", _ZFS_MAGIC)})
