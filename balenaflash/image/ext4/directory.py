"""Directories of an ext4 filesystem: names and the inodes they stand for.

Kernel documentation, filesystems/ext4/directory.rst. Hashed directories are read like the others,
block by block: their inner nodes look like blocks without entries.
"""

import struct
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.checksum import crc32c
from balenaflash.image.ext4.content import map_content
from balenaflash.image.ext4.inode import BLOCK_FIELD_SIZE, INDEXED, INLINE_DATA, Inode

MAX_DIRECTORY = 64 << 20
"""Bytes of one directory's blocks: over a million names."""

_ENTRY = struct.Struct("<IHB")  # inode, length of the entry, length of the name; then one byte
_NAME = 8  # offset of the name in an entry
_MIN_ENTRY = 12
_TAIL = b"\x00\x00\x00\x00\x0c\x00\x00\xde"  # a fake entry before the checksum of a block
_PARENT_SIZE = 4  # an inline directory starts with the inode of its parent
_LARGE_BLOCK = 65536  # from here on the length of an entry does not fit its 16 bits


class Directory:
    """The names in one directory."""

    def __init__(self, blocks: BlockReader, inode: Inode) -> None:
        self._blocks = blocks
        self._inode = inode

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Each name and the number of its inode, as stored, without ``.`` and ``..``.

        Raises:
            ImageError: the directory is damaged or too large, or the image cannot be read.
        """
        for block in self._read_blocks():
            for name, number in self._entries(block):
                if name not in {b".", b".."}:
                    yield name, number

    def _read_blocks(self) -> Iterator[bytes]:
        content = map_content(self._blocks, self._inode)
        if self._inode.flags & INLINE_DATA:
            stored = content.read(0, content.size)
            yield stored[_PARENT_SIZE:BLOCK_FIELD_SIZE]
            yield stored[BLOCK_FIELD_SIZE:]
            return
        if content.size % self._blocks.size:
            raise self._broken("has a size that is not whole blocks")
        read = 0
        for piece, place in content.runs():
            if place is None:  # the kernel passes over holes too
                continue
            read += piece.size
            if read > MAX_DIRECTORY:
                raise self._broken(f"has more than {MAX_DIRECTORY} bytes")
            for offset in range(piece.start, piece.end, self._blocks.size):
                block = content.read(offset, self._blocks.size)
                self._check(block, offset)
                yield block

    def _check(self, block: bytes, offset: int) -> None:
        """Compare the checksum; inner nodes of the hash have another, and no entries."""
        seed = self._inode.checksum_seed
        if seed is None:
            return
        if self._inode.flags & INDEXED and (offset == 0 or self._is_node(block)):
            return
        tail = len(block) - _MIN_ENTRY
        stored = int.from_bytes(block[-4:], "little")
        if block[tail:-4] != _TAIL or crc32c(seed, block[:tail]) != stored:
            raise self._broken("has a block with a wrong checksum")

    def _is_node(self, block: bytes) -> bool:
        number, length, _name_size = _ENTRY.unpack_from(block)
        return number == 0 and self._length(length) == self._blocks.size

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        position = 0
        while position < len(block):
            if position + _NAME > len(block):
                raise self._broken("has an entry that is cut off")
            number, stored_length, name_size = _ENTRY.unpack_from(block, position)
            length = self._length(stored_length)
            end = position + length
            if length < _MIN_ENTRY or length % 4 or _NAME + name_size > length or end > len(block):
                raise self._broken("has an entry of a wrong length")
            if number and name_size:
                name = block[position + _NAME : position + _NAME + name_size]
                if b"/" in name or b"\0" in name:
                    raise self._broken("has a name that cannot be")
                yield name, number
            position = end

    def _length(self, stored: int) -> int:
        """The length of an entry (``ext4_rec_len_from_disk``, fs/ext4/ext4.h)."""
        if self._blocks.size < _LARGE_BLOCK:
            return stored
        if stored in {0, 0xFFFF}:
            return self._blocks.size
        return stored & 0xFFFC | (stored & 3) << 16

    def _broken(self, fault: str) -> ImageError:
        return self._blocks.broken(f"the directory at inode {self._inode.number} {fault}")
