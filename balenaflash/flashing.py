"""Stream an image to a medium, flush it, and read it back.

Writing returns the record that verifying needs: a digest of each chunk as it was handed to
the medium.
"""

import mmap
import time
from contextlib import closing
from dataclasses import dataclass

from balenaflash.errors import InterruptedWriteError, WriteError
from balenaflash.extent import format_size
from balenaflash.image.chunks import read_ahead
from balenaflash.image.source import Source
from balenaflash.planning import CHUNK_SIZE, WritePlan
from balenaflash.progress import Phase, Progress, phase
from balenaflash.target.medium import Medium
from balenaflash.verification import ChunkDigest, Stop, compare


@dataclass(frozen=True, slots=True)
class FlashReport:
    """What was done to one target."""

    bytes_written: int
    write_seconds: float
    bytes_read_back: int | None
    """``None`` when the read-back was not asked for."""
    verify_seconds: float | None


def flash(
    source: Source,
    medium: Medium,
    plan: WritePlan,
    *,
    read_back: bool,
    progress: Progress,
    stop: Stop,
) -> FlashReport:
    """Write, flush and, unless told not to, read back and compare.

    Raises:
        WriteError, InterruptedWriteError: as `write_image`.
        VerificationError: all was written, and something else was read.
    """
    started = time.monotonic()
    record = write_image(source, medium, plan, progress, stop)
    written = time.monotonic()
    if not read_back:
        return FlashReport(plan.bytes_written, written - started, None, None)
    medium.begin_read_back()
    comparison = compare(source, medium, plan, record, progress, stop)
    comparison.require_equal(plan, medium.name)
    seconds = time.monotonic() - written
    return FlashReport(plan.bytes_written, written - started, comparison.bytes_read, seconds)


def write_image(
    source: Source, medium: Medium, plan: WritePlan, progress: Progress, stop: Stop
) -> tuple[ChunkDigest, ...]:
    """Write ``source`` to ``medium`` as planned, and flush it.

    Returns the digests of what was handed over, in the order of the plan.

    Raises:
        WriteError: the medium failed, or the source did after writing had begun. The target
            holds part of the image; its head is zeroed, so it does not boot.
        InterruptedWriteError: ``stop`` said so; the same state.
    """
    record = []
    written = 0
    chunks = read_ahead(source, plan.chunks(), largest=CHUNK_SIZE, alignment=medium.alignment)
    with phase(progress, Phase.WRITE, plan.bytes_written), closing(chunks):
        medium.write(plan.wiped.start, _zeros(plan.wiped.size, medium.alignment))
        for chunk in chunks:
            if stop():
                medium.flush()
                raise _interrupted_write(medium, written)
            if chunk.fault is not None:
                raise WriteError(
                    f"{medium.name}: writing stopped after {format_size(written)}, since the image "
                    f"failed: {chunk.fault}; {medium.if_unfinished}",
                    written=written,
                    code="image-failed",
                    hint="Fetch the image again, then write it from the start.",
                ) from chunk.fault
            medium.write(chunk.extent.start, chunk.buffer)
            written += chunk.size
            record.append(ChunkDigest(chunk.extent, chunk.digest))
            progress.advance(chunk.size)
        medium.flush()
    return tuple(record)


def _zeros(size: int, alignment: int) -> memoryview:
    # mmap gives zeroed pages, aligned as O_DIRECT wants them.
    return memoryview(mmap.mmap(-1, -(-size // alignment) * alignment))


def _interrupted_write(medium: Medium, written: int) -> InterruptedWriteError:
    return InterruptedWriteError(
        f"{medium.name}: interrupted after {format_size(written)}; {medium.if_unfinished}",
        written=written,
        hint="Write it again from the start.",
    )
