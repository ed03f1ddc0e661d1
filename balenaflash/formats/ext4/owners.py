"""The owner of a byte of an ext4 filesystem: a file, or a part of its metadata.

Offsets in the superblock from the kernel's documentation, filesystems/ext4/super.rst.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import chain, islice

from balenaflash.formats.ext4.allocation import BlockBitmaps
from balenaflash.formats.ext4.content import ExtentTree, IndirectMap, map_content
from balenaflash.formats.ext4.groups import BlockReader, GroupTable
from balenaflash.formats.ext4.inode import (
    BLOCK_FIELD_SIZE,
    EXTENTS,
    INLINE_DATA,
    EntryKind,
    Ext4Entry,
    Inode,
    InodeTable,
    describe,
    kind_of,
)
from balenaflash.formats.ext4.superblock import (
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
)
from balenaflash.units import Extent

MAX_ENTRIES = 300_000
"""Files and directories of one filesystem that are looked at: some seconds' worth."""


class Claims:
    """Offsets, in bytes from the start of the image, and the owner of each in words."""

    def __init__(self, offsets: Iterable[int]) -> None:
        self._offsets = sorted(set(offsets))
        self._found: dict[int, str] = {}
        self._supposed: dict[int, str] = {}

    def claim(self, extent: Extent, owner: str) -> None:
        """Say that ``extent`` belongs to ``owner``, unless something was said of it before."""
        for offset in self._within(extent):
            self._found.setdefault(offset, owner)

    def suppose(self, extent: Extent, owner: str) -> None:
        """As ``claim``, for want of something more exact that may come later."""
        for offset in self._within(extent):
            self._supposed.setdefault(offset, owner)

    @property
    def pending(self) -> list[int]:
        """The offsets that nothing has claimed, in order."""
        return [offset for offset in self._offsets if offset not in self._found]

    @property
    def is_settled(self) -> bool:
        """Whether every offset is claimed."""
        return len(self._found) == len(self._offsets)

    def owners(self) -> dict[int, str]:
        """The owner of each offset of which one is known."""
        return self._supposed | self._found

    def _within(self, extent: Extent) -> list[int]:
        start = bisect_left(self._offsets, extent.start)
        return self._offsets[start : bisect_left(self._offsets, extent.end, start)]


_MAX_GROUPS = 300_000
_MAX_PIECES = 3_000_000
"""Pieces of files and blocks that list them: files that share such blocks have no end of them."""

_NAMED_INODES = (
    (0xE0, "the journal"),  # s_journal_inum
    (0x240, "the quota of users"),  # s_usr_quota_inum
    (0x244, "the quota of groups"),  # s_grp_quota_inum
    (0x26C, "the quota of projects"),  # s_prj_quota_inum
    (0x280, "the orphan file"),  # s_orphan_file_inum
)
"""Offsets in the superblock of numbers of inodes without a name in a directory; 0 for none."""

_COMPATIBLE = 0x5C
_MMP_BLOCK = 0x168
_RESIZE_INODE_FEATURE = 0x10  # bit of s_feature_compat
_RESIZE_INODE = 7
_RESERVED_FOR_GROUPS = "the blocks reserved for group descriptors"
_ATTRIBUTES_LOW, _ATTRIBUTES_HIGH = 0x68, 0x76  # offsets of i_file_acl in an inode; 4, 2 bytes


class OwnerSearch:
    """Claims what belongs to the metadata and the files of one filesystem."""

    def __init__(
        self,
        claims: Claims,
        *,
        blocks: BlockReader,
        superblock: Superblock,
        groups: GroupTable,
        bitmaps: BlockBitmaps,
        inodes: InodeTable,
    ) -> None:
        self._claims = claims
        self._blocks = blocks
        self._superblock = superblock
        self._groups = groups
        self._bitmaps = bitmaps
        self._inodes = inodes
        self._pieces = 0

    def run(self, entries: Iterable[Ext4Entry]) -> None:
        """Claim what can be, the cheap first; ``entries`` are all of the filesystem.

        Raises:
            ImageError: something is damaged; what was claimed before holds.
        """
        steps = (
            self._claim_superblock,
            self._claim_copies,
            self._claim_groups,
            self._claim_free,
            self._claim_reserved,
        )
        for step in steps:
            if self._claims.is_settled:
                return
            step()
        self._claim_entries(entries)

    def _claim_superblock(self) -> None:
        start = self._blocks.start
        self._claims.claim(Extent(start, start + SUPERBLOCK_OFFSET), "the boot sectors")
        end = start + SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE
        self._claims.claim(Extent(start, end), "the superblock")

    def _claim_copies(self) -> None:
        """Superblocks and group descriptors, in those groups that are asked for."""
        for number in self._pending_groups():
            owners = (
                "a backup of the superblock" if number else "the superblock",
                "group descriptors",
                _RESERVED_FOR_GROUPS,
            )
            block = self._superblock.group_blocks(number).start
            for count, owner in zip(self._groups.copied_blocks(number), owners, strict=True):
                self._claim_blocks(block, count, owner)
                block += count

    def _claim_groups(self) -> None:
        for number in range(min(self._superblock.group_count, _MAX_GROUPS)):
            group = self._groups.read(number)
            self._claim_blocks(group.block_bitmap, 1, "a block bitmap")
            self._claim_blocks(group.inode_bitmap, 1, "an inode bitmap")
            count = self._superblock.inode_table_blocks
            # Whose inode it is may turn out later.
            self._claims.suppose(self._place(group.inode_table, count), "an inode table")

    def _claim_free(self) -> None:
        for number in self._pending_groups():
            blocks = self._superblock.group_blocks(number)
            for extent in self._bitmaps.free_extents(self._place(blocks.start, len(blocks))):
                self._claims.claim(extent, "free space")

    def _pending_groups(self) -> list[int]:
        """The groups that hold an offset which nothing has claimed."""
        superblock = self._superblock
        base = self._blocks.offset(superblock.first_block)
        group_size = superblock.blocks_per_group * superblock.block_size
        numbers = {(offset - base) // group_size for offset in self._claims.pending}
        return sorted(number for number in numbers if 0 <= number < superblock.group_count)

    def _claim_reserved(self) -> None:
        raw = self._blocks.source.read(self._blocks.start + SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)
        mmp_block = _number(raw, _MMP_BLOCK, 8)
        if mmp_block:
            self._claim_blocks(mmp_block, 1, "the block against mounting twice (feature mmp)")
        for offset, owner in _NAMED_INODES:
            number = _number(raw, offset, 4)
            if number:
                self._claim_content(self._inodes.read_reserved(number), owner, listing=owner)
        if _number(raw, _COMPATIBLE, 4) & _RESIZE_INODE_FEATURE:
            inode = self._inodes.read_reserved(_RESIZE_INODE)
            self._claim_content(inode, _RESERVED_FOR_GROUPS, listing=_RESERVED_FOR_GROUPS)

    def _claim_entries(self, entries: Iterable[Ext4Entry]) -> None:
        root = describe("/", self._inodes.read(ROOT_INODE))
        seen: set[int] = set()
        for entry in islice(chain([root], entries), MAX_ENTRIES):
            if self._claims.is_settled or self._pieces > _MAX_PIECES:
                return
            if entry.inode not in seen:
                seen.add(entry.inode)
                self._claim_entry(entry)

    def _claim_entry(self, entry: Ext4Entry) -> None:
        inode, owner = self._inodes.read(entry.inode), _name(entry)
        if _has_content(inode):
            sort = "extent tree" if inode.flags & EXTENTS else "indirect blocks"
            self._claim_content(inode, owner, listing=f"the {sort} of {owner}")
        attributes = _number(inode.raw, _ATTRIBUTES_LOW, 4)
        attributes |= _number(inode.raw, _ATTRIBUTES_HIGH, 2) << 32
        if attributes:
            self._claim_blocks(attributes, 1, f"the extended attributes of {owner}")
        place = Extent(inode.offset, inode.offset + len(inode.raw))
        self._claims.claim(place, f"the inode of {owner}")

    def _claim_content(self, inode: Inode, owner: str, *, listing: str) -> None:
        """Claim the content for ``owner``, and the blocks that list its blocks for ``listing``."""
        if inode.flags & INLINE_DATA:
            for _piece, place in map_content(self._blocks, inode).runs():
                if place is not None:
                    self._claims.claim(place, owner)
            return
        sort = ExtentTree if inode.flags & EXTENTS else IndirectMap
        pieces = sort(self._blocks, inode)
        self._claim_runs(pieces.walk(), inode.size, owner)
        for block in pieces.visited:
            self._pieces += 1
            self._claim_blocks(block, 1, listing)

    def _claim_runs(self, runs: Iterable[tuple[int, int, int]], size: int, owner: str) -> None:
        for logical, physical, count in runs:
            self._pieces += 1
            place = self._place(physical, count)
            used = size - logical * self._blocks.size
            middle = place.start + max(0, min(used, place.size))
            self._claims.claim(Extent(place.start, middle), owner)
            self._claims.claim(Extent(middle, place.end), f"the space behind the end of {owner}")

    def _claim_blocks(self, first: int, count: int, owner: str) -> None:
        self._claims.claim(self._place(first, count), owner)

    def _place(self, first: int, count: int) -> Extent:
        return Extent(self._blocks.offset(first), self._blocks.offset(first + count))


def _name(entry: Ext4Entry) -> str:
    match entry.kind:
        case EntryKind.DIRECTORY if entry.path == "/":
            return "the root directory"
        case EntryKind.DIRECTORY:
            return f"the directory {entry.path}"
        case EntryKind.SYMLINK:
            return f"the symbolic link {entry.path}"
        case _:
            return entry.path


def _has_content(inode: Inode) -> bool:
    """Whether it has blocks or content inside: not a device, nor a short link in ``i_block``."""
    kind = kind_of(inode)
    if kind is EntryKind.SYMLINK:
        return inode.size >= BLOCK_FIELD_SIZE or bool(inode.flags & (EXTENTS | INLINE_DATA))
    return kind is not EntryKind.OTHER


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")
