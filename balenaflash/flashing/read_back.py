"""Compare what a medium holds with what it should hold, and name what differs."""

import mmap
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from balenaflash.errors import InterruptedWriteError, VerificationError
from balenaflash.flashing.chunks import CHUNK_SIZE, Chunk, ChunkRecord, pieces_digest
from balenaflash.flashing.feed import ChunkQueue, Feeds
from balenaflash.flashing.plan import WritePlan, describe_place
from balenaflash.flashing.writer import read_spans
from balenaflash.formats.contents import BLOCK_SIZE
from balenaflash.formats.owners import describe_owner
from balenaflash.progress import Phase, Progress, Stop, phase
from balenaflash.source.base import Source
from balenaflash.targets.medium import Medium
from balenaflash.units import SECTOR_SIZE, Extent, align_up, format_size


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A run of sectors that do not hold what they should."""

    extent: Extent
    """Whole sectors, in bytes from the start of the target."""

    first_byte: int
    """Offset of the first byte that differs."""

    reads_zeros: bool
    """Whether the sectors hold nothing but zeros."""


def find_differences(
    record: ChunkRecord, wanted: memoryview, found: memoryview
) -> tuple[Difference, ...]:
    """The runs of sectors in the pieces of ``record`` where ``found`` is not ``wanted``.

    Both hold the record's extent; of its last sector only the image's own bytes count.
    """
    runs: list[Difference] = []
    base = record.extent.start
    for piece in record.pieces:
        for block in piece.extent.cut(BLOCK_SIZE):
            start, end = block.start - base, block.end - base
            if bytes(wanted[start:end]) != bytes(found[start:end]):
                for sector in block.cut(SECTOR_SIZE):
                    _compare_sector(runs, sector, base, wanted, found)
    return tuple(runs)


def _compare_sector(
    runs: list[Difference], sector: Extent, base: int, wanted: memoryview, found: memoryview
) -> None:
    one = bytes(wanted[sector.start - base : sector.end - base])
    other = bytes(found[sector.start - base : sector.end - base])
    if one == other:
        return
    zeros = not any(other)
    # The last sector of an image may be shorter; what differs is a sector all the same.
    end = align_up(sector.end, SECTOR_SIZE)
    if runs and runs[-1].extent.end == sector.start:
        last = runs.pop()
        merged = Extent(last.extent.start, end)
        runs.append(Difference(merged, last.first_byte, last.reads_zeros and zeros))
        return
    first = next(index for index, byte in enumerate(other) if byte != one[index])
    runs.append(Difference(Extent(sector.start, end), sector.start + first, zeros))


_DIFFERENCES_KEPT = 1000
"""Ranges told one by one; a wholly different medium would otherwise fill the memory."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of comparing a target with an image."""

    bytes_read: int
    differences: tuple[Difference, ...]
    """In order of offset, at most a thousand."""

    difference_count: int
    """All of them, also those not kept."""

    def require_equal(self, source: Source, plan: WritePlan, medium_name: str) -> None:
        """Return if nothing differs.

        ``source`` is what was compared with, still open.

        Raises:
            VerificationError: it does; the message names offset, length, partition and file.
        """
        if self.differences:
            raise differs(source, plan, medium_name, self.differences, self.difference_count)


def differs(
    source: Source | None,
    plan: WritePlan,
    medium_name: str,
    differences: Sequence[Difference],
    count: int,
    *,
    written: int = 0,
    pattern: str | None = None,
) -> VerificationError:
    """The error that names the first of ``differences``, of which there are ``count``.

    ``source`` tells which file it lies in; ``None`` where the image cannot be read again.
    """
    first = differences[0]
    place = describe_place(plan, first.first_byte)
    if source is not None:
        owner = describe_owner(source, plan.partitions, first.first_byte)
        place = place if owner is None else f"{place}: {owner}"
    more = f"; {count} ranges differ in all" if count > 1 else ""
    if pattern is None and all(each.reads_zeros for each in differences):
        pattern = "it reads zeros"
    told = f"; {pattern}" if pattern else ""
    return VerificationError(
        f"{medium_name}: differs from the image at byte {first.first_byte} ({place}), "
        f"{format_size(first.extent.size)} of sectors from byte {first.extent.start} on"
        f"{more}{told}",
        written=written,
        hint="Do not use it: it may start, with a wrong image. Write it again; if it differs "
        "again, the medium or its reader is failing.",
    )


def verify(
    source: Source, medium: Medium, plan: WritePlan, progress: Progress, stop: Stop
) -> Comparison:
    """Compare ``medium``, past every cache, with ``source``; what lies behind is not looked at.

    What is free in the image's filesystems is compared only if the plan writes it.

    Raises:
        VerificationError: the medium is smaller than the image.
        ImageError: the source cannot be read.
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` said so.
    """
    if medium.size < plan.least_size:
        raise _too_small(medium, f"{plan.least_size} bytes")
    medium.begin_read_back()
    with Feeds(source, plan, limit=medium.size) as feeds:
        comparer = _Comparer(medium, plan, progress, stop)
        feeds.start([comparer.queue])
        with phase(progress, Phase.VERIFY, plan.least_size):
            return comparer.compare_all()


class _Comparer:
    """Compares the chunks of an image with a medium as they come."""

    def __init__(self, medium: Medium, plan: WritePlan, progress: Progress, stop: Stop) -> None:
        self.queue = ChunkQueue()
        self._medium = medium
        self._plan = plan
        self._progress = progress
        self._stop = stop
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        self._differences: list[Difference] = []
        self._count = 0
        self._done = 0

    def compare_all(self) -> Comparison:
        for chunk, release in self.queue.chunks(self._stop):
            stop_if_asked(self._stop, self._medium, self._done)
            if chunk is not None:
                self._compare(chunk)
            release()
        return Comparison(self._done, tuple(sorted(self._differences)), self._count)

    def _compare(self, chunk: Chunk) -> None:
        fault, record = chunk.fault, chunk.record
        if fault is not None and fault.code != "image-too-large":
            raise fault
        if fault is not None or record.extent.end > self._medium.size:
            raise _too_small(self._medium, "more") from fault
        self._done += record.size
        if record.pieces and not reads_right(self._medium, record, self._buffer):
            if reads_right(self._medium, record, self._buffer):
                self._medium.rereads.differing += 1
            else:
                self._note(chunk)
        self._progress.advance(record.extent.size)

    def _note(self, chunk: Chunk) -> None:
        """Keep where the buffer is not as ``chunk``."""
        found = find_differences(chunk.record, chunk.buffer, self._buffer)
        self._count += len(found)
        self._differences += found[: _DIFFERENCES_KEPT - len(self._differences)]


def read_back(
    medium: Medium,
    records: Sequence[ChunkRecord],
    progress: Progress,
    stop: Stop,
    *,
    written: int,
    requests: int,
) -> list[ChunkRecord]:
    """Read what ``records`` name from ``medium``, ``requests`` of them at a time.

    Returned are those that it does not hold.

    Raises:
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` said so; what was written is there, but not proven.
    """
    total = sum(record.size for record in records)
    buffers = queue.SimpleQueue[memoryview]()
    for _ in range(requests):
        buffers.put(memoryview(mmap.mmap(-1, CHUNK_SIZE)))

    def holds(record: ChunkRecord) -> bool:
        buffer = buffers.get()
        try:
            return reads_right(medium, record, buffer)
        finally:
            buffers.put(buffer)

    differing: list[ChunkRecord] = []
    done = 0
    pending = deque[tuple[Future[bool], ChunkRecord]]()
    waiting = iter([record for record in records if record.pieces])
    with phase(progress, Phase.VERIFY, total), ThreadPoolExecutor(requests, "read") as pool:
        while True:
            while len(pending) <= requests and (record := next(waiting, None)) is not None:
                pending.append((pool.submit(holds, record), record))
            if not pending:
                return differing
            stop_if_asked(stop, medium, done, written=written)
            future, record = pending.popleft()
            if not future.result():
                differing.append(record)
            done += record.size
            progress.advance(record.size)


def reads_right(medium: Medium, record: ChunkRecord, buffer: memoryview) -> bool:
    """Whether ``medium`` holds ``record``; what it holds is in ``buffer`` then.

    Raises:
        WriteError: the medium cannot be read.
    """
    read_spans(medium, record, buffer)
    return digest_in(record, buffer) == record.digest


def digest_in(record: ChunkRecord, buffer: memoryview) -> bytes:
    """The digest of the record's pieces as they are in ``buffer``, which holds its extent."""
    return pieces_digest(record.pieces, buffer, record.extent.start)


def _too_small(medium: Medium, image: str) -> VerificationError:
    return VerificationError(
        f"{medium.name}: has {medium.size} bytes, the image {image}: they are not equal"
    )


def stop_if_asked(stop: Stop, medium: Medium, done: int, *, written: int = 0) -> None:
    """Return unless ``stop`` says to end the read-back, of which ``done`` bytes were read.

    Raises:
        InterruptedWriteError: it does.
    """
    if stop():
        raise InterruptedWriteError(
            f"{medium.name}: the read-back was interrupted after {format_size(done)}; "
            "what it holds is not proven",
            written=written,
        )
