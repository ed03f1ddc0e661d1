"""The content of an inode: inline, by an extent tree, or by direct and indirect pointers.

Kernel documentation, filesystems/ext4/ifork.rst, "Extent Tree".

Kernel documentation, filesystems/ext4/ifork.rst, "Direct/Indirect Block Addressing".
"""

import stat
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.groups import BlockReader
from balenaflash.formats.ext4.inode import (
    BLOCK_FIELD,
    BLOCK_FIELD_SIZE,
    ENCRYPTED,
    EXTENTS,
    INLINE_DATA,
    OLD_SIZE,
    Inode,
)
from balenaflash.formats.ext4.superblock import crc32c
from balenaflash.source.base import Source
from balenaflash.units import Extent

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


MAX_RUNS = 4_000_000
"""Pieces of one file: each takes 16 bytes of memory."""

_ZEROS = memoryview(bytes(1 << 20))


class FileMap:
    """The pieces of a file in order; what lies between them is zero.

    A piece is counted in units: blocks, or bytes for content inside an inode. ``base`` is where
    the physical unit 0 lies, in bytes from the start of the image.
    """

    def __init__(
        self, source: Source, *, size: int, unit: int, base: int, most: int = MAX_RUNS
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
        """Add a piece behind all those before; one behind the end of the file is left out.

        Raises:
            ImageError: there are too many.
        """
        if logical * self._unit >= self.size:
            return
        if self._logical and self._continues(logical, physical, count):
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
        """Each piece of ``[start, end)``, by default of the whole file, and where it lies.

        In ascending order and without gaps. The second is in the image, or ``None`` for zeros
        that are not stored: a hole, or space allocated and never written.
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
        """Fill ``buffer`` with the content from ``offset`` on, which the file must have.

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

    def _continues(self, logical: int, physical: int, count: int) -> bool:
        """Whether the piece lies right behind the last one, here and in the image."""
        last = self._count[-1]
        return (
            self._logical[-1] + last == logical
            and self._physical[-1] + last == physical
            and last + count < 1 << 32
        )


_ATTRIBUTES_MAGIC = b"\x00\x00\x02\xea"  # 0xEA020000, before the attributes in an inode
_ATTRIBUTE_HEADER = 16  # bytes of an entry before its name
_SYSTEM = 7  # e_name_index of the prefix "system."
_DATA = b"data"


def map_content(blocks: BlockReader, inode: Inode) -> FileMap:
    """Where the content of ``inode`` lies.

    Raises:
        ImageError: it is encrypted (``ext4-unsupported``), or what tells it is damaged.
    """
    if inode.flags & ENCRYPTED:
        raise blocks.unsupported(f"inode {inode.number} is encrypted (feature encrypt)")
    if inode.flags & INLINE_DATA:
        return _map_inline(blocks, inode)
    if inode.size > blocks.size << 32:
        raise blocks.broken(f"inode {inode.number} has an impossible size of {inode.size} bytes")
    content = FileMap(blocks.source, size=inode.size, unit=blocks.size, base=blocks.start)
    for logical, physical, count in _runs(blocks, inode):
        content.add(logical, physical, count)
    return content


def has_blocks(inode: Inode, *, is_reserved: bool) -> bool:
    """Whether ``i_block`` leads to blocks: not for content inside, a device, or a short link.

    A reserved inode may lead to blocks whatever its mode says.
    """
    if inode.flags & INLINE_DATA:
        return False
    if stat.S_ISLNK(inode.mode):
        return inode.size >= BLOCK_FIELD_SIZE or bool(inode.flags & EXTENTS)
    return is_reserved or stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)


def _runs(blocks: BlockReader, inode: Inode) -> Iterator[tuple[int, int, int]]:
    if inode.flags & EXTENTS:
        return ExtentTree(blocks, inode).walk()
    return IndirectMap(blocks, inode).walk()


def _map_inline(blocks: BlockReader, inode: Inode) -> FileMap:
    """Content in ``i_block`` and, if that is too small, in the attribute ``system.data``.

    Kernel documentation, filesystems/ext4/ifork.rst, "Inline Data". A file that was made longer
    without writing has fewer bytes stored than its size; the rest is zero.
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
    """Offset in the inode and size of the value of ``system.data``; zeros without one.

    Kernel documentation, filesystems/ext4/attributes.rst: entries follow the magic, the first
    four bytes behind the last are zero, values count from the first entry.
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
            start = first + int.from_bytes(raw[entry + 2 : entry + 4], "little")
            size = int.from_bytes(raw[entry + 8 : entry + 12], "little")
            if start + size > len(raw) or any(raw[entry + 4 : entry + 8]):
                raise blocks.broken(f"inode {inode.number} has content outside of itself")
            return start, size
        entry += -(-(_ATTRIBUTE_HEADER + name_size) // 4) * 4
    return 0, 0
