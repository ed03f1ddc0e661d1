"""Free blocks of an ext4 filesystem, by its bitmaps and by its inodes.

Without ``metadata_csum`` nothing proves a block bitmap: one that is old, or has two wrong bits,
may have the right number of free blocks all the same. So every inode is read.

Kernel documentation, filesystems/ext4/bitmaps.rst and blockgroup.rst.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.content import BlockWalk, has_blocks
from balenaflash.formats.ext4.groups import Group, GroupTable, InodeTable
from balenaflash.formats.ext4.superblock import Superblock, crc32c, number
from balenaflash.units import Extent, merge

_MAX_BLOCKS = 1 << 28
"""Largest number of blocks of a filesystem whose inodes are read: 32 MiB of bits."""

_MAX_SLOTS = 4_000_000
_MAX_INODES = 300_000
_MAX_RUNS = 3_000_000
"""Largest numbers of places for inodes, of inodes in use, and of runs of their blocks: some
seconds of work each."""

_READ_AHEAD = 256
"""Largest number of bitmaps in memory."""


class BlockSet:
    """Blocks of a filesystem, one bit each, from the first block of group 0 on."""

    def __init__(self, superblock: Superblock) -> None:
        self._first = superblock.first_block
        self._bits = bytearray(superblock.block_count // 8 + 1)

    def add(self, first: int, count: int) -> None:
        """Add ``count`` blocks from ``first`` on."""
        start = first - self._first
        end = start + count
        while start < end and (start % 8 or end - start < 8):  # noqa: PLR2004 -- bits of a byte
            self._bits[start // 8] |= 1 << start % 8
            start += 1
        whole = (end - start) // 8
        self._bits[start // 8 : start // 8 + whole] = b"\xff" * whole
        for rest in range(start + whole * 8, end):
            self._bits[rest // 8] |= 1 << rest % 8

    def mask(self, blocks: range) -> int:
        """The bits of a group's blocks, bit 0 for the first; a group begins with a whole byte."""
        start = (blocks.start - self._first) // 8
        raw = self._bits[start : start + -(-len(blocks) // 8)]
        return int.from_bytes(raw, "little") & ((1 << len(blocks)) - 1)


def _find_owned_blocks(groups: GroupTable) -> BlockSet | None:
    """The blocks of all inodes in use; ``None`` where finding them would take too long.

    Content of files, blocks that list it, and extended attributes are among them.
    """
    blocks, superblock = groups.blocks, groups.superblock
    is_large = superblock.block_count > _MAX_BLOCKS or superblock.inode_count > _MAX_SLOTS
    # A stream would have to be read to its end first.
    if is_large or superblock.blocks_per_group % 8 or not blocks.source.seekable:
        return None
    owned = BlockSet(superblock)
    inodes = InodeTable(groups)
    inode_count = run_count = 0
    for inode_number in _used_inodes(groups):
        inode = inodes.read_any(inode_number)
        inode_count += 1
        # i_file_acl: the block of extended attributes, in two parts.
        attributes = number(inode.raw, 0x68, 4) | number(inode.raw, 0x76, 2) << 32
        if attributes:
            blocks.require(attributes, 1)
            owned.add(attributes, 1)
        if not has_blocks(inode, is_reserved=inode_number < superblock.first_inode):
            continue
        walk = BlockWalk(blocks, inode)
        for run in walk.runs():
            run_count += 1
            owned.add(run.physical, run.length)
        for block in walk.visited:
            owned.add(block, 1)
        if inode_count > _MAX_INODES or run_count > _MAX_RUNS:
            return None
    return owned


def _used_inodes(groups: GroupTable) -> Iterator[int]:
    """Number of each inode that has a name, is marked as in use, or is reserved."""
    blocks, superblock = groups.blocks, groups.superblock
    size = superblock.inode_size
    zeros = bytes(superblock.block_size)
    for group_number in range(superblock.group_count):
        group = groups.read(group_number)
        marks = blocks.read(group.inode_bitmap)
        base = group_number * superblock.inodes_per_group
        for block in range(superblock.inode_table_blocks):
            table = blocks.read(group.inode_table + block)
            if table == zeros:
                continue
            first = block * superblock.block_size // size
            for index in range(first, min(first + len(table) // size, superblock.inodes_per_group)):
                is_marked = marks[index // 8] >> index % 8 & 1
                link_count = number(table, (index - first) * size + 0x1A, 2)
                if is_marked or link_count or base + index + 1 < superblock.first_inode:
                    yield base + index + 1


class BlockBitmaps:
    """The block bitmaps of a filesystem, each read on demand.

    A block counts as free only if everything agrees: the filesystem was unmounted without errors,
    its features are known to leave one bit to one block, all group descriptors are sound, and in
    its group the checksum of the bitmap and the number of free blocks are right. Without such
    checksums, no inode may own a block of the group that its bitmap calls free.
    """

    def __init__(self, groups: GroupTable) -> None:
        self._blocks = groups.blocks
        self._superblock = groups.superblock
        self._groups = groups
        self._fixed: tuple[Extent, ...] = ()
        """Metadata whose place follows from the layout, in order and merged. A group without a
        bitmap may hold the bitmaps and inode tables of any other (``flex_bg``)."""

        self._owned: BlockSet | None = None
        self._read_ahead: dict[int, bytes] = {}

    def free_extents(self, within: Extent) -> Iterator[Extent]:
        """The free bytes of the image inside ``within``; in order, merged.

        Raises:
            ImageError: the image cannot be read.
        """
        if self._is_provable:
            yield from merge(self._free_pieces(within))

    @cached_property
    def _is_provable(self) -> bool:
        """True if the bitmaps are reliable; the blocks to compare them with are found first."""
        if not self._superblock.has_reliable_bitmaps:
            return False
        try:
            fixed = sorted(self._blocks.extent(*run) for run in self._groups.fixed_blocks())
            self._fixed = tuple(merge(fixed))
            if self._superblock.checksum_seed is None:
                self._owned = _find_owned_blocks(self._groups)
                return self._owned is not None
        except ImageError as error:
            if error.code != "ext4-invalid":
                raise
            return False
        return True

    def _free_pieces(self, within: Extent) -> Iterator[Extent]:
        """The free bytes inside ``within``, group by group."""
        superblock = self._superblock
        group_size = superblock.blocks_per_group * superblock.block_size
        base = self._blocks.offset(superblock.first_block)
        first = max(0, (within.start - base) // group_size)
        last = min(superblock.group_count, -(-(within.end - base) // group_size))
        for group in range(first, last):
            for blocks in self._free_in_group(group):
                common = self._blocks.extent(blocks.start, len(blocks)).intersection(within)
                if common is not None:
                    yield common

    def _free_in_group(self, group: int) -> Iterator[range]:
        blocks = self._superblock.group_blocks(group)
        descriptor = self._groups.read(group)
        bitmap = self._bitmap(group, descriptor)
        if bitmap is None:
            return
        used = (bitmap | self._fixed_mask(blocks)) & ((1 << len(blocks)) - 1)
        if self._owned is not None and self._owned.mask(blocks) & ~used:
            return  # the bitmap calls a block free that an inode owns
        if len(blocks) - used.bit_count() != descriptor.free_block_count:
            return
        # As text, because searching it is linear; a shifted number would be copied each time.
        bits = format(used, f"0{len(blocks)}b")[::-1]
        start = bits.find("0")
        while start >= 0:
            end = bits.find("1", start)
            if end < 0:
                end = len(bits)
            yield range(blocks.start + start, blocks.start + end)
            start = bits.find("0", end)

    def _bitmap(self, group: int, descriptor: Group) -> int | None:
        """The bits of a group's bitmap, bit 0 for its first block; ``None`` if it is damaged."""
        if not descriptor.has_bitmap:
            return 0
        raw = self._raw_bitmap(group, descriptor.block_bitmap)
        seed = self._superblock.checksum_seed
        if seed is not None:
            covered = raw[: self._superblock.blocks_per_group // 8]
            mask = 0xFFFFFFFF if descriptor.has_wide_checksum else 0xFFFF
            if crc32c(seed, covered) & mask != descriptor.bitmap_checksum:
                return None
        return int.from_bytes(raw, "little")

    def _raw_bitmap(self, group: int, block: int) -> bytes:
        """The ``block`` with the bitmap of ``group``.

        The bitmaps of the following groups are read with it where they follow it directly, as
        ``flex_bg`` places them: a stream would have passed them when they are needed.
        """
        if block not in self._read_ahead:
            count = 1
            while count < _READ_AHEAD and group + count < self._superblock.group_count:
                if self._groups.read(group + count).block_bitmap != block + count:
                    break
                count += 1
            self._read_ahead = {block + i: self._blocks.read(block + i) for i in range(count)}
        return self._read_ahead[block]

    def _fixed_mask(self, blocks: range) -> int:
        """The bits of those of ``blocks`` that hold metadata whose place follows from layout."""
        group = self._blocks.extent(blocks.start, len(blocks))
        mask = 0
        index = max(0, bisect_right(self._fixed, group.start, key=attrgetter("start")) - 1)
        while index < len(self._fixed) and self._fixed[index].start < group.end:
            common = self._fixed[index].intersection(group)
            if common is not None:
                start = (common.start - group.start) // self._blocks.size
                mask |= (1 << common.size // self._blocks.size) - 1 << start
            index += 1
        return mask
