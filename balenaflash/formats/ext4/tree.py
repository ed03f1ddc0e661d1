"""Directories of an ext4 filesystem, and paths followed through them.

Kernel documentation, filesystems/ext4/directory.rst. Hashed directories are read like the others,
block by block: their inner nodes look like blocks without entries.
"""

import struct
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.content import map_content
from balenaflash.formats.ext4.groups import BlockReader
from balenaflash.formats.ext4.inode import (
    BLOCK_FIELD_SIZE,
    CASEFOLDED,
    ENCRYPTED,
    EXTENTS,
    INDEXED,
    INLINE_DATA,
    EntryKind,
    Ext4Entry,
    Inode,
    InodeTable,
    describe,
    kind_of,
)
from balenaflash.formats.ext4.superblock import ROOT_INODE, crc32c

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


MAX_LINKS = 40
"""Symbolic links followed for one path, as in the kernel (MAXSYMLINKS, linux/namei.h)."""

MAX_LINK = 4096
"""Bytes of a symbolic link's target (PATH_MAX, linux/limits.h)."""

MAX_NAMES = 1 << 20
"""Names of one directory that ``list`` gives."""

MAX_DIRECTORIES = 512 << 20
"""Bytes of all directories of one ``walk`` or ``find``: as many as ten million names have."""

_MAX_DEPTH = 1000
"""Directories inside each other."""

_Trail = list[tuple[str, Inode]]
"""Directories from the root on, each with its name, and last perhaps something else."""


class Ext4Tree:
    """Reading by name: every error is an ``ImageError``."""

    def __init__(self, blocks: BlockReader, inodes: InodeTable) -> None:
        self._blocks = blocks
        self._inodes = inodes

    def find(self, path: str, *, follow: bool = True) -> Ext4Entry | None:
        """What is at the absolute ``path``; symbolic links are followed inside the filesystem.

        The entry's own path has no links in it. With ``follow`` false, a link that is the last
        name is itself the answer. ``None`` if there is nothing, also for a link that leads
        nowhere or in a circle.

        Raises:
            ImageError: what is on the way is damaged, encrypted, or a directory that takes
                names in any case (feature casefold) and has none in this one.
        """
        links = read = 0
        names = path.split("/")[::-1]  # those still to be taken, the next one last
        trail = [("", self._inodes.read(ROOT_INODE))]
        while names:
            read += trail[-1][1].size
            if read > MAX_DIRECTORIES:
                raise self._blocks.broken(f"{path[:60]} leads through too many directories")
            inode = self._step(trail, names.pop())
            if inode is None:
                return None
            if kind_of(inode) is EntryKind.SYMLINK and (follow or any(names)):
                links += 1
                if links > MAX_LINKS:
                    return None
                target = self._read_link(inode)
                names += target.split("/")[::-1]
                trail = trail[:1] if target.startswith("/") else trail[:-1]
        return _describe_last(trail)

    def list(self, path: str = "/") -> tuple[Ext4Entry, ...]:
        """What the directory at ``path`` holds, in the order it is stored.

        Raises:
            ImageError: there is nothing (``no-such-file``), it is no directory
                (``not-a-directory``), or it is damaged or encrypted.
        """
        entry = self._require(path)
        if entry.kind is not EntryKind.DIRECTORY:
            raise ImageError(
                f"{self._blocks.name}: {path}: is not a directory", code="not-a-directory"
            )
        entries = []
        for child in self._children(entry):
            entries.append(child)
            if len(entries) > MAX_NAMES:
                raise self._blocks.unsupported(f"{path} holds more than {MAX_NAMES} names")
        return tuple(entries)

    def walk(self) -> Iterator[Ext4Entry]:
        """All that the filesystem holds, a directory before what is in it; links not followed.

        Raises:
            ImageError: a directory is damaged, encrypted, or inside itself.
        """
        root = describe("/", self._inodes.read(ROOT_INODE))
        seen = {ROOT_INODE}
        left = min(MAX_DIRECTORIES, self._blocks.count * self._blocks.size) - root.size
        waiting = [self._children(root)]
        while waiting:
            child = next(waiting[-1], None)
            if child is None:
                waiting.pop()
                continue
            yield child
            if child.kind is EntryKind.DIRECTORY:
                left -= child.size
                self._require_new(child, seen, depth=len(waiting), left=left)
                waiting.append(self._children(child))

    def read_link(self, entry: Ext4Entry) -> str:
        """The target of the symbolic link ``entry``, as it is stored.

        Raises:
            ImageError: it is not a link (``not-a-link``), is encrypted, or is damaged.
        """
        if entry.kind is not EntryKind.SYMLINK:
            raise ImageError(
                f"{self._blocks.name}: {entry.path}: is not a symbolic link", code="not-a-link"
            )
        return self._read_link(self._inodes.read(entry.inode))

    def _require(self, path: str) -> Ext4Entry:
        entry = self.find(path)
        if entry is None:
            raise ImageError(f"{self._blocks.name}: {path}: no such file", code="no-such-file")
        return entry

    def _step(self, trail: _Trail, name: str) -> Inode | None:
        """Go from the last directory of ``trail`` to ``name`` in it, and add that to ``trail``."""
        directory = trail[-1][1]
        if kind_of(directory) is not EntryKind.DIRECTORY:
            return None
        if name in {"", "."}:
            return directory
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            return trail[-1][1]
        number = self._look_up(directory, name.encode("utf-8", "surrogateescape"))
        if number is None:
            return None
        inode = self._inodes.read(number)
        trail.append((name, inode))
        return inode

    def _look_up(self, directory: Inode, wanted: bytes) -> int | None:
        for name, number in Directory(self._blocks, directory).names():
            if name == wanted:
                return number
        if directory.flags & CASEFOLDED:
            raise self._blocks.unsupported(
                f"the directory at inode {directory.number} takes names in any case"
                " (feature casefold), which is not supported"
            )
        return None

    def _children(self, directory: Ext4Entry) -> Iterator[Ext4Entry]:
        parent = directory.path.rstrip("/")
        inode = self._inodes.read(directory.inode)
        for name, number in Directory(self._blocks, inode).names():
            path = f"{parent}/{name.decode('utf-8', 'surrogateescape')}"
            yield describe(path, self._inodes.read(number))

    def _require_new(self, entry: Ext4Entry, seen: set[int], *, depth: int, left: int) -> None:
        if entry.inode in seen or depth > _MAX_DEPTH:
            raise self._blocks.broken(
                f"{entry.path[:60]} is a directory in two places, or inside itself, or too deep"
            )
        if left < 0:
            raise self._blocks.broken("its directories are larger than can be")
        seen.add(entry.inode)

    def _read_link(self, inode: Inode) -> str:
        if inode.size > MAX_LINK:
            raise self._blocks.broken(f"inode {inode.number}: a link of {inode.size} bytes")
        # A short target is in the inode itself; the flag tells an extent tree from that.
        is_elsewhere = inode.flags & (EXTENTS | INLINE_DATA | ENCRYPTED)
        if inode.size < BLOCK_FIELD_SIZE and not is_elsewhere:
            target = inode.block_field[: inode.size]
        else:
            target = map_content(self._blocks, inode).read(0, inode.size)
        return target.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _describe_last(trail: _Trail) -> Ext4Entry:
    path = "/".join(name for name, _inode in trail)
    return describe(path or "/", trail[-1][1])
