"""The blocks of an ext2 to ext4 filesystem that an inode uses, whatever a bitmap says.

Without ``metadata_csum`` nothing proves a block bitmap: one that is old, or has two wrong bits,
has the right number of free blocks all the same. So every inode is asked.
"""

from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.content import has_blocks
from balenaflash.image.ext4.extents import ExtentTree
from balenaflash.image.ext4.groups import GroupTable
from balenaflash.image.ext4.indirect import IndirectMap
from balenaflash.image.ext4.inode import EXTENTS, InodeTable
from balenaflash.image.ext4.superblock import Superblock

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
