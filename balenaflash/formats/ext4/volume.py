"""An ext2, ext3 or ext4 filesystem in one partition of an image: its names, files and free space.

Kernel documentation, filesystems/ext4/directory.rst. Hashed directories are read like the others,
block by block: their inner nodes look like blocks without entries.
"""

import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, pairwise
from typing import Self

from balenaflash.errors import ImageError, Problem
from balenaflash.formats.ext4.allocation import BlockBitmaps
from balenaflash.formats.ext4.content import FileMap, find_places, map_content
from balenaflash.formats.ext4.groups import (
    BLOCK_FIELD_SIZE,
    CASEFOLDED,
    ENCRYPTED,
    EXTENTS,
    INDEXED,
    INLINE_DATA,
    BlockReader,
    GroupTable,
    Inode,
    InodeTable,
)
from balenaflash.formats.ext4.superblock import (
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
    crc32c,
    number,
    parse_superblock,
)
from balenaflash.source.base import Source, Wrapped
from balenaflash.units import Extent

_MAX_DIRECTORY = 64 << 20
"""Largest size in bytes of one directory's blocks: over a million names."""

_MAX_DIRECTORIES = 512 << 20
"""Largest size in bytes of the directories of one ``walk`` or ``find``: ten million names."""

_MAX_NAMES = 1 << 20
"""Largest number of names in the answer of ``list``."""

_MAX_LINKS = 40
"""Symbolic links followed for one path, as in the kernel (MAXSYMLINKS, linux/namei.h)."""

_MAX_LINK = 4096
"""Largest size in bytes of a symbolic link's target (PATH_MAX, linux/limits.h)."""

_MAX_DEPTH = 1000
"""Largest number of directories inside each other."""

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
        """Each name and the number of its inode, in the stored order, without ``.`` and ``..``.

        Raises:
            ImageError: the directory is damaged or too large, or the image cannot be read.
        """
        for block in self._read_blocks():
            for name, inode_number in self._entries(block):
                if name not in {b".", b".."}:
                    yield name, inode_number

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
            if place is None:  # the kernel skips holes, too
                continue
            read += piece.size
            if read > _MAX_DIRECTORY:
                raise self._broken(f"has more than {_MAX_DIRECTORY} bytes")
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
        stored = number(block, len(block) - 4, 4)
        if block[tail:-4] != _TAIL or crc32c(seed, block[:tail]) != stored:
            raise self._broken("has a block with a wrong checksum")

    def _is_node(self, block: bytes) -> bool:
        inode_number, length, _name_size = _ENTRY.unpack_from(block)
        return inode_number == 0 and self._length(length) == self._blocks.size

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        position = 0
        while position < len(block):
            if position + _NAME > len(block):
                raise self._broken("has an entry that is cut off")
            inode_number, stored_length, name_size = _ENTRY.unpack_from(block, position)
            length = self._length(stored_length)
            end = position + length
            if length < _MIN_ENTRY or length % 4 or _NAME + name_size > length or end > len(block):
                raise self._broken("has an entry of a wrong length")
            if inode_number and name_size:
                name = block[position + _NAME : position + _NAME + name_size]
                if b"/" in name or b"\0" in name:
                    raise self._broken("has an impossible name")
                yield name, inode_number
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


class EntryKind(StrEnum):
    """The kind of object that a name refers to."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a pipe or a socket."""


@dataclass(frozen=True, slots=True)
class Ext4Entry:
    """A name in an ext4 filesystem and the object that it refers to."""

    path: str
    """Absolute path in the filesystem, without symbolic links before the last name; bytes that
    are not UTF-8 are decoded as by ``os.fsdecode``."""

    kind: EntryKind
    size: int
    """Bytes of content: of a link's target, or of a directory's blocks."""

    inode: int
    """Number of the inode; two names of one file have the same."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
}


def _describe(path: str, inode: Inode) -> Ext4Entry:
    """The entry at ``path`` for ``inode``."""
    kind = _KINDS.get(stat.S_IFMT(inode.mode), EntryKind.OTHER)
    return Ext4Entry(path, kind, inode.size, inode.number)


class Ext4Volume:
    """The ext2, ext3 or ext4 filesystem in one partition of an image, read-only."""

    def __init__(self, blocks: BlockReader, superblock: Superblock) -> None:
        groups = GroupTable(blocks, superblock)
        self._blocks = blocks
        self._superblock = superblock
        self._inodes = InodeTable(groups)
        self._bitmaps = BlockBitmaps(groups)

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """The filesystem in the bytes ``extent`` of ``source``, which must stay open.

        It may be smaller than the partition. Only the superblock is read now.

        Raises:
            ImageError: there is no filesystem, it is damaged or larger than the partition
                (``ext4-invalid``), or has a feature that cannot be read (``ext4-unsupported``).
        """
        name = f"{source.name}: the ext4 filesystem at byte {extent.start}"
        if extent.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            fact = f"the partition of {extent.size} bytes is too small for it"
            raise ImageError(f"{name}: {fact}", code="ext4-invalid")
        data = source.read(extent.start + SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)
        superblock = parse_superblock(data, extent.size, name)
        blocks = BlockReader(
            source,
            name,
            start=extent.start,
            size=superblock.block_size,
            count=superblock.block_count,
        )
        return cls(blocks, superblock)

    @property
    def extent(self) -> Extent:
        """The bytes of the image in the filesystem; the partition may be larger."""
        return self._blocks.extent(0, self._blocks.count)

    @property
    def source(self) -> Source:
        """The image."""
        return self._blocks.source

    @property
    def total_bytes(self) -> int:
        """Size of the filesystem in bytes, its metadata included."""
        return self.extent.size

    @property
    def free_bytes(self) -> int:
        """Size of all free blocks in bytes, by the count in the superblock."""
        return self._superblock.free_block_count * self._blocks.size

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Reasons why its content is doubtful though it can be read; none if it is sound."""
        name, superblock = self._blocks.name, self._superblock
        found: list[Problem] = []
        hint = "Run e2fsck on it, or mount and unmount it once."
        if superblock.needs_recovery:
            message = f"{name}: its journal holds changes that are not in place yet"
            found.append(Problem("ext4-needs-recovery", message, hint))
        elif not superblock.is_clean:
            found.append(Problem("ext4-not-clean", f"{name}: was not unmounted", hint))
        if superblock.has_errors:
            message = f"{name}: the kernel found errors in it"
            found.append(Problem("ext4-has-errors", message, "Run e2fsck on it."))
        return tuple(found)

    def free_extents(self, within: Extent | None = None) -> Iterator[Extent]:
        """The bytes of the image that no file, metadata or reserved structure uses.

        In ascending order, disjoint and merged; offsets count from the start of the image, and
        only bytes inside ``within`` are reported. Group descriptors are read at the first call, a
        bitmap when the iteration reaches its group.

        Nothing counts as free in a filesystem with ``problems``, with ``bigalloc`` or with
        damaged group descriptors, in a group whose bitmap is damaged, or between the end of the
        filesystem and that of the partition.

        Raises:
            ImageError: the image cannot be read.
        """
        return self._bitmaps.free_extents(self.extent if within is None else within)

    def find(self, path: str, *, follow: bool = True) -> Ext4Entry | None:
        """The entry at the absolute ``path``; symbolic links are followed inside the filesystem.

        The path of the entry has no links in it. With ``follow`` false, a link that is the last
        name is itself the answer. ``None`` if there is nothing, also for a link to nothing or in
        a circle.

        Raises:
            ImageError: a directory on the way is damaged or encrypted, or it ignores the case of
                names (feature casefold) and has no name in this one.
        """
        links = read = 0
        names = path.split("/")[::-1]  # those still to be followed, the next one last
        trail = [self._root()]  # directories from the root on; the last may be another entry
        while names:
            read += trail[-1].size
            if read > _MAX_DIRECTORIES:
                raise self._blocks.broken(f"{path[:60]} leads through too many directories")
            if not self._step(trail, names.pop()):
                return None
            if trail[-1].kind is EntryKind.SYMLINK and (follow or any(names)):
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = self.read_link(trail.pop())
                names += target.split("/")[::-1]
                if target.startswith("/"):
                    del trail[1:]
        return trail[-1]

    def _root(self) -> Ext4Entry:
        return _describe("/", self._inodes.read(ROOT_INODE))

    def _step(self, trail: list[Ext4Entry], name: str) -> bool:
        """Follow ``name`` in the last directory of ``trail``; false if there is nothing."""
        directory = trail[-1]
        if directory.kind is not EntryKind.DIRECTORY:
            return False
        if name == "..":
            del trail[max(1, len(trail) - 1) :]
        elif name not in {"", "."}:
            entry = self._look_up(directory, name)
            if entry is None:
                return False
            trail.append(entry)
        return True

    def _look_up(self, directory: Ext4Entry, name: str) -> Ext4Entry | None:
        inode = self._inodes.read(directory.inode)
        wanted = name.encode("utf-8", "surrogateescape")
        for stored, inode_number in Directory(self._blocks, inode).names():
            if stored == wanted:
                return self._child(directory, stored, inode_number)
        if inode.flags & CASEFOLDED:
            raise self._blocks.unsupported(
                f"the directory at inode {inode.number} ignores the case of names"
                " (feature casefold), which is not supported"
            )
        return None

    def _child(self, directory: Ext4Entry, name: bytes, inode_number: int) -> Ext4Entry:
        path = f"{directory.path.rstrip('/')}/{name.decode('utf-8', 'surrogateescape')}"
        return _describe(path, self._inodes.read(inode_number))

    def _children(self, directory: Ext4Entry) -> Iterator[Ext4Entry]:
        inode = self._inodes.read(directory.inode)
        for name, inode_number in Directory(self._blocks, inode).names():
            yield self._child(directory, name, inode_number)

    def list(self, path: str = "/") -> tuple[Ext4Entry, ...]:
        """The entries of the directory at ``path``, in the order they are stored.

        Raises:
            ImageError: there is nothing (``no-such-file``), it is not a directory
                (``not-a-directory``), or it is damaged or encrypted.
        """
        directory = self._require(path)
        if directory.kind is not EntryKind.DIRECTORY:
            raise self._refusal(path, "is not a directory", "not-a-directory")
        entries = tuple(islice(self._children(directory), _MAX_NAMES + 1))
        if len(entries) > _MAX_NAMES:
            raise self._blocks.unsupported(f"{path} holds more than {_MAX_NAMES} names")
        return entries

    def walk(self) -> Iterator[Ext4Entry]:
        """All entries below the root, a directory before its own; links are not followed.

        Raises:
            ImageError: a directory is damaged, encrypted, or inside itself.
        """
        root = self._root()
        seen = {ROOT_INODE}
        left = min(_MAX_DIRECTORIES, self.total_bytes) - root.size
        waiting = [self._children(root)]
        while waiting:
            child = next(waiting[-1], None)
            if child is None:
                waiting.pop()
                continue
            yield child
            if child.kind is EntryKind.DIRECTORY:
                if child.inode in seen or len(waiting) > _MAX_DEPTH:
                    raise self._blocks.broken(
                        f"{child.path[:60]} is a directory in two places, or inside itself,"
                        " or too deep"
                    )
                left -= child.size
                if left < 0:
                    raise self._blocks.broken("its directories are larger than possible")
                seen.add(child.inode)
                waiting.append(self._children(child))

    def read_link(self, entry: Ext4Entry) -> str:
        """The target of the symbolic link ``entry``, as it is stored.

        Raises:
            ImageError: it is not a link (``not-a-link``), is encrypted, or is damaged.
        """
        if entry.kind is not EntryKind.SYMLINK:
            raise self._refusal(entry.path, "is not a symbolic link", "not-a-link")
        inode = self._inodes.read(entry.inode)
        if inode.size > _MAX_LINK:
            raise self._blocks.broken(f"inode {inode.number}: a link of {inode.size} bytes")
        # A short target is in i_block, where the flags show that nothing else is.
        is_elsewhere = inode.flags & (EXTENTS | INLINE_DATA | ENCRYPTED)
        if inode.size < BLOCK_FIELD_SIZE and not is_elsewhere:
            target = inode.block_field[: inode.size]
        else:
            target = map_content(self._blocks, inode).read(0, inode.size)
        return target.split(b"\0")[0].decode("utf-8", "surrogateescape")

    def extents(self, entry: Ext4Entry) -> Iterator[Extent]:
        """The bytes of the image allocated to ``entry``: for content, and for lists of its blocks.

        They include the rest of the last block, and blocks that were never written.

        Raises:
            ImageError: the entry is damaged.
        """
        return find_places(self._blocks, self._inodes.read(entry.inode))

    def map_file(self, entry: Ext4Entry) -> FileMap:
        """The map of the content of the file ``entry``.

        Raises:
            ImageError: it is not a file (``not-a-file``), is encrypted, or is damaged.
        """
        if entry.kind is not EntryKind.FILE:
            raise self._refusal(entry.path, "is not a file", "not-a-file")
        return map_content(self._blocks, self._inodes.read(entry.inode))

    def read_file(self, file: str | Ext4Entry, limit: int) -> bytes:
        """The content of ``file``, an entry or a path whose links are followed.

        Raises:
            ImageError: there is nothing (``no-such-file``), it is not a file, has more than
                ``limit`` bytes (``file-too-large``), is encrypted, or is damaged.
        """
        entry = self._require(file) if isinstance(file, str) else file
        content = self.map_file(entry)
        if content.size > limit:
            fact = f"has {content.size} bytes, more than {limit}"
            raise self._refusal(entry.path, fact, "file-too-large")
        return content.read(0, content.size)

    def _require(self, path: str) -> Ext4Entry:
        entry = self.find(path)
        if entry is None:
            raise self._refusal(path, "no such file", "no-such-file")
        return entry

    def _refusal(self, path: str, fact: str, code: str) -> ImageError:
        return ImageError(f"{self._blocks.name}: {path}: {fact}", code=code)


class Ext4File(Wrapped):
    """The content of one file as a source of its own, read from the image in place.

    The map of the file is read once, at the start; it takes 16 bytes of memory for each piece.
    """

    def __init__(self, volume: Ext4Volume, entry: Ext4Entry, name: str) -> None:
        """Map the file ``entry`` of ``volume``, called ``name`` in messages.

        Raises:
            ImageError: it is not a file, is encrypted, damaged, or in too many pieces.
        """
        super().__init__(volume.source)
        self._name = name
        self._partition = volume.extent
        self._entry = entry
        self._content = volume.map_file(entry)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._content.size

    def cost(self, offset: int) -> int | None:
        for piece, place in self.runs():
            if piece.contains(offset) and place is not None:
                return self._source.cost(place.start + offset - piece.start)
        return 0

    def sequential(self) -> AbstractContextManager[None]:
        """As that of the image, if the pieces of the file ascend in the image, too."""
        starts = (place.start for _piece, place in self.runs() if place is not None)
        if all(earlier < later for earlier, later in pairwise(starts)):
            return self._source.sequential()
        return nullcontext()

    def fork(self) -> Source | None:
        if self._source.seekable:
            return self
        source = self._source.fork()
        if source is None:
            return None
        return Ext4File(Ext4Volume.open(source, self._partition), self._entry, self._name)

    def measure(self, limit: int | None = None) -> int:  # noqa: ARG002 - the size is known
        self._source.finish()
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        self._require_inside(offset, length)
        return self._content.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._require_inside(offset, len(buffer))
        self._content.readinto(offset, buffer)

    def runs(self) -> Iterator[tuple[Extent, Extent | None]]:
        """The pieces of the file in order, and their places in the image.

        ``None`` for zeros that are not stored: a hole, or space that was never written.
        """
        return self._content.runs()

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ImageError(
                f"{self.name}: ends at byte {self.size},"
                f" but bytes up to {offset + length} are needed",
                code="image-truncated",
            )
