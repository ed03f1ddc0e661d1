"""The content of an image's bytes: data, zeros, or free in a filesystem.

Only free bytes may be left as they are on a target. Zeros that a filesystem uses, or that lie
where no filesystem is understood, must read back as zeros: holes of a sparse image file are found
inside kernels and databases, too.

Free bytes are those that a sound filesystem reports as free: FAT by its table, ext2 to ext4 by
their block bitmaps. Everything else is in use: the space around partitions, partitions without a
filesystem or with another one (swap, squashfs, LUKS, ...), a damaged filesystem, and the space
after a filesystem's end. An image within a file is a file.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.fsck import Check
from balenaflash.formats.fat.layout import FatLayout, read_layout
from balenaflash.formats.fat.table import FatTable
from balenaflash.formats.fat.window import Window
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.mbr import Chain
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.source.base import Source
from balenaflash.units import KIB, MIB, Extent, align_down, align_up, is_zero

BLOCK_SIZE = 4 * KIB
"""Size in bytes of the blocks whose content is found; each begins at a multiple of it.

The block size of most filesystems, of a page, and of what most media write in one piece.
"""

_GROUP_SIZE = 16 * BLOCK_SIZE
"""Blocks are compared in groups of this size first: a call for each takes longer than comparing."""

_STEP = 128 * MIB
"""Bytes of a stream searched ahead for free ranges: what one ext4 bitmap describes, mostly."""


class Content(StrEnum):
    """The content of bytes, which decides how they get onto a target."""

    DATA = "data"
    """Not all zero: to be written."""

    ZERO = "zero"
    """All zero: to be written, or zeroed by the device."""

    FREE = "free"
    """Unused by any filesystem, whatever the image holds there: need not be written."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of an image with one content."""

    extent: Extent
    content: Content


def classify(
    buffer: memoryview, offset: int, free: Sequence[Extent], *, coarse: bool = False
) -> tuple[Run, ...]:
    """The runs of ``buffer``, which holds the bytes of an image from ``offset`` on.

    They are in order and cover the buffer; neighbours differ in content. ``free`` are the free
    ranges of the image, ascending and disjoint; only whole blocks inside a range and the buffer
    count as free. Two ranges that meet in the middle of a block do not make it a free one. Any
    other block is data if one of its bytes in the buffer is not zero. With ``coarse``, zeros are
    found in groups of 64 KiB only, which takes a fraction of the time.
    """
    runs = []
    pieces = _pieces(buffer, offset, free, coarse=coarse)
    for content, group in groupby(pieces, key=itemgetter(1)):
        extents = [extent for extent, _content in group]
        runs.append(Run(Extent(extents[0].start, extents[-1].end), content))
    return tuple(runs)


def _pieces(
    buffer: memoryview, offset: int, free: Sequence[Extent], *, coarse: bool
) -> Iterator[tuple[Extent, Content]]:
    """The pieces of ``buffer`` in order, each with its content."""
    position, end = offset, offset + len(buffer)
    for extent in free:
        first = align_up(max(extent.start, offset), BLOCK_SIZE)
        last = align_down(min(extent.end, end), BLOCK_SIZE)
        if first < last:
            yield from _used_pieces(buffer, offset, Extent(position, first), coarse=coarse)
            yield Extent(first, last), Content.FREE
            position = last
    yield from _used_pieces(buffer, offset, Extent(position, end), coarse=coarse)


def _used_pieces(
    buffer: memoryview, offset: int, extent: Extent, *, coarse: bool
) -> Iterator[tuple[Extent, Content]]:
    for group in extent.cut(_GROUP_SIZE):
        if is_zero(buffer[group.start - offset : group.end - offset]):
            yield group, Content.ZERO
        elif coarse:
            yield group, Content.DATA
        else:
            for block in group.cut(BLOCK_SIZE):
                zero = is_zero(buffer[block.start - offset : block.end - offset])
                yield block, Content.ZERO if zero else Content.DATA


class FatFreeSpace:
    """The free clusters of a FAT volume, by its table.

    Bad clusters do not count, nor do the bytes after the last cluster, which are in no table.
    """

    def __init__(self, extent: Extent, layout: FatLayout, table: FatTable) -> None:
        self._data_start = extent.start + layout.data_offset
        self._cluster_size = layout.cluster_size
        # A byte for each cluster: a stream that has moved on cannot read the table again.
        self._in_use = b"".join(bytes(map(bool, page)) for _, page in table.pages())

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """Read the tables and the directories of the volume in ``extent`` of ``source``.

        Raises:
            ImageError: there is no valid FAT volume, or its structure has a fault: a file may
                then have clusters that the table calls free.
        """
        window = Window(source, extent)
        layout = read_layout(window)
        table = FatTable(window, layout)
        faults = Check(window, layout, table).faults
        if faults:
            raise ImageError(
                f"{source.name}: the FAT volume at byte {extent.start}: {faults[0].message}",
                code="fat-invalid",
            )
        return cls(extent, layout, table)

    def free_extents(self, within: Extent | None = None) -> Iterator[Extent]:
        """The free ranges of the image inside ``within``, ascending and disjoint.

        Nothing is read.
        """
        size = self._cluster_size
        first, end = 0, len(self._in_use)
        if within is not None:
            first = max(first, (within.start - self._data_start) // size)
            end = min(end, -((self._data_start - within.end) // size))
        while first < end and (start := self._in_use.find(b"\0", first, end)) >= 0:
            used = self._in_use.find(b"\1", start, end)
            first = end if used < 0 else used
            extent = Extent(self._data_start + start * size, self._data_start + first * size)
            cut = extent if within is None else extent.intersection(within)
            if cut is not None:
                yield cut


def open_free_space(source: Source, extent: Extent) -> FatFreeSpace | Ext4Volume | None:
    """The free space of the filesystem in ``extent``; ``None`` if none there is understood.

    Raises:
        ImageError: the filesystem is damaged, was not unmounted, or has unknown features.
    """
    filesystem = recognise_filesystem(source, extent)
    match filesystem.type if filesystem else None:
        case "vfat":
            return FatFreeSpace.open(source, extent)
        case "ext2" | "ext3" | "ext4":
            volume = Ext4Volume.open(source, extent)
            if volume.problems:
                problem = volume.problems[0]
                raise ImageError(problem.message, code=problem.code, hint=problem.hint)
            return volume
        case _:
            return None


class Allocation:
    """The free ranges of an image."""

    def __init__(
        self,
        source: Source,
        table: PartitionTable,
        logical: MutableMapping[int, Partition] | None = None,
    ) -> None:
        """Read nothing yet; ``table`` is the image's own, in which no two partitions overlap.

        Logical partitions that the table of a stream does not list are added to ``logical``, by
        number, when ``free_extents_as_reached`` comes to them.
        """
        self._source = source
        held = [each for each in table.partitions if each.kind is not PartitionKind.EXTENDED]
        self._partitions = sorted(held, key=attrgetter("extent"))
        self._extended = [
            each
            for each in table.partitions
            if each.kind is PartitionKind.EXTENDED and not table.is_complete
        ]
        self._logical = {} if logical is None else logical
        self.faults: dict[int, str] = {}
        """By number of the partition, the reason why all of its filesystem counts as in use.

        Filled while ranges are read.
        """

    def free_extents(self) -> Iterator[Extent]:
        """All free ranges, ascending and disjoint; each filesystem is read as it is reached."""
        for partition in self._partitions:
            try:
                space = open_free_space(self._source, partition.extent)
                if space is not None:
                    yield from space.free_extents(partition.extent)
            except ImageError as error:
                self.faults[partition.number] = str(error)

    def free_extents_as_reached(self) -> Iterator[Extent]:
        """As ``free_extents``, for a stream: nothing is read far ahead of the ranges consumed.

        Empty ranges among them show how far the stream must be read to find the next one.
        Logical partitions that the table does not list are found as they are reached.
        """
        for partition in sorted([*self._partitions, *self._extended], key=attrgetter("extent")):
            if partition.kind is PartitionKind.EXTENDED:
                yield from self._follow(partition, self._reach)
            else:
                yield from self._reach(partition)

    def reach_logical(self) -> Iterator[Extent]:
        """Only the empty ranges, to find the logical partitions as they are reached."""
        for extended in self._extended:
            yield from self._follow(extended, lambda _partition: ())

    def _reach(self, partition: Partition) -> Iterator[Extent]:
        start = partition.extent.start
        yield Extent(start, start)
        try:
            space = open_free_space(self._source, partition.extent)
            if space is None:
                return
            for step in partition.extent.cut(_STEP):
                yield Extent(step.start, step.start)
                yield from space.free_extents(step)
        except ImageError as error:
            self.faults[partition.number] = str(error)

    def _follow(
        self, extended: Partition, reach: Callable[[Partition], Iterable[Extent]]
    ) -> Iterator[Extent]:
        """Find the logical partitions, as long as they and their records ascend.

        ``reach`` returns the ranges of each.
        """
        chain = Chain(self._source, extended.extent)
        position = extended.extent.start
        while chain.next is not None and chain.next >= position:
            position, known = chain.next, len(chain.partitions)
            yield Extent(position, position)
            try:
                chain.step()
            except ImageError as error:
                self.faults[extended.number] = str(error)
                return
            for partition in chain.partitions[known:]:
                if partition.extent.start <= position:
                    return
                self._logical[partition.number] = partition
                yield from reach(partition)
                position = partition.extent.end


class FreeCursor:
    """Free ranges, read piece by piece from the start of an image to its end."""

    def __init__(self, extents: Iterator[Extent]) -> None:
        """Read ``extents``, ascending and disjoint, when they are needed."""
        self._extents = extents
        self._next: Extent | None = next(extents, None)

    def take(self, within: Extent) -> list[Extent]:
        """The free ranges cut to ``within``, which begins at the end of the last one, or later."""
        taken = []
        while self._next is not None and self._next.start < within.end:
            cut = self._next.intersection(within)
            if cut is not None:
                taken.append(cut)
            if self._next.end > within.end:
                break
            self._next = next(self._extents, None)
        return taken
