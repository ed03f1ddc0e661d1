"""The block groups of an ext4 filesystem: their blocks, descriptors and inodes.

Offsets from the kernel's documentation, filesystems/ext4/group_descr.rst and inodes.rst.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.superblock import (
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    Incompatible,
    ReadOnlyCompatible,
    Superblock,
    crc16,
    crc32c,
    number,
)
from balenaflash.source.base import Source
from balenaflash.units import Extent

_KEPT = 64
"""Number of blocks kept in memory: those of inode tables and descriptors are read repeatedly."""


class BlockReader:
    """The blocks of the filesystem that starts at byte ``start`` of ``source``."""

    def __init__(self, source: Source, name: str, *, start: int, size: int, count: int) -> None:
        self.source = source
        self.name = name
        self.start = start
        self.size = size
        """Size of a block in bytes."""

        self.count = count
        self._kept: dict[int, bytes] = {}

    def read(self, block: int) -> bytes:
        """The content of ``block``.

        Raises:
            ImageError: the filesystem has no such block, or the image cannot be read there.
        """
        kept = self._kept.get(block)
        if kept is None:
            self.require(block, 1)
            kept = self.source.read(self.offset(block), self.size)
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[block] = kept
        return kept

    def require(self, block: int, count: int) -> None:
        """Raise ``ImageError`` unless the filesystem has ``count`` blocks from ``block`` on.

        Its first block, which holds the superblock or what comes before it, does not count.
        """
        if not 0 < block <= self.count - count:
            raise self.broken(f"refers to block {block} of {self.count}")

    def offset(self, block: int) -> int:
        """Offset of ``block``, in bytes from the start of the image."""
        return self.start + block * self.size

    def extent(self, first: int, count: int) -> Extent:
        """The bytes of ``count`` blocks from ``first`` on, from the start of the image."""
        return Extent(self.offset(first), self.offset(first + count))

    def broken(self, fault: str) -> ImageError:
        """The error for the damage described by ``fault``."""
        return ImageError(f"{self.name}: {fault}", code="ext4-invalid")

    def unsupported(self, fact: str) -> ImageError:
        """The error for something that is intact, but cannot be read."""
        return ImageError(f"{self.name}: {fact}", code="ext4-unsupported")


_BLOCK_UNINIT = 0x2  # bg_flags: the block bitmap was never written
_CHECKSUM = 0x1E  # offset of bg_checksum, two bytes
_HIGH_PARTS = 0x40  # bytes of a descriptor that has the upper halves of its numbers


@dataclass(frozen=True, slots=True)
class Group:
    """A group descriptor, its checksum and its pointers checked."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    """Numbers of their first blocks, anywhere in the filesystem."""

    free_block_count: int
    has_bitmap: bool
    """True if the block bitmap was ever written. Without it, metadata alone is in use in the
    group: its own and perhaps that of other groups."""

    bitmap_checksum: int
    """Checksum of the block bitmap: 32 bits, or the lower 16 if not ``has_wide_checksum``."""

    has_wide_checksum: bool


class GroupTable:
    """The descriptors of all groups of a filesystem, each read on demand."""

    def __init__(self, blocks: BlockReader, superblock: Superblock) -> None:
        self.blocks = blocks
        self.superblock = superblock
        self._per_block = superblock.block_size // superblock.descriptor_size
        self._has_checksums = superblock.checksum_seed is not None or bool(
            superblock.read_only_compatible & ReadOnlyCompatible.UNINIT_BG
        )

    def read(self, group: int) -> Group:
        """The descriptor of the group with the number ``group``.

        Raises:
            ImageError: its checksum is wrong, it refers to blocks outside of the filesystem, or
                the image cannot be read there.
        """
        index, position = divmod(group, self._per_block)
        size = self.superblock.descriptor_size
        block = self.blocks.read(self._location(index))
        raw = block[position * size : (position + 1) * size]
        if self._has_checksums and self._checksum(group, raw) != number(raw, _CHECKSUM, 2):
            raise self.blocks.broken(f"the checksum of group descriptor {group} is wrong")
        descriptor = self._parse(raw)
        for first, count in self._own_metadata(descriptor):
            self.blocks.require(first, count)
        return descriptor

    def fixed_blocks(self) -> Iterator[tuple[int, int]]:
        """First block and count of all metadata whose place follows from the layout, unordered.

        Superblocks and descriptors with their backups, blocks reserved for more descriptors,
        bitmaps and inode tables. Errors as ``read``, for every group.
        """
        for group in range(self.superblock.group_count):
            copies = self._copied_blocks(group)
            if copies:
                yield self.superblock.group_blocks(group).start, copies
            yield from self._own_metadata(self.read(group))

    def _copied_blocks(self, group: int) -> int:
        """Blocks at the start of ``group``: superblock, descriptors, reserved for more of them.

        As ``ext4_num_base_meta_blocks`` in fs/ext4/balloc.c counts them.
        """
        superblock = self.superblock
        has_backup = superblock.has_backup(group)
        meta_bg = superblock.incompatible & Incompatible.META_BG
        if meta_bg and group >= superblock.first_meta_group * self._per_block:
            # A descriptor block is in the first, the second and the last group that it describes.
            return has_backup + (group % self._per_block in {0, 1, self._per_block - 1})
        if not has_backup:
            return 0
        descriptors = -(-superblock.group_count // self._per_block)
        if meta_bg:
            descriptors = min(descriptors, superblock.first_meta_group)
        return 1 + descriptors + superblock.reserved_gdt_blocks

    def _location(self, index: int) -> int:
        """Block number of the descriptor block ``index`` (``descriptor_loc``, fs/ext4/super.c)."""
        superblock = self.superblock
        meta_bg = superblock.incompatible & Incompatible.META_BG
        first = SUPERBLOCK_OFFSET // superblock.block_size + 1
        if not meta_bg or index < superblock.first_meta_group:
            return first + index
        if index == 0:
            return first
        group = index * self._per_block
        return superblock.group_blocks(group).start + superblock.has_backup(group)

    def _own_metadata(self, group: Group) -> Iterator[tuple[int, int]]:
        yield group.block_bitmap, 1
        yield group.inode_bitmap, 1
        yield group.inode_table, self.superblock.inode_table_blocks

    def _checksum(self, group: int, raw: bytes) -> int:
        label = group.to_bytes(4, "little")
        seed = self.superblock.checksum_seed
        if seed is not None:
            covered = label + raw[:_CHECKSUM] + bytes(2) + raw[_CHECKSUM + 2 :]
            return crc32c(seed, covered) & 0xFFFF
        covered = self.superblock.uuid + label + raw[:_CHECKSUM] + raw[_CHECKSUM + 2 :]
        return crc16(covered)

    def _parse(self, raw: bytes) -> Group:
        high = raw.ljust(_HIGH_PARTS, b"\0") if len(raw) < _HIGH_PARTS else raw
        is_uninitialized = self._has_checksums and number(raw, 0x12, 2) & _BLOCK_UNINIT
        return Group(
            block_bitmap=number(raw, 0x00, 4) | number(high, 0x20, 4) << 32,
            inode_bitmap=number(raw, 0x04, 4) | number(high, 0x24, 4) << 32,
            inode_table=number(raw, 0x08, 4) | number(high, 0x28, 4) << 32,
            free_block_count=number(raw, 0x0C, 2) | number(high, 0x2C, 2) << 16,
            has_bitmap=not is_uninitialized,
            bitmap_checksum=number(raw, 0x18, 2) | number(high, 0x38, 2) << 16,
            has_wide_checksum=len(raw) >= _HIGH_PARTS,
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
