"""Read an image once and hand its chunks to the queue of each target.

A reading has two threads: one reads and decodes, one finds out what each chunk holds. A fixed
number of buffers bounds its memory. Each target takes its chunks at its own pace. When all buffers
wait for the slowest target while another target is idle, the slowest is detached, and the image is
read once more for it alone.
"""

import mmap
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.flashing.plan import CHUNK_SIZE, Chunk, ChunkDigest, WritePlan, make_digest
from balenaflash.formats.contents import BLOCK_SIZE, FreeCursor, classify
from balenaflash.formats.partitions.model import Partition
from balenaflash.progress import Stop
from balenaflash.source.base import Source
from balenaflash.units import Extent, align_up

_BUFFERS = 8
"""Chunks in memory: reading, decoding and writing go on beside each other, with some to spare."""

_BUFFERS_ALONE = 4
"""Chunks in memory for one slow target: two being written, one ready, one being read."""

_MOST_ALONE = 6
"""Targets with a reading of their own, at most: each takes memory and decodes the image again."""

_AHEAD = 10
"""Chunks read and not yet offered, at most."""

_PATIENCE = 0.05
"""Seconds without a free buffer until the slowest target is looked for."""

_STOP_INTERVAL = 0.1
"""Seconds between two calls of ``stop`` while no chunk comes: a pipe may stand still."""

Release = Callable[[], None]
"""Returns the buffer of a chunk. Called exactly once, when the buffer is not needed any more."""


class WorkerThread(threading.Thread):
    """A thread that keeps what ended it, for the thread that waits for it.

    A daemon: a medium or a server that hangs must not keep the program from ending.
    """

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=name, target=target, daemon=True)
        self.crash: BaseException | None = None

    def run(self) -> None:
        """Run the target."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.crash = error


class ChunkQueue:
    """The chunks on their way to one target, in their order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._chunks = deque[tuple[Chunk, Release]]()
        self._next = 0
        self._complete: bool | None = None
        self._closed = False
        self.waiting = 0
        """Chunks that were offered and not released yet."""

    def offer(self, chunk: Chunk, release: Release) -> bool:
        """Append ``chunk``, which follows the last one; False if the queue is closed."""
        with self._condition:
            if self._closed:
                return False
            if chunk.number != self._next:
                raise ValueError(f"chunk {chunk.number} comes instead of {self._next}")
            self._next += 1
            self.waiting += 1
            self._chunks.append((chunk, partial(self._return, release)))
            self._condition.notify()
            return True

    def finish(self, *, complete: bool) -> None:
        """End the queue: all chunks were offered or, if not ``complete``, reading broke off."""
        with self._condition:
            self._complete = complete
            self._condition.notify()

    def drop(self) -> int | None:
        """Release the chunks not taken yet; the number of the first, ``None`` after `close`."""
        with self._condition:
            dropped = [release for _chunk, release in self._chunks]
            self._chunks.clear()
            self._next -= len(dropped)
            first = None if self._closed else self._next
        for release in dropped:
            release()
        return first

    def close(self) -> None:
        """Refuse any more chunks, and release those not taken yet."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self.drop()

    def chunks(self, stop: Stop) -> Iterator[tuple[Chunk | None, Release]]:
        """Each chunk in its order, with what releases its buffer.

        If ``stop`` returns true while no chunk comes, ``None`` takes the place of a chunk and is
        the last.

        Raises:
            ImageError: reading the image broke off, and no chunk carries the reason.
        """
        while self._wait(stop):
            with self._condition:
                if not self._chunks:
                    return
                chunk, release = self._chunks.popleft()
            yield chunk, release
        yield None, lambda: None

    def _wait(self, stop: Stop) -> bool:
        """Wait for a chunk or the end of all; False if ``stop`` returned true before."""
        with self._condition:
            while not self._chunks and self._complete is None and not self._closed:
                if not self._condition.wait(_STOP_INTERVAL) and stop():
                    return False
            if self._closed or (self._complete is False and not self._chunks):
                raise ImageError("reading the image broke off", code="image-failed")
            return True

    def _return(self, release: Release) -> None:
        with self._condition:
            self.waiting -= 1
        release()


@dataclass(slots=True)
class _Buffer:
    memory: mmap.mmap
    users: int = 0
    """Targets that still need its content."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A range of the image that was read."""

    extent: Extent
    buffer: _Buffer | None
    """Its content; ``None`` if all of it is free, or with a fault."""

    free: list[Extent]
    fault: ImageError | None = None


@dataclass(slots=True)
class _Reading:
    """One pass over the chunks of ``source``, for one or more queues."""

    source: Source
    extents: Iterator[Extent]
    """Ranges to read, each at most ``CHUNK_SIZE`` long and starting at a multiple of 4 KiB."""

    open_cursor: Callable[[], FreeCursor | None]
    """Finds what is free; ``None`` if everything is written."""

    queues: list[ChunkQueue]
    number: int
    """Number of the next chunk."""

    buffers: int
    """Chunks in memory at a time."""

    has_digests: bool
    read_alone: Callable[[ChunkQueue], bool]
    """Starts another reading for one of the queues; False if that is not possible."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Held while a chunk is offered and while a queue is detached: it gets no chunk in between.
    _offering: threading.Lock = field(default_factory=threading.Lock)
    _free: "queue.SimpleQueue[_Buffer]" = field(default_factory=queue.SimpleQueue)
    # Free chunks need no buffer, so the queue has a bound of its own.
    _loaded: "queue.Queue[_Loaded | None]" = field(default_factory=lambda: queue.Queue(_AHEAD))
    _stopped: bool = False
    _complete: bool = False
    _crash: BaseException | None = None

    def run(self) -> None:
        """Offer every chunk; return after the last one, or when all queues are closed.

        Whatever ends the reading is raised here again, except a fault of the image.
        """
        for _ in range(self.buffers):
            self._free.put(_Buffer(mmap.mmap(-1, CHUNK_SIZE)))
        threading.Thread(target=self._read, name="read-image", daemon=True).start()
        all_offered = False
        try:
            all_offered = self._offer_all()
        finally:
            self._stopped = True
            if not all_offered:
                # The reader may wait for a place in the queue. One that stands still is left alone.
                with suppress(queue.Empty):
                    while self._loaded.get(timeout=_PATIENCE) is not None:
                        pass
            # Targets read back now, and need the memory.
            self._free = queue.SimpleQueue()
            with self._offering:
                queues, self.queues = self.queues, []
            for each in queues:
                each.finish(complete=all_offered and self._complete)
        if self._crash is not None:
            raise self._crash

    def stop(self) -> None:
        """Make `run` return soon, even while reading the image stands still."""
        self._stopped = True

    def _read(self) -> None:
        """Load all chunks, in a thread of its own."""
        try:
            cursor = self.open_cursor()
            for extent in self.extents:
                loaded = self._load(extent, cursor)
                if loaded is None or self._stopped:
                    return
                self._loaded.put(loaded)
                if loaded.fault is not None:
                    return
            self._complete = True
        except ImageError as error:
            # The image is damaged where its end was looked for.
            self._loaded.put(_Loaded(Extent(0, 0), None, [], error))
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._crash = error
        finally:
            self._loaded.put(None)

    def _load(self, extent: Extent, cursor: FreeCursor | None) -> _Loaded | None:
        """Read ``extent``; ``None`` if it is not needed any more."""
        free: list[Extent] = []
        buffer = None
        try:
            free = [] if cursor is None else cursor.take(extent)
            if free == [extent]:
                return _Loaded(extent, None, free)
            buffer = self._wait_for_buffer()
            if buffer is None:
                return None
            view = memoryview(buffer.memory)
            # Only this read: the cursor may want to read again what it has read.
            with self.source.sequential():
                self.source.readinto(extent.start, view[: extent.size])
            end = align_up(extent.size, BLOCK_SIZE)
            view[extent.size : end] = bytes(end - extent.size)
        except ImageError as error:
            if buffer is not None:
                self._free.put(buffer)
            return _Loaded(extent, None, free, error)
        return _Loaded(extent, buffer, free)

    def _wait_for_buffer(self) -> _Buffer | None:
        """A free buffer; ``None`` if none is needed any more."""
        while not self._stopped:
            try:
                return self._free.get(timeout=_PATIENCE)
            except queue.Empty:
                self._detach_slowest()
        return None

    def _detach_slowest(self) -> None:
        """Detach the target that holds the buffers, if another one is idle because of that."""
        with self._offering:
            waiting = [each.waiting for each in self.queues]
            most = max(waiting, default=0)
            # Never true of a single one.
            if most >= self.buffers // 2 and min(waiting) <= 1:
                slowest = self.queues[waiting.index(most)]
                if self.read_alone(slowest):
                    self.queues = [each for each in self.queues if each is not slowest]

    def _offer_all(self) -> bool:
        """Offer all that is loaded; False if it was stopped or no queue is open any more."""
        while not self._stopped:
            try:
                loaded = self._loaded.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if loaded is None:
                return True
            self._offer(self._make_chunk(loaded), loaded.buffer)
            if not self.queues:
                return False
        return False

    def _make_chunk(self, loaded: _Loaded) -> Chunk:
        number, extent = self.number, loaded.extent
        self.number += 1
        if loaded.buffer is None:
            return Chunk(number, ChunkDigest(extent, (), b""), memoryview(b""), loaded.fault)
        view = memoryview(loaded.buffer.memory)[: align_up(extent.size, BLOCK_SIZE)]
        # Shorter runs of zeros are written like data anyway.
        runs = classify(view[: extent.size], extent.start, loaded.free, coarse=True)
        return Chunk(number, make_digest(extent, view, runs, has_digest=self.has_digests), view)

    def _offer(self, chunk: Chunk, buffer: _Buffer | None) -> None:
        """Offer ``chunk`` to every queue, and forget the queues that are closed."""
        release = partial(self._release, buffer)
        with self._offering:
            users = len(self.queues) + 1
            if buffer is not None:
                # One more for this thread: no target can free it while it is being offered.
                buffer.users = users
            self.queues = [each for each in self.queues if each.offer(chunk, release)]
            not_taken = users - len(self.queues)
        for _ in range(not_taken):
            release()

    def _release(self, buffer: _Buffer | None) -> None:
        if buffer is None:
            return
        with self._lock:
            buffer.users -= 1
            is_free = buffer.users == 0
        if is_free and not self._stopped:
            self._free.put(buffer)


class Feed:
    """An image that is read for several targets, while a ``with`` block lasts.

    It is read once for all, and once more for each target that cannot keep up.
    """

    def __init__(
        self,
        source: Source,
        plan: WritePlan,
        targets: int,
        *,
        limit: int | None,
        has_digests: bool = True,
    ) -> None:
        """Prepare a queue for each of so many ``targets``, and read nothing yet.

        An image of more than ``limit`` bytes is reported as a fault. Without digests its chunks
        can be written, but not compared with anything.
        """
        self.queues = tuple(ChunkQueue() for _ in range(targets))
        self._source = source
        self._plan = plan
        self._limit = limit
        self._has_digests = has_digests
        self._found = dict[int, Partition]()
        self._lock = threading.Lock()
        self._readings: list[tuple[_Reading, WorkerThread]] = []
        self._closing = False

    @property
    def plan(self) -> WritePlan:
        """The plan, with the logical partitions that were found by now."""
        return replace(self._plan, logical=tuple(self._found.copy().values()))

    def __enter__(self) -> Self:
        """Begin to read."""
        self._start(self._source, self.queues, 0, _BUFFERS)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the queues and wait for every reading.

        Raises:
            BaseException: what ended a reading, except a fault of the image: a bug.
        """
        with self._lock:
            self._closing = True
            readings = list(self._readings)
        for each in self.queues:
            each.close()
        for reading, _thread in readings:
            reading.stop()
        if kind is not None and not issubclass(kind, Exception):
            return  # the user wants to leave at once
        for _reading, thread in readings:
            thread.join()
        for _reading, thread in readings:
            if thread.crash is not None:
                raise thread.crash

    def _read_alone(self, slow: ChunkQueue) -> bool:
        """Read the image for ``slow`` alone, from its next chunk on; False if not possible."""
        source = self._source.fork() if len(self._readings) <= _MOST_ALONE else None
        if source is None:
            return False
        first = slow.drop()
        if first is not None:
            self._start(source, [slow], first, _BUFFERS_ALONE)
        return True

    def _start(
        self, source: Source, queues: Sequence[ChunkQueue], first: int, buffers: int
    ) -> None:
        reading = _Reading(
            source,
            islice(self._plan.chunks(source, self._limit), first, None),
            partial(self._plan.free_space, source, self._found),
            list(queues),
            first,
            buffers,
            self._has_digests,
            self._read_alone,
        )
        thread = WorkerThread("feed", reading.run)
        with self._lock:
            if not self._closing:
                self._readings.append((reading, thread))
                thread.start()
