"""The content of an inode, by whichever of three ways it is stored."""

import stat
from collections.abc import Iterator

from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.extents import ExtentTree
from balenaflash.image.ext4.file_map import FileMap
from balenaflash.image.ext4.indirect import IndirectMap
from balenaflash.image.ext4.inode import (
    BLOCK_FIELD,
    BLOCK_FIELD_SIZE,
    ENCRYPTED,
    EXTENTS,
    INLINE_DATA,
    OLD_SIZE,
    Inode,
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
