"""Which bytes of an image no file and no structure of a filesystem in it uses.

A filesystem is taken at its own word, and only where that is sound: FAT by its table, ext2 to
ext4 by their block bitmaps. Everything else is in use: what lies outside partitions, partitions
without a filesystem or with one that is not understood (swap, squashfs, LUKS, ...), a damaged
filesystem, and what lies behind a filesystem's end. An image within a file is a file.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Protocol, Self

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.check import Check
from balenaflash.formats.fat.layout import FatLayout, read_layout
from balenaflash.formats.fat.table import FatTable
from balenaflash.formats.fat.window import Window
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.mbr import Chain
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.source.base import Source
from balenaflash.units import MIB, Extent

_STEP = 128 * MIB
"""Bytes of a stream looked ahead for free ranges: as many as one ext4 bitmap tells of, mostly."""


class FreeSpace(Protocol):
    """What a filesystem says of its unused blocks."""

    def free_extents(self, within: Extent | None = None) -> Iterator[Extent]:
        """The free ranges, in bytes of the image, ascending and disjoint; cut to ``within``.

        Raises:
            ImageError: the filesystem proves damaged; what was yielded before holds.
        """


class FatFreeSpace:
    """The free clusters of a FAT volume, by its table.

    Bad clusters are none, nor are the bytes behind the last cluster, which no table speaks of.
    """

    def __init__(self, extent: Extent, layout: FatLayout, table: FatTable) -> None:
        self._data_start = extent.start + layout.data_offset
        self._layout = layout
        # A byte a cluster: when a stream has gone on, the table is not read again.
        self._in_use = b"".join(bytes(map(bool, page)) for _, page in table.pages())

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """Read the tables and the directories of the volume in ``extent`` of ``source``.

        Raises:
            ImageError: there is no valid FAT volume, or anything is wrong with its structure:
                a file may then have clusters that the table calls free.
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
        """As `FreeSpace`; nothing is read."""
        size = self._layout.cluster_size
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


def _open_ext4(source: Source, extent: Extent) -> Ext4Volume:
    """The filesystem, if its bitmaps are true: those of one that was in use may be old."""
    volume = Ext4Volume.open(source, extent)
    if volume.problems:
        problem = volume.problems[0]
        raise ImageError(problem.message, code=problem.code, hint=problem.hint)
    return volume


_READERS: dict[str, Callable[[Source, Extent], FreeSpace]] = {
    "vfat": FatFreeSpace.open,
    "ext2": _open_ext4,
    "ext3": _open_ext4,
    "ext4": _open_ext4,
}
"""Name of a filesystem, as ``recognise_filesystem`` returns it, to what understands it."""


def open_free_space(source: Source, extent: Extent) -> FreeSpace | None:
    """What the filesystem in ``extent`` says is free; ``None`` if none there is understood.

    Raises:
        ImageError: it is damaged, or uses features that are not known.
    """
    filesystem = recognise_filesystem(source, extent)
    reader = None if filesystem is None else _READERS.get(filesystem.type)
    return None if reader is None else reader(source, extent)


class Allocation:
    """The free ranges of an image."""

    def __init__(
        self,
        source: Source,
        table: PartitionTable,
        logical: MutableMapping[int, Partition] | None = None,
    ) -> None:
        """Read nothing yet; ``table`` is the image's own, in which no two partitions overlap.

        ``logical`` takes the logical partitions that a table of a stream does not tell of, by
        number, when ``free_extents_as_reached`` comes to them.
        """
        self._source = source
        self._partitions = filesystem_partitions(table)
        self._logical = {} if logical is None else logical
        self._extended = [
            each
            for each in table.partitions
            if each.kind is PartitionKind.EXTENDED and not table.is_complete
        ]
        self.faults: dict[int, str] = {}
        """By number of the partition, why its filesystem could not be taken at its word.

        Filled while ranges are asked for.
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
        """As ``free_extents``, for a stream: nothing is read far ahead of what is asked for.

        Empty ranges among them say how far the next one needs the image to have been read.
        Logical partitions that the table does not tell of are found as they are reached.
        """
        for partition in sorted([*self._partitions, *self._extended], key=_extent_of):
            if partition.kind is PartitionKind.EXTENDED:
                yield from self._follow(partition, self._reach)
            else:
                yield from self._reach(partition)

    def reach_logical(self) -> Iterator[Extent]:
        """Only the empty ranges, to find the logical partitions as they are reached."""
        for extended in self._extended:
            yield from self._follow(extended, lambda _partition: ())

    def _reach(self, partition: Partition) -> Iterator[Extent]:
        start, end = partition.extent.start, partition.extent.end
        yield Extent(start, start)
        try:
            space = open_free_space(self._source, partition.extent)
            while space is not None and start < end:
                yield Extent(start, start)
                stop = min((start // _STEP + 1) * _STEP, end)
                yield from space.free_extents(Extent(start, stop))
                start = stop
        except ImageError as error:
            self.faults[partition.number] = str(error)

    def _follow(
        self, extended: Partition, reach: Callable[[Partition], Iterable[Extent]]
    ) -> Iterator[Extent]:
        """Find the logical partitions, for as long as they and their records ascend.

        ``reach`` gives the ranges of each.
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
    """Free ranges, asked for piece by piece from the start of an image to its end."""

    def __init__(self, extents: Iterator[Extent]) -> None:
        """Take them from ``extents``, ascending and disjoint, when they are needed."""
        self._extents = extents
        self._next: Extent | None = next(extents, None)

    def take(self, within: Extent) -> list[Extent]:
        """The free ranges cut to ``within``, which begins where the one before ended, or later."""
        taken = []
        while self._next is not None and self._next.start < within.end:
            cut = self._next.intersection(within)
            if cut is not None:
                taken.append(cut)
            if self._next.end > within.end:
                break
            self._next = next(self._extents, None)
        return taken


def _extent_of(partition: Partition) -> Extent:
    return partition.extent


def filesystem_partitions(table: PartitionTable) -> list[Partition]:
    """The partitions that may hold a filesystem, in their order in the image."""
    held = [each for each in table.partitions if each.kind is not PartitionKind.EXTENDED]
    return sorted(held, key=lambda partition: partition.extent)
