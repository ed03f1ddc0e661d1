"""Write the chunks of an image to one target, and flush it."""

import mmap
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from balenaflash.errors import ImageError, ImageFailedError, InterruptedWriteError, WriteError
from balenaflash.flashing.chunks import (
    CHUNK_SIZE,
    Chunk,
    ChunkRecord,
    make_record,
    pieces_digest,
    record_bytes,
    spans,
)
from balenaflash.flashing.disk_end import plan_end
from balenaflash.flashing.feed import ChunkQueue, Release, released_on_failure
from balenaflash.flashing.plan import WritePlan
from balenaflash.formats.contents import classify
from balenaflash.progress import Progress, Stop
from balenaflash.source.layers import Patch, lay_over
from balenaflash.targets.medium import Begun, Medium
from balenaflash.units import Extent, align_up, format_size


@dataclass(frozen=True, slots=True)
class Written:
    """What was handed to a target."""

    records: tuple[ChunkRecord, ...]
    """Chunks of the image that were written, in that order."""

    equal: tuple[ChunkRecord, ...]
    """What the target held before, read from the medium, and was not written."""

    past: tuple[ChunkRecord, ...]
    """What was written past the image."""

    patches: tuple[Patch, ...]
    """Bytes that the target holds in place of those of the image, or past it; in order."""

    image_size: int
    """Bytes of the image."""

    wiped: tuple[Extent, ...] = ()
    """Sectors past the image that held the backup of another table."""

    @property
    def size(self) -> int:
        """Bytes of the image that were written or zeroed."""
        return sum(record.size for record in self.records)

    @property
    def unproven(self) -> tuple[ChunkRecord, ...]:
        """What was not read since the last byte was written.

        A write may land anywhere on a medium that is not what it claims to be. What was equal
        before the last one is not known to be so after it.
        """
        written = (*self.records, *self.past)
        return (*written, *self.equal) if any(each.pieces for each in written) else ()


@dataclass(frozen=True, slots=True)
class _Request:
    """A chunk on its way to a medium."""

    future: Future[bool]
    chunk: Chunk
    release: Release


@dataclass(slots=True)
class Writer:
    """One target's part of the work, in a thread of its own."""

    medium: Medium
    plan: WritePlan
    queue: ChunkQueue
    progress: Progress
    stop: Stop
    requests: int
    """Chunks on their way to the medium at a time."""

    skips_equal: bool = False
    patches: tuple[Patch, ...] = ()
    """Bytes that this target holds in place of those of the image, or past it; in order."""

    _requests: deque[_Request] = field(default_factory=deque)
    _capacity: int = 0
    _accepted: int = 0
    """Bytes of chunks that the medium has taken wholly."""

    _shown: int = 0
    _records: list[ChunkRecord] = field(default_factory=list)
    _equal: list[ChunkRecord] = field(default_factory=list)
    _image_size: int = 0
    _past: list[ChunkRecord] = field(default_factory=list)
    _wiped: tuple[Extent, ...] = ()
    _wiping: threading.Lock = field(default_factory=threading.Lock)
    _is_wiped: bool = False
    _begun: Begun = Begun.NOTHING

    def write_all(self) -> Written:
        """Write every chunk of the queue, the head last and after a flush, and flush.

        Raises:
            ImageError: the image failed before anything was written.
            ImageFailedError: it failed later. The target holds part of it; its head is zeroed,
                so it does not boot.
            WriteError: the medium failed, or is smaller than the image; the same state.
            InterruptedWriteError: ``stop`` said so; the same state.
        """
        # Asked once: of a file the room shrinks as it is written.
        self._capacity = self.medium.capacity
        try:
            with ThreadPoolExecutor(self.requests, "write") as pool:
                try:
                    self._write_chunks(pool)
                finally:
                    self._abandon()
            self.medium.flush()
        except InterruptedWriteError:
            raise
        except WriteError as error:
            raise self._failure(str(error), error.code, error.hint) from error
        except ImageError as error:
            raise self._image_failure(error) from error
        return Written(
            tuple(self._records),
            tuple(self._equal),
            tuple(self._past),
            self.patches,
            self._image_size,
            self._wiped,
        )

    def _write_chunks(self, pool: ThreadPoolExecutor) -> None:
        for chunk, release in self.queue.chunks(self.stop):
            if chunk is None or self.stop():
                release()
                raise self._interruption()
            with released_on_failure(release):
                self._require_sound(chunk)
                if chunk.record.extent.start < self.plan.head.end:
                    self._settle(0)
                    self._write_end()
                    self.medium.flush()
                patched = self._patched(chunk)
                future = pool.submit(self._write, patched)
            self._requests.append(_Request(future, patched, release))
            self._settle(self.requests - 1)
        self._settle(0)

    def _patched(self, chunk: Chunk) -> Chunk:
        """``chunk`` as this target is to hold it; the buffer is shared with other targets."""
        extent = chunk.record.extent
        if not any(extent.overlaps(patch.extent) for patch in self.patches):
            return chunk
        # mmap gives zeroed pages, aligned as O_DIRECT wants them. Of a free chunk nothing was read.
        buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        buffer[: len(chunk.buffer)] = chunk.buffer
        lay_over(self.patches, extent.start, buffer[: extent.size])
        runs = classify(buffer[: extent.size], extent.start, (), coarse=True)
        return Chunk(chunk.number, make_record(extent, buffer, runs, has_digest=True), buffer)

    def _write_end(self) -> None:
        """Write what is to lie past the image, whose size is known now."""
        end = plan_end(self.medium, self.patches, max(self._image_size, self.plan.least_size))
        self._wiped = end.wiped
        for patch in end.patches:
            record = record_bytes(patch.offset, patch.data)
            if self.skips_equal and self._is_equal(record):
                self._equal.append(record)
                continue
            if self._begun is Begun.NOTHING:
                self._begun = Begun.PART
            self._past.append(record)
            buffer = memoryview(mmap.mmap(-1, len(patch.data)))
            buffer[:] = patch.data
            self.medium.write(patch.offset, buffer)

    def _require_sound(self, chunk: Chunk) -> None:
        """Raise unless ``chunk`` is a part of the image, and fits."""
        if chunk.fault is not None:
            raise chunk.fault
        if chunk.record.extent.end > self._capacity:
            raise self._too_small()

    def _interruption(self) -> InterruptedWriteError:
        self._settle(0)
        self.medium.flush()
        return InterruptedWriteError(
            f"{self.medium.name}: interrupted after {format_size(self._accepted)}; {self._state}",
            written=self._accepted,
            hint="Write it again from the start.",
        )

    def _image_failure(self, fault: ImageError) -> ImageError | WriteError:
        if fault.code == "image-too-large":
            error = self._too_small()
            return self._failure(str(error), error.code, error.hint)
        if self._begun is Begun.NOTHING and not self.medium.was_emptied:
            return fault
        return ImageFailedError(
            f"{self.medium.name}: writing stopped after {format_size(self._accepted)}, "
            f"since the image failed: {fault}; {self._state}",
            written=self._accepted,
            hint=fault.hint or "Fetch the image again, then write it from the start.",
        )

    def _too_small(self) -> WriteError:
        size = self._capacity
        return WriteError(
            f"{self.medium.name}: is too small: it has room for {size} bytes "
            f"({format_size(size)}), and the image has more",
            code="target-too-small",
            hint="Choose a larger one: a compressed image may tell its size only at its end.",
        )

    def _failure(self, fact: str, code: str, hint: str | None) -> WriteError:
        written = f"{format_size(self._accepted)} had been written, " if self._accepted else ""
        return WriteError(
            f"{fact}; {written}{self._state}",
            written=self._accepted,
            code=code,
            hint=hint,
        )

    @property
    def _state(self) -> str:
        """What the target is now, as the end of a sentence."""
        return self.medium.describe_unfinished(self._begun)

    def _settle(self, left: int) -> None:
        """Wait until at most ``left`` requests are on their way."""
        while len(self._requests) > left:
            was_equal = self._requests[0].future.result()
            request = self._requests.popleft()
            request.release()
            record = request.chunk.record
            self._image_size = max(self._image_size, record.extent.end)
            if was_equal:
                self._equal.append(record)
            else:
                self._records.append(record)
                self._accepted += record.size
                if record.size:
                    self._begun = Begun.PART
            self._show(record)

    def _show(self, record: ChunkRecord) -> None:
        # Of a stream nobody knows beforehand how much of it is free. And short gaps between data
        # are written, too, which nobody has counted.
        done = record.extent.size if self.plan.free is None else record.size
        done = min(done, self.plan.size_to_write - self._shown)
        if done > 0:
            self._shown += done
            self.progress.advance(done)

    def _abandon(self) -> None:
        """Give back the buffers of requests whose outcome nobody waits for, when they end."""
        while self._requests:
            request = self._requests.popleft()
            wait([request.future])
            request.release()

    def _write(self, chunk: Chunk) -> bool:
        """Write what must be; whether the medium held it already."""
        record = chunk.record
        if record.pieces:
            if self.skips_equal and self._is_equal(record):
                return True
            self._wipe_head()
        for piece in record.pieces:
            start = piece.extent.start - record.extent.start
            length = align_up(piece.extent.size, self.medium.alignment)
            if piece.is_zero:
                self.medium.zero(piece.extent.start, length)
            else:
                self.medium.write(piece.extent.start, chunk.buffer[start : start + length])
        return False

    def _wipe_head(self) -> None:
        """Zero the head before anything else changes, once: half an image must not boot."""
        with self._wiping:
            if not self._is_wiped:
                size = align_up(self.plan.head.size, self.medium.alignment)
                # mmap gives zeroed pages, aligned as O_DIRECT wants them.
                self._is_wiped = True
                self._begun = Begun.FIRST_WRITE
                self.medium.write(self.plan.head.start, memoryview(mmap.mmap(-1, size)))
                # Should it be pulled out now, its cache must not have kept this for later.
                self.medium.flush()
                self._begun = Begun.START_ZEROED

    def _is_equal(self, record: ChunkRecord) -> bool:
        buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        read_spans(self.medium, record, buffer)
        return pieces_digest(record.pieces, buffer, record.extent.start) == record.digest


def read_spans(medium: Medium, record: ChunkRecord, buffer: memoryview) -> int:
    """Read what ``record`` speaks of to its place in ``buffer``; how many bytes were read.

    Raises:
        WriteError: the medium cannot be read.
    """
    count = 0
    for span in spans(record.pieces):
        start = span.start - record.extent.start
        length = align_up(span.size, medium.alignment)
        medium.readinto(span.start, buffer[start : start + length])
        count += length
    return count
