"""An ext4 filesystem in one partition of an image: found, listed and read."""

from collections.abc import Iterator
from typing import Self

from balenaflash.errors import ImageError, Problem
from balenaflash.extent import Extent
from balenaflash.image.claims import Claims
from balenaflash.image.ext4.allocation import BlockBitmaps
from balenaflash.image.ext4.blocks import BlockReader
from balenaflash.image.ext4.content import map_content
from balenaflash.image.ext4.entry import EntryKind, Ext4Entry
from balenaflash.image.ext4.file_map import FileMap
from balenaflash.image.ext4.groups import GroupTable
from balenaflash.image.ext4.inode import InodeTable
from balenaflash.image.ext4.owner import OwnerSearch
from balenaflash.image.ext4.superblock import (
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
    format_uuid,
    parse_superblock,
)
from balenaflash.image.ext4.tree import Ext4Tree
from balenaflash.image.source import Source

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
