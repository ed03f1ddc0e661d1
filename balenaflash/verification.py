"""Compare what a medium holds with what it should hold, and say where it differs."""

import mmap
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

from balenaflash.errors import InterruptedWriteError, VerificationError
from balenaflash.extent import SECTOR_SIZE, Extent, format_size
from balenaflash.image.chunks import chunk_digest, read_ahead
from balenaflash.image.source import Source
from balenaflash.planning import CHUNK_SIZE, WritePlan, describe_place
from balenaflash.progress import Phase, Progress, phase
from balenaflash.target.medium import Medium

_DIFFERENCES_KEPT = 1000
"""Ranges told one by one; a wholly different medium would otherwise fill the memory."""

Stop = Callable[[], bool]
"""Asked between two chunks: whether the user wants to stop."""


@dataclass(frozen=True, slots=True)
class ChunkDigest:
    """What a range of the target must hold."""

    extent: Extent
    digest: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """A run of sectors that do not hold what they should."""

    extent: Extent
    """Whole sectors, in bytes from the start of the target."""

    first_byte: int
    """Offset of the first byte that differs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a read-back."""

    bytes_read: int
    differences: tuple[Difference, ...]
    """In order of offset, at most a thousand."""

    difference_count: int
    """All of them, also those not kept."""

    def require_equal(self, plan: WritePlan, medium_name: str) -> None:
        """Return if nothing differs.

        Raises:
            VerificationError: it does; the message names offset, length and partition.
        """
        if not self.differences:
            return
        first = self.differences[0]
        place = describe_place(plan.table, first.first_byte)
        count = self.difference_count
        more = f"; {count} ranges differ in all" if count > 1 else ""
        raise VerificationError(
            f"{medium_name}: differs from the image at byte {first.first_byte} ({place}), "
            f"{format_size(first.extent.size)} of sectors from byte {first.extent.start} on{more}",
            written=plan.bytes_written,
            hint="Write it again; if it differs again, the medium or its reader is failing.",
        )


def verify(
    source: Source, medium: Medium, plan: WritePlan, progress: Progress, stop: Stop
) -> Comparison:
    """Compare ``medium``, past every cache, with ``source``; what lies behind is not looked at.

    Raises:
        VerificationError: the medium is smaller than the image.
        ImageError: the source cannot be read.
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` said so.
    """
    if medium.size < source.size:
        raise VerificationError(
            f"{medium.name}: has {medium.size} bytes, the image {source.size}: they are not equal"
        )
    medium.begin_read_back()
    expected = digests(source, plan, medium.alignment)
    with closing(expected):
        return compare(source, medium, plan, expected, progress, stop)


def digests(source: Source, plan: WritePlan, alignment: int) -> Generator[ChunkDigest]:
    """What a medium of that ``alignment`` should hold, computed from ``source`` as it is read.

    Raises:
        ImageError: the source cannot be read.
    """
    for chunk in read_ahead(source, plan.chunks(), largest=CHUNK_SIZE, alignment=alignment):
        if chunk.fault is not None:
            raise chunk.fault
        yield ChunkDigest(chunk.extent, chunk.digest)


def compare(
    source: Source,
    medium: Medium,
    plan: WritePlan,
    expected: Iterable[ChunkDigest],
    progress: Progress,
    stop: Stop,
) -> Comparison:
    """Read what ``expected`` names from ``medium`` and find where it differs.

    ``source`` is read again only where a digest differs, to find the bytes.

    Raises:
        WriteError: the medium cannot be read.
        InterruptedWriteError: ``stop`` said so; what was written is there, but not proven.
    """
    differences: list[Difference] = []
    count = 0
    done = 0
    whole = mmap.mmap(-1, CHUNK_SIZE)
    with phase(progress, Phase.VERIFY, plan.bytes_written), memoryview(whole) as view:
        for item in expected:
            if stop():
                raise InterruptedWriteError(
                    f"{medium.name}: the read-back was interrupted after {format_size(done)}; "
                    "what it holds is not proven",
                    written=plan.bytes_written,
                )
            buffer = view[: item.extent.size]
            medium.readinto(item.extent.start, buffer)
            if chunk_digest(buffer) != item.digest:
                found = _locate(source, item.extent, buffer)
                count += len(found)
                differences += found[: _DIFFERENCES_KEPT - len(differences)]
            # The last sector may be longer than the image.
            size = min(item.extent.end, plan.image_size) - item.extent.start
            done += size
            progress.advance(size)
            buffer.release()
    return Comparison(done, tuple(sorted(differences, key=_start)), count)


def _start(difference: Difference) -> int:
    return difference.extent.start


def _locate(source: Source, extent: Extent, found: memoryview) -> list[Difference]:
    """The runs of sectors of ``extent`` in which ``found`` is not what ``source`` has."""
    end = min(extent.end, source.size)
    wanted = source.read(extent.start, end - extent.start).ljust(extent.size, b"\0")
    runs: list[Difference] = []
    for at in range(0, extent.size, SECTOR_SIZE):
        sector = bytes(found[at : at + SECTOR_SIZE])
        if sector == wanted[at : at + SECTOR_SIZE]:
            continue
        start = extent.start + at
        if runs and runs[-1].extent.end == start:
            last = runs.pop()
            run = Extent(last.extent.start, start + len(sector))
            runs.append(Difference(run, last.first_byte))
        else:
            first = next(i for i, byte in enumerate(sector) if byte != wanted[at + i])
            runs.append(Difference(Extent(start, start + len(sector)), start + first))
    return runs
