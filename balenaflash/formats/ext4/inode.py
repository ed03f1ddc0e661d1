"""Inodes of an ext4 filesystem, and the entries that describe them to users of a volume.

Offsets from the kernel's documentation, filesystems/ext4/inodes.rst.
"""

import stat
from dataclasses import dataclass
from enum import StrEnum

from balenaflash.formats.ext4.groups import GroupTable
from balenaflash.formats.ext4.superblock import (
    ROOT_INODE,
    Incompatible,
    crc32c,
    number,
)

BLOCK_FIELD = 0x28  # offset of i_block
BLOCK_FIELD_SIZE = 60
OLD_SIZE = 128  # bytes of an inode before i_extra_isize

_CHECKSUM_LOW, _CHECKSUM_HIGH = 0x7C, 0x82  # offsets of the checksum's halves, two bytes each
_HAS_CHECKSUM_HIGH = 4  # least i_extra_isize that covers the upper half

ENCRYPTED = 0x800  # i_flags
INDEXED = 0x1000
EXTENTS = 0x80000
INLINE_DATA = 0x10000000
CASEFOLDED = 0x40000000


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode, its checksum checked."""

    number: int
    raw: bytes
    """The whole inode; its length is the filesystem's inode size."""

    offset: int
    """Offset of the inode, in bytes from the start of the image."""

    mode: int
    """Type and permissions, as ``st_mode`` of stat(2)."""

    size: int
    flags: int
    checksum_seed: int | None
    """Start value of the checksums of its directory and extent blocks; ``None`` without."""

    @property
    def block_field(self) -> bytes:
        """``i_block``: pointers, the root of an extent tree, or the content itself."""
        return self.raw[BLOCK_FIELD : BLOCK_FIELD + BLOCK_FIELD_SIZE]

    @property
    def extra_size(self) -> int:
        """``i_extra_isize``: bytes of fields after the first 128 bytes."""
        return number(self.raw, OLD_SIZE, 2) if len(self.raw) > OLD_SIZE else 0


class InodeTable:
    """The inodes of a filesystem, read by number."""

    def __init__(self, groups: GroupTable) -> None:
        self._blocks = groups.blocks
        self._superblock = groups.superblock
        self._groups = groups
        self._tables: dict[int, int] = {}

    def read(self, inode: int) -> Inode:
        """The inode with the number ``inode``.

        Raises:
            ImageError: no file can have this number, the checksum is wrong, or the image cannot
                be read.
        """
        superblock = self._superblock
        is_usable = inode == ROOT_INODE or inode >= superblock.first_inode
        if not is_usable or inode > superblock.inode_count:
            raise self._blocks.broken(f"a directory names inode {inode}, which no file can have")
        return self.read_any(inode)

    def read_any(self, inode: int) -> Inode:
        """As ``read``, also for a reserved inode; the number must be at most ``inode_count``."""
        superblock = self._superblock
        group, index = divmod(inode - 1, superblock.inodes_per_group)
        if group not in self._tables:
            self._tables[group] = self._groups.read(group).inode_table
        position = index * superblock.inode_size
        block = self._tables[group] + position // superblock.block_size
        start = position % superblock.block_size
        raw = self._blocks.read(block)[start : start + superblock.inode_size]
        return self._parse(inode, raw, self._blocks.offset(block) + start)

    def _parse(self, inode: int, raw: bytes, offset: int) -> Inode:
        mode = number(raw, 0x00, 2)
        size = number(raw, 0x04, 4)
        if stat.S_ISREG(mode) or self._superblock.incompatible & Incompatible.LARGE_DIR:
            size |= number(raw, 0x6C, 4) << 32
        # The filesystem's seed with the inode's number and generation added.
        seed = self._superblock.checksum_seed
        if seed is not None:
            seed = crc32c(seed, inode.to_bytes(4, "little") + raw[0x64:0x68])
        parsed = Inode(inode, raw, offset, mode, size, number(raw, 0x20, 4), seed)
        if seed is not None and not _is_sound(parsed, seed):
            raise self._blocks.broken(f"the checksum of inode {inode} is wrong")
        return parsed


def _is_sound(inode: Inode, seed: int) -> bool:
    """Compare the checksum, which covers the whole inode with zeros in the checksum's place."""
    raw = bytearray(inode.raw)
    expected = number(raw, _CHECKSUM_LOW, 2)
    mask = 0xFFFF
    raw[_CHECKSUM_LOW : _CHECKSUM_LOW + 2] = bytes(2)
    if inode.extra_size >= _HAS_CHECKSUM_HIGH:
        expected |= number(raw, _CHECKSUM_HIGH, 2) << 16
        mask = 0xFFFFFFFF
        raw[_CHECKSUM_HIGH : _CHECKSUM_HIGH + 2] = bytes(2)
    return crc32c(seed, bytes(raw)) & mask == expected


class EntryKind(StrEnum):
    """The kind of object that a name refers to."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a pipe or a socket."""


@dataclass(frozen=True, slots=True)
class Ext4Entry:
    """A name in an ext4 filesystem and the object that it refers to."""

    path: str
    """Absolute path in the filesystem, without symbolic links before the last name; bytes that
    are not UTF-8 are decoded as by ``os.fsdecode``."""

    kind: EntryKind
    size: int
    """Bytes of content: of a link's target, or of a directory's blocks."""

    inode: int
    """Number of the inode; two names of one file have the same."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
}


def describe(path: str, inode: Inode) -> Ext4Entry:
    """The entry at ``path`` for ``inode``."""
    kind = _KINDS.get(stat.S_IFMT(inode.mode), EntryKind.OTHER)
    return Ext4Entry(path, kind, inode.size, inode.number)
