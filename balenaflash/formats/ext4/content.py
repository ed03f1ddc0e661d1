"""The blocks and the content of an inode: by extents, by block pointers, or inside the inode.

Kernel documentation, filesystems/ext4/ifork.rst.
"""

import stat
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.groups import (
    BLOCK_FIELD,
    BLOCK_FIELD_SIZE,
    ENCRYPTED,
    EXTENTS,
    INLINE_DATA,
    OLD_SIZE,
    BlockReader,
    Inode,
)
from balenaflash.formats.ext4.superblock import crc32c, number
from balenaflash.source.base import Source
from balenaflash.units import Extent, align_up

_HEADER = struct.Struct("<HHHH4x")  # magic, entries, maximum of entries, depth
_LEAF = struct.Struct("<IHHI")  # logical, length, physical (upper 16 bits), physical
_INDEX = struct.Struct("<IIHxx")  # logical, physical, physical (upper 16 bits)
_MAGIC = 0xF30A
_MAX_DEPTH = 5
_MAX_LENGTH = 32768  # blocks; a longer stored length marks an extent that was never written

_DIRECT = 12  # pointers to content in the inode; one each of single, double, triple follows


class BlockRun(NamedTuple):
    """Blocks that lie together, both in a file and in the filesystem."""

    logical: int
    """First block of the file."""

    physical: int
    """First block of the filesystem."""

    length: int
    is_written: bool = True
    """False for blocks that were allocated and never written: they read as zeros."""


class BlockWalk:
    """One walk over the blocks of an inode.

    Every block that lists others is read at most once, and the extents of a file must ascend, so
    a walk takes no longer than its filesystem has blocks.
    """

    def __init__(self, blocks: BlockReader, inode: Inode) -> None:
        self._blocks = blocks
        self._inode = inode
        self._next = 0
        """Least block of the file that an extent may begin with."""

        self._pointers = struct.Struct(f"<{blocks.size // 4}I")
        self._end = -(-inode.size // blocks.size)
        self.visited: set[int] = set()
        """Numbers of the nodes and blocks of pointers read so far."""

    def runs(self) -> Iterator[BlockRun]:
        """The runs of blocks, in the order of the file.

        Raises:
            ImageError: the tree or a pointer is damaged, or the image cannot be read.
        """
        if not self._inode.flags & EXTENTS:
            yield from self._follow_inode_pointers()
            return
        root = self._inode.block_field
        depth = _HEADER.unpack_from(root)[3]
        if depth > _MAX_DEPTH:
            raise self._broken_tree(f"a depth of {depth}")
        yield from self._follow_node(root, depth)

    def _follow_node(self, node: bytes, depth: int) -> Iterator[BlockRun]:
        magic, count, maximum, stored_depth = _HEADER.unpack_from(node)
        room = len(node) // _HEADER.size - 1  # an entry is as long as the header
        if magic != _MAGIC or stored_depth != depth or not count <= maximum <= room:
            raise self._broken_tree("an invalid node")
        entries = node[_HEADER.size : _HEADER.size * (1 + count)]
        if depth == 0:
            yield from self._follow_leaf(entries)
            return
        for logical, low, high in _INDEX.iter_unpack(entries):
            self._advance(logical, 0)
            yield from self._follow_node(self._read_node(low | high << 32), depth - 1)

    def _follow_leaf(self, entries: bytes) -> Iterator[BlockRun]:
        for logical, stored_length, high, low in _LEAF.iter_unpack(entries):
            is_written = stored_length <= _MAX_LENGTH
            length = stored_length if is_written else stored_length - _MAX_LENGTH
            if length == 0:
                raise self._broken_tree("an extent of no length")
            self._advance(logical, length)
            physical = low | high << 32
            self._blocks.require(physical, length)
            yield BlockRun(logical, physical, length, is_written)

    def _advance(self, logical: int, length: int) -> None:
        if logical < self._next or logical + length > 1 << 32:
            raise self._broken_tree("extents out of order")
        self._next = logical + length

    def _read_node(self, block: int) -> bytes:
        if block in self.visited:
            raise self._broken_tree("a node that is reached twice")
        self.visited.add(block)
        node = self._blocks.read(block)
        seed = self._inode.checksum_seed
        if seed is not None:
            # The checksum follows the room for the entries.
            end = _HEADER.size * (1 + _HEADER.unpack_from(node)[2])
            if end + 4 > len(node) or crc32c(seed, node[:end]) != number(node, end, 4):
                raise self._broken_tree("a node with a wrong checksum")
        return node

    def _broken_tree(self, fault: str) -> ImageError:
        return self._blocks.broken(f"inode {self._inode.number}: its extent tree has {fault}")

    def _follow_inode_pointers(self) -> Iterator[BlockRun]:
        pointers = struct.unpack(f"<{BLOCK_FIELD_SIZE // 4}I", self._inode.block_field)
        yield from self._join(0, pointers[:_DIRECT])
        logical = _DIRECT
        for level, pointer in enumerate(pointers[_DIRECT:], start=1):
            yield from self._follow_pointer(logical, pointer, level)
            logical += (self._blocks.size // 4) ** level

    def _follow_pointer(self, logical: int, pointer: int, level: int) -> Iterator[BlockRun]:
        """Follow the pointer to a block of pointers, ``level`` steps above the content."""
        if pointer == 0 or logical >= self._end:
            return
        if pointer in self.visited:
            raise self._blocks.broken(
                f"inode {self._inode.number}: its block {pointer} of pointers is reached twice"
            )
        self.visited.add(pointer)
        pointers = self._pointers.unpack(self._blocks.read(pointer))
        if level == 1:
            yield from self._join(logical, pointers)
            return
        for below in pointers:
            yield from self._follow_pointer(logical, below, level - 1)
            logical += (self._blocks.size // 4) ** (level - 1)

    def _join(self, logical: int, pointers: tuple[int, ...]) -> Iterator[BlockRun]:
        """The runs of blocks to which pointers lead; a pointer of zero is a hole."""
        first = start = count = 0
        for position, pointer in enumerate(pointers[: self._end - logical], start=logical):
            if count and pointer == start + count:
                count += 1
                continue
            if count:
                self._blocks.require(start, count)
                yield BlockRun(first, start, count)
            first, start, count = position, pointer, int(pointer != 0)
        if count:
            self._blocks.require(start, count)
            yield BlockRun(first, start, count)


_MAX_PIECES = 4_000_000
"""Largest number of pieces of one file: each takes 16 bytes of memory."""

_ZEROS = memoryview(bytes(1 << 20))


class FileMap:
    """The pieces of a file in order; between them it is zero.

    A piece is counted in units: blocks, or bytes for content inside an inode. ``base`` is the
    offset of the physical unit 0, in bytes from the start of the image.
    """

    def __init__(
        self, source: Source, *, size: int, unit: int, base: int, most: int = _MAX_PIECES
    ) -> None:
        self.size = size
        self._source = source
        self._unit = unit
        self._base = base
        self._most = most
        # Arrays, not objects: a file in 100,000s of pieces is still small in memory.
        self._logical = array("I")
        self._physical = array("Q")
        self._count = array("I")

    def add(self, logical: int, physical: int, count: int) -> None:
        """Add the piece after all before; a piece past the end of the file is left out.

        Raises:
            ImageError: there are too many pieces.
        """
        if logical * self._unit >= self.size:
            return
        if self._logical:
            last = self._count[-1]
            is_next = (self._logical[-1] + last, self._physical[-1] + last) == (logical, physical)
            if is_next and last + count < 1 << 32:
                self._count[-1] += count
                return
        if len(self._logical) >= self._most:
            raise ImageError(
                f"{self._source.name}: a file is in more than {self._most} pieces",
                code="ext4-unsupported",
            )
        self._logical.append(logical)
        self._physical.append(physical)
        self._count.append(count)

    def runs(
        self, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[Extent, Extent | None]]:
        """The pieces of ``[start, end)``, by default of the whole file, and their places.

        In ascending order and without gaps. A place is in the image, or ``None`` for zeros that
        are not stored: a hole, or space that was allocated and never written.
        """
        end = self.size if end is None else end
        index = max(0, bisect_right(self._logical, start // self._unit) - 1)
        while start < end and index < len(self._logical):
            first = self._logical[index] * self._unit
            last = min(end, first + self._count[index] * self._unit)
            if start < first:
                yield Extent(start, min(first, end)), None
                start = first
            if start < last:
                place = self._base + self._physical[index] * self._unit + start - first
                yield Extent(start, last), Extent(place, place + last - start)
                start = last
            index += 1
        if start < end:
            yield Extent(start, end), None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the content from ``offset`` on, which must lie within the file.

        Raises:
            ImageError: the image cannot be read.
        """
        for piece, place in self.runs(offset, offset + len(buffer)):
            part = buffer[piece.start - offset : piece.end - offset]
            if place is not None:
                self._source.readinto(place.start, part)
                continue
            for start in range(0, len(part), len(_ZEROS)):
                zeroed = part[start : start + len(_ZEROS)]
                zeroed[:] = _ZEROS[: len(zeroed)]

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of content from ``offset`` on; as ``readinto``."""
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)


_ATTRIBUTES_MAGIC = b"\x00\x00\x02\xea"  # 0xEA020000, before the attributes in an inode
_ATTRIBUTE_HEADER = 16  # bytes of an entry before its name
_SYSTEM = 7  # e_name_index of the prefix "system."
_DATA = b"data"


def map_content(blocks: BlockReader, inode: Inode) -> FileMap:
    """The map of the content of ``inode``.

    Raises:
        ImageError: it is encrypted or in too many pieces (``ext4-unsupported``), or damaged.
    """
    if inode.flags & ENCRYPTED:
        raise blocks.unsupported(f"inode {inode.number} is encrypted (feature encrypt)")
    if inode.flags & INLINE_DATA:
        return _map_inline(blocks, inode)
    if inode.size > blocks.size << 32:
        raise blocks.broken(f"inode {inode.number} has an impossible size of {inode.size} bytes")
    content = FileMap(blocks.source, size=inode.size, unit=blocks.size, base=blocks.start)
    for run in BlockWalk(blocks, inode).runs():
        if run.is_written:
            content.add(run.logical, run.physical, run.length)
    return content


def find_places(blocks: BlockReader, inode: Inode) -> Iterator[Extent]:
    """The bytes of the image allocated to ``inode``: for content, and for lists of its blocks."""
    if inode.flags & INLINE_DATA:
        for _piece, place in _map_inline(blocks, inode).runs():
            if place is not None:
                yield place
    elif has_blocks(inode):
        walk = BlockWalk(blocks, inode)
        for run in walk.runs():
            yield blocks.extent(run.physical, run.length)
        for block in walk.visited:
            yield blocks.extent(block, 1)


def has_blocks(inode: Inode, *, is_reserved: bool = False) -> bool:
    """True if ``i_block`` leads to blocks: not for inline content, a device, or a short link.

    A reserved inode may lead to blocks whatever its mode says.
    """
    if inode.flags & INLINE_DATA:
        return False
    if stat.S_ISLNK(inode.mode):
        return inode.size >= BLOCK_FIELD_SIZE or bool(inode.flags & EXTENTS)
    return is_reserved or stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)


def _map_inline(blocks: BlockReader, inode: Inode) -> FileMap:
    """The map of content in ``i_block`` and, if that is too small, in ``system.data``.

    A file that was made longer without writing has fewer bytes stored than its size; the rest is
    zero.
    """
    if inode.size > blocks.size:
        raise blocks.broken(f"inode {inode.number} cannot hold its {inode.size} bytes")
    content = FileMap(blocks.source, size=inode.size, unit=1, base=inode.offset)
    content.add(0, BLOCK_FIELD, min(BLOCK_FIELD_SIZE, inode.size))
    start, size = _find_system_data(blocks, inode)
    if size:
        content.add(BLOCK_FIELD_SIZE, start, size)
    return content


def _find_system_data(blocks: BlockReader, inode: Inode) -> tuple[int, int]:
    """Offset in the inode and size of the attribute ``system.data``; zeros without one.

    Kernel documentation, filesystems/ext4/attributes.rst: entries follow the magic, the four
    bytes after the last are zero, and offsets of values count from the first entry.
    """
    raw = inode.raw
    magic = OLD_SIZE + inode.extra_size
    entry = first = magic + len(_ATTRIBUTES_MAGIC)
    if len(raw) <= OLD_SIZE or raw[magic:first] != _ATTRIBUTES_MAGIC:
        return 0, 0
    while entry + _ATTRIBUTE_HEADER <= len(raw) and any(raw[entry : entry + 4]):
        name_size, prefix = raw[entry], raw[entry + 1]
        name = raw[entry + _ATTRIBUTE_HEADER : entry + _ATTRIBUTE_HEADER + name_size]
        if prefix == _SYSTEM and name == _DATA:
            start = first + number(raw, entry + 2, 2)
            size = number(raw, entry + 8, 4)
            if start + size > len(raw) or any(raw[entry + 4 : entry + 8]):
                raise blocks.broken(f"inode {inode.number} has content outside of itself")
            return start, size
        entry += align_up(_ATTRIBUTE_HEADER + name_size, 4)
    return 0, 0
