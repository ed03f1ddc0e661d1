"""Write the chunks of an image to one target, and flush it."""

import mmap
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from balenaflash.errors import ImageError, ImageFailedError, InterruptedWriteError, WriteError
from balenaflash.flashing.disk_end import plan_end
from balenaflash.flashing.feed import ChunkQueue, Release
from balenaflash.flashing.plan import CHUNK_SIZE, Chunk, ChunkDigest, WritePlan, holds, make_digest
from balenaflash.formats.contents import Content, Run, classify
from balenaflash.progress import Progress, Stop
from balenaflash.source.layers import Patch, lay_over
from balenaflash.targets.medium import Begun, Medium
from balenaflash.units import Extent, align_up, format_size


@dataclass(frozen=True, slots=True)
class Written:
    """Record of what was written to a target."""

    digests: tuple[ChunkDigest, ...]
    """Chunks of the image that were written, in that order."""

    equal: tuple[ChunkDigest, ...]
    """Chunks that the target held already, read from the medium, and that were not written."""

    past: tuple[ChunkDigest, ...]
    """Chunks that were written past the image."""

    patches: tuple[Patch, ...]
    """Bytes that the target holds in place of the image's, or past the image; in order."""

    image_size: int
    wiped: tuple[Extent, ...] = ()
    """Sectors past the image that held the backup of another partition table."""

    @property
    def size(self) -> int:
        """Bytes of the image that were written or zeroed."""
        return sum(digest.size for digest in self.digests)

    @property
    def unproven(self) -> tuple[ChunkDigest, ...]:
        """Chunks that were not read since the last byte was written.

        On a fake medium a write may land anywhere. So a chunk that was equal before the last
        write may have changed by it.
        """
        written = (*self.digests, *self.past)
        return (*written, *self.equal) if any(each.pieces for each in written) else ()


@dataclass(slots=True)
class Writer:
    """The writing of one target, in a thread of its own."""

    medium: Medium
    plan: WritePlan
    queue: ChunkQueue
    progress: Progress
    stop: Stop
    requests: int
    """Chunks on their way to the medium at a time."""

    skip_equal: bool = False
    patches: tuple[Patch, ...] = ()
    """Bytes that the target shall hold in place of the image's, or past the image; in order."""

    _requests: deque[tuple[Future[bool], ChunkDigest, Release]] = field(default_factory=deque)
    _capacity: int = 0
    _accepted: int = 0
    """Bytes of the chunks that the medium has accepted whole."""

    _left_to_show: int = 0
    """Bytes of the plan that the progress has not been advanced by."""

    _digests: list[ChunkDigest] = field(default_factory=list)
    _equal: list[ChunkDigest] = field(default_factory=list)
    _image_size: int = 0
    _past: list[ChunkDigest] = field(default_factory=list)
    _wiped: tuple[Extent, ...] = ()
    _zeroing: threading.Lock = field(default_factory=threading.Lock)
    _head_zeroed: bool = False
    _begun: Begun = Begun.NOTHING

    def write_all(self) -> Written:
        """Write every chunk of the queue, the head last and after a flush, and flush again.

        Raises:
            ImageError: the image failed before anything was written.
            ImageFailedError: it failed later. The target holds part of it; its head is zeroed,
                so it does not boot.
            WriteError: the medium failed or is smaller than the image; the same state.
            InterruptedWriteError: ``stop`` returned true; the same state.
        """
        # Read once: the room for a file shrinks as it is written.
        self._capacity = self.medium.capacity
        self._left_to_show = self.plan.size_to_write
        try:
            with ThreadPoolExecutor(self.requests, "write") as pool:
                try:
                    self._write_chunks(pool)
                finally:
                    # After a failure their outcome does not matter, but their buffers are in use.
                    while self._requests:
                        future, _digest, release = self._requests.popleft()
                        wait([future])
                        release()
            self.medium.flush()
        except InterruptedWriteError:
            raise
        except WriteError as error:
            raise self._failure(error) from error
        except ImageError as error:
            raise self._image_failure(error) from error
        return Written(
            tuple(self._digests),
            tuple(self._equal),
            tuple(self._past),
            self.patches,
            self._image_size,
            self._wiped,
        )

    def _write_chunks(self, pool: ThreadPoolExecutor) -> None:
        for chunk, release in self.queue.chunks(self.stop):
            try:
                future, digest = self._submit(pool, chunk)
            except BaseException:
                release()
                raise
            self._requests.append((future, digest, release))
            self._wait_for_requests(self.requests - 1)
        self._wait_for_requests(0)

    def _submit(
        self, pool: ThreadPoolExecutor, chunk: Chunk | None
    ) -> tuple[Future[bool], ChunkDigest]:
        """Begin to write ``chunk``; before the head, all else is written and flushed."""
        if chunk is None or self.stop():
            raise self._interruption()
        if chunk.fault is not None:
            raise chunk.fault
        if chunk.digest.extent.end > self._capacity:
            raise self._too_small()
        if chunk.digest.extent.start < self.plan.head.end:
            self._wait_for_requests(0)
            self._write_end()
            self.medium.flush()
        patched = self._patched(chunk)
        return pool.submit(self._write, patched), patched.digest

    def _patched(self, chunk: Chunk) -> Chunk:
        """``chunk`` with the patches of this target; other targets share its buffer."""
        extent = chunk.digest.extent
        if not any(extent.overlaps(patch.extent) for patch in self.patches):
            return chunk
        # mmap gives zeroed pages, aligned as O_DIRECT wants them. A free chunk has no buffer.
        buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        buffer[: len(chunk.buffer)] = chunk.buffer
        lay_over(self.patches, extent.start, buffer[: extent.size])
        runs = classify(buffer[: extent.size], extent.start, (), coarse=True)
        return Chunk(chunk.number, make_digest(extent, buffer, runs, has_digest=True), buffer)

    def _write_end(self) -> None:
        """Write what belongs past the image, whose size is known by now."""
        end = plan_end(self.medium, self.patches, max(self._image_size, self.plan.least_size))
        self._wiped = end.wiped
        for patch in end.patches:
            extent = patch.extent
            buffer = memoryview(mmap.mmap(-1, extent.size))
            buffer[:] = patch.data
            digest = make_digest(extent, buffer, [Run(extent, Content.DATA)], has_digest=True)
            if self.skip_equal and self._is_equal(digest):
                self._equal.append(digest)
                continue
            if self._begun is Begun.NOTHING:
                self._begun = Begun.PART
            self._past.append(digest)
            self.medium.write(extent.start, buffer)

    def _wait_for_requests(self, left: int) -> None:
        """Wait until at most ``left`` requests are on their way."""
        while len(self._requests) > left:
            was_equal = self._requests[0][0].result()
            _future, digest, release = self._requests.popleft()
            release()
            self._image_size = max(self._image_size, digest.extent.end)
            if was_equal:
                self._equal.append(digest)
            else:
                self._digests.append(digest)
                self._accepted += digest.size
                if digest.size:
                    self._begun = Begun.PART
            # How much of a stream is free is not known beforehand, so all of it counts. And short
            # gaps between data are written, too, which the plan has not counted.
            done = digest.extent.size if self.plan.free is None else digest.size
            done = min(done, self._left_to_show)
            if done > 0:
                self._left_to_show -= done
                self.progress.advance(done)

    def _write(self, chunk: Chunk) -> bool:
        """Write the pieces of ``chunk``; True if the medium held them already."""
        digest = chunk.digest
        if digest.pieces:
            if self.skip_equal and self._is_equal(digest):
                return True
            self._zero_head()
        for piece in digest.pieces:
            start = piece.extent.start - digest.extent.start
            length = align_up(piece.extent.size, self.medium.alignment)
            if piece.is_zero:
                self.medium.zero(piece.extent.start, length)
            else:
                self.medium.write(piece.extent.start, chunk.buffer[start : start + length])
        return False

    def _zero_head(self) -> None:
        """Zero the head before anything else changes, once: half an image must not boot."""
        with self._zeroing:
            if not self._head_zeroed:
                size = align_up(self.plan.head.size, self.medium.alignment)
                self._head_zeroed = True
                self._begun = Begun.FIRST_WRITE
                # mmap gives zeroed pages, aligned as O_DIRECT wants them.
                self.medium.write(self.plan.head.start, memoryview(mmap.mmap(-1, size)))
                # If it is unplugged now, the zeros must not be left in its cache.
                self.medium.flush()
                self._begun = Begun.START_ZEROED

    def _is_equal(self, digest: ChunkDigest) -> bool:
        return holds(self.medium, digest, memoryview(mmap.mmap(-1, CHUNK_SIZE)))

    def _interruption(self) -> InterruptedWriteError:
        self._wait_for_requests(0)
        self.medium.flush()
        return InterruptedWriteError(
            f"{self.medium.name}: interrupted after {format_size(self._accepted)}; {self._state}",
            hint="Write it again from the start.",
        )

    def _image_failure(self, fault: ImageError) -> ImageError | WriteError:
        if fault.code == "image-too-large":
            return self._failure(self._too_small())
        if self._begun is Begun.NOTHING and not self.medium.was_emptied:
            return fault
        return ImageFailedError(
            f"{self.medium.name}: writing stopped after {format_size(self._accepted)} because "
            f"the image failed: {fault}; {self._state}",
            hint=fault.hint or "Download the image again, then write it from the start.",
        )

    def _too_small(self) -> WriteError:
        return WriteError(
            f"{self.medium.name}: is too small: it has room for {self._capacity} bytes "
            f"({format_size(self._capacity)}), and the image has more",
            code="target-too-small",
            hint="Choose a larger one. The size of some compressed images is known only at the "
            "end.",
        )

    def _failure(self, error: WriteError) -> WriteError:
        """``error`` with what was written before, and what the target holds now."""
        written = f"{format_size(self._accepted)} had been written, " if self._accepted else ""
        return WriteError(
            f"{error}; {written}{self._state}",
            code=error.code,
            hint=error.hint,
        )

    @property
    def _state(self) -> str:
        """The content of the target now, as the end of a sentence."""
        return self.medium.describe_unfinished(self._begun)
