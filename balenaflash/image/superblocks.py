"""Filesystems, and members of volumes, that no part of balenaOS is in: recognised, not read.

Each is known by the magic number at its place, as libblkid knows it; only a label of fixed place
is read. The layouts are those of the on-disk headers of the kernel, unless another source is named.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.extent import KIB, Extent
from balenaflash.image.filesystems import Area, Filesystem
from balenaflash.image.source import Source

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
