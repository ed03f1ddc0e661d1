"""Direct and indirect block pointers: the blocks of a file as ext2 and ext3 store them.

Kernel documentation, filesystems/ext4/ifork.rst, "Direct/Indirect Block Addressing".
"""

import struct
from collections.abc import Iterator

from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.inode import BLOCK_FIELD_SIZE, Inode

_DIRECT = 12  # pointers to content in the inode; one each of single, double, triple follows


class IndirectMap:
    """The block pointers of one inode, walked once; each block of pointers at most once."""

    def __init__(self, blocks: BlockReader, inode: Inode) -> None:
        self._blocks = blocks
        self._inode = inode
        self._pointers = struct.Struct(f"<{blocks.size // 4}I")
        self._end = -(-inode.size // blocks.size)
        self.visited: set[int] = set()
        """Numbers of the blocks of pointers read so far."""

    def walk(self) -> Iterator[tuple[int, int, int]]:
        """Block of the file, block of the filesystem and count of each run with content.

        Raises:
            ImageError: a pointer is wrong, or the image cannot be read.
        """
        pointers = struct.unpack(f"<{BLOCK_FIELD_SIZE // 4}I", self._inode.block_field)
        yield from self._content(0, pointers[:_DIRECT])
        logical = _DIRECT
        for level, pointer in enumerate(pointers[_DIRECT:], start=1):
            yield from self._below(logical, pointer, level)
            logical += (self._blocks.size // 4) ** level

    def _below(self, logical: int, pointer: int, level: int) -> Iterator[tuple[int, int, int]]:
        if pointer == 0 or logical >= self._end:
            return
        pointers = self._read(pointer)
        if level == 1:
            yield from self._content(logical, pointers)
            return
        for below in pointers:
            yield from self._below(logical, below, level - 1)
            logical += (self._blocks.size // 4) ** (level - 1)

    def _content(self, logical: int, pointers: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        """The runs that pointers to content give; zero is a hole."""
        first = start = count = 0
        for position, pointer in enumerate(pointers[: self._end - logical], start=logical):
            if count and pointer == start + count:
                count += 1
                continue
            if count:
                yield self._run(first, start, count)
            first, start, count = position, pointer, int(pointer != 0)
        if count:
            yield self._run(first, start, count)

    def _run(self, first: int, start: int, count: int) -> tuple[int, int, int]:
        self._blocks.require(start, count)
        return first, start, count

    def _read(self, block: int) -> tuple[int, ...]:
        if block in self.visited:
            raise self._blocks.broken(
                f"inode {self._inode.number}: its block {block} of pointers is reached twice"
            )
        self.visited.add(block)
        return self._pointers.unpack(self._blocks.read(block))
