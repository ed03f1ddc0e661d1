"""The plan of a write: what is written where, in which order, and how much is data, zero, free."""

import mmap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from balenaflash.flashing.chunks import CHUNK_SIZE
from balenaflash.formats.contents import BLOCK_SIZE, Allocation, Content, FreeCursor, classify
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import Source
from balenaflash.units import MIB, Extent, format_size

HEAD_SIZE = MIB
"""Bytes at the start that are written last: partition table and first boot code."""


@dataclass(frozen=True, slots=True)
class WritePlan:
    """The order in which the bytes of an image are written to a target."""

    image_size: int | None
    """Bytes of the image; ``None`` for a stream whose size is known only at its end."""

    table: PartitionTable
    """The image's own table, which gives places their names."""

    free: tuple[Extent, ...] | None = ()
    """Free ranges of the image's filesystems that are not written, ascending and disjoint.

    ``None`` for a stream: they are found while it is read.
    """

    logical: tuple[Partition, ...] = ()
    """Logical partitions that the table of a stream lacks, found while it was read."""

    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Warnings about the image's partition table and its boot partition."""

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """All known partitions without the extended one, which lies around others."""
        known = [each for each in self.table.partitions if each.kind is not PartitionKind.EXTENDED]
        return (*known, *self.logical)

    @property
    def least_size(self) -> int:
        """The least size of the image: its size, or the end of its last partition."""
        return self.table.end if self.image_size is None else self.image_size

    @property
    def size_to_write(self) -> int:
        """Bytes to write, as far as that is known beforehand."""
        return self.least_size - sum(
            extent.whole_blocks(BLOCK_SIZE).size for extent in self.free or ()
        )

    @property
    def head(self) -> Extent:
        """Range that is zeroed before anything else and written last.

        So neither the target's old content, half replaced, nor half of the image can boot.
        """
        return Extent(0, min(HEAD_SIZE, self.least_size))

    def chunks(self, source: Source, limit: int | None = None) -> Iterator[Extent]:
        """Ranges to write, in this order, cut at multiples of ``CHUNK_SIZE``; the head comes last.

        Before the head ``source`` is measured. So the end of a container is checked, and bytes
        after the last partition are written, too.

        Raises:
            ImageError: as `Source.measure`, with ``limit``.
        """
        yield from self.body(source, limit)
        yield self.head

    def body(self, source: Source, limit: int | None = None) -> Iterator[Extent]:
        """As ``chunks``, without the head."""
        yield from Extent(self.head.end, self.least_size).cut(CHUNK_SIZE)
        # A stream is brought here first: then it keeps what follows for later, and not what was
        # skipped before.
        with source.sequential():
            source.readinto(self.least_size, memoryview(bytearray()))
        yield from Extent(self.least_size, source.measure(limit)).cut(CHUNK_SIZE)

    def free_space(self, source: Source, logical: dict[int, Partition]) -> FreeCursor | None:
        """Cursor over the ranges that are not written; ``None`` if all are.

        When it reaches logical partitions that the table lacks, it adds them to ``logical``, by
        number.
        """
        if self.free:
            return FreeCursor(iter(self.free))
        allocation = Allocation(source, self.table, logical)
        if self.free is None:
            return FreeCursor(_after(self.head, allocation.free_extents_as_reached()))
        # Nothing is free, but the numbers of partitions are needed.
        return None if self.table.is_complete else FreeCursor(allocation.reach_logical())


def plan_write(
    source: Source,
    table: PartitionTable,
    *,
    warnings: tuple[str, ...] = (),
    write_all: bool = False,
) -> WritePlan:
    """The plan to write ``source``, whose partition table is ``table``.

    With ``write_all`` free ranges of its filesystems are written, too.

    Raises:
        ImageError: the image cannot be read.
    """
    plan = WritePlan(source.size, table, warnings=warnings)
    # A stream that can be read only once keeps the head until it is written.
    source.read(plan.head.start, plan.head.size)
    if write_all:
        return plan
    if not source.seekable:
        return replace(plan, free=None)
    return replace(plan, free=tuple(_after(plan.head, Allocation(source, table).free_extents())))


def _after(head: Extent, extents: Iterable[Extent]) -> Iterator[Extent]:
    """The parts of ``extents`` after ``head``, which is always written whole."""
    for extent in extents:
        if extent.end > head.end:
            yield Extent(max(extent.start, head.end), extent.end)


def describe_place(plan: WritePlan, offset: int) -> str:
    """The place of the byte at ``offset`` in words: its partition, or between or after them."""
    # The extended one last: it is around the logical ones.
    for partition in (*plan.partitions, *plan.table.partitions):
        if partition.extent.contains(offset):
            name = f" ({partition.name})" if partition.name else ""
            inside = format_size(offset - partition.extent.start)
            return f"partition {partition.number}{name}, {inside} into it"
    if plan.image_size is not None and offset >= plan.image_size:
        return "past the image, where the backup of a partition table lies"
    return "outside every partition"


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of bytes of each content in a partition."""

    partition: int | None
    """Number of the partition; ``None`` for all bytes outside of partitions."""

    bytes: Mapping[Content, int]


def tally(source: Source, plan: WritePlan, progress: Progress) -> tuple[Tally, ...]:
    """Read all of ``source`` and count: one entry a partition, the last for all outside of them.

    Raises:
        ImageError: the image cannot be read.
    """
    counts = defaultdict[int | None, Counter[Content]](Counter)
    logical: dict[int, Partition] = {}
    cursor = plan.free_space(source, logical)
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    with phase(progress, Phase.READ, plan.least_size):
        for extent in chain([plan.head], plan.body(source)):
            free = [] if cursor is None else cursor.take(extent)
            view = buffer[: extent.size]
            with source.sequential():
                source.readinto(extent.start, view)
            for run in classify(view, extent.start, free):
                outside = run.extent.size
                for partition in (*plan.partitions, *logical.values()):
                    common = partition.extent.intersection(run.extent)
                    if common is not None:
                        counts[partition.number][run.content] += common.size
                        outside -= common.size
                if outside:
                    counts[None][run.content] += outside
            progress.advance(extent.size)
    numbers = [*(each.number for each in plan.partitions), *logical, None]
    return tuple(Tally(number, dict(counts[number])) for number in numbers)
