"""Blocks in use of an ext4 filesystem, by its bitmaps and by its inodes.

Without ``metadata_csum`` nothing proves a block bitmap: one that is old, or has two wrong bits,
has the right number of free blocks all the same. So every inode is asked.

Kernel documentation, filesystems/ext4/bitmaps.rst and blockgroup.rst.
"""

from bisect import bisect_right
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.content import ExtentTree, IndirectMap, has_blocks
from balenaflash.formats.ext4.groups import BlockReader, Group, GroupTable
from balenaflash.formats.ext4.inode import EXTENTS, InodeTable
from balenaflash.formats.ext4.superblock import BITMAPS_KNOWN, Superblock, crc32c
from balenaflash.units import Extent

_MAX_BLOCKS = 1 << 28
"""Blocks of a filesystem that is looked through: 32 MiB of bits."""

_MAX_SLOTS = 4_000_000
_MAX_INODES = 300_000
_MAX_PIECES = 3_000_000
"""Places for inodes, inodes, and pieces of their files: some seconds of work each."""

_LINKS = slice(0x1A, 0x1C)  # i_links_count
_ATTRIBUTES_LOW, _ATTRIBUTES_HIGH = slice(0x68, 0x6C), slice(0x76, 0x78)  # i_file_acl


class OwnedBlocks:
    """A bit for each block of the filesystem, from the first block of group 0 on."""

    def __init__(self, superblock: Superblock) -> None:
        self._first = superblock.first_block
        self._bits = bytearray(superblock.block_count // 8 + 1)

    def add(self, first: int, count: int) -> None:
        """Set the bits of ``count`` blocks from ``first`` on."""
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


def find_owned_blocks(
    blocks: BlockReader, superblock: Superblock, groups: GroupTable
) -> OwnedBlocks | None:
    """What the inodes in use own; ``None`` where that cannot be known, or would take too long.

    The content of files, the blocks that list it, and extended attributes are among it.
    """
    if superblock.block_count > _MAX_BLOCKS or superblock.inode_count > _MAX_SLOTS:
        return None
    if superblock.blocks_per_group % 8 or not blocks.source.seekable:
        return None  # of a stream, all of it would have to be read before
    try:
        return _find(blocks, superblock, groups)
    except ImageError as error:
        if error.code != "ext4-invalid":
            raise
        return None


def _find(blocks: BlockReader, superblock: Superblock, groups: GroupTable) -> OwnedBlocks | None:
    owned = OwnedBlocks(superblock)
    inodes = InodeTable(blocks, superblock, groups)
    count = pieces = 0
    for number, raw in _used_inodes(blocks, superblock, groups):
        count += 1
        inode = inodes.read_reserved(number)
        attributes = _number(raw[_ATTRIBUTES_LOW]) | _number(raw[_ATTRIBUTES_HIGH]) << 32
        if attributes:
            blocks.require(attributes, 1)
            owned.add(attributes, 1)
        if not has_blocks(inode, is_reserved=number < superblock.first_inode):
            continue
        tree = (ExtentTree if inode.flags & EXTENTS else IndirectMap)(blocks, inode)
        for _, first, length in tree.walk():
            pieces += 1
            owned.add(first, length)
        for block in tree.visited:
            owned.add(block, 1)
        if count > _MAX_INODES or pieces > _MAX_PIECES:
            return None
    return owned


def _used_inodes(
    blocks: BlockReader, superblock: Superblock, groups: GroupTable
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each inode that has a name, is marked as in use, or is reserved."""
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
                raw = table[(index - first) * size : (index - first + 1) * size]
                is_marked = marks[index // 8] >> index % 8 & 1
                if is_marked or any(raw[_LINKS]) or base + index + 1 < superblock.first_inode:
                    yield base + index + 1, raw


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


_READ_AHEAD = 256
"""Bitmaps in memory at most."""


class BlockBitmaps:
    """What the block bitmaps say, each read when it is asked for.

    A block is called free only when all agrees: a filesystem that was unmounted without errors,
    whose features are known to leave one bit to one block, all group descriptors sound, and of
    the group the checksum of the bitmap and the number of free blocks. Where nothing has such a
    checksum, no inode may own a block that is called free.
    """

    def __init__(self, blocks: BlockReader, superblock: Superblock, groups: GroupTable) -> None:
        self._blocks = blocks
        self._superblock = superblock
        self._groups = groups
        self._fixed: tuple[range, ...] | None = None
        self._read_ahead: dict[int, bytes] = {}
        self._has_checksums = superblock.checksum_seed is not None
        self._owned: OwnedBlocks | None = None

    def free_extents(self, within: Extent) -> Iterator[Extent]:
        """The bytes of the image inside ``within`` that nothing uses; in order, merged.

        Raises:
            ImageError: the image cannot be read.
        """
        if not self._is_trustworthy():
            return
        pending: Extent | None = None
        for blocks in self._free_runs(within):
            start, end = self._blocks.offset(blocks.start), self._blocks.offset(blocks.stop)
            run = Extent(max(start, within.start), min(end, within.end))
            if run.size <= 0:
                continue
            if pending is not None and pending.end == run.start:
                run = Extent(pending.start, run.end)
            elif pending is not None:
                yield pending
            pending = run
        if pending is not None:
            yield pending

    def _is_trustworthy(self) -> bool:
        superblock = self._superblock
        return (
            not superblock.needs_recovery
            and superblock.is_clean
            and not superblock.has_errors
            and not superblock.read_only_compatible & ~BITMAPS_KNOWN
            and self._fixed_blocks() is not None
            and (self._has_checksums or self._find_owned() is not None)
        )

    def _find_owned(self) -> OwnedBlocks | None:
        if self._owned is None:
            self._owned = find_owned_blocks(self._blocks, self._superblock, self._groups)
        return self._owned

    def _free_runs(self, within: Extent) -> Iterator[range]:
        """Free blocks of all groups that reach into ``within``."""
        superblock = self._superblock
        group_size = superblock.blocks_per_group * superblock.block_size
        base = self._blocks.offset(superblock.first_block)
        first = max(0, (within.start - base) // group_size)
        last = min(superblock.group_count, -(-(within.end - base) // group_size))
        for number in range(first, last):
            yield from self._free_in_group(number)

    def _free_in_group(self, number: int) -> Iterator[range]:
        blocks = self._superblock.group_blocks(number)
        group = self._groups.read(number)
        bitmap = self._bitmap(number, group)
        if bitmap is None:
            return
        used = (bitmap | self._fixed_mask(blocks)) & ((1 << len(blocks)) - 1)
        if self._owned is not None and self._owned.mask(blocks) & ~used:
            return  # a block that an inode owns is called free
        if len(blocks) - used.bit_count() != group.free_block_count:
            return
        # As text, for the search in it is linear; a shifted number would be copied each time.
        bits = format(used, f"0{len(blocks)}b")[::-1]
        start = bits.find("0")
        while start >= 0:
            end = bits.find("1", start)
            if end < 0:
                end = len(bits)
            yield range(blocks.start + start, blocks.start + end)
            start = bits.find("0", end)

    def _bitmap(self, number: int, group: Group) -> int | None:
        """The bits of a group's bitmap, bit 0 for its first block; ``None`` for a damaged one."""
        if not group.has_bitmap:
            return 0
        raw = self._raw_bitmap(number, group)
        seed = self._superblock.checksum_seed
        if seed is not None:
            covered = raw[: self._superblock.blocks_per_group // 8]
            mask = 0xFFFFFFFF if group.has_wide_checksum else 0xFFFF
            if crc32c(seed, covered) & mask != group.bitmap_checksum:
                return None
        return int.from_bytes(raw, "little")

    def _raw_bitmap(self, number: int, group: Group) -> bytes:
        """The block with a group's bitmap.

        Those of the groups that follow are read with it where they lie behind it, as ``flex_bg``
        puts them: of a stream, they would have passed when they are asked for.
        """
        first = group.block_bitmap
        if first not in self._read_ahead:
            count = 1
            while count < _READ_AHEAD and number + count < self._superblock.group_count:
                if self._groups.read(number + count).block_bitmap != first + count:
                    break
                count += 1
            self._read_ahead = {first + i: self._blocks.read(first + i) for i in range(count)}
        return self._read_ahead[first]

    def _fixed_mask(self, blocks: range) -> int:
        """The bits of those of ``blocks`` that hold metadata in a place known by layout."""
        fixed = self._fixed_blocks() or ()
        mask = 0
        index = max(0, bisect_right(fixed, blocks.start, key=_start) - 1)
        while index < len(fixed) and fixed[index].start < blocks.stop:
            start = max(fixed[index].start, blocks.start)
            end = min(fixed[index].stop, blocks.stop)
            if start < end:
                mask |= (1 << end - start) - 1 << start - blocks.start
            index += 1
        return mask

    def _fixed_blocks(self) -> tuple[range, ...] | None:
        """All such blocks, in order and merged; ``None`` if a group descriptor is damaged.

        A group without a bitmap may hold the bitmaps and inode tables of any other (``flex_bg``).
        """
        if self._fixed is None:
            try:
                found = sorted(self._groups.fixed_blocks())
            except ImageError as error:
                if error.code != "ext4-invalid":
                    raise
                return None
            self._fixed = tuple(_merge(found))
        return self._fixed


def _merge(runs: list[tuple[int, int]]) -> Iterator[range]:
    """Runs in ascending order, those that touch or overlap in one."""
    start = end = 0
    for first, count in runs:
        if first > end:
            if end:
                yield range(start, end)
            start = first
        end = max(end, first + count)
    yield range(start, end)


def _start(run: range) -> int:
    return run.start
