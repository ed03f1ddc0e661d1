"""What will be written where, chunk by chunk, and how much of it is data, zero and free."""

import mmap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import xxhash

from balenaflash.errors import ImageError
from balenaflash.formats.contents import BLOCK_SIZE, Allocation, Content, FreeCursor, Run, classify
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import Source
from balenaflash.targets.medium import Medium
from balenaflash.units import KIB, MIB, Extent, align_up, format_size, merge

CHUNK_SIZE = 4 * MIB
"""Bytes per chunk: large enough for a medium's full speed, and balenaOS aligns to it."""

_SMALLEST_ZEROS = 64 * KIB
"""Bytes of zeros below which a separate request takes longer than writing them."""

_SMALLEST_GAP = 16 * KIB
"""Free bytes below which one more request takes longer than writing them."""

_LARGEST_REREAD = 256 * KIB
"""Free bytes up to which reading them, too, is faster than one more request."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a chunk that a target must hold."""

    extent: Extent
    """Range in bytes from the start of the image.

    It starts at a multiple of 4 KiB or, past the image, of a sector.
    """

    is_zero: bool
    """True if all of it is zero: a device can zero such a range itself."""


@dataclass(frozen=True, slots=True)
class ChunkDigest:
    """The pieces of a chunk, and a digest to compare a target with."""

    extent: Extent
    """Range in bytes from the start of the image, at most ``CHUNK_SIZE`` long."""

    pieces: tuple[Piece, ...]
    """Ascending and disjoint. In the gaps between them a target may hold anything."""

    xxh3: bytes
    """XXH3 128 of the pieces, one after another; empty if nothing is going to be compared."""

    @property
    def size(self) -> int:
        """Bytes that the target must hold."""
        return sum(piece.extent.size for piece in self.pieces)

    def hash(self, buffer: memoryview) -> bytes:
        """XXH3 128 of the pieces as they are in ``buffer``, which holds the extent.

        It finds accidents, not forgeries, at the speed of memory.
        """
        base = self.extent.start
        hasher = xxhash.xxh3_128()
        for piece in self.pieces:
            hasher.update(buffer[piece.extent.start - base : piece.extent.end - base])
        return hasher.digest()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an image on its way to a target."""

    number: int
    """Position among the chunks, from 0."""

    digest: ChunkDigest

    buffer: memoryview
    """The bytes of the digest's extent, then zeros up to a multiple of 4 KiB; page-aligned."""

    fault: ImageError | None = None
    """Error at which reading the image ended here; the digest is then empty."""


def make_digest(
    extent: Extent, buffer: memoryview, runs: Iterable[Run], *, has_digest: bool
) -> ChunkDigest:
    """The digest of the chunk at ``extent``, whose bytes are in ``buffer``."""
    digest = ChunkDigest(extent, _merge_runs(runs), b"")
    return replace(digest, xxh3=digest.hash(buffer)) if has_digest else digest


def _merge_runs(runs: Iterable[Run]) -> tuple[Piece, ...]:
    """The data and zeros of ``runs`` in few requests, with hardly a byte more.

    Short runs of zeros are written with the data beside them, short free ranges with what is
    around them.
    """
    pieces: list[Piece] = []
    for run in runs:
        if run.content is Content.FREE:
            continue
        extent = run.extent
        is_zero = run.content is Content.ZERO and extent.size >= _SMALLEST_ZEROS
        if (
            pieces
            and pieces[-1].is_zero == is_zero
            and extent.start - pieces[-1].extent.end < _SMALLEST_GAP
        ):
            extent = Extent(pieces.pop().extent.start, extent.end)
        pieces.append(Piece(extent, is_zero))
    return tuple(pieces)


def read_pieces(medium: Medium, digest: ChunkDigest, buffer: memoryview) -> None:
    """Read the pieces of ``digest`` from ``medium`` to their places in ``buffer``.

    Short gaps between them are read, too.

    Raises:
        WriteError: the medium cannot be read.
    """
    for span in merge((piece.extent for piece in digest.pieces), gap=_LARGEST_REREAD):
        start = span.start - digest.extent.start
        medium.readinto(span.start, buffer[start : start + align_up(span.size, medium.alignment)])


def holds(medium: Medium, digest: ChunkDigest, buffer: memoryview) -> bool:
    """True if ``medium`` holds the pieces of ``digest``; ``buffer`` has what was read.

    Raises:
        WriteError: the medium cannot be read.
    """
    read_pieces(medium, digest, buffer)
    return digest.hash(buffer) == digest.xxh3


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
