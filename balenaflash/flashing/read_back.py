"""Compare what a medium holds with what it should hold, and name the differences."""

import mmap
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from balenaflash.errors import InterruptedWriteError, VerificationError
from balenaflash.flashing.feed import Feed
from balenaflash.flashing.plan import (
    CHUNK_SIZE,
    Chunk,
    ChunkDigest,
    WritePlan,
    describe_place,
    holds,
)
from balenaflash.formats.contents import BLOCK_SIZE
from balenaflash.formats.owners import describe_owner
from balenaflash.progress import Phase, Progress, Stop, phase
from balenaflash.source.base import Source
from balenaflash.targets.medium import Medium
from balenaflash.units import SECTOR_SIZE, Extent, align_up, format_size

MOST_DIFFERENCES = 1000
"""Differences that are kept; all those of a wholly different medium would fill the memory."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A run of sectors that do not hold what they should."""

    extent: Extent
    """Whole sectors, in bytes from the start of the target."""

    first_byte: int
    """Offset of the first byte that differs."""

    reads_zeros: bool
    """True if the sectors hold nothing but zeros."""


def find_differences(
    digest: ChunkDigest, wanted: memoryview, found: memoryview
) -> tuple[Difference, ...]:
    """The runs of sectors in the pieces of ``digest`` where ``found`` is not ``wanted``.

    Both hold the digest's extent. In its last sector only the image's own bytes count.
    """
    base = digest.extent.start

    def both(extent: Extent) -> tuple[bytes, bytes]:
        part = slice(extent.start - base, extent.end - base)
        return bytes(wanted[part]), bytes(found[part])

    runs: list[Difference] = []
    for block in (block for piece in digest.pieces for block in piece.extent.cut(BLOCK_SIZE)):
        one, other = both(block)
        for sector in block.cut(SECTOR_SIZE) if one != other else ():
            one, other = both(sector)
            if one == other:
                continue
            # The last sector of an image may be shorter; the whole sector differs all the same.
            end, is_zero = align_up(sector.end, SECTOR_SIZE), not any(other)
            if runs and runs[-1].extent.end == sector.start:
                last = runs.pop()
                extent = Extent(last.extent.start, end)
                runs.append(Difference(extent, last.first_byte, last.reads_zeros and is_zero))
            else:
                first = next(index for index, byte in enumerate(other) if byte != one[index])
                runs.append(Difference(Extent(sector.start, end), sector.start + first, is_zero))
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of comparing a target with an image."""

    plan: WritePlan
    """The plan, with the logical partitions that were found while comparing."""

    bytes_read: int
    differences: tuple[Difference, ...]
    """The first ``MOST_DIFFERENCES`` found, in order of offset."""

    difference_count: int
    """Number of all differences."""

    def require_equal(self, source: Source, medium_name: str) -> None:
        """Return if nothing differs.

        ``source`` is the image that was compared, still open.

        Raises:
            VerificationError: names offset, length, partition and file of the first difference.
        """
        if self.differences:
            raise differs(source, self.plan, medium_name, self.differences, self.difference_count)


def differs(
    source: Source | None,
    plan: WritePlan,
    medium_name: str,
    differences: Sequence[Difference],
    count: int,
    *,
    pattern: str | None = None,
) -> VerificationError:
    """The error that names the first of ``differences``, of which there are ``count``.

    ``source`` is read to find the file at that place; ``None`` if the image cannot be read again.
    """
    first = differences[0]
    place = describe_place(plan, first.first_byte)
    if source is not None:
        owner = describe_owner(source, plan.partitions, first.first_byte)
        place = place if owner is None else f"{place}: {owner}"
    more = f"; {count} ranges differ in all" if count > 1 else ""
    if pattern is None and all(each.reads_zeros for each in differences):
        pattern = "it reads zeros"
    cause = f"; {pattern}" if pattern else ""
    return VerificationError(
        f"{medium_name}: differs from the image at byte {first.first_byte} ({place}): "
        f"{format_size(first.extent.size)} from byte {first.extent.start}{more}{cause}",
        hint="Do not use it: it may start with a wrong image. Write it again. If it differs "
        "again, the medium or its reader is failing.",
    )


def verify(
    source: Source, medium: Medium, plan: WritePlan, progress: Progress, stop: Stop
) -> Comparison:
    """Compare ``medium``, read past every cache, with ``source``, up to the end of the image.

    Free ranges of the image's filesystems are compared only if the plan writes them.

    Raises:
        VerificationError: the medium is smaller than the image.
        ImageError: the source cannot be read.
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` returned true.
    """
    if medium.size < plan.least_size:
        raise _too_small(medium, f"at least {plan.least_size} bytes")
    medium.begin_read_back()
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    differences: list[Difference] = []
    done = count = 0
    with (
        Feed(source, plan, 1, limit=medium.size) as feed,
        phase(progress, Phase.VERIFY, plan.least_size),
    ):
        for chunk, release in feed.queues[0].chunks(stop):
            stop_if_asked(stop, medium, done)
            if chunk is not None:
                found = _compare(medium, chunk, buffer)
                count += len(found)
                differences += found[: MOST_DIFFERENCES - len(differences)]
                done += chunk.digest.size
                progress.advance(chunk.digest.extent.size)
            release()
    return Comparison(feed.plan, done, tuple(sorted(differences)), count)


def _compare(medium: Medium, chunk: Chunk, buffer: memoryview) -> tuple[Difference, ...]:
    """The differences between ``chunk`` and what ``medium`` reads twice."""
    fault, digest = chunk.fault, chunk.digest
    if fault is not None and fault.code != "image-too-large":
        raise fault
    if fault is not None or digest.extent.end > medium.size:
        raise _too_small(medium, "more") from fault
    if not digest.pieces or holds(medium, digest, buffer):
        return ()
    if holds(medium, digest, buffer):
        medium.rereads.differing += 1
        return ()
    return find_differences(digest, chunk.buffer, buffer)


def _too_small(medium: Medium, image: str) -> VerificationError:
    return VerificationError(
        f"{medium.name}: is smaller than the image: it has {medium.size} bytes, the image {image}"
    )


def read_back(
    medium: Medium,
    digests: Sequence[ChunkDigest],
    progress: Progress,
    stop: Stop,
    requests: int,
) -> list[ChunkDigest]:
    """Read the chunks of ``digests`` from ``medium``, ``requests`` of them at a time.

    Returned are those that the medium does not hold.

    Raises:
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` returned true; what was written is not proven.
    """
    buffers = queue.SimpleQueue[memoryview]()
    for _ in range(requests):
        buffers.put(memoryview(mmap.mmap(-1, CHUNK_SIZE)))

    def is_held(digest: ChunkDigest) -> bool:
        buffer = buffers.get()
        try:
            return holds(medium, digest, buffer)
        finally:
            buffers.put(buffer)

    total = sum(digest.size for digest in digests)
    differing: list[ChunkDigest] = []
    done = 0
    pending = deque[tuple[Future[bool], ChunkDigest]]()
    waiting = iter([digest for digest in digests if digest.pieces])
    with phase(progress, Phase.VERIFY, total), ThreadPoolExecutor(requests, "read") as pool:
        while True:
            while len(pending) <= requests and (digest := next(waiting, None)) is not None:
                pending.append((pool.submit(is_held, digest), digest))
            if not pending:
                return differing
            stop_if_asked(stop, medium, done)
            future, digest = pending.popleft()
            if not future.result():
                differing.append(digest)
            done += digest.size
            progress.advance(digest.size)


def stop_if_asked(stop: Stop, medium: Medium, done: int) -> None:
    """Return unless ``stop`` returns true, after ``done`` bytes of the read-back.

    Raises:
        InterruptedWriteError: it did.
    """
    if stop():
        raise InterruptedWriteError(
            f"{medium.name}: the read-back was interrupted after {format_size(done)}; "
            "what it holds is not proven"
        )
