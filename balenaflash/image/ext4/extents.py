"""Extent trees: the blocks of a file as ext4 stores them.

Kernel documentation, filesystems/ext4/ifork.rst, "Extent Tree".
"""

import struct
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.checksum import crc32c
from balenaflash.image.ext4.inode import Inode

_HEADER = struct.Struct("<HHHH4x")  # magic, entries, maximum of entries, depth
_LEAF = struct.Struct("<IHHI")  # logical, length, physical (upper 16 bits), physical
_INDEX = struct.Struct("<IIHxx")  # logical, physical, physical (upper 16 bits)
_MAGIC = 0xF30A
_MAX_DEPTH = 5
_MAX_LENGTH = 32768  # blocks; a stored length above this is of an extent never written


class ExtentTree:
    """The extent tree of one inode, walked once.

    Every node is visited at most once and block numbers of the file must ascend, so a tree
    takes no longer than its filesystem has blocks.
    """

    def __init__(self, blocks: BlockReader, inode: Inode) -> None:
        self._blocks = blocks
        self._inode = inode
        self._next = 0
        """The least block of the file that may come now."""

        self.visited: set[int] = set()
        """Numbers of the nodes read so far."""

    def walk(self) -> Iterator[tuple[int, int, int]]:
        """Block of the file, block of the filesystem and count of each extent with content.

        Raises:
            ImageError: the tree is damaged, or the image cannot be read.
        """
        root = self._inode.block_field
        depth = _HEADER.unpack_from(root)[3]
        if depth > _MAX_DEPTH:
            raise self._broken(f"a depth of {depth}")
        return self._node(root, depth)

    def _node(self, node: bytes, depth: int) -> Iterator[tuple[int, int, int]]:
        entries = node[_HEADER.size : _HEADER.size * (1 + self._count(node, depth))]
        if depth == 0:
            yield from self._leaf(entries)
            return
        for logical, low, high in _INDEX.iter_unpack(entries):
            self._advance(logical, 0)
            yield from self._node(self._read(low | high << 32), depth - 1)

    def _leaf(self, entries: bytes) -> Iterator[tuple[int, int, int]]:
        for logical, stored_length, high, low in _LEAF.iter_unpack(entries):
            is_written = stored_length <= _MAX_LENGTH
            length = stored_length if is_written else stored_length - _MAX_LENGTH
            if length == 0:
                raise self._broken("an extent of no length")
            self._advance(logical, length)
            physical = low | high << 32
            self._blocks.require(physical, length)
            if is_written:
                yield logical, physical, length

    def _advance(self, logical: int, length: int) -> None:
        if logical < self._next or logical + length > 1 << 32:
            raise self._broken("extents out of order")
        self._next = logical + length

    def _count(self, node: bytes, depth: int) -> int:
        """Number of entries, after all checks of the header."""
        magic, count, maximum, stored_depth = _HEADER.unpack_from(node)
        room = len(node) // _HEADER.size - 1  # an entry is as long as the header
        if magic != _MAGIC or stored_depth != depth or not count <= maximum <= room:
            raise self._broken("a node that is none")
        return int(count)

    def _read(self, block: int) -> bytes:
        if block in self.visited:
            raise self._broken("a node that is reached twice")
        self.visited.add(block)
        node = self._blocks.read(block)
        seed = self._inode.checksum_seed
        if seed is not None:
            self._check(node, seed)
        return node

    def _check(self, node: bytes, seed: int) -> None:
        """Compare the checksum, which lies behind the room for the entries."""
        end = _HEADER.size * (1 + _HEADER.unpack_from(node)[2])
        stored = int.from_bytes(node[end : end + 4], "little")
        if end + 4 > len(node) or crc32c(seed, node[:end]) != stored:
            raise self._broken("a node with a wrong checksum")

    def _broken(self, fault: str) -> ImageError:
        return self._blocks.broken(f"inode {self._inode.number}: its extent tree has {fault}")
