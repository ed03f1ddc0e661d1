"""Inodes of an ext4 filesystem, and files and directories as their readers see them.

Offsets from the kernel's documentation, filesystems/ext4/inodes.rst.
"""

import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from balenaflash.formats.ext4.groups import BlockReader, GroupTable
from balenaflash.formats.ext4.superblock import ROOT_INODE, Incompatible, Superblock, crc32c

BLOCK_FIELD = 0x28  # offset of i_block
BLOCK_FIELD_SIZE = 60
OLD_SIZE = 128  # bytes of an inode before i_extra_isize

_CHECKSUM_LOW, _CHECKSUM_HIGH = 0x7C, 0x82  # offsets of the checksum's halves, two bytes each
_HAS_CHECKSUM_HIGH = 4  # least i_extra_isize that covers the upper half
_HAS_MODIFIED_EXTRA = 0x8C - OLD_SIZE  # least i_extra_isize that covers i_mtime_extra
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS = 1_000_000_000

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
    """All of it, as long as the filesystem's inodes are."""

    offset: int
    """Where it lies, in bytes from the start of the image."""

    mode: int
    """Type and permissions, as ``st_mode`` of stat(2)."""

    size: int
    flags: int
    checksum_seed: int | None
    """What the checksums of its directory and extent blocks start from."""

    @property
    def block_field(self) -> bytes:
        """``i_block``: pointers, the root of an extent tree, or the content itself."""
        return self.raw[BLOCK_FIELD : BLOCK_FIELD + BLOCK_FIELD_SIZE]

    @property
    def extra_size(self) -> int:
        """How far the fields go behind the first 128 bytes; ``i_extra_isize``."""
        return _number(self.raw, OLD_SIZE, 2) if len(self.raw) > OLD_SIZE else 0

    @property
    def modified(self) -> datetime:
        """When the content last changed, in UTC."""
        seconds = int.from_bytes(self.raw[0x10:0x14], "little", signed=True)
        nanoseconds = 0
        if self.extra_size >= _HAS_MODIFIED_EXTRA:
            extra = _number(self.raw, 0x88, 4)
            seconds += (extra & 3) << 32
            nanoseconds = min(extra >> 2, _NANOSECONDS - 1)
        return _EPOCH + timedelta(seconds=seconds, microseconds=nanoseconds // 1000)


class InodeTable:
    """The inodes of a filesystem by number."""

    def __init__(self, blocks: BlockReader, superblock: Superblock, groups: GroupTable) -> None:
        self._blocks = blocks
        self._superblock = superblock
        self._groups = groups
        self._tables: dict[int, int] = {}
        self._has_large_directories = bool(superblock.incompatible & Incompatible.LARGE_DIR)

    def read(self, number: int) -> Inode:
        """The inode ``number``.

        Raises:
            ImageError: no file can have it, its checksum is wrong, or the image cannot be read.
        """
        superblock = self._superblock
        is_usable = number == ROOT_INODE or number >= superblock.first_inode
        if not is_usable or number > superblock.inode_count:
            raise self._blocks.broken(f"a directory names inode {number}, which cannot be")
        return self._read(number)

    def read_reserved(self, number: int) -> Inode:
        """The inode ``number``, which the superblock names or which is reserved; as ``read``."""
        if not 0 < number <= self._superblock.inode_count:
            raise self._blocks.broken(f"its superblock names inode {number}, which cannot be")
        return self._read(number)

    def _read(self, number: int) -> Inode:
        superblock = self._superblock
        group, index = divmod(number - 1, superblock.inodes_per_group)
        position = index * superblock.inode_size
        block = self._table(group) + position // superblock.block_size
        start = position % superblock.block_size
        raw = self._blocks.read(block)[start : start + superblock.inode_size]
        return self._parse(number, raw, self._blocks.offset(block) + start)

    def _table(self, group: int) -> int:
        """First block of the group's table; kept, for a descriptor takes time to check."""
        table = self._tables.get(group)
        if table is None:
            table = self._tables[group] = self._groups.read(group).inode_table
        return table

    def _parse(self, number: int, raw: bytes, offset: int) -> Inode:
        mode = _number(raw, 0x00, 2)
        size = _number(raw, 0x04, 4)
        if stat.S_ISREG(mode) or self._has_large_directories:
            size |= _number(raw, 0x6C, 4) << 32
        inode = Inode(
            number=number,
            raw=raw,
            offset=offset,
            mode=mode,
            size=size,
            flags=_number(raw, 0x20, 4),
            checksum_seed=self._seed(number, raw),
        )
        if inode.checksum_seed is not None and not _is_sound(inode, inode.checksum_seed):
            raise self._blocks.broken(f"the checksum of inode {number} is wrong")
        return inode

    def _seed(self, number: int, raw: bytes) -> int | None:
        """The filesystem's seed with the inode's number and generation added."""
        seed = self._superblock.checksum_seed
        return None if seed is None else crc32c(seed, number.to_bytes(4, "little") + raw[0x64:0x68])


def _is_sound(inode: Inode, seed: int) -> bool:
    """Compare the checksum, over the whole inode with both halves of it taken for zero."""
    raw = bytearray(inode.raw)
    expected = _number(raw, _CHECKSUM_LOW, 2)
    mask = 0xFFFF
    raw[_CHECKSUM_LOW : _CHECKSUM_LOW + 2] = bytes(2)
    if inode.extra_size >= _HAS_CHECKSUM_HIGH:
        expected |= _number(raw, _CHECKSUM_HIGH, 2) << 16
        mask = 0xFFFFFFFF
        raw[_CHECKSUM_HIGH : _CHECKSUM_HIGH + 2] = bytes(2)
    return crc32c(seed, bytes(raw)) & mask == expected


def _number(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


class EntryKind(StrEnum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a pipe or a socket."""


@dataclass(frozen=True, slots=True)
class Ext4Entry:
    """A name in an ext4 filesystem and what it stands for."""

    path: str
    """Absolute in the filesystem, without symbolic links before the last name; bytes that are
    not UTF-8 as ``os.fsdecode`` gives them."""

    kind: EntryKind
    size: int
    """Bytes of content: of a link those of its target, of a directory those of its blocks."""

    mode: int
    """Type and permissions, as ``st_mode`` of stat(2)."""

    modified: datetime
    """When the content last changed, in UTC."""

    inode: int
    """Number of the inode; the same for two names of one file."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


def describe(path: str, inode: Inode) -> Ext4Entry:
    """The entry at ``path`` for ``inode``."""
    return Ext4Entry(
        path, kind_of(inode), inode.size, inode.mode, inode.modified, inode=inode.number
    )


def kind_of(inode: Inode) -> EntryKind:
    """The kind of ``inode`` by its mode."""
    kinds = {
        stat.S_IFREG: EntryKind.FILE,
        stat.S_IFDIR: EntryKind.DIRECTORY,
        stat.S_IFLNK: EntryKind.SYMLINK,
    }
    return kinds.get(stat.S_IFMT(inode.mode), EntryKind.OTHER)
