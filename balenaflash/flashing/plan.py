"""What will be written where, in which order, and how much of it is data, zero and free."""

import mmap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from balenaflash.flashing.chunks import CHUNK_SIZE
from balenaflash.formats.contents import BLOCK_SIZE, Allocation, Content, FreeCursor, Run, classify
from balenaflash.formats.partitions.table import (
    Partition,
    PartitionKind,
    PartitionTable,
)
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import Source
from balenaflash.units import MIB, Extent, format_size

HEAD_SIZE = MIB
"""Bytes at the start that are written last: partition table and first boot code."""


@dataclass(frozen=True, slots=True)
class WritePlan:
    """The order in which an image goes to a target."""

    image_size: int | None
    """Bytes of the image; ``None`` of a stream that tells only at its end."""

    table: PartitionTable
    """The image's own table, which gives places their names."""

    free: tuple[Extent, ...] | None = ()
    """What is free in the image's filesystems and need not be written, ascending and disjoint.

    ``None`` of a stream: there it is found out as it passes.
    """

    logical: dict[int, Partition] = field(default_factory=dict, compare=False)
    """Logical partitions by number that the table of a stream does not tell of.

    They are found as it passes.
    """

    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Warnings about the image's partition table and its boot partition."""

    @property
    def partition_starts(self) -> list[tuple[int, int]]:
        """Number and offset of each partition, with the logical ones that were found on the way."""
        partitions = (*self.table.partitions, *self.logical.values())
        return [(each.number, each.extent.start) for each in partitions]

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Those of the table and those found since, without the extended one around them."""
        known = [each for each in self.table.partitions if each.kind is not PartitionKind.EXTENDED]
        return (*known, *self.logical.copy().values())

    @property
    def least_size(self) -> int:
        """Bytes that the image has at least: its size, or how far its table reaches."""
        return self.table.end if self.image_size is None else self.image_size

    @property
    def size_to_write(self) -> int:
        """Bytes that go to the target, as far as that is known before."""
        return self.least_size - sum(
            extent.whole_blocks(BLOCK_SIZE).size for extent in self.free or ()
        )

    @property
    def head(self) -> Extent:
        """Written last, and zeroed before anything else.

        So what was on the target cannot boot half-replaced, nor the image half-written.
        """
        return Extent(0, min(HEAD_SIZE, self.least_size))

    def chunks(self, source: Source, limit: int | None = None) -> Iterator[Extent]:
        """What is written, in this order, cut at multiples of ``CHUNK_SIZE``; the head comes last.

        Before the head ``source`` is measured: what a container says at its end is checked, and
        what lies behind all that the table speaks of is written, too.

        Raises:
            ImageError: as `Source.measure`, with ``limit``.
        """
        yield from self.body(source, limit)
        yield self.head

    def body(self, source: Source, limit: int | None = None) -> Iterator[Extent]:
        """As ``chunks``, without the head."""
        yield from Extent(self.head.end, self.least_size).cut(CHUNK_SIZE)
        # A stream has to get there first, so that it keeps for later what lies behind, and not
        # what was skipped before.
        with source.sequential():
            source.readinto(self.least_size, memoryview(bytearray()))
        yield from Extent(self.least_size, source.measure(limit)).cut(CHUNK_SIZE)

    def free_space(self, source: Source) -> FreeCursor | None:
        """What need not be written; ``None`` where everything is."""
        if self.free:
            return FreeCursor(iter(self.free))
        allocation = Allocation(source, self.table, self.logical)
        if self.free is None:
            return FreeCursor(_behind(self.head, allocation.free_extents_as_reached()))
        # Nothing is free, but partitions are to be known by their numbers.
        return None if self.table.is_complete else FreeCursor(allocation.reach_logical())


def plan_write(
    source: Source,
    table: PartitionTable,
    *,
    warnings: tuple[str, ...] = (),
    write_all: bool = False,
) -> WritePlan:
    """The plan to write ``source``, whose partition table is ``table``, with the head last.

    Raises:
        ImageError: the image cannot be read.
    """
    plan = WritePlan(source.size, table, warnings=warnings)
    # The head is written last, when a stream that can be read only once has passed it.
    source.read(plan.head.start, plan.head.size)
    if write_all:
        return plan
    if not source.seekable:
        return replace(plan, free=None)
    return replace(plan, free=tuple(_behind(plan.head, Allocation(source, table).free_extents())))


def _behind(head: Extent, extents: Iterable[Extent]) -> Iterator[Extent]:
    """Those of ``extents`` behind ``head``, which is always written whole."""
    for extent in extents:
        if extent.end > head.end:
            yield Extent(max(extent.start, head.end), extent.end)


def describe_place(plan: WritePlan, offset: int) -> str:
    """In words, what lies at ``offset`` of the image: a partition, or the space around them."""
    # The extended one last: it is around the logical ones.
    partition = find_partition((*plan.partitions, *plan.table.partitions), offset)
    if partition is None:
        if plan.image_size is not None and offset >= plan.image_size:
            return "past the image, where the backup of a partition table lies"
        return "outside every partition"
    name = f" ({partition.name})" if partition.name else ""
    inside = format_size(offset - partition.extent.start)
    return f"partition {partition.number}{name}, {inside} into it"


def find_partition(partitions: Iterable[Partition], offset: int) -> Partition | None:
    """The first of ``partitions`` that holds the byte at ``offset``; ``None`` outside of all."""
    return next((each for each in partitions if each.extent.contains(offset)), None)


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of bytes of each content."""

    partition: int | None
    """Number of the partition; ``None`` for what lies outside of all."""

    bytes: Mapping[Content, int]


def tally(source: Source, plan: WritePlan, progress: Progress) -> tuple[Tally, ...]:
    """Read all of ``source`` and count; in the order of the partitions, what is outside last.

    Raises:
        ImageError: it cannot be read.
    """
    counts = defaultdict[int | None, Counter[Content]](Counter)
    cursor = plan.free_space(source)
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    with phase(progress, Phase.READ, plan.least_size):
        for extent in chain([plan.head], plan.body(source)):
            free = [] if cursor is None else cursor.take(extent)
            view = buffer[: extent.size]
            with source.sequential():
                source.readinto(extent.start, view)
            for run in classify(view, extent.start, free):
                _count(counts, plan.partitions, run)
            progress.advance(extent.size)
    numbers = [each.number for each in plan.partitions]
    return tuple(Tally(number, dict(counts[number])) for number in (*numbers, None))


def _count(
    counts: Mapping[int | None, Counter[Content]], partitions: Iterable[Partition], run: Run
) -> None:
    """Count ``run`` to the partitions that it lies in."""
    outside = run.extent.size
    for partition in partitions:
        common = partition.extent.intersection(run.extent)
        if common is not None:
            counts[partition.number][run.content] += common.size
            outside -= common.size
    if outside:
        counts[None][run.content] += outside
