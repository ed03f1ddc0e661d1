"""An ext4 filesystem in one partition of an image, and a file in it as an image of its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Self

from balenaflash.errors import ImageError, Problem
from balenaflash.formats.ext4.allocation import BlockBitmaps
from balenaflash.formats.ext4.content import FileMap, map_content
from balenaflash.formats.ext4.groups import BlockReader, GroupTable
from balenaflash.formats.ext4.inode import EntryKind, Ext4Entry, InodeTable
from balenaflash.formats.ext4.owners import Claims, OwnerSearch
from balenaflash.formats.ext4.superblock import (
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
    format_uuid,
    parse_superblock,
)
from balenaflash.formats.ext4.tree import Ext4Tree
from balenaflash.source.base import RandomAccess, Source
from balenaflash.units import Extent

__all__ = ["EntryKind", "Ext4Entry", "Ext4Volume"]


class Ext4Volume(Ext4Tree):
    """The ext2, ext3 or ext4 filesystem in one partition of an image, read-only."""

    def __init__(self, blocks: BlockReader, superblock: Superblock) -> None:
        groups = GroupTable(blocks, superblock)
        super().__init__(blocks, InodeTable(blocks, superblock, groups))
        self._groups = groups
        self._superblock = superblock
        self._bitmaps = BlockBitmaps(blocks, superblock, groups)

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """The filesystem in the bytes ``extent`` of ``source``, which must stay open.

        It may be smaller than the partition. Only the superblock is read now.

        Raises:
            ImageError: there is none, it is damaged or larger than the partition
                (``ext4-invalid``), or has a feature that cannot be read (``ext4-unsupported``).
        """
        name = f"{source.name}: the ext4 filesystem at byte {extent.start}"
        if extent.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            raise ImageError(f"{name}: there is no room for one", code="ext4-invalid")
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
        """The bytes of the image that it takes; the partition may be larger."""
        return Extent(self._blocks.start, self._blocks.start + self.total_bytes)

    @property
    def source(self) -> Source:
        """The image."""
        return self._blocks.source

    @property
    def label(self) -> str:
        """The label, empty if it has none."""
        return self._superblock.label

    @property
    def uuid(self) -> str:
        """The UUID as ``blkid`` prints it."""
        return format_uuid(self._superblock.uuid)

    @property
    def block_size(self) -> int:
        """In bytes."""
        return self._superblock.block_size

    @property
    def total_bytes(self) -> int:
        """Size of the filesystem, its metadata included."""
        return self._superblock.block_count * self.block_size

    @property
    def free_bytes(self) -> int:
        """Size of all free blocks as the superblock counts them."""
        return self._superblock.free_block_count * self.block_size

    @property
    def needs_recovery(self) -> bool:
        """Whether its journal holds changes: files may be older than what a mount shows."""
        return self._superblock.needs_recovery

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What makes its content doubtful though it can be read; none for a sound filesystem."""
        superblock = self._superblock
        found: list[Problem] = []
        hint = "Run e2fsck on it, or mount and unmount it once."
        if superblock.needs_recovery:
            message = f"{self._blocks.name}: its journal holds changes not yet made"
            found.append(Problem("ext4-needs-recovery", message, hint))
        elif not superblock.is_clean:
            message = f"{self._blocks.name}: was not unmounted"
            found.append(Problem("ext4-not-clean", message, hint))
        if superblock.has_errors:
            message = f"{self._blocks.name}: the kernel found errors in it"
            found.append(Problem("ext4-has-errors", message, "Run e2fsck on it."))
        return tuple(found)

    def free_extents(self, within: Extent | None = None) -> Iterator[Extent]:
        """The bytes of the image that no file, metadata or reserved structure uses.

        In ascending order, disjoint and merged; offsets count from the start of the image, and
        only what lies inside ``within`` is given. Group descriptors are read at the first call,
        a bitmap when the iteration reaches its group. Nothing is called free of a filesystem
        with ``problems``, with ``bigalloc`` or with damaged group descriptors, nor of a group
        whose bitmap is damaged, nor between the filesystem's end and the partition's.

        Raises:
            ImageError: the image cannot be read.
        """
        start = self._blocks.start
        whole = Extent(start, start + self.total_bytes)
        return self._bitmaps.free_extents(whole if within is None else within)

    def claim(self, claims: Claims) -> None:
        """Claim the bytes of files, directories, metadata and free space.

        Raises:
            ImageError: it is damaged, or cannot be read; what was claimed before holds.
        """
        OwnerSearch(
            claims,
            blocks=self._blocks,
            superblock=self._superblock,
            groups=self._groups,
            bitmaps=self._bitmaps,
            inodes=self._inodes,
        ).run(self.walk())

    def map_file(self, entry: Ext4Entry) -> FileMap:
        """Where the content of the file ``entry`` lies.

        Raises:
            ImageError: it is not a file (``not-a-file``), is encrypted, or is damaged.
        """
        if entry.kind is not EntryKind.FILE:
            raise ImageError(f"{self._blocks.name}: {entry.path}: is not a file", code="not-a-file")
        return map_content(self._blocks, self._inodes.read(entry.inode))

    def read_file(self, file: str | Ext4Entry, limit: int) -> bytes:
        """The content of ``file``, a path whose links are followed or what ``find`` gave.

        Raises:
            ImageError: there is nothing (``no-such-file``), it is not a file, has more than
                ``limit`` bytes (``file-too-large``), is encrypted, or is damaged.
        """
        entry = self._require(file) if isinstance(file, str) else file
        content = self.map_file(entry)
        if content.size > limit:
            raise ImageError(
                f"{self._blocks.name}: {entry.path}: has {content.size} bytes, more than {limit}",
                code="file-too-large",
            )
        return content.read(0, content.size)


class Ext4File(RandomAccess):
    """The content of one file, read from the image in place: a ``Source``.

    Where all of it lies is read once, when this is made; 16 bytes of memory for each piece.
    """

    def __init__(self, volume: Ext4Volume, entry: Ext4Entry, name: str) -> None:
        """Take the file ``entry`` of ``volume``, called ``name`` in messages.

        Raises:
            ImageError: it is not a file, is encrypted, damaged, or in too many pieces.
        """
        self._name = name
        self._source = volume.source
        self._partition = volume.extent
        self._entry = entry
        self._content = volume.map_file(entry)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._content.size

    @property
    def seekable(self) -> bool:
        """Whether reading backwards costs no more than forwards: as in the image around it."""
        return self._source.seekable

    def cost(self, offset: int) -> int | None:
        """As the place of the image where that byte of the file lies."""
        for piece, place in self.runs():
            if piece.contains(offset) and place is not None:
                return self._source.cost(place.start + offset - piece.start)
        return 0

    def sequential(self) -> AbstractContextManager[None]:
        """As of the image, if ascending places of the file are ascending places there too."""
        starts = (place.start for _piece, place in self.runs() if place is not None)
        if all(earlier < later for earlier, later in pairwise(starts)):
            return self._source.sequential()
        return nullcontext()

    def fork(self) -> Source | None:
        """The same file in a fork of the image."""
        if self._source.seekable:
            return self
        source = self._source.fork()
        if source is None:
            return None
        return Ext4File(Ext4Volume.open(source, self._partition), self._entry, self._name)

    def finish(self) -> None:
        """Read on to the end of the image."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:  # noqa: ARG002 - the size is known
        """The size; a stream is read to its end and checked before."""
        self._source.finish()
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them.

        Raises:
            ImageError: the file ends before, or the image cannot be read.
        """
        self._require_inside(offset, length)
        return self._content.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, without a copy in between; errors as ``read``."""
        self._require_inside(offset, len(buffer))
        self._content.readinto(offset, buffer)

    def runs(self) -> Iterator[tuple[Extent, Extent | None]]:
        """Each piece of the file in order, and where it lies in the image.

        ``None`` for zeros that are not stored: a hole, or space allocated and never written.
        """
        return self._content.runs()

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ImageError(
                f"{self.name}: ends at byte {self.size},"
                f" but bytes up to {offset + length} are needed",
                code="image-truncated",
            )
